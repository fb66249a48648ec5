"""Where the images of a synthetic set stand, and the lists of their classes: the layouts of :mod:`mammoray.synth`.

===========  ================================================  ==================================================
layout       images below the root                             classes
===========  ================================================  ==================================================
rsna         ``<patient_id>/<image_id>.dcm``                   ``train.csv``, A to D
irma         ``<AccessionNumber>/IM0001.dcm``                  ``classificacao.csv``, 1 to 4 and 5
study        ``patient_<id>/study_<id>/series_<id>/<id>.dcm``  ``metadata.csv``, 1 to 4
mamografias  ``DleftCC/d_left_cc (10).png``                    letter D to G; a ``featureS.txt`` a folder, 0 to 3
patches      ``p_d_left_cc(10).png``, ``.._2.png``             one ``featureS.txt``, 0 to 3
classes      ``A/img_0001.png``                                the folder, A to D
===========  ================================================  ==================================================

A row is a dictionary with what is known of one image. A layout turns it into a path, and all rows into lists.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mammoray.phantom import FloatImage, Mask

Row = dict[str, Any]

RSNA_COLUMNS = (
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy", "invasive", "BIRADS",
    "implant", "density", "machine_id", "difficult_negative_case",
)  # fmt: skip
"""Columns of RSNA's train.csv, in its order."""
STUDY_COLUMNS = ("patient_id", "study_id", "series_id", "image_id", "laterality", "view", "density")
"""Columns of the study layout's metadata.csv."""
FEATURES = "featureS.txt"
"""List of a PNG folder: a line with a name, a line with its class 0 to 3, and so on; so written in the real set."""
TISSUE = dict(zip("ABCD", "DEFG", strict=True))
"""Letter of a density class in the names of the layouts mamografias and patches."""
PATCH = 128
"""Rows and columns of a patch, in pixels, where the image has twice as many; otherwise half of the shorter side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What sets one layout apart from the others."""

    root: str
    """Folder of the images below that of the data set; a dot where they are the same."""
    path: Callable[[Row], str]
    """Path of an image below ``root``."""
    lists: Callable[[Path, Path, Sequence[Row]], Path | None]
    """Write the lists of classes of (data set, root, rows); returns the CSV, where there is one."""
    film: bool
    """Scanned film rather than digital machines."""
    kind: str = ".dcm"
    """Suffix of the images."""
    leading_zeros: bool = False
    """Patients have six digits."""
    patches: bool = False
    """Images are cut to patches."""


def png(shown: FloatImage) -> bytes:
    """Encode display values (H, W), 0 to 1, as an 8-bit grey PNG; nothing but the pixels enters it."""
    stream = BytesIO()
    Image.fromarray(np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def patches(shown: FloatImage, mask: Mask, rng: np.random.Generator) -> list[FloatImage]:
    """Cut one to three squares from the breast.

    Parameters
    ----------
    shown : numpy.ndarray
        (H, W) float32 display values.
    mask : numpy.ndarray
        (H, W) bool, the breast.
    rng : numpy.random.Generator
        Source of their number and places.

    Returns
    -------
    list of numpy.ndarray
        Squares of :data:`PATCH`, or half the shorter side if that is less, no two of them in one place. Each holds
        nearly as much breast as any square of the image can.
    """
    side = min(PATCH, min(shown.shape) // 2)
    inside = cv2.boxFilter(mask.astype(np.float32), -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    inside = inside[: shown.shape[0] - side + 1, : shown.shape[1] - side + 1]
    corners = np.argwhere(inside >= 0.95 * inside.max())
    chosen = rng.choice(corners, min(int(rng.integers(1, 4)), len(corners)), replace=False)
    return [shown[y : y + side, x : x + side] for y, x in chosen]


def _per_patient(row: Row) -> str:
    return f"{row['patient_id']}/{row['image_id']}.dcm"


def _per_series(row: Row) -> str:
    folder = f"patient_{row['patient_id']}/study_{row['study_id']}/series_{row['series_id']}"
    return f"{folder}/{row['image_id']}.dcm"


def _tissue(row: Row) -> tuple[str, str, str]:
    return TISSUE[row["density"]], {"L": "left", "R": "right"}[row["laterality"]], row["view"]


def _per_tissue(row: Row) -> str:
    name = "_".join(_tissue(row)).lower()
    return f"{''.join(_tissue(row))}/{name} ({row['patient_id']}).png"


def _patch(row: Row) -> str:
    name = "_".join(_tissue(row)).lower()
    return f"p_{name}({row['patient_id']}){'' if row['piece'] == 0 else '_' + str(row['piece'] + 1)}.png"


def _per_class(row: Row) -> str:
    return f"{row['density']}/img_{row['number']:04d}.png"


def _rsna_table(outdir: Path, root: Path, rows: Sequence[Row]) -> Path:
    blank = [{**row, "density": row["density"] if row["site_id"] == 1 else ""} for row in rows]
    return _table(outdir / "train.csv", RSNA_COLUMNS, [[row[name] for name in RSNA_COLUMNS] for row in blank])


def _irma_table(outdir: Path, root: Path, rows: Sequence[Row]) -> Path:
    lines = sorted({(row["patient_id"], 5 if row["excluded"] else _number(row)) for row in rows})
    return _table(outdir / "classificacao.csv", ("AccessionNumber", "Classification"), lines)


def _study_table(outdir: Path, root: Path, rows: Sequence[Row]) -> Path:
    numbered = [{**row, "density": _number(row)} for row in rows]
    return _table(outdir / "metadata.csv", STUDY_COLUMNS, [[row[name] for name in STUDY_COLUMNS] for row in numbered])


def _features(outdir: Path, root: Path, rows: Sequence[Row]) -> None:
    """Write the list of each folder that holds images; its classes begin with 0."""
    lists: dict[PurePosixPath, list[str]] = {}
    for row in rows:
        path = PurePosixPath(row["path"])
        lists.setdefault(path.parent, []).append(f"{path.stem}\n{_number(row) - 1}\n")
    for folder, entries in lists.items():
        (root / folder / FEATURES).write_text("".join(entries), encoding="utf-8", newline="\n")


def _no_lists(outdir: Path, root: Path, rows: Sequence[Row]) -> None:
    """Write nothing: the folders name the classes."""


def _number(row: Row) -> int:
    return "ABCD".index(row["density"]) + 1


def _table(path: Path, columns: Sequence[str], lines: Sequence[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(lines)
    return path


LAYOUTS: dict[str, Layout] = {
    "rsna": Layout(root="train_images", path=_per_patient, lists=_rsna_table, film=False),
    "irma": Layout(root="archive", path=_per_patient, lists=_irma_table, film=True, leading_zeros=True),
    "study": Layout(root=".", path=_per_series, lists=_study_table, film=False, leading_zeros=True),
    "mamografias": Layout(root="mamografias", path=_per_tissue, lists=_features, film=True, kind=".png"),
    "patches": Layout(root="patches", path=_patch, lists=_features, film=True, kind=".png", patches=True),
    "folders": Layout(root="folders", path=_per_class, lists=_no_lists, film=True, kind=".png"),
}
"""Layouts by the names that ``SynthConfig.layout`` takes."""
