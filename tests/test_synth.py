from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import generate_frames

from mammoray import synth
from mammoray.config import SynthConfig
from mammoray.errors import ConfigError, RunFolderError
from mammoray.machines import SITES
from mammoray.synth import SynthSummary, quota, write
from mammoray.writers import LAYOUTS
from tests.reference_decoder import decoded

RSNA = SynthConfig(patients=50, height=96, width=80, unlabelled=0.2)
IRMA = SynthConfig(patients=40, height=96, width=80, layout="irma")
SMALL = SynthConfig(patients=3, height=64, width=64)


@pytest.fixture(scope="module")
def rsna(tmp_path_factory: pytest.TempPathFactory) -> SynthSummary:
    return write(tmp_path_factory.mktemp("synth") / "rsna", RSNA, seed=3)


@pytest.fixture(scope="module")
def irma(tmp_path_factory: pytest.TempPathFactory) -> SynthSummary:
    return write(tmp_path_factory.mktemp("synth") / "irma", IRMA, seed=3)


@pytest.fixture(scope="module")
def table(rsna: SynthSummary) -> pd.DataFrame:
    return pd.read_csv(rsna.csv, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def headers(rsna: SynthSummary, irma: SynthSummary) -> list[pydicom.FileDataset]:
    return [pydicom.dcmread(p) for s in (rsna, irma) for p in sorted(s.root.rglob("*.dcm"))]


def digests(root: Path) -> dict[str, str]:
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# Files of a data set -------------------------------------------------------------------------------------------------


def test_every_file_decodes_alike_with_two_decoders(headers: list[pydicom.FileDataset]) -> None:
    seen = set()
    for dataset in headers:
        kind = (dataset.file_meta.TransferSyntaxUID, dataset.PhotometricInterpretation, dataset.BitsStored)
        if kind in seen:
            continue
        seen.add(kind)
        pixels = decoded(dataset)
        assert pixels.shape == (96, 80) and int(pixels.max()) < 2**dataset.BitsStored
        if kind[0] == uid.JPEGLosslessSV1:
            frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
            np.testing.assert_array_equal(pixels, imagecodecs.jpeg8_decode(frame))
        else:
            np.testing.assert_array_equal(pixels, dataset.pixel_array)
    assert len(seen) >= 9


def test_forty_patients_meet_every_encoding_of_site_1(tmp_path: Path) -> None:
    plan = synth._plan(SynthConfig(patients=40), seed=0)
    assert {p.machine for p in plan} == set(SITES[1])
    encodings = [m.encoding for m in SITES[1].values()]
    assert {e.bits_stored for e in encodings} == {10, 12, 14, 16}
    assert {e.photometric for e in encodings} == {"MONOCHROME1", "MONOCHROME2"}
    assert {e.window and e.window.function for e in encodings} == {"LINEAR", "SIGMOID", None}
    assert {e.modality for e in encodings} == {True, False}
    assert len({e.transfer_syntax for e in encodings}) == 3


def test_headers_are_mammograms_and_name_nobody(headers: list[pydicom.FileDataset]) -> None:
    for ds in headers:
        assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.1.2"
        assert ds.get("Modality", "MG") == "MG"
        assert ds.PatientIdentityRemoved == "YES" and "synthetic" in ds.Manufacturer
        named = [e for e in ds if e.VR in ("PN", "DA", "TM", "DT", "AS") and e.value]
        assert not named
        assert not ds.AccessionNumber and not ds.StudyID


def test_uids_are_unique_and_shared_by_study(headers: list[pydicom.FileDataset]) -> None:
    assert len({ds.SOPInstanceUID for ds in headers}) == len(headers)
    by_patient: dict[str, set[str]] = {}
    for ds in headers:
        by_patient.setdefault(ds.PatientID, set()).add(ds.StudyInstanceUID)
        assert uid.UID(ds.SOPInstanceUID).is_valid
    assert all(len(studies) == 1 for studies in by_patient.values())


# The RSNA table ------------------------------------------------------------------------------------------------------


def test_rsna_table_has_the_columns_and_domains_of_kaggle(table: pd.DataFrame) -> None:
    assert ",".join(table.columns) == (
        "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,machine_id,"
        "difficult_negative_case"
    )
    domains = {
        "site_id": {"1", "2"},
        "laterality": {"L", "R"},
        "view": {"CC", "MLO", "AT", "LM", "ML", "LMO"},
        "cancer": {"0", "1"},
        "biopsy": {"0", "1"},
        "invasive": {"0", "1"},
        "BIRADS": {"", "0.0", "1.0", "2.0"},
        "implant": {"0", "1"},
        "density": {"", "A", "B", "C", "D"},
        "machine_id": {"49", "93", "216", "210", "170", "190", "197", "48", "29", "21"},
        "difficult_negative_case": {"True", "False"},
    }
    for column, domain in domains.items():
        assert set(table[column]) <= domain, column
    ages = set(table.age)
    assert "" in ages and all(26 <= float(a) <= 89 and a.endswith(".0") for a in ages - {""})
    assert table.image_id.is_unique and all(i == str(int(i)) for i in (*table.image_id, *table.patient_id))


def test_rsna_rows_and_files_are_one_to_one(rsna: SynthSummary, table: pd.DataFrame) -> None:
    files = {str(p.relative_to(rsna.root)) for p in rsna.root.rglob("*.dcm")}
    assert files == {f"{r.patient_id}/{r.image_id}.dcm" for r in table.itertuples()}
    assert rsna.images == len(files) == sum(rsna.per_syntax.values())
    assert rsna.patients == sum(rsna.per_class.values()) == table.patient_id.nunique() == 50


def test_headers_agree_with_the_table(rsna: SynthSummary, table: pd.DataFrame) -> None:
    for row in table.itertuples():
        path = rsna.root / str(row.patient_id) / f"{row.image_id}.dcm"
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        encoding = SITES[int(str(row.site_id))][str(row.machine_id)].encoding
        assert (ds.ImageLaterality, ds.ViewPosition, ds.PatientID) == (row.laterality, row.view, row.patient_id)
        assert ds.file_meta.TransferSyntaxUID == encoding.transfer_syntax
        assert ds.get("PixelPaddingValue") == encoding.padding
        assert ("WindowCenter" in ds) == (encoding.window is not None)


def test_rsna_invariants_hold(table: pd.DataFrame) -> None:
    is_1 = {name: table[name] == "1" for name in ("cancer", "biopsy", "invasive")}
    assert not (is_1["cancer"] & ~is_1["biopsy"]).any()
    assert not (is_1["invasive"] & ~is_1["cancer"]).any()
    assert set(table.BIRADS[is_1["cancer"] & (table.site_id == "1")]) <= {"0.0"}
    assert set(table.BIRADS[table.site_id == "2"]) == {""} == set(table.density[table.site_id == "2"])
    site_1 = table[table.site_id == "1"]
    recalled = (site_1.BIRADS == "0.0") & (site_1.cancer == "0")
    assert ((site_1.difficult_negative_case == "True") == recalled).all()
    for column in ("density", "age", "implant", "machine_id", "site_id"):
        assert (table.groupby("patient_id")[column].nunique() == 1).all(), column


def test_every_patient_has_the_four_standard_views_and_few_have_more(table: pd.DataFrame) -> None:
    sides = table.assign(side=table.laterality + table["view"]).groupby("patient_id").side
    assert all({"LCC", "LMLO", "RCC", "RMLO"} <= set(views) for _, views in sides)
    counts = table.groupby("patient_id").size()
    assert (counts == 4).mean() > 0.6 and 4 < counts.max() <= 6


def test_labelled_classes_are_dealt_by_quota_and_the_second_site_is_blank(rsna: SynthSummary) -> None:
    assert rsna.per_class == {"A": 8, "B": 12, "C": 12, "D": 8, "unlabelled": 10}


@pytest.mark.parametrize("patients", range(24, 50))
@pytest.mark.parametrize("layout", ["rsna", "irma"])
def test_every_class_has_five_patients_from_24_on(patients: int, layout: Any) -> None:
    plan = synth._plan(SynthConfig(patients=patients, layout=layout), seed=patients)
    for density in "ABCD":
        assert sum(p.density == density and not p.excluded for p in plan) >= 5
    assert len({p.folder for p in plan}) == len(plan) == patients


@pytest.mark.parametrize("total", range(40))
def test_quota_hands_out_exactly_the_total(total: int) -> None:
    dealt = quota(total, {"A": 0.2, "B": 0.3, "C": 0.3, "D": 0.2}, least=2)
    assert len(dealt) == total
    assert total < 8 or min(dealt.count(c) for c in "ABCD") >= 2


def test_age_falls_with_density() -> None:
    ages: dict[str, list[float]] = {d: [] for d in "ABCD"}
    rng = np.random.default_rng(0)
    for density in ages:
        ages[density] = [synth._age(density, rng) for _ in range(400)]
    means = [np.mean(ages[d]) for d in "ABCD"]
    assert means[1] > means[2] > means[3] and 26 <= min(map(min, ages.values())) <= max(map(max, ages.values())) <= 89


def test_machines_do_not_tell_the_density() -> None:
    plans = [p for seed in range(40) for p in synth._plan(SynthConfig(patients=60), seed)]
    counts = pd.crosstab([p.machine for p in plans], [p.density for p in plans], normalize="index")
    assert (counts.sub(pd.Series(synth.CLASS_SHARE)).abs() < 0.08).all(axis=None)


# The IRMA layout -----------------------------------------------------------------------------------------------------


def test_irma_table_keeps_leading_zeros_and_classes_1_to_5(irma: SynthSummary) -> None:
    table = pd.read_csv(irma.csv, dtype=str)
    assert list(table.columns) == ["AccessionNumber", "Classification"]
    assert table.AccessionNumber.is_unique and table.AccessionNumber.str.fullmatch(r"\d{6}").all()
    assert table.AccessionNumber.str.startswith("0").any()
    assert set(table.Classification) == set("12345") and (table.Classification == "5").sum() == 2
    assert irma.per_class["5"] == 2 and sum(irma.per_class.values()) == len(table) == 40


def test_irma_folders_are_accession_numbers_with_numbered_files(irma: SynthSummary) -> None:
    table = pd.read_csv(irma.csv, dtype=str)
    assert {p.name for p in irma.root.iterdir()} == set(table.AccessionNumber)
    for folder in irma.root.iterdir():
        names = sorted(p.name for p in folder.iterdir())
        assert names == [f"IM{k + 1:04d}.dcm" for k in range(len(names))] and len(names) >= 4


# Determinism, resume, refusal ----------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / name, SMALL, seed)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert not set(a.values()) & set(c.values())


def test_version_1_keeps_its_tables_and_uids(tmp_path: Path) -> None:
    found = hashlib.sha256()
    for layout in ("rsna", "irma"):
        summary = write(tmp_path / layout, dataclasses.replace(SMALL, patients=21, layout=layout), 7)
        found.update(summary.table.read_bytes())
        for file in sorted(summary.root.rglob("*.dcm")):
            found.update(str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID).encode())
    assert (synth.VERSION, found.hexdigest()[:16]) == (1, "a28fcef1047149ed")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_number_of_processes_does_not_change_the_bytes(
    layout: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(SMALL, patients=4, layout=layout)
    write(tmp_path / "one", config, 5)
    monkeypatch.setattr(synth, "PIXELS_PER_PROCESS", 1)
    write(tmp_path / "two", config, 5)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_order_of_writing_does_not_change_a_patient(tmp_path: Path) -> None:
    plan = synth._plan(SMALL, 1)
    for name, order in (("up", plan), ("down", plan[::-1])):
        for patient in order:
            synth._write_patient(tmp_path / name, patient, SMALL, 1)
    assert digests(tmp_path / "up") == digests(tmp_path / "down")


def test_an_existing_equal_data_set_is_returned_without_rewriting(tmp_path: Path) -> None:
    first = write(tmp_path / "set", SMALL, 1)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("*")}
    assert write(tmp_path / "set", SMALL, 1) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("*")} == before


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    assert write(tmp_path, SMALL, 1).csv == tmp_path / "train.csv"


