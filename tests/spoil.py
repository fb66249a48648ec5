"""Damage to a copied synthetic set, one defined way each: the cases that audit and catalog are tested on.

Each function takes a set in the layout rsna or irma (:func:`copied` makes one that may be spoilt) and ``at``, the place
of its victim in the sorted list of files, or of patients, so that several damages find room in one set. Headers are
edited by pydicom, and nothing but what the function's name says is changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pydicom
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from mammoray.synth import SynthSummary
from tests.reference_decoder import decoded

FOREIGN = "999999"
"""Identifier that no synthetic set has."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What was done."""

    files: tuple[str, ...]
    """Files concerned, as paths below the root, in the order in which the function's text names them."""
    lines: tuple[int, ...] = ()
    """Lines of the CSV concerned, in its new state; the header is line 1."""

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the files without suffix: image ids in the layout rsna."""
        return tuple(PurePosixPath(file).stem for file in self.files)

    @property
    def patients(self) -> tuple[str, ...]:
        """Folders of the files: patients in the layout rsna, exams in irma."""
        return tuple(dict.fromkeys(file.split("/")[0] for file in self.files))


def copied(data: SynthSummary, folder: Path) -> SynthSummary:
    """Copy a whole set to ``folder``, which does not exist yet."""
    shutil.copytree(data.table.parent, folder)
    return replace(data, csv=folder / data.table.name, root=folder / data.root.name)


def files(data: SynthSummary) -> list[str]:
    """All DICOM files as paths below the root, sorted."""
    return sorted(path.relative_to(data.root).as_posix() for path in data.root.rglob("*.dcm"))


def patients(data: SynthSummary) -> list[str]:
    """All folders below the root, sorted."""
    return sorted(path.name for path in data.root.iterdir())


def read_table(data: SynthSummary) -> pd.DataFrame:
    """Read the CSV as it stands: every cell a string."""
    return pd.read_csv(data.csv, dtype=str, keep_default_na=False)


def lines_of(data: SynthSummary, file: str) -> tuple[int, ...]:
    """Lines of the CSV that speak of a file: its own in the layout rsna, its exam's in irma."""
    table = read_table(data)
    found = table["patient_id" if "patient_id" in table else "AccessionNumber"] == file.split("/", 1)[0]
    if "image_id" in table:
        found &= table["image_id"] == PurePosixPath(file).stem
    return tuple(int(i) + 2 for i in np.flatnonzero(found))


# Files that are no whole DICOM ---------------------------------------------------------------------------------------


