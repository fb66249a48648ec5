"""What is wrong with a data set, as rows of audit.csv; reported, never repaired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

T = TypeVar("T")

Severity = Literal["error", "warning", "note"]
LISTED = 100_000
"""Findings of one kind that are listed one by one; the rest of them is counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something about an image, a row or a folder that a data manager should know.

    Attributes
    ----------
    severity : {"error", "warning", "note"}
        error: an image that cannot be used, or a leak. warning: somebody should look. note: for information.
    image_id, file, tag : str
        Where: the image, its path from the root, and the DICOM attribute or the column; empty where there is none.
    reason : str
        What, in the same words for all findings of a kind.
    expected, found, what_to_do : str
        Never a value of a header that may identify a patient.
    count : int
        Cases that it stands for.
    """

    severity: Severity
    image_id: str = ""
    file: str = ""
    tag: str = ""
    reason: str
    expected: str = ""
    found: str = ""
    what_to_do: str = ""
    count: int = 1


def each(cases: Sequence[T], finding: Callable[[T], Finding]) -> list[Finding]:
    """A finding per case, or, where there are more than :data:`LISTED`, one more that counts the rest."""
    made = [finding(case) for case in cases[:LISTED]]
    rest = len(cases) - len(made)
    if rest:
        made.append(replace(made[-1], image_id="", file="", found=f"{rest} more of these", count=rest))
    return made
