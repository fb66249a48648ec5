"""A CSV and a folder of DICOMs, in any supported layout, to one typed row per image.

======  ==========================================  =============================================================
layout  CSV                                         tree below the root
======  ==========================================  =============================================================
rsna    ``patient_id, image_id, density`` and more  ``[train_images/]<patient_id>/<image_id>.dcm``
irma    ``AccessionNumber, Classification``         ``[archive/]<AccessionNumber>/**/*.dcm``, every image of an exam
======  ==========================================  =============================================================

The catalog reports and never repairs: what cannot be used stands in ``findings`` with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammoray.config import CLASS_NAMES, Classes
from mammoray.errors import CatalogError, LabelError

DENSITIES = CLASS_NAMES["density"]
COLUMNS = (
    "image_id",
    "patient_id",
    "laterality",
    "view",
    "label",
    "path",
    "size",
    "mtime_ns",
    "site_id",
    "machine_id",
    "implant",
)
_ROMAN = {"I": "A", "II": "B", "III": "C", "IV": "D"}
_EXCLUDED_CLASS = "5"

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something about one image that a data manager should know; a row of audit.csv."""

    severity: Severity
    image_id: str
    file: str
    tag: str
    reason: str
    expected: str
    found: str
    what_to_do: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """What there is to learn from.

    Attributes
    ----------
    rows : pandas.DataFrame
        One row per image that has both a CSV row and a file, sorted by ``image_id``; the columns are :data:`COLUMNS`.
        ``label`` is A to D or missing; ``path`` is relative to ``root`` with forward slashes; ``size`` is in bytes.
    root : Path
        Folder that ``path`` starts from.
    layout : str
        ``rsna`` or ``irma``.
    grouped_by : str
        Column of the CSV that stands in ``patient_id``: the coarsest key known.
    findings : tuple of Finding
        Rows and files that were left out, and why.
    limits : tuple of str
        What a reader of the results has to know about these data.
    """

    rows: pd.DataFrame
    root: Path
    layout: str
    grouped_by: str
    findings: tuple[Finding, ...]
    limits: tuple[str, ...]


def parse_label(value: str, where: str) -> str | None:
    """Density class of a CSV cell: A to D, or ``None`` for a blank.

    Accepted are 1 to 4, 1.0 to 4.0, A to D and a to d, I to IV, with spaces around.

    Raises
    ------
    LabelError
        For anything else.

    Examples
    --------
    >>> parse_label(" 1.0", "row 1"), parse_label("IV", "row 2"), parse_label("b", "row 3"), parse_label("", "row 4")
    ('A', 'D', 'B', None)
    """
    text = value.strip().upper()
    if not text:
        return None
    text = text.removesuffix(".0")
    if text in DENSITIES:
        return text
    if text in _ROMAN:
        return _ROMAN[text]
    if text in {"1", "2", "3", "4"}:
        return DENSITIES[int(text) - 1]
    raise LabelError(where, "1 to 4, A to D, I to IV, or a blank", repr(value), "Correct the CSV or remove the row.")


def class_index(labels: pd.Series, classes: Classes) -> npt.NDArray[np.int64]:
    """Index of each density letter among the model's outputs, (N,) int64: A to D are 0 to 3, or 0, 0, 1, 1."""
    codes: npt.NDArray[np.int64] = labels.map({letter: i for i, letter in enumerate(DENSITIES)}).to_numpy(
        dtype=np.int64
    )
    return codes if classes == "density" else codes // 2


def build(csv: Path, dicom_root: Path) -> Catalog:
    """Read the CSV, walk the tree, and match the two.

    Raises
    ------
    CatalogError
        No CSV, unknown columns, no root, no DICOM where the layout wants them, or one image id with two meanings.
    LabelError
        A label that :func:`parse_label` does not accept.
    """
    table = _read_csv(csv)
    for _, needed, reader in _LAYOUTS:
        if needed <= set(table.columns):
            if not dicom_root.is_dir():
                raise CatalogError(str(dicom_root), "a folder", "nothing there", "Check --dicom-root.")
            return reader(table, csv, dicom_root)
    nearest, needed, _ = min(_LAYOUTS, key=lambda entry: len(entry[1] - set(table.columns)))
    raise CatalogError(
        f"{csv}: header",
        " or ".join(f"{', '.join(sorted(needed))} ({layout})" for layout, needed, _ in _LAYOUTS),
        f"{', '.join(table.columns)}; for {nearest}, {', '.join(sorted(needed - set(table.columns)))} is missing",
        "Check --csv and its first line.",
    )