def truncated(data: SynthSummary, at: int = 0) -> Damage:
    """Cut a file in the middle of its pixels: the header is whole."""
    pixels = pydicom.dcmread(data.root / files(data)[at]).PixelData
    return _rewritten(data, at, lambda content: content[: -(len(pixels) // 2)])


def truncated_header(data: SynthSummary, at: int = 0) -> Damage:
    """Cut a file in the middle of the header's element Rows, (0028,0010): pydicom reads that without a word."""
    return _rewritten(data, at, lambda content: content[: content.index(b"\x28\x00\x10\x00US") + 7])


def emptied(data: SynthSummary, at: int = 0) -> Damage:
    """Leave nothing of a file but its name."""
    return _rewritten(data, at, lambda _: b"")


def renamed_png(data: SynthSummary, at: int = 0) -> Damage:
    """Put a PNG in the place of a DICOM."""
    return _rewritten(data, at, lambda _: _picture("PNG"))


def renamed_jpeg(data: SynthSummary, at: int = 0) -> Damage:
    """Put a JPEG in the place of a DICOM."""
    return _rewritten(data, at, lambda _: _picture("JPEG"))


def linked_outside(data: SynthSummary, at: int = 0) -> Damage:
    """Move a file beside the root and leave a link to it."""
    file = files(data)[at]
    elsewhere = data.root.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    target = elsewhere / file.replace("/", "_")
    (data.root / file).rename(target)
    (data.root / file).symlink_to(target)
    return Damage(files=(file,), lines=lines_of(data, file))


# Pixels --------------------------------------------------------------------------------------------------------------


def all_zero(data: SynthSummary, at: int = 0) -> Damage:
    """Set every pixel to 0, uncompressed."""
    return _edited(data, at, lambda ds: _store(ds, np.zeros((ds.Rows, ds.Columns), np.uint16)))


def beyond_bits_stored(data: SynthSummary, at: int = 0) -> Damage:
    """Store an image uncompressed in 12 bits, and a value of 13 bits in its middle."""

    def edit(ds: Any) -> None:
        pixels = decoded(ds) >> max(ds.BitsStored - 12, 0)
        pixels[ds.Rows // 2, ds.Columns // 2] = 5000
        ds.BitsStored, ds.HighBit = 12, 11
        _store(ds, pixels)

    return _edited(data, at, edit)


def huge(data: SynthSummary, at: int = 0) -> Damage:
    """Claim 900 frames of 65,535 x 65,535 pixels, which are 3.9 x 10^12."""
    return _edited(data, at, lambda ds: ds.update({"Rows": 65535, "Columns": 65535, "NumberOfFrames": 900}))


# Duplicates ----------------------------------------------------------------------------------------------------------


def same_patient_twice(data: SynthSummary, at: int = 0) -> Damage:
    """Copy a file, byte by byte, within its patient; in the layout rsna with a row of its own."""
    file = files(data)[at]
    copy = _spare(data, file.split("/")[0])
    shutil.copyfile(data.root / file, data.root / copy)
    return Damage(files=(file, copy), lines=_with_row(data, like=file, copy=copy))


def two_patients_alike(data: SynthSummary, at: int = 0) -> Damage:
    """Give another patient a copy of an image, whose header is hers: the pixels alone tell."""
    file = files(data)[at]
    other = [name for name in files(data) if name.split("/")[0] != file.split("/")[0]][-1]
    copy = _spare(data, other.split("/")[0])
    shutil.copyfile(data.root / file, data.root / copy)
    hers = pydicom.dcmread(data.root / other, stop_before_pixels=True)

    def edit(ds: Any) -> None:
        ds.PatientID, ds.StudyInstanceUID = hers.PatientID, hers.StudyInstanceUID
        ds.BreastImplantPresent = hers.BreastImplantPresent
        ds.SeriesInstanceUID = generate_uid(entropy_srcs=["series", copy])
        _set_sop_uid(ds, generate_uid(entropy_srcs=["instance", copy]))

    _edit(data.root / copy, edit)
    shown = pydicom.dcmread(data.root / copy, stop_before_pixels=True)
    views = {"laterality": shown.ImageLaterality, "view": shown.ViewPosition}
    return Damage(files=(file, copy), lines=_with_row(data, like=other, copy=copy, **views))


def same_sop_uid(data: SynthSummary, at: int = 0) -> Damage:
    """Give the next file the SOP Instance UID of this one."""
    file, following = files(data)[at : at + 2]
    uid = pydicom.dcmread(data.root / file, stop_before_pixels=True).SOPInstanceUID
    done = _edited(data, at + 1, lambda ds: _set_sop_uid(ds, uid))
    return Damage(files=(file, following), lines=(*lines_of(data, file), *done.lines))


# Headers -------------------------------------------------------------------------------------------------------------


def other_laterality(data: SynthSummary, at: int = 0) -> Damage:
    """Let the header say the other side than the CSV."""
    return _edited(data, at, lambda ds: ds.update({"ImageLaterality": {"L": "R", "R": "L"}[ds.ImageLaterality]}))


def other_view(data: SynthSummary, at: int = 0) -> Damage:
    """Let the header say CC for any view but CC, and MLO for CC."""
    return _edited(data, at, lambda ds: ds.update({"ViewPosition": "MLO" if ds.ViewPosition == "CC" else "CC"}))


def other_patient(data: SynthSummary, at: int = 0) -> Damage:
    """Let the header name a patient that no folder has."""
    return _edited(data, at, lambda ds: ds.update({"PatientID": FOREIGN}))


def other_accession(data: SynthSummary, at: int = 0) -> Damage:
    """Let the header name an accession number that no folder has."""
    return _edited(data, at, lambda ds: ds.update({"AccessionNumber": FOREIGN}))


def no_modality(data: SynthSummary, at: int = 0) -> Damage:
    """Take Modality out of the header of a file that has it; ``at`` counts those."""
    having = [i for i, file in enumerate(files(data)) if "Modality" in pydicom.dcmread(data.root / file)]
    return _edited(data, having[at], lambda ds: ds.pop("Modality"))


def implant_only_in_header(data: SynthSummary, at: int = 0) -> Damage:
    """Let the header of an image without implant say that there is one; ``at`` counts those images."""
    table = read_table(data)
    without = set(table["image_id"][table["implant"] == "0"])
    places = [i for i, file in enumerate(files(data)) if PurePosixPath(file).stem in without]
    return _edited(data, places[at], lambda ds: ds.update({"BreastImplantPresent": "YES"}))


# Folders and rows ----------------------------------------------------------------------------------------------------


def view_missing(data: SynthSummary, at: int = 0) -> Damage:
    """Remove a patient's left CC images, and in the layout rsna their rows."""
    gone = [file for file in _of_patient(data, at) if _view(data.root / file) == ("L", "CC")]
    lines = [line for file in gone for line in lines_of(data, file)]
    for file in gone:
        (data.root / file).unlink()
    if "image_id" in read_table(data):
        _without_lines(data, lines)
    return Damage(files=tuple(gone))


def folder_without_row(data: SynthSummary, at: int = 0) -> Damage:
    """Remove all rows of a patient."""
    kept = _of_patient(data, at)
    _without_lines(data, [line for file in kept for line in lines_of(data, file)])
    return Damage(files=tuple(kept))


def row_without_folder(data: SynthSummary, at: int = 0) -> Damage:
    """Remove a patient's folder."""
    done = _patient_damage(data, at)
    shutil.rmtree(data.root / done.patients[0])
    return done


def empty_folder(data: SynthSummary, at: int = 0) -> Damage:
    """Remove all files of a patient's folder."""
    done = _patient_damage(data, at)
    for file in done.files:
        (data.root / file).unlink()
    return done


def class_5(data: SynthSummary, at: int = 0) -> Damage:
    """Give a patient the class 5."""
    done, table = _patient_damage(data, at), read_table(data)
    table.loc[[line - 2 for line in done.lines], "density" if "density" in table else "Classification"] = "5"
    _save(data, table)
    return done


def row_twice(data: SynthSummary, at: int = 0) -> Damage:
    """Repeat the row of a file at the end of the CSV."""
    file, table = files(data)[at], read_table(data)
    line = lines_of(data, file)[0]
    _save(data, pd.concat([table, table.iloc[[line - 2]]]))
    return Damage(files=(file,), lines=(line, len(table) + 2))


RSNA_ONLY = (implant_only_in_header,)
"""Damages that need columns of RSNA's train.csv."""
DAMAGES: tuple[Callable[..., Damage], ...] = (
    truncated, truncated_header, emptied, renamed_png, renamed_jpeg, linked_outside, all_zero, beyond_bits_stored, huge,
    same_patient_twice, two_patients_alike, same_sop_uid, other_laterality, other_view, other_patient, other_accession,
    no_modality, view_missing, folder_without_row, row_without_folder, empty_folder, class_5, row_twice, *RSNA_ONLY,
)  # fmt: skip
"""All of them."""


def _rewritten(data: SynthSummary, at: int, change: Callable[[bytes], bytes]) -> Damage:
    file = files(data)[at]
    (data.root / file).write_bytes(change((data.root / file).read_bytes()))
    return Damage(files=(file,), lines=lines_of(data, file))


def _edited(data: SynthSummary, at: int, edit: Callable[[Any], object]) -> Damage:
    file = files(data)[at]
    _edit(data.root / file, edit)
    return Damage(files=(file,), lines=lines_of(data, file))


def _edit(path: Path, edit: Callable[[Any], object]) -> None:
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path, enforce_file_format=True)


def _store(ds: Any, pixels: Any) -> None:
    del ds.PixelData  # It remembers that it was encapsulated.
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.add_new("PixelData", "OW", pixels.astype("<u2").tobytes())


def _set_sop_uid(ds: Any, uid: str) -> None:
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid


def _picture(kind: str) -> bytes:
    stream = BytesIO()
    Image.linear_gradient("L").save(stream, kind)
    return stream.getvalue()


def _view(path: Path) -> tuple[str, str]:
    header = pydicom.dcmread(path, stop_before_pixels=True)
    return header.ImageLaterality, header.ViewPosition


def _of_patient(data: SynthSummary, at: int) -> list[str]:
    patient = patients(data)[at]
    return [file for file in files(data) if file.startswith(patient + "/")]


def _patient_damage(data: SynthSummary, at: int) -> Damage:
    found = _of_patient(data, at)
    return Damage(files=tuple(found), lines=tuple(sorted({line for file in found for line in lines_of(data, file)})))


def _spare(data: SynthSummary, patient: str) -> str:
    """Path of an image that the patient does not have yet, with the next free number of the layout."""
    names = [PurePosixPath(file).stem for file in files(data)]
    if "image_id" in read_table(data):
        return f"{patient}/{max(map(int, names)) + 1}.dcm"
    return f"{patient}/IM{max(int(name[2:]) for name in names) + 1:04d}.dcm"


def _with_row(data: SynthSummary, *, like: str, copy: str, **changes: str) -> tuple[int, ...]:
    """Append a row for ``copy`` that is as that of ``like`` but for ``changes``; exams of irma need none."""
    table = read_table(data)
    if "image_id" in table:
        row = table.iloc[[lines_of(data, like)[0] - 2]].assign(image_id=PurePosixPath(copy).stem, **changes)
        _save(data, pd.concat([table, row]))
    return (*lines_of(data, like), *lines_of(data, copy)) if "image_id" in table else lines_of(data, copy)


def _without_lines(data: SynthSummary, lines: list[int]) -> None:
    table = read_table(data)
    _save(data, table.drop(index=sorted({line - 2 for line in lines})))


def _save(data: SynthSummary, table: pd.DataFrame) -> None:
    table.to_csv(data.csv, index=False, lineterminator="\n")
