"""What may be wrong between images: copies, above all of one patient under two ids, missing views, odd sizes.

Each function takes the table of :func:`mammoray.inventory.take` and gives findings. Identities of headers are there as
digests only, which are compared and never shown; the ids that findings quote are those of the CSV.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from mammoray.catalog import cells
from mammoray.findings import Finding, Severity
from mammoray.labels import DENSITIES
from mammoray.rules import readable

STANDARD_VIEWS = (("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO"))
"""Of a screening examination of two breasts."""
_NAMED = 5
_AREA_RATIO, _SIDE_RATIO = 8.0, 3.0  # RSNA's detectors differ by 4.6 in area; a detector is never so narrow.
_WHOSE = "Find out whose image it is, and correct the CSV; until then leave all of them out (--quarantine)."
_SOP, _PIXELS, _PATIENT = "SOP Instance UID (0008,0018)", "Pixel Data (7FE0,0010)", "Patient ID (0010,0020)"


def _finding(severity: Severity, row: Any, tag: str, reason: str, expected: str, found: str, remedy: str) -> Finding:
    """A finding about a row of the table, or about none."""
    return Finding(
        severity=severity,
        image_id="" if row is None else row.image_id,
        file="" if row is None else row.path,
        tag=tag,
        reason=reason,
        expected=expected,
        found=found,
        what_to_do=remedy,
    )


def _named(items: list[str], count: int | None = None) -> str:
    """The first of ``items``, of which there are ``count`` in all."""
    more = (len(items) if count is None else count) - _NAMED
    return ", ".join(items[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _copies(data: pd.DataFrame, column: str, across: bool) -> Iterator[list[Any]]:
    """The rows that share a value: those of several patients, or those of one."""
    repeated = data[(data[column] != "") & data.duplicated(column, keep=False)]
    for _, group in repeated.groupby(column, sort=False):
        if (group["patient_id"].nunique() > 1) == across:
            yield list(group.itertuples(index=False))


def _within(data: pd.DataFrame, column: str, tag: str, reason: str) -> list[Finding]:
    remedy, found = "Keep one of them: copies count double in training.", []
    for rows in _copies(data, column, across=False):
        for row in rows:
            others = [other.image_id for other in rows[: _NAMED + 1] if other is not row][:_NAMED]
            also = "also " + _named(others, len(rows) - 1)
            found.append(_finding("warning", row, tag, reason, "an image once", also, remedy))
    return found


def _across(data: pd.DataFrame, column: str, tag: str, reason: str) -> list[Finding]:
    found = []
    for rows in _copies(data, column, across=True):
        one_each = {row.patient_id: row.image_id for row in reversed(rows)}
        for row in rows:
            others = (
                f"{image} of patient {patient}" for patient, image in one_each.items() if patient != row.patient_id
            )
            also = "also " + _named(list(itertools.islice(others, _NAMED)), len(one_each) - 1)
            found.append(_finding("error", row, tag, reason, f"patient {row.patient_id} only", also, _WHOSE))
    return found


def _pictures(data: pd.DataFrame) -> pd.DataFrame:
    """Images that were decoded and show something: all that are black are equal."""
    if "pixel_digest" not in data:
        return data.iloc[:0].assign(pixel_digest="")
    return data[readable(data) & (data["pixel_digest"] != "")]


def same_uid_within(data: pd.DataFrame, grouped_by: str) -> list[Finding]:
    """One SOP Instance UID on several images of a patient."""
    return _within(data, "head_sop", _SOP, "images of one patient have the same SOP Instance UID")


def same_uid_across(data: pd.DataFrame, grouped_by: str) -> list[Finding]:
    """One SOP Instance UID under several patients: a leak between the sides of a split."""
    return _across(data, "head_sop", _SOP, "images of several patients have the same SOP Instance UID (leak)")


def same_pixels_within(data: pd.DataFrame, grouped_by: str) -> list[Finding]:
    """The same picture on several images of a patient."""
    return _within(_pictures(data), "pixel_digest", _PIXELS, "images of one patient have the same pixels")


def same_pixels_across(data: pd.DataFrame, grouped_by: str) -> list[Finding]:
    """The same picture under several patients, whatever their headers and encodings say."""
    return _across(_pictures(data), "pixel_digest", _PIXELS, "images of several patients have the same pixels (leak)")


def _own_scheme(data: pd.DataFrame, column: str) -> bool:
    """Whether the header names most patients as the CSV does; otherwise it has ids of another scheme."""
    given = data[data[column] != ""]
    return bool((given[column] == given["id_token"]).mean() >= 0.5) if len(given) else True


def _identity(grouped_by: str) -> tuple[str, str]:
    """Column and tag of what the header calls the same as ``patient_id``."""
    return (
        ("head_accession", "Accession Number (0008,0050)")
        if grouped_by == "AccessionNumber"
        else ("head_patient", _PATIENT)
    )


def another_id(data: pd.DataFrame, grouped_by: str) -> list[Finding]:
    """Headers that name another patient, or accession number, than the row: the file may be somebody else's."""
    column, tag = _identity(grouped_by)
    other = data[(data[column] != "") & (data[column] != data["id_token"])]
    if other.empty:
        return []
    if not _own_scheme(data, column):
        expected, remedy = f"the {grouped_by} of the CSV", "Nothing, if the headers have pseudonyms of their own."
        reason, found = "the headers have ids of another scheme", f"another value in {len(other)} of {len(data)}"
        return [_finding("note", None, tag, reason, expected, found, remedy)]
    reason = "the header names another patient than the row"
    return [
        _finding("error", row, tag, reason, str(row.patient_id), "another value", _WHOSE)
        for row in other.itertuples(index=False)
    ]


