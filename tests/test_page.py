"""The frame of a page escapes what is data, keeps what is markup, and refuses a part that is missing."""

import re
from pathlib import Path

import pytest

from mammoray import page
from mammoray.markup import el

REASON = {"severity": "error", "count": 1234, "reason": "<r>", "what_to_do": "a & b"}
FILES = Path(page.__file__).parent


@pytest.mark.parametrize("frame", ["audit.html", "report.html"])
def test_data_are_escaped_markup_is_kept_and_the_style_stands_in_the_page(frame: str) -> None:
    names = re.findall(r"\$(\w+)", (FILES / frame).read_text(encoding="utf-8"))
    parts = {**dict.fromkeys(names, "<data> & $money"), "version": el("b", "markup")}
    filled = page.fill(frame, parts)
    assert filled.count("&lt;data&gt; &amp; $money") == sum(name not in ("style", "version") for name in names)
    assert "<b>markup</b>" in filled
    assert "<data>" not in filled
    assert (FILES / "page.css").read_text(encoding="utf-8") in filled


def test_a_page_without_one_of_its_parts_is_refused() -> None:
    with pytest.raises(KeyError):
        page.fill("audit.html", {})


def test_every_reason_is_a_row_with_its_severity_count_and_advice() -> None:
    made = page.findings({"by_severity": {"error": 1234, "note": 2}, "by_reason": [REASON, {**REASON, "count": 2}]})
    assert re.findall(r'class="chip">([^<]*)<', made) == ["error: 1,234", "note: 2"]
    assert re.findall(r'class="n">([^<]*)<', made) == ["1,234", "2"]
    assert made.count("<td>&lt;r&gt;</td><td>a &amp; b</td>") == made.count('class="error">error') == 2


def test_where_nothing_was_found_no_table_says_so() -> None:
    made = page.findings({"by_severity": {"error": 0}, "by_reason": []})
    assert "<table" not in made
    assert "Nothing was found amiss." in made