@pytest.mark.parametrize(("config", "seed"), [(SMALL, 2), (dataclasses.replace(SMALL, height=65), 1)])
def test_a_data_set_of_other_settings_is_refused(tmp_path: Path, config: SynthConfig, seed: int) -> None:
    write(tmp_path / "set", SMALL, 1)
    before = digests(tmp_path / "set")
    with pytest.raises(RunFolderError, match="other settings") as caught:
        write(tmp_path / "set", config, seed)
    assert str(tmp_path / "set") in str(caught.value) and "Choose another folder" in str(caught.value)
    assert digests(tmp_path / "set") == before


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError, match="other files"):
        write(tmp_path, SMALL, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupted_write_is_never_taken_for_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(LAYOUTS, "rsna", dataclasses.replace(LAYOUTS["rsna"], lists=killed))
        write(tmp_path / "set", SMALL, 1)
    with pytest.raises(RunFolderError, match="unfinished"):
        write(tmp_path / "set", SMALL, 1)


def test_a_data_set_with_a_file_missing_is_refused(tmp_path: Path) -> None:
    summary = write(tmp_path / "set", SMALL, 1)
    next(summary.root.rglob("*.dcm")).unlink()
    with pytest.raises(RunFolderError, match=f"{summary.images - 1} images"):
        write(tmp_path / "set", SMALL, 1)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"seed": 1}', "null"])