def several_patients(data: pd.DataFrame, grouped_by: str) -> list[Finding]:
    """One id of the CSV whose images name several patients; told only where :func:`another_id` cannot tell."""
    if _identity(grouped_by)[0] == "head_patient" and _own_scheme(data, "head_patient"):
        return []
    named = data[data["head_patient"] != ""]
    count = named.groupby("patient_id")["head_patient"].nunique()
    mixed = named[named["patient_id"].map(count > 1).astype(bool)]
    reason = "the headers of one id name several patients"
    return [
        _finding("error", row, _PATIENT, reason, f"one patient under {row.patient_id}", "several", _WHOSE)
        for row in mixed.itertuples(index=False)
    ]


def shared_patient(data: pd.DataFrame, grouped_by: str) -> list[Finding]:
    """One patient of the headers under several ids of the CSV, who would stand on both sides of a split."""
    by_patient = _identity(grouped_by)[0] == "head_patient"
    if by_patient and _own_scheme(data, "head_patient"):
        return []
    named = data.loc[data["head_patient"] != "", ["head_patient", "patient_id"]].drop_duplicates()
    ids = named.groupby("head_patient")["patient_id"].agg(list)
    # What stands under half of all ids is no patient but the word of an anonymiser.
    shared = ids[(ids.map(len) > 1) & (ids.map(len) < max(2, data["patient_id"].nunique() / 2))]
    severity: Severity = "error" if by_patient else "warning"
    reason = f"the headers of several values of {grouped_by} name one patient (leak)"
    remedy = "Give them one id in the CSV, such as in a column of patients for --group-column."
    return [
        _finding(severity, None, _PATIENT, reason, "one id a patient", f"{len(found)}: {_named(sorted(found))}", remedy)
        for found in sorted(shared)
    ]


def _are_persons(grouped_by: str) -> bool:
    """Whether a group holds one woman; a group by a number in a file's name may hold several."""
    return "patient" in grouped_by.lower() or grouped_by == "AccessionNumber"


def missing_views(data: pd.DataFrame, grouped_by: str) -> list[Finding]:
    """Patients without all four standard views, as far as rows or headers tell views."""
    if not _are_persons(grouped_by):
        return []
    views = pd.DataFrame({"patient_id": data["patient_id"]})
    for name in ("laterality", "view"):
        row = cells(data, name)
        views[name] = row.where(row != "", data[f"head_{name}"])
    views = views[(views["laterality"] != "") & (views["view"] != "")]
    reason, remedy = "the patient lacks standard views", "Nothing, if the views were never taken."
    found = []
    for patient, group in views.groupby("patient_id"):
        present = set(zip(group["laterality"], group["view"], strict=True))
        missing = [f"{side} {view}" for side, view in STANDARD_VIEWS if (side, view) not in present]
        if missing:
            expected, seen = "L CC, L MLO, R CC and R MLO", f"patient {patient} without {', '.join(missing)}"
            found.append(_finding("warning", None, "View Position (0018,5101)", reason, expected, seen, remedy))
    return found


def different_labels(data: pd.DataFrame, grouped_by: str) -> list[Finding]:
    """Patients whose images have several densities: a patient has one."""
    if not _are_persons(grouped_by):
        return []
    labelled = data[data["label"].isin(DENSITIES)]
    mixed = labelled.groupby("patient_id")["label"].agg(lambda column: sorted(set(column)))
    reason, remedy = (
        "images of one patient have different densities",
        "Correct the CSV, if they are of one examination.",
    )
    return [
        _finding("warning", None, "label", reason, "one density a patient", f"{', '.join(found)} of {patient}", remedy)
        for patient, found in mixed[mixed.map(len) > 1].items()
    ]


def odd_sizes(data: pd.DataFrame, grouped_by: str) -> list[Finding]:
    """Images whose size is far from that of the others, or very narrow."""
    sized = data[(data["head_rows"] > 0) & (data["head_columns"] > 0)]
    if sized.empty:
        return []
    area = sized["head_rows"].astype(float) * sized["head_columns"]
    ratio, sides = area / area.median(), sized["head_rows"] / sized["head_columns"]
    odd = (ratio > _AREA_RATIO) | (ratio < 1 / _AREA_RATIO) | (sides > _SIDE_RATIO) | (sides < 1 / _SIDE_RATIO)
    usual = sized.loc[area.sort_values().index[len(area) // 2]]
    expected = f"about {usual['head_rows']} x {usual['head_columns']}"
    reason, remedy = "the size is far from that of the other images", "Look at the image: it may be no mammogram."
    return [
        _finding("warning", row, "Rows (0028,0010)", reason, expected, f"{row.head_rows} x {row.head_columns}", remedy)
        for row in sized[odd].itertuples(index=False)
    ]


RELATIONS: dict[str, Callable[[pd.DataFrame, str], list[Finding]]] = {
    function.__name__: function
    for function in (
        another_id,
        several_patients,
        shared_patient,
        same_uid_across,
        same_pixels_across,
        same_uid_within,
        same_pixels_within,
        missing_views,
        different_labels,
        odd_sizes,
    )
}
"""The relations by name; each is called with the table and the name of the CSV's column behind ``patient_id``."""
LEAKS = ("another_id", "several_patients", "shared_patient", "same_uid_across", "same_pixels_across")
"""Those whose errors mean that a patient may stand on two sides of a split."""


def between_images(data: pd.DataFrame, grouped_by: str) -> dict[str, list[Finding]]:
    """All findings about several images, by the name of the relation; one without a finding is there too."""
    return {name: function(data, grouped_by) for name, function in RELATIONS.items()}
