"""How a data set lies on the disk: its layouts, and which of them a table and a folder tree show.

===========  ==========================================  ====================================================
layout       table                                       tree below the root
===========  ==========================================  ====================================================
rsna         ``patient_id, image_id, density`` or more   ``[train_images/]<patient_id>/<image_id>.dcm``
study        ``patient_id``, a class, further ids        ``patient_<id>/study_<id>/series_<id>/*.dcm``
irma         ``AccessionNumber, Classification``         ``[archive/]<AccessionNumber>/**/*.dcm``
mamografias  none                                        ``<folder>/*.png`` and ``<folder>/featureS.txt``
patches      none                                        ``*.png`` and one ``featureS.txt``
folders      none                                        ``<class>/*``, folders named by their class
files        none                                        any images, without labels
csv          a column of image paths                     anything
===========  ==========================================  ====================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mammoray import labels, storage
from mammoray.config import DataConfig
from mammoray.errors import CatalogError
from mammoray.storage import Entry
from mammoray.tables import Table, open_table

DICOM = (".dcm", ".dicom")
RASTER = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
FEATURES = "featureS.txt"
TABLES = ("train.csv", "classificacao.csv", "metadata.csv")
"""Names under which a table is looked for below the root where none is given."""
PATHS = ("image_path", "path", "file", "filename")
"""Columns that hold image paths, the first that is there."""
_LABEL = ("density", "cancer", "prediction_id")


@dataclass(frozen=True, slots=True)
class Tree:
    """What lies below a root.

    Attributes
    ----------
    root : str
        Path or URI.
    files : dict
        Path from the root -> entry, of every image.
    features : tuple of str
        Paths of the featureS.txt files.
    empty, outward : tuple of str
        Empty folders, and links that lead out of the root.
    unnamed : tuple of str
        Files whose name has no suffix, as some archives write their DICOMs.
    """

    root: str
    files: dict[str, Entry] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    outward: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()

    def below(self, folder: str) -> Tree:
        """The part of the tree in a folder of the root, with that folder as root."""
        cut = len(folder) + 1

        def inside(paths: Iterable[str]) -> tuple[str, ...]:
            return tuple(path[cut:] for path in paths if path.startswith(f"{folder}/"))

        files = {path[cut:]: entry for path, entry in self.files.items() if path.startswith(f"{folder}/")}
        rest = map(inside, (self.features, self.empty, self.outward, self.unnamed))
        return Tree(storage.join(self.root, folder), files, *rest)

    def like(self, pattern: str) -> int:
        """Number of images whose whole path from the root a regular expression matches, whatever its case."""
        matches = re.compile(pattern, re.IGNORECASE).fullmatch
        return sum(matches(path) is not None for path in self.files)


def read_tree(root: str, config: DataConfig) -> Tree:
    """List a root.

    Raises
    ------
    CatalogError
        There is no such folder, or no image in it.
    StorageError
        It cannot be listed.
    """
    if not storage.is_folder(root):
        raise CatalogError(storage.shown(root), "a folder", "nothing there", "Check --dicom-root.")
    entries = list(storage.walk(root, config.links))
    files = {e.path: e for e in entries if e.kind == "file" and e.path.lower().endswith(DICOM + RASTER)}
    if not files:
        expected = "images: files that end in " + ", ".join(DICOM + RASTER)
        found = f"{sum(e.kind == 'file' for e in entries)} other files"
        raise CatalogError(storage.shown(root), expected, found, "Check --dicom-root.")
    return Tree(
        root,
        files,
        tuple(e.path for e in entries if storage.split(e.path)[1] == FEATURES),
        tuple(e.path for e in entries if e.kind == "empty folder"),
        tuple(e.path for e in entries if e.kind == "link out"),
        tuple(e.path for e in entries if e.kind == "file" and "." not in storage.split(e.path)[1]),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """A layout that fits, the table it takes its labels from, and what speaks for it."""

    name: str
    table: Table | None
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Sign:
    """Whether something speaks for a layout, in words either way."""

    fits: bool
    text: str


def detect(given: Table | None, tree: Tree, config: DataConfig, unlabelled: bool = False) -> Found:
    """Which layout a table and a tree show; ``--dataset`` leaves only one to choose.

    Parameters
    ----------
    given : Table or None
        The table of ``--csv``; None to look for one below the root.
    tree : Tree
    config : DataConfig
    unlabelled : bool
        Where no table is given and no layout fits, take ``files``.

    Raises
    ------
    CatalogError
        None of them, or several, with what speaks for and against each.
    """
    candidates = [given] if given is not None else _tables_in(tree.root)
    names = [config.dataset] if config.dataset != "auto" else [name for name in _SIGNS if name != "files"]
    if config.dataset == "auto" and config.path_column is not None:
        names = ["csv"]
    fitting: list[Found] = []
    against: list[tuple[int, str]] = []
    for table in candidates:
        for name in names:
            wants_table, signs = _SIGNS[name]
            if wants_table != (table is not None):
                continue
            said = signs(table, tree, config)
            evidence = tuple(sign.text for sign in said)
            if all(sign.fits for sign in said):
                fitting.append(Found(name, table, evidence))
            else:
                missing = "; ".join(sign.text for sign in said if not sign.fits)
                against.append((sum(sign.fits for sign in said), f"{name}: {missing}"))
    if any(found.table is not None for found in fitting):
        # Folders of patients 1 to 4 look like folders of classes; a table that fits says which they are.
        fitting = [found for found in fitting if found.name != "folders"]
    if len(fitting) == 1:
        return fitting[0]
    where = storage.shown(tree.root) + (f" with {given.name}" if given else "")
    if fitting:
        several = " | ".join(f"{found.name} ({'; '.join(found.evidence)})" for found in fitting)
        raise CatalogError(where, "one layout", several, "Choose with --dataset, or give --csv.")
    if unlabelled and given is None and config.dataset == "auto" and config.path_column is None:
        return Found("files", None, tuple(sign.text for sign in _files_alone(None, tree, config)))
    if not against:
        found = "no --csv" if given is None else "a --csv, which this layout does not have"
        raise CatalogError(where, f"the {' or '.join(names)} layout", found, "Check --csv and --dataset.")
    remedy = "Check that --csv and --dicom-root belong together; any table with image paths works with --path-column."
    nearest = [text for fits, text in against if fits == max(against)[0]]
    raise CatalogError(where, f"the {' or '.join(names)} layout", " | ".join(nearest), remedy)


def _tables_in(root: str) -> list[Table | None]:
    paths = [storage.join(root, name) for name in TABLES]
    tables: list[Table | None] = [open_table(path) for path in paths if storage.is_file(path)]
    return [*tables, None]


def _columns(table: Table, *wanted: tuple[str, ...]) -> _Sign:
    """A sign that of each tuple of names one is a column."""
    have = [table.find(*names) for names in wanted]
    missing = [" or ".join(names) for names, column in zip(wanted, have, strict=True) if column is None]
    name = storage.split(table.name)[1]
    if missing:
        return _Sign(False, f"no column {' and no '.join(missing)} in {name}, which has {', '.join(table.columns)}")
    return _Sign(True, f"columns {', '.join(str(column) for column in have)} in {name}")


def _files(tree: Tree, pattern: str, words: str) -> _Sign:
    count = tree.like(pattern)
    if count:
        return _Sign(True, f"{count} files as {words}")
    return _Sign(False, f"no file as {words}, but {len(tree.files)} such as {next(iter(tree.files))}")


def _own(name: str | None, *usual: str) -> tuple[str, ...]:
    return (name,) if name is not None else usual


def _rsna(table: Table | None, tree: Tree, config: DataConfig) -> list[_Sign]:
    pattern = r"((train|test)_images/)?[^/]+/[^/]+\.(dcm|dicom)"
    return [
        _columns(_given(table), ("patient_id",), ("image_id",), _own(config.label_column, *_LABEL)),
        _files(tree, pattern, "[train_images/]<patient_id>/<image_id>.dcm"),
    ]


def _study(table: Table | None, tree: Tree, config: DataConfig) -> list[_Sign]:
    pattern = r"(.*/)?patient_[^/]+/study_[^/]+/series_[^/]+/[^/]+\.(dcm|dicom)"
    return [
        _columns(_given(table), ("patient_id",), _own(config.label_column, *STUDY_LABEL)),
        _files(tree, pattern, "patient_<id>/study_<id>/series_<id>/*.dcm"),
    ]


STUDY_LABEL = ("density", "class", "classification", "label", "breast_density")
"""Columns that hold the class in a metadata.csv."""


def _irma(table: Table | None, tree: Tree, config: DataConfig) -> list[_Sign]:
    return [
        _columns(_given(table), ("AccessionNumber",), _own(config.label_column, "Classification")),
        _files(tree, r"(archive/)?[^/]+/.+\.(dcm|dicom)", "[archive/]<AccessionNumber>/**/*.dcm"),
    ]


def _csv(table: Table | None, tree: Tree, config: DataConfig) -> list[_Sign]:
    return [_columns(_given(table), _own(config.path_column, *PATHS))]


def _mamografias(table: Table | None, tree: Tree, config: DataConfig) -> list[_Sign]:
    folders = {storage.split(path)[0] for path in tree.features} - {""}
    count = sum(storage.split(path)[0] in folders for path in tree.files)
    if not count:
        return [_Sign(False, f"no folder with images and a {FEATURES}")]
    return [_Sign(True, f"{count} images in {len(folders)} folders with a {FEATURES}")]


def _patches(table: Table | None, tree: Tree, config: DataConfig) -> list[_Sign]:
    count = tree.like(r"[^/]+")
    fits = FEATURES in tree.features and count > 0
    text = f"{count} images beside one {FEATURES}" if fits else f"no images beside a {FEATURES} in the root itself"
    return [_Sign(fits, text)]


def _folders(table: Table | None, tree: Tree, config: DataConfig) -> list[_Sign]:
    inside = [name for path in tree.files for name in path.split("/")[-2:-1] if labels.parse_folder(name)]
    classes = sorted(set(inside))
    if 0 < 2 * len(inside) < len(tree.files):
        return [_Sign(False, f"only {len(inside)} of {len(tree.files)} images are in folders named by a class")]
    if tree.features or not classes:
        return [_Sign(False, "no folders named by a class" if not classes else f"there is a {FEATURES}")]
    return [_Sign(True, f"folders {', '.join(classes)} named by a class")]


def _files_alone(table: Table | None, tree: Tree, config: DataConfig) -> list[_Sign]:
    return [_Sign(True, f"{len(tree.files)} images, and nothing that is known of their classes")]


def _given(table: Table | None) -> Table:
    if table is None:
        raise CatalogError("--csv", "a table of labels for this layout", "none", "Give --csv.")
    return table


_Signs = Callable[[Table | None, Tree, DataConfig], list[_Sign]]
_SIGNS: dict[str, tuple[bool, _Signs]] = {
    "rsna": (True, _rsna),
    "study": (True, _study),
    "irma": (True, _irma),
    "csv": (True, _csv),
    "mamografias": (False, _mamografias),
    "patches": (False, _patches),
    "folders": (False, _folders),
    "files": (False, _files_alone),
}
"""Layout -> (whether it takes a table, what speaks for it)."""