def test_a_damaged_mark_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "synth.json").write_text(content)
    with pytest.raises(RunFolderError):
        write(tmp_path, SMALL, 1)


def test_mark_records_seed_settings_and_version(tmp_path: Path) -> None:
    write(tmp_path / "set", SMALL, 1)
    mark = json.loads((tmp_path / "set" / "synth.json").read_text())
    assert (mark["seed"], mark["version"], mark["config"]["patients"]) == (1, synth.VERSION, 3)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("x")
    with pytest.raises(RunFolderError):
        write(tmp_path / "set", SMALL, 1)


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--seed"):
        write(tmp_path / "set", SMALL, -1)
    layout: Any
    for layout in set(LAYOUTS) - {"rsna"}:
        with pytest.raises(ConfigError, match=f"--unlabelled with --layout {layout}"):
            write(tmp_path / "set", dataclasses.replace(IRMA, layout=layout, unlabelled=0.5), 1)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("patients", [1, 2, 5])
@pytest.mark.parametrize("unlabelled", [0.0, 0.5, 1.0])
def test_tiny_sets_can_be_written(tmp_path: Path, patients: int, unlabelled: float) -> None:
    config = SynthConfig(patients=patients, height=64, width=64, unlabelled=unlabelled)
    assert write(tmp_path / "set", config, 0).patients == patients


