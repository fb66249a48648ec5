"""What may be wrong with one image, as a table of rules: the head of its file, its pixels, and its row against both.

A rule reads the columns of :func:`mammoray.inventory.take`: the catalog's, ``head_...`` and ``pixel_...``. Errors are
images that cannot be used; warnings are what somebody should look at; notes explain. A finding quotes the ids of the
CSV and words that the standard defines, and nothing else of a header.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from mammoray.catalog import cells
from mammoray.findings import Finding, Severity
from mammoray.raster import MEDIA_TYPES

BURNED_IN = "text is burned into the image"
"""A reason; images that have it are not shown."""
Cells = Callable[[pd.DataFrame], Iterable[object]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One thing that may be wrong with an image."""

    name: str
    """Key of audit.json."""
    severity: Severity
    tag: str
    reason: str
    expected: str | Cells
    found: str | Cells
    what_to_do: str
    hit: Callable[[pd.DataFrame], pd.Series]
    """Whether each row breaks the rule."""


def apply(rule: Rule, data: pd.DataFrame) -> list[Finding]:
    """The findings of one rule.

    Parameters
    ----------
    data : pandas.DataFrame
        Of :func:`mammoray.inventory.take`.
    """
    bad = data[rule.hit(data).astype(bool)]
    expected, found = (
        [text] * len(bad) if isinstance(text, str) else [str(cell) for cell in text(bad)]
        for text in (rule.expected, rule.found)
    )
    return [
        Finding(
            severity=rule.severity,
            image_id=image_id,
            file=path,
            tag=rule.tag,
            reason=rule.reason,
            expected=wanted,
            found=seen,
            what_to_do=rule.what_to_do,
        )
        for image_id, path, wanted, seen in zip(bad["image_id"], bad["path"], expected, found, strict=True)
    ]


_REASONS = {
    "empty": "the file is empty",
    "": "the file cannot be read",
    "DICOM": "the file cannot be decoded",
    **dict.fromkeys(MEDIA_TYPES, "the image is no DICOM"),
}


def unreadable(data: pd.DataFrame) -> list[Finding]:
    """Files that cannot be decoded, by their head or, where they were looked at, by their pixels."""
    columns = [name for name in ("head_error", "pixel_error") if name in data]
    found = []
    for column in columns:
        bad = data[data[column].map(len) > 0]
        for row in bad[["image_id", "path", "head_kind", column]].itertuples(index=False, name=None):
            image_id, path, kind, (where, expected, seen, remedy) = row
            found.append(
                Finding(
                    severity="error",
                    image_id=image_id,
                    file=path,
                    tag=where.removeprefix(path).removeprefix(": "),
                    reason=_REASONS.get(kind, "the file is no image") if column == "head_error" else _REASONS["DICOM"],
                    expected=expected,
                    found=seen,
                    what_to_do=remedy,
                )
            )
    return found


def readable(data: pd.DataFrame) -> pd.Series:
    """Whether each image can be used, as far as it was looked at."""
    good = data["head_error"].map(len) == 0
    if "pixel_error" in data:
        good &= (data["pixel_error"].map(len) == 0) & ~_constant(data) & (data["pixel_beyond"] == 0)
    return good


def _is_dicom(data: pd.DataFrame) -> pd.Series:
    return data["head_transfer_syntax"].str.match(r"\d") & (data["head_kind"] == "DICOM")


def _contradicts(data: pd.DataFrame, name: str) -> pd.Series:
    row, head = cells(data, name), data[f"head_{name}"]
    return (row != "") & (head != "") & (row != head)


def _implant(data: pd.DataFrame) -> pd.Series:
    """What the row says of an implant: YES, NO or nothing."""
    words = {"1": "YES", "1.0": "YES", "TRUE": "YES", "YES": "YES", "0": "NO", "0.0": "NO", "FALSE": "NO", "NO": "NO"}
    return cells(data, "implant").map(words).fillna("")


def _implant_contradicts(data: pd.DataFrame) -> pd.Series:
    row, head = _implant(data), data["head_implant"]
    return (row != "") & head.isin(["YES", "NO"]) & (row != head)


def _narrow(data: pd.DataFrame) -> pd.Series:
    """A window without width: PS3.3 C.11.2.1.2.1 wants 1 or more for LINEAR, more than 0 for the other functions."""
    linear = data["head_voi_function"].isin(["", "LINEAR"])
    return (data["head_window_width"] <= 0) | (linear & (data["head_window_width"] < 1))


def _window_elsewhere(data: pd.DataFrame) -> pd.Series:
    """The first window shows next to nothing of what the stored bits can hold: it is one of another depth."""
    slope = data["head_rescale"].map(lambda pair: pair[0])
    intercept = data["head_rescale"].map(lambda pair: pair[1])
    span = 2.0 ** data["head_bits_stored"]
    low = -span / 2 * data["head_signed"]
    ends = pd.concat([low * slope + intercept, (low + span) * slope + intercept], axis=1)
    lowest, highest = ends.min(axis=1), ends.max(axis=1)
    outside = (data["head_window_center"] < lowest) | (data["head_window_center"] > highest)
    too_wide = data["head_window_width"] > 4 * (highest - lowest)
    # Lookup tables come in between, and their output is not known from here.
    return (outside | too_wide) & (data["head_bits_stored"] > 0) & ~data["head_voi_lut"] & (data["head_windows"] > 0)