def _read_csv(csv: Path) -> pd.DataFrame:
    remedy = "Check --csv."
    try:
        return pd.read_csv(csv, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except OSError as error:
        raise CatalogError(str(csv), "a CSV file", type(error).__name__, remedy) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CatalogError(str(csv), "a comma-separated UTF-8 table with a header", str(error), remedy) from error


def _rsna(table: pd.DataFrame, csv: Path, dicom_root: Path) -> Catalog:
    root, files = _find_dicoms(dicom_root, "train_images", "<patient_id>/<image_id>.dcm")
    labels = _parse_labels(table["density"], csv)
    rows = pd.DataFrame(
        {
            "image_id": table["image_id"].str.strip(),
            "patient_id": table["patient_id"].str.strip(),
            "label": pd.array(labels, dtype="string"),
            **{
                name: table[name].str.strip() if name in table else ""
                for name in ("laterality", "view", "site_id", "machine_id", "implant")
            },
        }
    )
    by_stem = {path[: -len(".dcm")]: path for path in files}  # The suffix may be written in capitals.
    stems = rows["patient_id"] + "/" + rows["image_id"]
    rows["path"] = [by_stem.get(stem, f"{stem}.dcm") for stem in stems]
    rows, duplicates = _drop_duplicates(rows, csv)
    return _match(rows, files, root, csv, layout="rsna", grouped_by="patient_id", findings=duplicates, limits=())


def _irma(table: pd.DataFrame, csv: Path, dicom_root: Path) -> Catalog:
    root, files = _find_dicoms(dicom_root, "archive", "<AccessionNumber>/**/*.dcm")
    excluded = table["Classification"].str.strip().str.removesuffix(".0") == _EXCLUDED_CLASS
    labels = _parse_labels(table["Classification"].mask(excluded, ""), csv)
    exams = pd.DataFrame(
        {"patient_id": table["AccessionNumber"].str.strip(), "label": pd.array(labels, dtype="string")}
    )
    exams["excluded"] = excluded.to_numpy()
    exams["image_id"] = exams["patient_id"]
    exams, duplicates = _drop_duplicates(exams, csv)
    of_exam: dict[str, list[str]] = {}
    for path in files:
        of_exam.setdefault(path.split("/", 1)[0], []).append(path)
    findings = list(duplicates)
    records = []
    for exam in exams.itertuples(index=False):
        paths = sorted(of_exam.get(exam.patient_id, [f"{exam.patient_id}/*.dcm"]))
        if exam.excluded:
            findings += [_excluded(path) for path in paths]
            continue
        records += [(path[: -len(".dcm")], exam.patient_id, exam.label, path) for path in paths]
    rows = pd.DataFrame(records, columns=["image_id", "patient_id", "label", "path"])
    rows = rows.assign(laterality="", view="", site_id="", machine_id="", implant="")
    limits = (
        "Patients are not known in this layout: images are grouped by accession number, so two exams of one woman "
        "may stand on both sides of the split and flatter the metrics.",
    )
    known = {path for path in files if path.split("/", 1)[0] in set(exams.loc[exams["excluded"], "patient_id"])}
    files = {path: entry for path, entry in files.items() if path not in known}
    return _match(rows, files, root, csv, layout="irma", grouped_by="AccessionNumber", findings=findings, limits=limits)


_LAYOUTS: tuple[tuple[str, frozenset[str], Callable[[pd.DataFrame, Path, Path], Catalog]], ...] = (
    ("rsna", frozenset({"patient_id", "image_id", "density"}), _rsna),
    ("irma", frozenset({"AccessionNumber", "Classification"}), _irma),
)


def _excluded(path: str) -> Finding:
    return Finding(
        severity="note",
        image_id=path[: -len(".dcm")],
        file=path,
        tag="Classification",
        reason="class 5 is excluded",
        expected="a class from 1 to 4",
        found=_EXCLUDED_CLASS,
        what_to_do="Nothing: the class has no density.",
    )


def _parse_labels(cells: pd.Series, csv: Path) -> list[str | None]:
    # The header is line 1 of the file.
    return [parse_label(value, f"{csv}: line {i + 2}, {cells.name}") for i, value in enumerate(cells)]


def _drop_duplicates(rows: pd.DataFrame, csv: Path) -> tuple[pd.DataFrame, list[Finding]]:
    repeated = rows[rows.duplicated("image_id", keep=False)]
    if repeated.empty:
        return rows, []
    for image_id, group in repeated.groupby("image_id"):
        if len(group.drop_duplicates()) > 1:
            lines = ", ".join(str(i + 2) for i in group.index)
            raise CatalogError(
                f"{csv}: lines {lines}", f"one meaning of id {image_id}", "rows that differ", "Keep the right one."
            )
    findings = [
        Finding(
            severity="warning",
            image_id=str(image_id),
            file="",
            tag="",
            reason="the row stands in the CSV more than once",
            expected="1 row",
            found=f"{count} equal rows",
            what_to_do="Remove the copies; one of them is used.",
        )
        for image_id, count in repeated["image_id"].value_counts().sort_index().items()
    ]
    return rows.drop_duplicates("image_id").reset_index(drop=True), findings


def _find_dicoms(dicom_root: Path, usual: str, pattern: str) -> tuple[Path, dict[str, os.stat_result]]:
    """All ``.dcm`` files below ``root/usual``, or below ``root`` itself, by relative path."""
    root = dicom_root / usual if (dicom_root / usual).is_dir() else dicom_root
    files = dict(_walk(root, ""))
    if not files:
        raise CatalogError(
            str(root), f"DICOM files as {pattern}", "not one file that ends in .dcm", "Check --dicom-root."
        )
    return root, files


def _walk(root: Path, below: str) -> Iterator[tuple[str, os.stat_result]]:
    # scandir gives name and kind of an entry in one system call; on network storage that is most of the time.
    with os.scandir(root / below) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            relative = f"{below}/{entry.name}" if below else entry.name
            # Links to folders are not followed: they can lead out of the root, or round in circles.
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, relative)
            elif entry.name.lower().endswith(".dcm") and entry.is_file():
                yield relative, entry.stat()