# Other people's tools ------------------------------------------------------------------------------------------------


def one_of_each(headers: list[pydicom.FileDataset]) -> list[pydicom.FileDataset]:
    kinds = {(str(d.file_meta.TransferSyntaxUID), str(d.PhotometricInterpretation), d.BitsStored): d for d in headers}
    return list(kinds.values())


@pytest.mark.skipif(not shutil.which("dcmdjpeg") or not shutil.which("dcmdump"), reason="needs dcmtk")
def test_dcmtk_reads_every_encoding_and_decodes_jpeg_lossless_alike(
    headers: list[pydicom.FileDataset], tmp_path: Path
) -> None:
    for ds in one_of_each(headers):
        dump = subprocess.run(["dcmdump", "--quiet", str(ds.filename)], capture_output=True, text=True, check=True)
        assert "W: " not in dump.stderr and "E: " not in dump.stderr
        if ds.file_meta.TransferSyntaxUID == uid.JPEGLosslessSV1:
            subprocess.run(["dcmdjpeg", str(ds.filename), str(tmp_path / "raw.dcm")], check=True)
            raw = pydicom.dcmread(tmp_path / "raw.dcm").pixel_array
            np.testing.assert_array_equal(raw, decoded(ds))


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dicom3tools")
def test_dciodvfy_misses_nothing_but_what_is_left_out_on_purpose(headers: list[pydicom.FileDataset]) -> None:
    for ds in one_of_each(headers):
        report = subprocess.run(["dciodvfy", str(ds.filename)], capture_output=True, text=True, check=False)
        errors = [line for line in report.stderr.splitlines() if line.startswith("Error")]
        allowed = ["<Modality>"] if "Modality" not in ds else []
        allowed += ["<WindowCenter>", "<VOILUTSequence>"] if "WindowCenter" not in ds else []
        assert not [e for e in errors if not any(word in e for word in allowed)], errors
