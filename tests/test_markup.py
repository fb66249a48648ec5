"""Markup: data never become elements, numbers read the same everywhere, and what is undefined is a dash."""

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammoray.markup import UNDEFINED, Html, defined, el, join, number, percent, table


class Parsed(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")))
def test_whatever_text_an_element_gets_a_browser_reads_back_as_text(text: str) -> None:
    parsed = Parsed(el("p", text, title=text))
    assert parsed.tags == [("p", {"title": text})]
    assert parsed.text == text


def test_markup_is_not_escaped_again_and_parts_between_are() -> None:
    assert el("b", el("i", "<")) == "<b><i>&lt;</i></b>"
    assert join([Html("<br>"), "<"], " & ") == "<br> & &lt;"


def test_attributes_have_hyphens_and_none_is_left_out() -> None:
    assert el("text", text_anchor="end", class_="k", title=None) == '<text text-anchor="end" class="k"></text>'


def test_an_element_without_content_is_not_closed() -> None:
    assert el("img", alt="") == '<img alt="">'


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_has_no_value_is_a_dash(value: float | None) -> None:
    assert number(value) == UNDEFINED
    assert not defined(value)


def test_numbers_have_separators_a_true_minus_and_their_decimals() -> None:
    assert (number(-1234.5, 1), number(0.6789, 2), number(0)) == ("\u22121,234.5", "0.68", "0.000")


def test_shares_are_whole_percent_and_undefined_of_nothing() -> None:
    assert (percent(1, 3), percent(0, 0)) == ("33\u00a0%", UNDEFINED)


def test_headings_above_a_table_cover_all_columns_but_the_first() -> None:
    parsed = Parsed(table(["", "a", "b", "c", "d"], [["r", "1", "2", "3", "4"]], "Title", ["left", "right"]))
    spans = [attributes["colspan"] for _, attributes in parsed.tags if "colspan" in attributes]
    assert spans == ["2", "2"]
    assert parsed.text == "Titleleftrightabcdr1234"