def _constant(data: pd.DataFrame) -> pd.Series:
    return (data["pixel_digest"] != "") & (data["pixel_lowest"] == data["pixel_highest"])


_LOOK = "Look at the image and its row, and correct the one that is wrong."
HEAD_RULES: tuple[Rule, ...] = (
    Rule(
        name="modality", severity="note", tag="Modality (0008,0060)", reason="the modality is not MG",
        expected="MG", found=lambda d: d["head_modality"].replace("", "none"),
        what_to_do="Nothing, if the image is a mammogram.",
        hit=lambda d: _is_dicom(d) & (d["head_modality"] != "MG"),
    ),
    Rule(
        name="for_processing", severity="warning", tag="Presentation Intent Type (0008,0068)",
        reason="the image is for processing", expected="FOR PRESENTATION", found="FOR PROCESSING",
        what_to_do="Use the image for presentation of the same view, if there is one: raw ones have another contrast.",
        hit=lambda d: d["head_intent"] == "FOR PROCESSING",
    ),
    Rule(
        name="quality_control", severity="warning", tag="Quality Control Image (0028,0300)",
        reason="the image is of a phantom or a test", expected="NO", found=lambda d: d["head_quality_control"],
        what_to_do="Leave it out of the CSV, if it shows no breast.",
        hit=lambda d: d["head_quality_control"].isin(["YES", "BOTH"]),
    ),
    Rule(
        name="burned_in", severity="warning", tag="Burned In Annotation (0028,0301)",
        reason=BURNED_IN, expected="NO", found="YES",
        what_to_do="Look at the image: such text may name a patient, and a network may learn from it.",
        hit=lambda d: d["head_burned_in"] == "YES",
    ),
    Rule(
        name="no_window", severity="note", tag="Window Center (0028,1050)", reason="the header has no window",
        expected="a window or a VOI LUT", found="none",
        what_to_do="Nothing: the whole range of the stored bits is shown, or see --window percentile.",
        hit=lambda d: _is_dicom(d) & (d["head_windows"] == 0) & ~d["head_voi_lut"],
    ),
    Rule(
        name="window_width", severity="warning", tag="Window Width (0028,1051)", reason="the window has no width",
        expected="1 or more, or more than 0 where it is not LINEAR", found=lambda d: d["head_window_width"],
        what_to_do="See --window percentile, or leave the image out of the CSV.", hit=_narrow,
    ),
    Rule(
        name="window_range", severity="warning", tag="Window Center (0028,1050)",
        reason="the window is not one of these pixels",
        expected=lambda d: (f"a window within {bits} bits" for bits in d["head_bits_stored"]),
        found=lambda d: (
            f"{c:g} and {w:g}" for c, w in zip(d["head_window_center"], d["head_window_width"], strict=True)
        ),
        what_to_do="Look at the image; see --window percentile.",
        hit=lambda d: _window_elsewhere(d) & ~_narrow(d),
    ),
    Rule(
        name="laterality", severity="warning", tag="Image Laterality (0020,0062)",
        reason="the header names another side than the row", expected=lambda d: cells(d, "laterality"),
        found=lambda d: d["head_laterality"], what_to_do=_LOOK, hit=lambda d: _contradicts(d, "laterality"),
    ),
    Rule(
        name="view", severity="warning", tag="View Position (0018,5101)",
        reason="the header names another view than the row", expected=lambda d: cells(d, "view"),
        found=lambda d: d["head_view"], what_to_do=_LOOK, hit=lambda d: _contradicts(d, "view"),
    ),
    Rule(
        name="implant", severity="warning", tag="Breast Implant Present (0028,1300)",
        reason="the header says otherwise of an implant than the row", expected=_implant,
        found=lambda d: d["head_implant"], what_to_do=_LOOK, hit=_implant_contradicts,
    ),
)  # fmt: skip
PIXEL_RULES: tuple[Rule, ...] = (
    Rule(
        name="constant", severity="error", tag="Pixel Data (7FE0,0010)", reason="the image has one value everywhere",
        expected="an image", found=lambda d: ("all zero" if low == 0 else f"all {low}" for low in d["pixel_lowest"]),
        what_to_do="Export it again, or leave it out of the CSV.", hit=_constant,
    ),
    Rule(
        name="beyond_bits_stored", severity="error", tag="Bits Stored (0028,0101)",
        reason="pixels do not fit into Bits Stored",
        expected=lambda d: (f"values of {bits} bits" for bits in d["pixel_bits_stored"]),
        found=lambda d: (
            f"{low} to {high}, {n} pixels beyond"
            for low, high, n in zip(d["pixel_lowest"], d["pixel_highest"], d["pixel_beyond"], strict=True)
        ),
        what_to_do="Export it again, or leave it out of the CSV: the grey scale of such an image cannot be known.",
        hit=lambda d: d["pixel_beyond"] > 0,
    ),
)  # fmt: skip


def of_images(data: pd.DataFrame) -> dict[str, list[Finding]]:
    """All findings about single images, by the name of the rule; a rule without a finding is there too."""
    rules = HEAD_RULES + (PIXEL_RULES if "pixel_error" in data else ())
    return {"unreadable": unreadable(data), **{rule.name: apply(rule, data) for rule in rules}}