def _match(
    rows: pd.DataFrame,
    files: dict[str, os.stat_result],
    root: Path,
    csv: Path,
    *,
    layout: str,
    grouped_by: str,
    findings: list[Finding],
    limits: tuple[str, ...],
) -> Catalog:
    present = rows["path"].isin(files.keys())
    missing = [
        Finding(
            severity="error",
            image_id=row.image_id,
            file=row.path,
            tag="",
            reason="the row has no file",
            expected="a DICOM file",
            found="nothing",
            what_to_do=f"Copy the file below {root.name}/ or remove the row from the CSV.",
        )
        for row in rows[~present].itertuples(index=False)
    ]
    used = set(rows["path"])
    unused = [
        Finding(
            severity="warning",
            image_id="",
            file=path,
            tag="",
            reason="the file has no row",
            expected=f"a row in {csv.name}",
            found="none",
            what_to_do="Add a row to the CSV if the image is wanted.",
        )
        for path in files
        if path not in used
    ]
    kept = rows[present].copy()
    if kept.empty:
        wanted = rows["path"].iloc[0] if len(rows) else "one row at all"
        raise CatalogError(
            str(root),
            f"a file for at least one of the {len(rows)} rows of {csv.name}, such as {wanted}",
            f"{len(files)} DICOM files, none of them named in the CSV, such as {next(iter(files))}",
            "Check that --csv and --dicom-root belong together.",
        )
    stats = [files[path] for path in kept["path"]]
    kept["size"] = np.array([s.st_size for s in stats], dtype=np.int64)
    kept["mtime_ns"] = np.array([s.st_mtime_ns for s in stats], dtype=np.int64)
    kept = kept[list(COLUMNS)].sort_values("image_id", ignore_index=True)
    return Catalog(
        rows=kept,
        root=root,
        layout=layout,
        grouped_by=grouped_by,
        findings=(*findings, *missing, *unused),
        limits=limits,
    )
