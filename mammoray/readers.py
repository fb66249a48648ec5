"""Rows of the layouts that have a table: what each row of it says of which files.

A reader never guesses: what a cell does not say stays blank, and what cannot be used becomes a finding. The file of a
row is looked up among those that were listed below the root, so that no identifier can lead out of it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from mammoray import groups, labels, storage
from mammoray.errors import CatalogError
from mammoray.findings import Finding, each
from mammoray.layouts import DICOM, PATHS, STUDY_LABEL, Tree
from mammoray.source import COLUMNS, NAMED, Rows, Source, image_ids, one_meaning, stem, with_ids, within


def rsna(source: Source) -> Rows:
    """``train.csv`` and ``train_images/<patient_id>/<image_id>.dcm`` of the RSNA Screening Mammography set."""
    folder = "test_images" if source.table.find("prediction_id") else "train_images"
    tree, beside = within(source.tree, folder, "train_images", "test_images")
    usual = "cancer" if source.cancer else "density"
    ids = {name: source.table.find(name) for name in ("patient_id", "image_id")}
    frame, blank = with_ids(source.read(ids, usual), list(ids))
    frame, twice = one_meaning(frame, ["image_id"], source.table.name)
    names = frame["patient_id"] + "/" + frame["image_id"]
    by_stem = {stem(path): path for path in tree.files if path.lower().endswith(DICOM)}
    frame = frame.assign(label=source.parse(frame, usual), path=[by_stem.get(name, f"{name}.dcm") for name in names])
    frame, grouped_by = source.grouped(frame, "patient_id", ["patient_id"])
    return Rows(frame=frame[list(COLUMNS)], tree=tree, grouped_by=grouped_by, findings=beside + blank + twice)


def irma(source: Source) -> Rows:
    """``classificacao.csv`` and ``archive/<AccessionNumber>/**/*.dcm`` of the IRMA film archive.

    Every image of an exam carries the exam's label, unless ``exam_images`` wants the first only.
    """
    _require_density(source)
    tree, beside = within(source.tree, "archive")
    frame = source.read({"accession": source.table.find("AccessionNumber")}, "Classification")
    frame, findings = with_ids(frame, ["accession"])
    frame = frame.rename(columns={"accession": "exam"})
    fifth = frame["cell"].str.removesuffix(".0") == labels.EXCLUDED
    frame = frame.assign(cell=frame["cell"].mask(fifth, ""), fifth=fifth)
    frame = frame.assign(label=source.parse(frame, "Classification"))
    frame, twice = one_meaning(frame, ["exam"], source.table.name)
    frame, grouped_by = source.grouped(frame.assign(patient_id=frame["exam"]), "AccessionNumber")
    findings += beside + twice
    of_exam = _by_folder(tree)
    frame, lost = _with_folder(frame, of_exam)
    if source.config.exam_images == "first":
        rest = {exam: of_exam[exam][1:] for exam in sorted(frame["exam"]) if len(of_exam[exam]) > 1}
        findings += each(list(rest.items()), _first_only)
        of_exam = {exam: paths[:1] for exam, paths in of_exam.items()}
        tree = _without(tree, {path for paths in rest.values() for path in paths})
    every = frame.assign(path=frame["exam"].map(of_exam)).explode("path", ignore_index=True)
    every = every.assign(image_id=image_ids(every["path"]))
    five = every[every["fifth"]]
    kept = source.config.class_5 == "keep"
    findings += each(list(five["path"]), _kept if kept else _excluded)
    if not kept:
        gone = set(frame.loc[frame["fifth"], "exam"])
        tree = _without(tree, {path for path in tree.files if path.split("/", 1)[0] in gone})
        every = every[~every["fifth"]]
    limit = (
        "Patients are not known in this layout: images are grouped by accession number, so two exams of one woman "
        "may stand on both sides of the split and flatter the metrics."
    )
    leak = limit if source.config.group_column is None else None
    return Rows(
        frame=every[list(COLUMNS)],
        tree=tree,
        grouped_by=grouped_by,
        findings=findings + lost,
        limits=(leak,) if leak else (),
        leak=leak,
    )


def _without(tree: Tree, paths: set[str]) -> Tree:
    return replace(tree, files={path: entry for path, entry in tree.files.items() if path not in paths})


def _require_density(source: Source) -> None:
    if source.cancer and source.config.label_column is None:
        expected, remedy = "a column of 0 and 1", "Name it with --label-column, or leave --classes cancer out."
        raise CatalogError(source.table.name, expected, "a layout with density labels only", remedy)


def _by_folder(tree: Tree) -> dict[str, list[str]]:
    """Top folder -> paths of its images, sorted."""
    folders: dict[str, list[str]] = {}
    for path in sorted(tree.files):
        if "/" in path:
            folders.setdefault(path.split("/", 1)[0], []).append(path)
    return folders


def _with_folder(frame: pd.DataFrame, of_exam: dict[str, list[str]]) -> tuple[pd.DataFrame, list[Finding]]:
    """Exams that have a folder, and findings for the others."""
    there = frame["exam"].isin(list(of_exam))
    zeros = {folder.lstrip("0"): folder for folder in of_exam}

    def lost(exam: str) -> Finding:
        near = zeros.get(exam.lstrip("0"))
        advice = (
            f"Restore the leading zeros: the folder {near} is there." if near else "Copy the exam, or remove the row."
        )
        return Finding(
            severity="error", image_id=exam, file=f"{exam}/", reason="the row has no folder",
            expected="a folder with DICOM files", found="nothing", what_to_do=advice,
        )  # fmt: skip

    return frame[there], each(list(frame.loc[~there, "exam"]), lost)


def _first_only(case: tuple[str, list[str]]) -> Finding:
    exam, left_out = case
    return Finding(
        severity="note", image_id=exam, file=f"{exam}/", reason="only the first image of the exam is used",
        expected="--exam-images all", found=f"{len(left_out)} more images", what_to_do="Nothing: it was asked for.",
    )  # fmt: skip


def _excluded(path: str) -> Finding:
    return Finding(
        severity="note", image_id=stem(path), file=path, tag="Classification", reason="class 5 is excluded",
        expected="a class from 1 to 4", found=labels.EXCLUDED, what_to_do="Nothing: the class has no density.",
    )  # fmt: skip


def _kept(path: str) -> Finding:
    return Finding(
        severity="note", image_id=stem(path), file=path, tag="Classification",
        reason="class 5 is kept, without a label", expected="a class from 1 to 4", found=labels.EXCLUDED,
        what_to_do="Nothing: it was asked for.",
    )  # fmt: skip


_STUDY_PARTS = ("patient", "study", "series")


def study(source: Source) -> Rows:
    """``metadata.csv`` and ``patient_<id>/study_<id>/series_<id>/*.dcm``.

    A row speaks of the patient, study, series or image that its ids name: ``patient_id`` and, where they are columns,
    ``study_id``, ``series_id`` and ``image_id``, each with its prefix (``patient_``) or without.
    """
    find = source.table.find
    keys = [f"{part}_id" for part in _STUDY_PARTS if find(f"{part}_id")]
    image = find("image_id", "sop_instance_uid", "filename", "file")
    usual = ("cancer",) if source.cancer else STUDY_LABEL
    frame = source.read({**{key: find(key) for key in keys}, "image": image}, *usual)
    frame = frame.assign(label=source.parse(frame, *usual))
    for key in keys:
        frame[key] = frame[key].str.removeprefix(f"{key.removesuffix('_id')}_")
    frame["image"] = frame["image"].str.replace(r"(?i)\.(dcm|dicom)$", "", regex=True)
    wanted = [*keys, *(["image"] if image else [])]
    frame, findings = one_meaning(frame, wanted, source.table.name)
    files = _study_files(source.tree)
    every = frame.drop(columns=[] if image else ["image"]).merge(files, on=wanted, how="left", suffixes=("_row", ""))
    lost = every["path"].isna()
    findings += each(every[lost].to_dict("records"), lambda row: _no_images("/".join(row[key] for key in wanted)))
    every = every[~lost]
    if every["path"].duplicated().any():
        twice = every.loc[every["path"].duplicated(keep=False)].sort_values("path")
        lines = ", ".join(map(str, twice["line"].head(NAMED)))
        raise CatalogError(
            f"{source.table.name}: lines {lines}", "one row per image", twice["path"].iloc[0], "Keep one."
        )
    every, grouped_by = source.grouped(every.assign(image_id=image_ids(every["path"])), "patient_id", ["patient_id"])
    return Rows(frame=every[list(COLUMNS)], tree=source.tree, grouped_by=grouped_by, findings=findings)


def _study_files(tree: Tree) -> pd.DataFrame:
    pattern = re.compile(r"(?:.*/)?patient_([^/]+)/study_([^/]+)/series_([^/]+)/([^/]+)\.(?:dcm|dicom)", re.IGNORECASE)
    found = [(*match.groups(), path) for path in sorted(tree.files) if (match := pattern.fullmatch(path))]
    return pd.DataFrame(found, columns=["patient_id", "study_id", "series_id", "image", "path"], dtype="string")


