"""The frame of an HTML page that opens without a network: ``NAME.html`` beside this module, filled in, and page.css."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

from mammoray.markup import Html, el, join


def fill(frame: str, parts: Mapping[str, str]) -> str:
    """The page's HTML.

    Parameters
    ----------
    frame : str
        File beside this module, with ``$name`` where a part goes, and ``$style``.
    parts : mapping of str to str
        What is not :class:`mammoray.markup.Html` is escaped.
    """
    files = resources.files("mammoray")
    style = Html(files.joinpath("page.css").read_text(encoding="utf-8"))
    every = {**parts, "style": style}
    text = files.joinpath(frame).read_text(encoding="utf-8")
    return Template(text).substitute({key: join([value]) for key, value in every.items()})


def findings(audit: Mapping[str, Any]) -> Html:
    """The counts of audit.json: by severity, and a row a reason with what to do."""
    chips = [el("span", f"{name}: {n:,}", class_="chip") for name, n in audit["by_severity"].items()]
    summary = el("p", join(chips, " "))
    if not audit["by_reason"]:
        return join([summary, el("p", "Nothing was found amiss.", class_="quiet")])
    header = [el("th", name, scope="col") for name in ("Severity", "Count", "Reason", "What to do")]
    rows = [
        el(
            "tr",
            el("th", row["severity"], scope="row", class_=row["severity"]),
            el("td", f"{row['count']:,}", class_="n"),
            el("td", row["reason"]),
            el("td", row["what_to_do"]),
        )
        for row in audit["by_reason"]
    ]
    body = el("table", el("thead", el("tr", *header)), el("tbody", *rows), class_="words")
    return join([summary, el("div", el("div", body, class_="scroll"), class_="panel")])
