"""audit.html: whether a data set is fit, its findings, a montage of its odd images, and what it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mammoray import page
from mammoray.figures import png_uri, short_id
from mammoray.findings import Finding
from mammoray.markup import Html, el, join, percent, table
from mammoray.rules import BURNED_IN

Picture = dict[str, Any] | None
"""A decoded thumbnail, as a sandbox hands it over: ``pixels`` is (H, W) uint8; None where there is none to show."""
SHOWN = 24
"""Images of the montage."""
_ROWS = 30


def choose(findings: Iterable[Finding], count: int = SHOWN) -> list[Finding]:
    """The findings to show a picture of: of every reason about an image, errors first, in turn.

    Burned-in text is no reason to show an image: it may name a patient.

    Parameters
    ----------
    findings : iterable of Finding
    count : int
        At most so many, each of another file.
    """
    images = [f for f in findings if f.image_id and f.file and f.severity != "note" and f.reason != BURNED_IN]
    serious = {finding.file for finding in images if finding.severity == "error"}
    by_reason: dict[tuple[bool, str], list[Finding]] = {}
    for finding in images:
        if finding.severity == "error" or finding.file not in serious:
            by_reason.setdefault((finding.severity != "error", finding.reason), []).append(finding)
    chosen: dict[str, Finding] = {}
    groups = [iter(group) for _, group in sorted(by_reason.items(), key=lambda item: item[0])]
    while groups and len(chosen) < count:
        for group in list(groups):
            another = next((f for f in group if f.file not in chosen), None)
            if another is None:
                groups.remove(group)
            elif len(chosen) < count:
                chosen[another.file] = another
    return sorted(chosen.values(), key=lambda f: (f.severity != "error", f.reason, f.file))


def render(name: str, audit: Mapping[str, Any], odd: Sequence[tuple[Finding, Picture]]) -> str:
    """The page's HTML.

    Parameters
    ----------
    name : str
        Title.
    audit : mapping
        Content of audit.json.
    odd : sequence of (Finding, Picture)
        Images to show.
    """
    parts = {
        "name": name,
        "facts": _facts(audit),
        "verdict": _verdict(audit),
        "limits": _limits([*audit["limits"], *([audit["leak"]] if audit["leak"] else [])]),
        "findings": page.findings(audit),
        "images": _montage(odd),
        "classes": _classes(audit["classes"]),
        "counts": _counts(audit["counts"]),
        "version": audit["version"],
    }
    return page.fill("audit.html", parts)


def _facts(audit: Mapping[str, Any]) -> Html:
    pairs = {
        "Layout": audit["layout"],
        "Images": f"{audit['images']:,}",
        "Without a file": f"{audit['absent']:,}",
        "Groups": f"{audit['patients']:,}, by {audit['grouped_by']}",
        "Looked at": audit["looked_at"],
        "Took": f"{audit['seconds']:,.1f} s",
    }
    return el("dl", *(el("div", el("dt", key), el("dd", value)) for key, value in pairs.items()), class_="facts")


def _verdict(audit: Mapping[str, Any]) -> Html:
    badge = el("span", "fit" if audit["fit"] else "not fit", class_="badge fit" if audit["fit"] else "badge unfit")
    good, total = audit["readable"], audit["images"] + audit["absent"]
    sentence = (
        f"{good:,} of {total:,} images ({percent(good, total)}) can be read, "
        f"of which {100 * audit['min_readable']:g} % are needed."
    )
    why = [el("ul", *(el("li", reason) for reason in audit["why_not"]))] if audit["why_not"] else []
    return join([el("p", badge), el("p", sentence), *why])


def _limits(limits: Sequence[str]) -> Html:
    if not limits:
        return Html("")
    items = [el("li", text) for text in limits]
    return el("aside", el("h2", "Limits of this data set"), el("ul", *items), class_="limits", aria_label="Limits")


def _montage(odd: Sequence[tuple[Finding, Picture]]) -> Html:
    if not odd:
        return el("p", "No image has an error or a warning.", class_="quiet")
    return el("div", *(_figure(finding, picture) for finding, picture in odd), class_="montage")


def _figure(finding: Finding, picture: Picture) -> Html:
    alt = f"Image {finding.image_id}: {finding.reason}"
    if picture is None:
        shown = el("div", "no picture, or one with text in it", class_="blank", role="img", aria_label=alt)
    else:
        pixels = np.ascontiguousarray(picture["pixels"], np.uint8)
        shown = el("img", src=png_uri(pixels.tobytes(), *pixels.shape), alt=alt)
    identifier = el("small", short_id(finding.image_id), title=finding.image_id)
    words = el("small", f"expected {finding.expected}, found {finding.found}")
    caption = el("figcaption", el("b", finding.reason, class_=finding.severity), identifier, words)
    return el("figure", shown, caption, class_="odd")


def _classes(rows: Sequence[Mapping[str, Any]]) -> Html:
    labels = sorted({label for row in rows for label in row["classes"]}, key=lambda label: (label == "none", label))
    nothing = {"images": 0, "patients": 0}
    cells = [
        [
            _place(row),
            *(f"{row['classes'].get(label, nothing)[unit]:,}" for label in labels for unit in ("images", "patients")),
        ]
        for row in rows
    ]
    header = ["Site and machine", *(unit for _ in labels for unit in ("images", "patients"))]
    names = ["no label" if label == "none" else label for label in labels]
    return el("div", table(header, cells, groups=names), class_="panel")


def _place(row: Mapping[str, Any]) -> str:
    if not row["site_id"] and not row["machine_id"]:
        return "All"
    return f"site {row['site_id'] or '?'}, machine {row['machine_id'] or '?'}"


def _counts(counts: Mapping[str, Any]) -> Html:
    sizes = counts["sizes"]
    machines = {f"{row['manufacturer'] or '?'}, {row['model'] or '?'}": row["files"] for row in counts["machines"]}
    syntaxes = {row["transfer_syntax"]: row["files"] for row in counts["transfer_syntaxes"]}
    panels: dict[str, Mapping[str, int]] = {
        "Transfer syntax": syntaxes,
        "Machine, by the header": machines,
        "Photometric interpretation": counts["photometric"],
        "Bits stored": counts["bits_stored"],
        f"Size, rows x columns ({sizes['different']:,} different)": sizes["commonest"],
        "Windows": {key.replace("_", " "): n for key, n in counts["windows"].items()},
        "View": counts["views"],
        "Implant, by the header": counts["implants"]["header"],
        "Implant, by the CSV": counts["implants"]["csv"],
        "Modality": counts["modalities"],
        "Presentation intent": counts["intents"],
        "Kind of file": counts["kinds"],
    }
    return el("div", *(_panel(title, values) for title, values in panels.items() if values), class_="two")


def _panel(title: str, values: Mapping[str, int]) -> Html:
    items = sorted(values.items(), key=lambda item: -item[1])
    rows = [[name, f"{n:,}"] for name, n in items[:_ROWS]]
    if len(items) > _ROWS:
        rows.append([f"{len(items) - _ROWS:,} others", f"{sum(n for _, n in items[_ROWS:]):,}"])
    return el("div", table(["", "files"], rows, title), class_="panel")
