"""A table and a folder tree, in any layout that :mod:`mammoray.layouts` knows, to one typed row per image.

The catalog reports and never repairs: what cannot be used stands in ``findings`` with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from mammoray import groups, imagefolders, layouts, readers, storage, tables
from mammoray.checks import require_no_secret
from mammoray.config import LABELS, Classes, DataConfig
from mammoray.errors import CatalogError
from mammoray.findings import Finding, each
from mammoray.layouts import Tree
from mammoray.source import Rows, Source
from mammoray.storage import Place

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
    "age",
    "line",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """What there is to learn from.

    Attributes
    ----------
    rows : pandas.DataFrame
        One row per image that is both named and there, sorted by ``image_id``; the columns are :data:`COLUMNS`.
        ``label`` is one of :data:`mammoray.config.LABELS` or missing; ``path`` is relative to ``root`` with forward
        slashes; ``size`` is in bytes; ``age`` is in years, as the table writes it; ``line`` is that of the table, 0
        where there is none. What the table does not say is blank.
    root : str
        Path or URI that ``path`` starts from.
    layout : str
        One of :mod:`mammoray.layouts`.
    evidence : tuple of str
        What the layout was recognised by.
    grouped_by : str
        What stands in ``patient_id``: the coarsest key known.
    findings : tuple of Finding
        Rows, files and folders that were left out, and why.
    limits : tuple of str
        What a reader of the results has to know about these data.
    leak : str or None
        Why results may leak: what may stand on both sides of a split although it should not.
    """

    rows: pd.DataFrame
    root: str
    layout: str
    evidence: tuple[str, ...]
    grouped_by: str
    findings: tuple[Finding, ...]
    limits: tuple[str, ...]
    leak: str | None


def build(
    csv: Place | None,
    dicom_root: Place,
    config: DataConfig | None = None,
    classes: Classes = "density",
    unlabelled: bool = False,
) -> Catalog:
    """Read the table, walk the tree, and match the two.

    Parameters
    ----------
    csv : str, Path or None
        Path or URI of the table; None where the layout has none, or it lies below the root under its usual name.
    dicom_root : str or Path
        Path or URI of the images.
    config : DataConfig, optional
        Layout and columns.
    classes : {"density", "binary", "cancer"}
        Which labels are read.
    unlabelled : bool
        Take any folder of images, as :func:`mammoray.layouts.detect` says.

    Raises
    ------
    CatalogError
        No table, no root, no layout or several, nothing that fits together, or one image with two meanings.
    LabelError
        A label in none of the accepted forms.
    StorageError
        A path or URI that cannot be reached.
    ConfigError
        A URI with a password or a key in it.
    """
    config = config or DataConfig()
    for uri, flag in ((csv or "", "--csv"), (dicom_root, "--dicom-root")):
        require_no_secret(str(uri), flag)
    given = None if csv is None else tables.open_table(storage.absolute(csv))  # First: the walk may take minutes.
    tree = layouts.read_tree(storage.absolute(dicom_root), config)
    found = layouts.detect(given, tree, config, unlabelled)
    rows = _read(found, tree, config, classes)
    table = "the table" if found.table is None else storage.split(found.table.name)[1]
    kept, findings = _match(rows, table)
    findings += each(groups.alike(kept["patient_id"].unique()), _alike)
    if config.quarantine is not None:
        kept, held = _quarantine(kept, storage.absolute(config.quarantine))
        findings += held
    if found.table is not None and found.table.encoding == "latin-1":
        findings.append(_latin(table))
    return Catalog(
        rows=kept,
        root=rows.tree.root,
        layout=found.name,
        evidence=found.evidence,
        grouped_by=rows.grouped_by,
        findings=(*rows.findings, *findings),
        limits=rows.limits,
        leak=rows.leak,
    )


def _read(found: layouts.Found, tree: Tree, config: DataConfig, classes: Classes) -> Rows:
    _require_columns_used(found, config)
    if found.table is not None:
        source = Source(table=found.table, tree=tree, config=config, classes=classes)
        return readers.READERS[found.name](source)
    if classes == "cancer" and found.name != "files":
        remedy = "Use --classes density or binary, or to predict without labels --dataset files."
        raise CatalogError(f"the {found.name} layout", "labels of cancer", "density labels only", remedy)
    return imagefolders.READERS[found.name](tree)


def _require_columns_used(found: layouts.Found, config: DataConfig) -> None:
    """Refuse a column that the layout would pass over without a word, and with it a wanted group or label."""
    given = [field.name for field in fields(DataConfig) if field.name.endswith("_column")]
    given = [name for name in given if getattr(config, name) is not None]
    unused = given if found.table is None else [name for name in given if name == "path_column" and found.name != "csv"]
    if unused:
        flags = ", ".join("--" + name.replace("_", "-") for name in unused)
        remedy = "Leave it out, or use --dataset csv with a table of image paths."
        raise CatalogError(f"the {found.name} layout", "only columns that it reads", flags, remedy)


def _match(rows: Rows, table: str) -> tuple[pd.DataFrame, list[Finding]]:
    """Rows whose file is there, typed and sorted, and findings for all else."""
    frame, files = rows.frame, rows.tree.files
    present = frame["path"].isin(files.keys()).to_numpy(dtype=bool)
    if not present.any():
        raise _unrelated(rows, table)
    findings = each(frame.loc[~present, ["image_id", "path"]].to_dict("records"), _no_file)
    findings += _unnamed(files, set(frame["path"]), table)
    findings += each(rows.tree.empty, _empty) + each(rows.tree.outward, _outward) + each(rows.tree.unnamed, _no_suffix)
    kept = frame[present]
    entries = [files[path] for path in kept["path"]]
    texts = {
        name: kept[name].fillna("").astype(str) for name in COLUMNS if name in frame and name not in ("label", "line")
    }
    kept = kept.assign(
        **texts,
        label=kept["label"].astype("string"),
        size=np.array([entry.size for entry in entries], dtype=np.int64),
        mtime_ns=np.array([entry.mtime_ns for entry in entries], dtype=np.int64),
    )
    return kept[list(COLUMNS)].sort_values("image_id", ignore_index=True), findings


def _unrelated(rows: Rows, table: str) -> CatalogError:
    wanted = [*rows.frame["path"].head(1), *(finding.file or finding.image_id for finding in rows.findings)]
    return CatalogError(
        storage.shown(rows.tree.root),
        f"the images of {table}" + (f", such as {wanted[0]}" if wanted else ", which has no row"),
        f"{len(rows.tree.files)} images, none of them named there, such as {next(iter(rows.tree.files), 'none')}",
        "Check that --csv and --dicom-root belong together.",
    )


def _no_file(row: dict[Any, Any]) -> Finding:
    climbs = ".." in str(row["path"]).split("/") or str(row["path"]).startswith("/")
    return Finding(
        severity="error", image_id=str(row["image_id"]), file=str(row["path"]),
        reason="the row's id leads out of its folder" if climbs else "the row has no file",
        expected="an image", found="another place" if climbs else "nothing",
        what_to_do="Correct the id." if climbs else "Copy the file, or remove the row from the CSV.",
    )  # fmt: skip


def _unnamed(files: Iterable[str], named: set[str], table: str) -> list[Finding]:
    """Folders in which nothing is named, each as one finding, and single files."""
    folders = {path.rpartition("/")[0] for path in named}
    strays = [path for path in files if path not in named]
    count: dict[str, int] = {}
    for path in strays:
        folder = path.rpartition("/")[0]
        count[folder] = count.get(folder, 0) + 1
    whole = [folder for folder in sorted(count) if folder and folder not in folders]

    def of_folder(folder: str) -> Finding:
        return Finding(
            severity="warning", file=f"{folder}/", reason="the folder has no row", expected=f"rows in {table}",
            found=f"none for its {count[folder]} images", what_to_do="Add rows if the images are wanted.",
        )  # fmt: skip

    def of_file(path: str) -> Finding:
        return Finding(
            severity="warning", file=path, reason="the file has no row", expected=f"a row in {table}", found="none",
            what_to_do="Add a row if the image is wanted.",
        )  # fmt: skip

    single = [path for path in strays if path.rpartition("/")[0] not in set(whole)]
    return each(whole, of_folder) + each(single, of_file)


def _empty(path: str) -> Finding:
    return Finding(
        severity="warning", file=f"{path}/", reason="the folder is empty", expected="images", found="nothing",
        what_to_do="Copy its files again, or remove it.",
    )  # fmt: skip


def _outward(path: str) -> Finding:
    return Finding(
        severity="warning", file=path, reason="the link leads out of the root", expected="a file below --dicom-root",
        found="another place", what_to_do="Use --links follow if it is meant so.",
    )  # fmt: skip


def _no_suffix(path: str) -> Finding:
    return Finding(
        severity="warning", file=path, reason="the file's name has no suffix", expected=".dcm, .png or the like",
        found="none", what_to_do="Give it the suffix of its kind if it is an image; it is not looked at.",
    )  # fmt: skip


def _alike(names: list[str]) -> Finding:
    return Finding(
        severity="warning", tag="patient", reason="ids of patients differ in zeros, spaces or capitals only",
        expected="one spelling of a patient", found=", ".join(names),
        what_to_do="If they are one patient, correct the CSV: a split may divide her.",
    )  # fmt: skip


def _latin(table: str) -> Finding:
    return Finding(
        severity="note", file=table, reason="the table is not UTF-8", expected="UTF-8", found="other bytes",
        what_to_do="Nothing, if its identifiers look right: it was read as Latin-1.",
    )  # fmt: skip


def _quarantine(rows: pd.DataFrame, path: str) -> tuple[pd.DataFrame, list[Finding]]:
    """Rows that a quarantine file does not name, and findings for those that it does."""
    table = tables.open_table(path, "--quarantine")
    column = table.find("path", "image_id")
    if column is None:
        have = ", ".join(table.columns)
        raise CatalogError(f"{table.name}: header", "a column path or image_id", have, "Check --quarantine.")
    named = set(tables.read(table, {"name": column})["name"])
    key = rows[column.lower()]
    held = key.isin(list(named)).to_numpy()
    findings = each(rows.loc[held, ["image_id", "path"]].to_dict("records"), _held)
    unknown = sorted(named - set(key))
    findings += each(unknown, lambda name: _not_there(name, storage.split(table.name)[1]))
    return rows[~held].reset_index(drop=True), findings


def _held(row: dict[Any, Any]) -> Finding:
    return Finding(
        severity="note", image_id=row["image_id"], file=row["path"], reason="the image is quarantined",
        expected="", found="named in --quarantine", what_to_do="Nothing: it is left out.",
    )  # fmt: skip


def _not_there(name: str, file: str) -> Finding:
    return Finding(
        severity="warning", file=name, reason="a quarantined image is not in the data", expected=f"an image of {file}",
        found="none", what_to_do="Check that --quarantine belongs to these data.",
    )  # fmt: skip


def cells(data: pd.DataFrame, name: str) -> pd.Series:
    """A column of the catalog as text in capitals, blanks where the layout has none."""
    if name not in data:
        return pd.Series("", index=data.index, dtype=object)
    return data[name].astype(object).fillna("").astype(str).str.strip().str.upper()


def class_table(rows: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Images and patients of each label, and without one.

    Returns
    -------
    pandas.DataFrame
        Rows ``images, patients``; columns the labels of ``classes``, ``blank`` and ``total``, int64. A patient counts
        for each label that her images have, and as blank where none of them has any.
    """
    names = [*LABELS[classes], "blank"]
    labelled = set(rows.loc[rows["label"].notna(), "patient_id"])
    label = rows["label"].fillna("blank")
    only_blank = (label != "blank") | ~rows["patient_id"].isin(labelled)
    images = label.value_counts().reindex(names, fill_value=0)
    patients = rows[only_blank].groupby(label[only_blank])["patient_id"].nunique().reindex(names, fill_value=0)
    table = pd.DataFrame([images, patients], index=["images", "patients"]).astype("int64")
    return table.assign(total=[len(rows), rows["patient_id"].nunique()])
