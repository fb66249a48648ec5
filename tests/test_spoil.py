"""Each damage is really there, and nothing else is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid

from mammoray.config import SynthConfig
from mammoray.synth import SynthSummary, write
from tests import spoil
from tests.reference_decoder import decoded
from tests.spoil import Damage, files, lines_of, patients, read_table

BOTH = pytest.mark.parametrize("layout", ["rsna", "irma"])


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SynthSummary]:
    root = tmp_path_factory.mktemp("sound")
    shape: dict[str, Any] = {"patients": 5, "height": 96, "width": 80}
    return {
        "rsna": write(root / "rsna", SynthConfig(**shape), 3),
        "irma": write(root / "irma", SynthConfig(**shape, layout="irma"), 3),
    }


@pytest.fixture
def rsna(sets: dict[str, SynthSummary], tmp_path: Path) -> SynthSummary:
    return spoil.copied(sets["rsna"], tmp_path / "rsna")


@pytest.fixture
def irma(sets: dict[str, SynthSummary], tmp_path: Path) -> SynthSummary:
    return spoil.copied(sets["irma"], tmp_path / "irma")


@pytest.fixture
def data(layout: str, request: pytest.FixtureRequest) -> SynthSummary:
    found: SynthSummary = request.getfixturevalue(layout)
    return found


def header(data: SynthSummary, file: str) -> pydicom.Dataset:
    return pydicom.dcmread(data.root / file)


def digests(data: SynthSummary) -> dict[str, str]:
    return {file: hashlib.sha256((data.root / file).read_bytes()).hexdigest() for file in files(data)}


def pixels_of(data: SynthSummary, file: str) -> bytes:
    return decoded(header(data, file)).tobytes()


def changed(before: pydicom.Dataset, after: pydicom.Dataset) -> set[str]:
    """Keywords of header and file meta information whose element is not the same any more."""
    both = set()
    for old, new in ((before, after), (before.file_meta, after.file_meta)):
        both |= {
            new.get(tag, old.get(tag)).keyword for tag in {*old.keys(), *new.keys()} if old.get(tag) != new.get(tag)
        }
    return both - {"FileMetaInformationGroupLength"}


@BOTH
@pytest.mark.parametrize("damage", spoil.DAMAGES)
def test_a_damage_touches_only_the_files_that_it_names_and_is_the_same_each_time(
    damage: Callable[..., Damage], layout: str, sets: dict[str, SynthSummary], tmp_path: Path
) -> None:
    if layout == "irma" and damage in spoil.RSNA_ONLY:
        with pytest.raises(KeyError):
            damage(sets[layout])
        return
    sound = digests(sets[layout])
    spoilt = [spoil.copied(sets[layout], tmp_path / name) for name in "ab"]
    done = [damage(data, 1) for data in spoilt]
    now = digests(spoilt[0])
    assert done[0] == done[1] and now == digests(spoilt[1])
    assert spoilt[0].table.read_bytes() == spoilt[1].table.read_bytes()
    assert {file for file in {*sound, *now} if sound.get(file) != now.get(file)} <= set(done[0].files)
    links = [path for path in spoilt[0].root.rglob("*") if path.is_symlink()]
    assert now != sound or links or spoilt[0].table.read_bytes() != sets[layout].table.read_bytes()
    for line in done[0].lines:
        assert read_table(spoilt[0]).iloc[line - 2, 0 if layout == "irma" else 1] in done[0].patients


def test_files_and_lines_of_a_damage_say_images_and_patients(rsna: SynthSummary) -> None:
    file = files(rsna)[2]
    done = spoil.emptied(rsna, 2)
    row = read_table(rsna).iloc[done.lines[0] - 2]
    assert done == Damage(files=(file,), lines=lines_of(rsna, file)) and len(done.lines) == 1
    assert (*done.patients, *done.images) == (row["patient_id"], row["image_id"]) == tuple(file[:-4].split("/"))


def test_every_row_of_an_exam_stands_for_all_its_files(irma: SynthSummary) -> None:
    exam = patients(irma)[0]
    lines = {lines_of(irma, file) for file in files(irma) if file.startswith(exam)}
    assert lines == {(2,)} and read_table(irma)["AccessionNumber"].iloc[0] == exam


# Files that are no whole DICOM ---------------------------------------------------------------------------------------


@BOTH
@pytest.mark.filterwarnings("ignore:End of file reached")
def test_a_truncated_file_has_its_whole_header_and_half_its_pixels(data: SynthSummary) -> None:
    before = header(data, files(data)[0])
    whole = (data.root / files(data)[0]).read_bytes()
    (file,) = spoil.truncated(data).files
    left = (data.root / file).read_bytes()
    assert whole.startswith(left) and len(whole) - len(left) == len(before.PixelData) // 2 > 0
    assert changed(before, pydicom.dcmread(data.root / file, stop_before_pixels=True)) == {"PixelData"}
    with pytest.raises((ValueError, EOFError, AttributeError)):
        decoded(header(data, file))


@BOTH
def test_a_file_with_a_truncated_header_ends_before_its_size(data: SynthSummary) -> None:
    whole = (data.root / files(data)[0]).read_bytes()
    (file,) = spoil.truncated_header(data).files
    assert whole.startswith((data.root / file).read_bytes())
    assert "ViewPosition" in header(data, file) and "Rows" not in header(data, file)


def test_an_emptied_file_has_no_bytes(rsna: SynthSummary) -> None:
    (file,) = spoil.emptied(rsna).files
    assert (rsna.root / file).stat().st_size == 0


@pytest.mark.parametrize(("damage", "kind"), [(spoil.renamed_png, "PNG"), (spoil.renamed_jpeg, "JPEG")])
def test_a_renamed_picture_opens_as_a_picture_and_not_as_dicom(
    damage: Callable[..., Damage], kind: str, rsna: SynthSummary
) -> None:
    (file,) = damage(rsna).files
    with Image.open(rsna.root / file) as image:
        assert image.format == kind
    with pytest.raises(pydicom.errors.InvalidDicomError):
        pydicom.dcmread(rsna.root / file)


@BOTH
def test_a_linked_file_is_whole_and_stands_outside_of_the_root(data: SynthSummary) -> None:
    before = digests(data)
    (file,) = spoil.linked_outside(data).files
    assert (data.root / file).is_symlink() and digests(data) == before
    assert data.root not in (data.root / file).resolve().parents


# Pixels --------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("at", [0, 4, 8])
def test_an_all_zero_image_differs_in_its_pixels_alone(data: SynthSummary, at: int) -> None:
    before = header(data, files(data)[at])
    after = header(data, spoil.all_zero(data, at).files[0])
    assert not decoded(after).any() and decoded(after).shape == (96, 80)
    assert changed(before, after) <= {"PixelData", "TransferSyntaxUID"}


@BOTH
@pytest.mark.parametrize("at", [0, 4, 8])
def test_one_pixel_lies_beyond_the_bits_stored(data: SynthSummary, at: int) -> None:
    before = header(data, files(data)[at])
    after = header(data, spoil.beyond_bits_stored(data, at).files[0])
    assert (after.BitsAllocated, after.BitsStored, after.HighBit) == (16, 12, 11)
    assert after.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    outside = decoded(after) >= 2**12
    assert int(outside.sum()) == 1 and decoded(after).max() < 2**13
    shift = max(before.BitsStored - 12, 0)
    np.testing.assert_array_equal(decoded(after)[~outside], decoded(before)[~outside] >> shift)
    assert changed(before, after) <= {"PixelData", "TransferSyntaxUID", "BitsStored", "HighBit"}


def test_a_huge_image_claims_far_more_than_the_file_holds(rsna: SynthSummary) -> None:
    before = header(rsna, files(rsna)[0])
    after = header(rsna, spoil.huge(rsna).files[0])
    assert after.Rows * after.Columns * after.NumberOfFrames > 3.8e12
    assert changed(before, after) == {"Rows", "Columns", "NumberOfFrames"}


# Duplicates ----------------------------------------------------------------------------------------------------------


@BOTH
def test_a_copy_within_a_patient_is_the_same_file_with_a_row(data: SynthSummary) -> None:
    done = spoil.same_patient_twice(data)
    first, second = ((data.root / file).read_bytes() for file in done.files)
    assert first == second and len(done.patients) == 1 and len(set(done.images)) == 2
    assert len(read_table(data)) == len(set(read_table(data).itertuples(index=False)))
    assert [lines_of(data, file) for file in done.files] == (
        [(done.lines[0],), (done.lines[1],)] if "image_id" in read_table(data) else [done.lines] * 2
    )


@BOTH
@pytest.mark.parametrize("at", [0, -1])
def test_two_patients_share_pixels_and_nothing_else_tells(data: SynthSummary, at: int) -> None:
    done = spoil.two_patients_alike(data, at)
    one, two = (header(data, file) for file in done.files)
    assert len(done.patients) == 2 and (one.PatientID, two.PatientID) == done.patients
    assert pixels_of(data, done.files[0]) == pixels_of(data, done.files[1])
    instances = [header(data, file).SOPInstanceUID for file in files(data)]
    assert len(set(instances)) == len(instances)
    assert two.file_meta.MediaStorageSOPInstanceUID == two.SOPInstanceUID
    table = read_table(data)
    if "image_id" in table:
        row = table.iloc[done.lines[-1] - 2]
        assert (row.patient_id, row.image_id) == (done.patients[1], done.images[1])
        assert (row.laterality, row["view"]) == (two.ImageLaterality, two.ViewPosition)
        assert row.implant == str(int(two.BreastImplantPresent == "YES"))
        assert table[table.patient_id == row.patient_id].density.nunique() == 1


def test_the_sound_sets_have_no_duplicate_by_uid_or_pixels(sets: dict[str, SynthSummary]) -> None:
    for data in sets.values():
        assert len({header(data, file).SOPInstanceUID for file in files(data)}) == data.images
        assert len({pixels_of(data, file) for file in files(data)}) == data.images


def test_one_sop_uid_stands_in_two_files_of_different_pixels(rsna: SynthSummary) -> None:
    before = header(rsna, files(rsna)[1])
    done = spoil.same_sop_uid(rsna)
    one, two = (header(rsna, file) for file in done.files)
    assert one.SOPInstanceUID == two.SOPInstanceUID == two.file_meta.MediaStorageSOPInstanceUID
    assert pixels_of(rsna, done.files[0]) != pixels_of(rsna, done.files[1])
    assert changed(before, two) == {"SOPInstanceUID", "MediaStorageSOPInstanceUID"}


# Headers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "keyword", "column"),
    [
        (spoil.other_laterality, "ImageLaterality", "laterality"),
        (spoil.other_view, "ViewPosition", "view"),
        (spoil.other_patient, "PatientID", "patient_id"),
    ],
)
@pytest.mark.parametrize("at", [0, 5])
def test_a_header_contradicts_the_csv_in_one_element(
    damage: Callable[..., Damage], keyword: str, column: str, at: int, rsna: SynthSummary
) -> None:
    before = header(rsna, files(rsna)[at])
    done = damage(rsna, at)
    after = header(rsna, done.files[0])
    said = read_table(rsna)[column].iloc[done.lines[0] - 2]
    assert before[keyword].value == said != after[keyword].value
    assert changed(before, after) == {keyword}


def test_an_accession_number_in_the_header_is_that_of_no_exam(irma: SynthSummary) -> None:
    before = header(irma, files(irma)[0])
    after = header(irma, spoil.other_accession(irma).files[0])
    assert after.AccessionNumber not in {"", *read_table(irma)["AccessionNumber"], *patients(irma)}
    assert changed(before, after) == {"AccessionNumber"}


def test_modality_is_gone_where_it_was(rsna: SynthSummary) -> None:
    before = {file: header(rsna, file) for file in files(rsna)}
    (file,) = spoil.no_modality(rsna).files
    assert "Modality" in before[file] and changed(before[file], header(rsna, file)) == {"Modality"}


def test_an_implant_stands_in_the_header_and_not_in_the_csv(rsna: SynthSummary) -> None:
    done = spoil.implant_only_in_header(rsna)
    assert header(rsna, done.files[0]).BreastImplantPresent == "YES"
    assert read_table(rsna)["implant"].iloc[done.lines[0] - 2] == "0"


# Folders and rows ----------------------------------------------------------------------------------------------------


@BOTH
def test_a_missing_view_leaves_the_other_three_with_their_rows(data: SynthSummary) -> None:
    rows = len(read_table(data))
    done = spoil.view_missing(data)
    left = [header(data, file) for file in files(data) if file.startswith(done.patients[0] + "/")]
    standard = {"LCC", "LMLO", "RCC", "RMLO"}
    assert {d.ImageLaterality + d.ViewPosition for d in left} & standard == standard - {"LCC"}
    assert len(read_table(data)) == rows - (len(done.files) if "image_id" in read_table(data) else 0)
    assert all(lines_of(data, file) for file in files(data))


@BOTH
def test_a_folder_stands_there_without_any_row(data: SynthSummary) -> None:
    done = spoil.folder_without_row(data, 2)
    assert set(done.patients) == {f.split("/")[0] for f in files(data) if not lines_of(data, f)} == {patients(data)[2]}


@BOTH
def test_rows_stand_there_without_folder_or_with_an_empty_one(data: SynthSummary) -> None:
    gone, emptied = spoil.row_without_folder(data, 0), spoil.empty_folder(data, 0)
    assert gone.patients != emptied.patients
    assert not (data.root / gone.patients[0]).exists()
    assert not any((data.root / emptied.patients[0]).iterdir())
    for done in (gone, emptied):
        assert {line for file in done.files for line in lines_of(data, file)} == set(done.lines) != set()


@BOTH
def test_class_5_stands_in_all_rows_of_one_patient(data: SynthSummary) -> None:
    column = "density" if data.table.name == "train.csv" else "Classification"
    done = spoil.class_5(data)
    table = read_table(data)
    assert {int(i) + 2 for i in np.flatnonzero(table[column] == "5")} == set(done.lines)
    assert {lines_of(data, f) for f in files(data) if f.startswith(done.patients[0])} <= {(i,) for i in done.lines}


@BOTH
def test_a_repeated_row_is_the_same_in_every_cell(data: SynthSummary) -> None:
    rows = len(read_table(data))
    first, second = spoil.row_twice(data, 3).lines
    table = read_table(data)
    assert len(table) == rows + 1 == second - 1 and table.iloc[first - 2].equals(table.iloc[second - 2])
