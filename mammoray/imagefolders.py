"""Rows of the layouts without a table: folders of images, with a ``featureS.txt``, named by their class, or neither.

None of them knows its patients, and no rule can find them again. The number in the brackets of a file's name is the
index of a woman's image in its folder or, for patches, of the image that it was cut from: images with the same letter
and number stay together (:func:`mammoray.groups.weak_group`), and every result says that it may leak.
"""

from __future__ import annotations

import functools
import re

import pandas as pd

from mammoray import labels, storage
from mammoray.errors import CatalogError
from mammoray.findings import Finding, each
from mammoray.groups import weak_group
from mammoray.layouts import FEATURES, RASTER, Tree
from mammoray.source import COLUMNS, Rows

_LEAK = (
    "Patients are not known in this layout: {groups}, so that images of one woman may stand on both sides of the split "
    "and flatter the metrics; and a group may hold several women, so that figures per patient are per group."
)


def mamografias(tree: Tree) -> Rows:
    """Folders such as ``DleftCC`` with images and a ``featureS.txt`` each: a name, then its class 0 to 3, in turn."""
    own = [path for path in tree.features if "/" in path]
    folders = {storage.split(path)[0] for path in own}
    return _listed(tree, own, {path for path in tree.files if storage.split(path)[0] in folders})


def patches(tree: Tree) -> Rows:
    """Patches in one folder with one ``featureS.txt``; the number in a name's brackets is that of its source image."""
    return _listed(tree, [FEATURES], {path for path in tree.files if "/" not in path})


def _listed(tree: Tree, features: list[str], images: set[str]) -> Rows:
    records: list[dict[str, object]] = []
    findings: list[Finding] = []
    known = {path.replace(" ", ""): path for path in images}
    for path in features:
        said, copies = _read_features(tree, path)
        findings += each(copies, functools.partial(_copy, path))
        folder = storage.split(path)[0]
        for name, (label, line) in said.items():
            file = _image(known, f"{folder}/{name}" if folder else name)
            records.append({"label": label, "line": line, "path": file})
    frame = _frame(records)
    alone = int((frame["patient_id"] == frame["path"]).sum())
    rest = f", and {alone} without such a number by nothing" if alone else ""
    leak = _LEAK.format(groups=f"images are grouped by the letter and number in their names{rest}")
    return Rows(
        frame=frame,
        tree=tree,
        grouped_by="letter and number in the file's name",
        findings=findings,
        limits=(leak,),
        leak=leak,
    )


def _read_features(tree: Tree, path: str) -> tuple[dict[str, tuple[str, int]], list[str]]:
    """Name -> (label, line) of a featureS.txt, and the names that it has more than once.

    Raises
    ------
    CatalogError
        An odd number of lines, or one name with two classes.
    LabelError
        A class that is none of 0 to 3.
    """
    content = storage.read(storage.join(tree.root, path))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(lines) % 2:
        expected, remedy = "a name and a class line in turn", "Add or remove the line."
        raise CatalogError(path, expected, f"{len(lines)} lines, the last without its other half", remedy)
    said: dict[str, tuple[str, int]] = {}
    copies = []
    for (line, name), (at, cell) in zip(lines[::2], lines[1::2], strict=True):
        label = labels.parse_class_line(cell, f"{path}: line {at}")
        if name in said and said[name][0] != label:
            found = f"{said[name][0]} in line {said[name][1]} and {label} in line {line}"
            raise CatalogError(f"{path}: {name}", "one class", found, "Keep the right one.")
        copies += [name] if name in said else []
        said.setdefault(name, (label, line))
    return said, copies


def _copy(path: str, name: str) -> Finding:
    return Finding(
        severity="warning", image_id=name, file=path, reason="the image is listed more than once", expected="one name",
        found="equal copies", what_to_do="Remove the copies; one of them is used.",
    )  # fmt: skip


def _image(images: dict[str, str], stem: str) -> str:
    """The image of a name with or without its suffix and spaces; the name with the usual one where there is none."""
    close = stem.replace(" ", "")
    return next((images[name] for suffix in ("", *RASTER) if (name := close + suffix) in images), f"{stem}.png")


def folders(tree: Tree) -> Rows:
    """Images in folders whose names say their class, such as ``A`` or ``density_2``; the innermost such one counts."""
    records, strangers = [], []
    for path in sorted(tree.files):
        said = next(filter(None, map(labels.parse_folder, reversed(path.split("/")[:-1]))), None)
        if said is None:
            strangers.append(path)
        else:
            records.append({"label": said, "line": 0, "path": path})
    leak = _LEAK.format(groups="images are grouped by the number in their names' brackets, or not at all")
    findings = each(strangers, _stranger)
    return Rows(frame=_frame(records), tree=tree, grouped_by="file", findings=findings, limits=(leak,), leak=leak)


def _stranger(path: str) -> Finding:
    return Finding(
        severity="warning", file=path, reason="no folder says the class", expected="a folder such as A or density_1",
        found="none", what_to_do="Move the image into its class's folder if it is wanted.",
    )  # fmt: skip


def files(tree: Tree) -> Rows:
    """Any images, of which no class is known: those of a folder are taken for one patient's, others stand alone."""
    paths = sorted(tree.files)
    owners = [storage.split(path)[0] or path for path in paths]
    frame = _frame([{"label": None, "line": 0, "path": path} for path in paths])
    frame = frame.assign(patient_id=pd.Series(owners, dtype="string"), laterality="", view="")
    leak = "No table says whose these images are: those of a folder count as one patient's, and the others stand alone."
    return Rows(frame=frame, tree=tree, grouped_by="folder", findings=[], limits=(leak,), leak=leak)


def _frame(records: list[dict[str, object]]) -> pd.DataFrame:
    frame = pd.DataFrame(records, columns=["label", "line", "path"]).astype({"label": "string", "line": "int64"})
    place = frame["path"].str.lower()
    frame = frame.assign(
        image_id=frame["path"],
        patient_id=frame["path"].map(weak_group),
        laterality=place.map(_side).astype("string"),
        view=place.map(_view).astype("string"),
        **dict.fromkeys(("site_id", "machine_id", "implant", "age"), ""),
    )
    return frame[list(COLUMNS)]


def _side(place: str) -> str:
    sides = set(re.findall("left|right", place))
    return {"left": "L", "right": "R"}[sides.pop()] if len(sides) == 1 else ""


def _view(place: str) -> str:
    views = set(re.findall(r"(?:left|right)[_ ]?(cc|mlo)", place))
    return str(views.pop()).upper() if len(views) == 1 else ""


READERS = {"mamografias": mamografias, "patches": patches, "folders": folders, "files": files}