def _no_images(key: str) -> Finding:
    return Finding(
        severity="error", image_id=key, file=key, reason="the row has no file", expected="DICOM files",
        found="nothing", what_to_do="Copy the files, or remove the row from the CSV.",
    )  # fmt: skip


def csv(source: Source) -> Rows:
    """Any table with a column of image paths, from the root or absolute, below it."""
    config, tree = source.config, source.tree
    path = source.column("--path-column", config.path_column, *PATHS)
    usual = ("cancer",) if source.cancer else ("density", "density_label", "label", "class", "Classification")
    known = source.table.find("patient_id", "patient")
    weaker = source.table.find("AccessionNumber", "accession")
    frame = source.read({"path": path, "patient_id": known or weaker}, *usual)
    frame, findings = with_ids(frame, ["path"])
    frame = frame.assign(label=source.parse(frame, *usual), given=frame["path"])
    inside = {given: _below(given, tree) for given in frame["given"].unique()}
    outside = frame["given"].map({given: place is None for given, place in inside.items()}).astype(bool)
    findings += each(list(frame.loc[outside, "given"]), _outside)
    frame = frame[~outside]
    frame = frame.assign(path=frame["given"].map(inside).astype("string"))
    frame, twice = one_meaning(frame.drop(columns="given"), ["path"], source.table.name)
    frame, group = source.grouped(frame, known or weaker or "file", ["patient_id"] if known else [])
    if group == "file":
        frame = frame.assign(patient_id=frame["path"].map(groups.weak_group))
    else:
        groups.require(frame, "patient_id", f"{source.table.name}: {group}")
    sure = config.group_column is not None or known is not None
    leak = None if sure else groups.weak("number in the file's name, or by file" if group == "file" else group)
    return Rows(
        frame=frame.assign(image_id=frame["path"])[list(COLUMNS)],
        tree=tree,
        grouped_by=group,
        findings=findings + twice,
        limits=(leak,) if leak else (),
        leak=leak,
    )


def _below(given: str, tree: Tree) -> str | None:
    """A cell's path from the root, or None where it leads out of it."""
    text = given if given in tree.files else given.replace("\\", "/")
    root = storage.shown(tree.root).rstrip("/")
    if storage.is_uri(text) or text.startswith("/"):
        if not text.startswith(f"{root}/"):
            return None
        text = text[len(root) + 1 :]
    inside = posixpath.normpath(text)
    return None if inside in (".", "..") or inside.startswith(("../", "/")) else inside


def _outside(given: str) -> Finding:
    return Finding(
        severity="error", file=given, reason="the path leads out of the root", expected="a path below --dicom-root",
        found="another place", what_to_do="Correct the path, or choose a --dicom-root above it.",
    )  # fmt: skip


READERS: dict[str, Callable[[Source], Rows]] = {"rsna": rsna, "study": study, "irma": irma, "csv": csv}
