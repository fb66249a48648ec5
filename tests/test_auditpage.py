"""audit.html: the right images, nothing that loads from elsewhere, everything escaped, no burned-in text."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mammoray import auditpage, cli, config
from mammoray.findings import Finding, Severity
from mammoray.rules import BURNED_IN
from mammoray.synth import SynthSummary
from tests import spoil


def finding(severity: Severity, reason: str, file: str) -> Finding:
    return Finding(
        severity=severity, image_id=file.removesuffix(".dcm"), file=file, tag="", reason=reason, expected="<e>",
        found="<f>", what_to_do="w",
    )  # fmt: skip


def content(**changes: Any) -> dict[str, Any]:
    """An audit.json."""
    names = ("photometric", "bits_stored", "windows", "views", "modalities", "intents", "kinds")
    nothing: dict[str, Any] = {name: {"<x>": 1} for name in names}
    return {
        "version": "1", "fit": True, "why_not": [], "layout": "rsna", "grouped_by": "patient_id", "limits": ["<limit>"],
        "leak": None,
        "looked_at": "heads", "images": 2, "patients": 1, "absent": 0, "readable": 2, "min_readable": 0.95,
        "seconds": 1.0, "findings": 0, "by_severity": {"error": 0, "warning": 0, "note": 0}, "by_reason": [],
        "classes": [{"site_id": "", "machine_id": "", "classes": {"A": {"images": 2, "patients": 1}}}],
        "counts": {
            **nothing, "sizes": {"different": 1, "commonest": {"4 x 4": 2}}, "implants": {"header": {}, "csv": {}},
            "machines": [{"manufacturer": "<m>", "model": "", "files": 2}],
            "transfer_syntaxes": [{"transfer_syntax": "t", "uid": "", "files": 2}],
        },
        **changes,
    }  # fmt: skip


class Tags(HTMLParser):
    """The elements of a page, and what they refer to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_errors_are_shown_before_warnings_every_reason_in_turn_and_a_file_once() -> None:
    findings = [finding("warning", "w", f"{i}.dcm") for i in range(9)]
    findings += [finding("error", "a", f"{i}.dcm") for i in range(3)] + [finding("error", "b", "0.dcm")]
    chosen = auditpage.choose(findings, 5)
    assert len({f.file for f in chosen}) == len(chosen) == 5
    assert [f.severity for f in chosen] == ["error"] * 3 + ["warning"] * 2
    assert len(auditpage.choose(findings, 100)) == 9
    assert auditpage.choose(findings, 0) == []


def test_notes_rows_without_a_file_and_burned_in_text_are_not_shown() -> None:
    findings = [finding("note", "n", "1.dcm"), finding("error", "e", ""), finding("warning", BURNED_IN, "2.dcm")]
    assert auditpage.choose(findings) == []


def test_the_page_escapes_its_data_and_loads_nothing() -> None:
    picture = {"pixels": np.arange(48, dtype=np.uint8).reshape(8, 6)}
    odd = [(finding("error", "<script>r</script>", "1.dcm"), picture), (finding("warning", "w", "2.dcm"), None)]
    page = auditpage.render("<b>name</b>", content(), odd)
    tags = Tags(page)
    assert "script" not in tags.names
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in tags.sources)
    assert tags.names.count("img") == 1
    for text in ("&lt;script&gt;", "&lt;limit&gt;", "&lt;m&gt;", "&lt;b&gt;name", "no picture"):
        assert text in page


@pytest.mark.parametrize("fit", [True, False])
def test_the_verdict_and_its_reasons_stand_on_the_page(fit: bool) -> None:
    page = auditpage.render("n", content(fit=fit, why_not=[] if fit else ["a leak"]), [])
    assert (">fit<" in page, ">not fit<" in page, "a leak" in page) == (fit, not fit, not fit)


def test_a_page_of_nothing_is_a_page() -> None:
    empty = content(images=0, readable=0, classes=[{"site_id": "", "machine_id": "", "classes": {}}])
    assert "No image has an error" in auditpage.render("n", empty, [])


def test_an_image_with_text_burned_in_has_no_picture_even_if_something_else_is_odd_about_it(
    rsna: SynthSummary, ray_session: None, tmp_path: Path
) -> None:
    data = spoil.copied(rsna, tmp_path / "set")
    for place in (0, 5):
        spoil.other_laterality(data, place)
    spoil._edited(data, 5, lambda ds: ds.update({"BurnedInAnnotation": "YES"}))
    words = ["--csv", str(data.csv), "--dicom-root", str(data.root), "--outdir", str(tmp_path / "out")]
    assert cli.main(["audit", *words]) == 0
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert (page.count("<img "), page.count("no picture")) == (1, 1)


def test_the_classes_of_the_label_rules_are_columns_in_their_order() -> None:
    places = {name: {"images": 1, "patients": 1} for name in ("none", "D", *config.CLASS_NAMES["density"][:3])}
    page = auditpage.render("n", content(classes=[{"site_id": "", "machine_id": "", "classes": places}]), [])
    heads = [page.index(f">{name}</th>") for name in ("A", "B", "C", "D", "no label")]
    assert heads == sorted(heads)
