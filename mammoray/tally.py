"""What a data set is made of, in counts: encodings, machines, windows, views, and the classes by site and machine.

Everything reads the table of :func:`mammoray.inventory.take` and becomes JSON; headers give no identity into it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydicom.uid import UID

from mammoray.catalog import cells
from mammoray.rules import readable

Counts = dict[str, int]
_SIZES = 20
_NONE = "none"


def tally(data: pd.DataFrame) -> dict[str, Any]:
    """All counts of audit.json; each adds up to the number of files, unless its name says otherwise."""
    dicom = data[data["head_kind"] == "DICOM"]
    return {
        "kinds": _count(data["head_kind"].replace("", "could not be opened")),
        "transfer_syntaxes": [
            {"transfer_syntax": _syntax_name(uid), "uid": "" if uid == _NONE else uid, "files": files}
            for uid, files in _count(data["head_transfer_syntax"]).items()
        ],
        "photometric": _count(dicom["head_photometric"]),
        "bits_stored": _count(
            dicom["head_bits_stored"].astype(str) + " of " + dicom["head_bits_allocated"].astype(str)
        ),
        "sizes": _sizes(data),
        "machines": _machines(dicom),
        "modalities": _count(dicom["head_modality"]),
        "intents": _count(dicom["head_intent"]),
        "windows": _windows(dicom),
        "implants": {"header": _count(dicom["head_implant"]), "csv": _count(cells(data, "implant"))},
        "views": _count(_side_and_view(data)),
        "burned_in": _count(dicom["head_burned_in"]),
        "several_frames": int((dicom["head_frames"] > 1).sum()),
        "colour": int((dicom["head_samples"] > 1).sum()),
    }


def classes(data: pd.DataFrame) -> list[dict[str, Any]]:
    """Images and patients of each class at every site and machine of the CSV, and of all together.

    Returns
    -------
    list of dict
        ``site_id``, ``machine_id``, and ``classes``: per class, ``none`` being a blank, ``images`` and ``patients``;
        the first stands for the whole data set, with both ids empty.
    """
    table = pd.DataFrame({name: cells(data, name) for name in ("site_id", "machine_id", "label")})
    table["label"], table["patient_id"] = data["label"].astype(object).fillna(_NONE), data["patient_id"]
    places = [(("", ""), table)]
    if (table["site_id"] + table["machine_id"] != "").any():
        places += list(table.groupby(["site_id", "machine_id"]))
    return [{"site_id": site, "machine_id": machine, "classes": _per_class(rows)} for (site, machine), rows in places]


def _per_class(rows: pd.DataFrame) -> dict[str, Counts]:
    counted = rows.groupby("label")["patient_id"].agg(["size", "nunique"])
    return {str(label): {"images": int(n), "patients": int(p)} for label, n, p in counted.itertuples()}


def _count(values: pd.Series) -> Counts:
    """How often each value occurs, the commonest first; a blank is called none."""
    counted = values.replace("", _NONE).value_counts()
    return {str(value): int(n) for value, n in sorted(counted.items(), key=lambda item: (-item[1], str(item[0])))}


def _syntax_name(uid: str) -> str:
    return str(UID(uid).name) if uid[:1].isdigit() else uid


def _sizes(data: pd.DataFrame) -> dict[str, Any]:
    sized = data[data["head_rows"] > 0]
    counted = _count(sized["head_rows"].astype(str) + " x " + sized["head_columns"].astype(str))
    return {"different": len(counted), "commonest": dict(list(counted.items())[:_SIZES])}


def _machines(dicom: pd.DataFrame) -> list[dict[str, Any]]:
    counted = dicom.groupby(["head_manufacturer", "head_model"]).size().sort_values(ascending=False, kind="stable")
    return [{"manufacturer": maker, "model": model, "files": int(n)} for (maker, model), n in counted.items()]


def _windows(dicom: pd.DataFrame) -> Counts:
    windows, function = dicom["head_windows"], dicom["head_voi_function"]
    named: dict[str, pd.Series] = {
        "none": (windows == 0) & ~dicom["head_voi_lut"],
        "one": windows == 1,
        "several": windows > 1,
        "voi_lut": dicom["head_voi_lut"],
        "sigmoid": function == "SIGMOID",
        "width_zero_or_less": dicom["head_window_width"] <= 0,
    }
    return {name: int(hit.sum()) for name, hit in named.items()}


def _side_and_view(data: pd.DataFrame) -> pd.Series:
    """``L CC`` and the like, from the row or else from the header."""
    side, view = (
        cells(data, name).where(cells(data, name) != "", data[f"head_{name}"]).astype(str)
        for name in ("laterality", "view")
    )
    return (side + " " + view).str.strip()


def share_readable(data: pd.DataFrame, absent: int) -> tuple[int, float]:
    """How many images can be read, and their share of all that there should be.

    Parameters
    ----------
    absent : int
        Images of the CSV that have no file.
    """
    good, total = int(readable(data).sum()), len(data) + absent
    return good, good / total if total else 0.0
