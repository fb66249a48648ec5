"""HTML and SVG elements, numbers for the eye, and tables.

Text becomes HTML in one place, :func:`el`, which escapes everything that is not :class:`Html` already.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

UNDEFINED = "\u2013"  # An en dash.
_VOID = frozenset({"img", "br"})


class Html(str):
    """Text that is HTML already; any other ``str`` is data and is escaped by :func:`el`."""

    __slots__ = ()


def join(parts: Iterable[str], separator: str = "") -> Html:
    """Concatenate; what is not :class:`Html` is escaped."""
    return Html(Html(separator).join(part if isinstance(part, Html) else escape(part) for part in parts))


def el(name: str, *children: str, **attributes: object) -> Html:
    """One HTML or SVG element.

    Parameters
    ----------
    name : str
        The element's name.
    *children : str
        Content; escaped, except :class:`Html`.
    **attributes : object
        Escaped. ``class_`` stands for ``class``, an inner underscore for a hyphen; ``None`` leaves the attribute out.

    Examples
    --------
    >>> el("td", "<script>", class_="hit", aria_label='"A"')
    '<td class="hit" aria-label="&quot;A&quot;">&lt;script&gt;</td>'
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    start = "".join(f' {key}="{escape(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{start}>" if name in _VOID else f"<{name}{start}>{join(children)}</{name}>")


def defined(value: float | None) -> bool:
    """Whether a metric has a value: neither null nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number for the eye: thousands separators, a true minus, an en dash where it is undefined.

    Examples
    --------
    >>> number(12345, 0), number(None) == UNDEFINED
    ('12,345', True)
    """
    if value is None or not math.isfinite(value):
        return UNDEFINED
    return f"{value:,.{digits}f}".replace("-", "\u2212")


def percent(part: float, whole: float) -> str:
    """``part`` of ``whole`` in whole percent; an en dash where there is no whole."""
    return f"{100 * part / whole:.0f}\u00a0%" if whole else UNDEFINED


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None, groups: Sequence[str] = ()
) -> Html:
    """Make a table that scrolls sideways where the screen is narrow.

    Parameters
    ----------
    header : sequence of str
        Headings of the columns.
    rows : iterable of sequence of str
        Cells; the first of each row is its heading.
    caption : str, optional
        Title of the table.
    groups : sequence of str
        Headings above the columns after the first, each over an equal number of them.
    """
    heads = [el("tr", *(el("th", cell, scope="col") for cell in header))]
    if groups:
        span = (len(header) - 1) // len(groups)
        above = (el("th", name, scope="colgroup", colspan=span) for name in groups)
        heads.insert(0, el("tr", el("td"), *above, class_="groups"))
    body = [el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:])) for row in rows]
    inside = [el("caption", caption)] if caption else []
    return el("div", el("table", *inside, el("thead", *heads), el("tbody", *body)), class_="scroll")
