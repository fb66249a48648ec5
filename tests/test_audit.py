"""Audits of sets with one of each fault: what is found, the verdict, the exit status, and no identity anywhere."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
import pytest

from mammoray import audit, catalog, cli, synth
from mammoray import findings as kinds
from mammoray.config import AuditConfig, DataConfig, SynthConfig
from mammoray.findings import Finding, Severity
from mammoray.scale import Where
from mammoray.synth import SynthSummary
from tests import spoil, trees
from tests.audit_factory import dicom

IDENTITY = ("Silva^Maria", "19610203", "Rua das Flores", "H-4711-X", "Dr^Souza")


def run(data: SynthSummary, outdir: Path, *flags: str) -> int:
    return cli.main(["audit", "--csv", str(data.csv), "--dicom-root", str(data.root), "--outdir", str(outdir), *flags])


def findings(outdir: Path) -> pd.DataFrame:
    return pd.read_csv(outdir / "audit.csv", dtype=str, keep_default_na=False)


@dataclass(frozen=True)
class Audited:
    """A spoilt data set and what the audit wrote of it."""

    damages: dict[str, spoil.Damage]
    found: pd.DataFrame
    content: dict[str, Any]
    outdir: Path
    status: int
    source: tuple[Path | None, Path]

    def of(self, file: str) -> list[str]:
        """Reasons of the errors and warnings about a file."""
        rows = self.found[(self.found["file"] == file) & (self.found["severity"] != "note")]
        return sorted(rows["reason"])


# What reads the headers of all files comes before what damages some, and what adds files after all.
PLACES = {
    spoil.no_modality: 60, spoil.implant_only_in_header: 56, spoil.other_laterality: 32, spoil.other_view: 36,
    spoil.other_patient: 40, spoil.same_sop_uid: 28, spoil.beyond_bits_stored: 20, spoil.all_zero: 16, spoil.huge: 24,
    spoil.truncated: 48, spoil.truncated_header: 0, spoil.emptied: 4, spoil.renamed_png: 8, spoil.renamed_jpeg: 12,
    spoil.same_patient_twice: 52, spoil.two_patients_alike: 44,
}  # fmt: skip


@pytest.fixture(scope="module")
def spoilt(rsna: SynthSummary, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Audited:
    """A set with one of each damage, looked at with its pixels."""
    folder = tmp_path_factory.mktemp("spoilt")
    data = spoil.copied(rsna, folder / "set")
    damages = {damage.__name__: damage(data, place) for damage, place in PLACES.items()}
    damages["view_missing"] = spoil.view_missing(data, 20)
    status = run(data, folder / "out", "--pixels", "--quarantine", str(folder / "out" / "quarantine.csv"))
    content = json.loads((folder / "out" / "audit.json").read_text(encoding="utf-8"))
    return Audited(damages, findings(folder / "out"), content, folder / "out", status, (data.csv, data.root))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("truncated_header", "the file cannot be decoded"),
        ("truncated", "the file cannot be decoded"),
        ("emptied", "the file is empty"),
        ("renamed_png", "the image is no DICOM"),
        ("renamed_jpeg", "the image is no DICOM"),
        ("all_zero", "the image has one value everywhere"),
        ("beyond_bits_stored", "pixels do not fit into Bits Stored"),
        ("huge", "the file cannot be decoded"),
        ("other_laterality", "the header names another side than the row"),
        ("other_view", "the header names another view than the row"),
        ("other_patient", "the header names another patient than the row"),
        ("implant_only_in_header", "the header says otherwise of an implant than the row"),
        ("same_sop_uid", "images of one patient have the same SOP Instance UID"),
        ("same_patient_twice", "images of one patient have the same pixels"),
        ("two_patients_alike", "images of several patients have the same pixels (leak)"),
    ],
)
def test_every_damage_is_found_at_its_files_and_with_its_reason(spoilt: Audited, damage: str, reason: str) -> None:
    for file in spoilt.damages[damage].files:
        assert reason in spoilt.of(file)


def test_only_what_was_spoilt_is_found(spoilt: Audited) -> None:
    touched = {file for damage in spoilt.damages.values() for file in damage.files}
    serious = spoilt.found[(spoilt.found["severity"] != "note") & (spoilt.found["file"] != "")]
    assert set(serious["file"]) <= touched


def test_a_leak_names_both_images_and_both_patients(spoilt: Audited) -> None:
    done = spoilt.damages["two_patients_alike"]
    rows = spoilt.found[spoilt.found["reason"].str.contains("same pixels \\(leak\\)")]
    assert set(rows["image_id"]) == set(done.images)
    for row in rows.itertuples():
        other = next(image for image in done.images if image != row.image_id)
        assert other in str(row.found)
        assert sorted(p for p in done.patients if p in f"{row.found} {row.expected}") == sorted(done.patients)


def test_a_missing_modality_is_a_note(spoilt: Audited) -> None:
    file = spoilt.damages["no_modality"].files[0]
    rows = spoilt.found[(spoilt.found["file"] == file) & (spoilt.found["reason"] == "the modality is not MG")]
    assert list(rows["severity"]) == ["note"]
    assert list(rows["found"]) == ["none"]


def test_a_missing_view_is_named_with_its_patient(spoilt: Audited) -> None:
    patient = spoilt.damages["view_missing"].patients[0]
    rows = spoilt.found[spoilt.found["reason"] == "the patient lacks standard views"]
    assert f"patient {patient} without L CC" in set(rows["found"])


def test_the_verdict_counts_and_reasons_agree(spoilt: Audited) -> None:
    content = spoilt.content
    assert spoilt.status == 1
    assert not content["fit"]
    assert any("leak" in reason for reason in content["why_not"])
    assert content["findings"] == spoilt.found["count"].astype(int).sum() == sum(content["by_severity"].values())
    assert content["readable"] == content["images"] - 8  # Eight of the damages make an image unreadable.
    assert content["counts"]["kinds"]["PNG"] == content["counts"]["kinds"]["JPEG"] == 1
    assert content["rules"]["same_pixels_across"] == 2


def test_the_quarantine_lists_every_image_with_an_error_once_and_no_other(spoilt: Audited) -> None:
    listed = pd.read_csv(spoilt.outdir / "quarantine.csv", dtype=str)
    errors = spoilt.found[(spoilt.found["severity"] == "error") & (spoilt.found["file"] != "")]
    assert list(listed.columns) == ["path", "image_id", "reason"]
    assert sorted(listed["path"]) == sorted(set(errors["file"]))


def test_an_untouched_set_is_fit_by_its_heads_and_by_its_pixels(
    rsna: SynthSummary, irma: SynthSummary, ray_session: None, tmp_path: Path
) -> None:
    for number, (data, flags) in enumerate([(rsna, ["--pixels"]), (irma, [])]):
        assert run(data, tmp_path / str(number), *flags) == 0
        assert (findings(tmp_path / str(number))["severity"] != "error").all()


def test_an_exam_whose_header_has_another_accession_number_is_an_error(
    irma: SynthSummary, ray_session: None, tmp_path: Path
) -> None:
    data = spoil.copied(irma, tmp_path / "set")
    for i, file in enumerate(spoil.files(data)):
        dataset = pydicom.dcmread(data.root / file)
        dataset.AccessionNumber = file.split("/")[0].lstrip("0") if i else "999999"
        dataset.save_as(data.root / file)
    assert run(data, tmp_path / "out") == 1
    rows = findings(tmp_path / "out")
    rows = rows[rows["severity"] == "error"]
    assert list(rows["file"]) == [spoil.files(data)[0]]
    assert list(rows["found"]) == ["another value"]


def test_too_few_readable_files_are_not_fit_and_the_limit_can_be_lowered(
    rsna: SynthSummary, ray_session: None, tmp_path: Path
) -> None:
    data = spoil.copied(rsna, tmp_path / "set")
    for i in range(len(spoil.files(data)) // 10):
        spoil.emptied(data, i)
    assert run(data, tmp_path / "out") == 1
    assert run(data, tmp_path / "out", "--min-readable", "0.8") == 0
    listed = tmp_path / "out" / "bad.csv"
    assert run(data, tmp_path / "out", "--storage", str(tmp_path / "shared"), "--quarantine", str(listed)) == 1
    copied = {path.name: path.read_bytes() for path in (tmp_path / "shared" / "out").iterdir()}
    assert copied == {name: (tmp_path / "out" / name).read_bytes() for name in (*audit.FILES, listed.name)}


def test_absent_rows_beyond_those_that_are_listed_count_and_a_set_without_a_label_is_not_fit(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "LISTED", 5)
    lines = ["patient_id,image_id,density", *(f"{i},{i}0," for i in range(40))]
    csv = trees.table(tmp_path, "train.csv", lines)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "00.dcm").write_bytes(dicom())
    content = audit.run(csv, tmp_path, tmp_path / "out", DataConfig(), AuditConfig(), Where(), lambda line: None)
    assert (content["images"], content["absent"]) == (1, 39)
    assert content["by_severity"]["error"] == 39
    assert not content["fit"]
    assert "no image has a label" in content["why_not"]


def test_what_cannot_be_looked_at_ends_with_status_2(rsna: SynthSummary, tmp_path: Path) -> None:
    words = ["audit", "--dicom-root", str(rsna.root), "--outdir", str(tmp_path / "out")]
    assert cli.main([*words, "--csv", str(tmp_path / "none.csv")]) == 2
    assert run(rsna, Path("/proc/none")) == 2


def test_no_identity_of_a_header_comes_into_any_output(
    rsna: SynthSummary, ray_session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = spoil.copied(rsna, tmp_path / "set")
    name, birth, address, patient, doctor = IDENTITY
    for i, file in enumerate(spoil.files(data)):
        dataset = pydicom.dcmread(data.root / file)
        dataset.PatientName, dataset.PatientBirthDate, dataset.PatientAddress = name, birth, address
        dataset.ReferringPhysicianName, dataset.AccessionNumber = doctor, patient
        if i % 5 == 0:
            dataset.PatientID = patient
        if i % 7 == 0:
            dataset.add_new(0x00185101, "LO", name)  # A name where a view should stand.
            dataset.add_new(0x00080060, "LO", name)
        if i % 11 == 0:
            dataset.add_new(0x00280010, "LO", name)  # And where a number should.
        dataset.save_as(data.root / file)
    assert run(data, tmp_path / "out", "--pixels", "--quarantine", str(tmp_path / "out" / "q.csv")) == 1
    said = capfd.readouterr()
    texts = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir()}
    assert set(texts) == {*audit.FILES, "q.csv"}
    texts |= {"stdout": said.out, "stderr": said.err}
    for where, text in texts.items():
        for word in (*IDENTITY, "Silva", "Souza", "Flores"):
            assert word not in text, where


def test_warnings_alone_leave_a_data_set_fit() -> None:
    def found(severity: Severity) -> dict[str, list[Finding]]:
        return {
            "shared_patient": [
                Finding(
                    severity=severity, image_id="", file="", tag="", reason="r", expected="", found="", what_to_do=""
                )
            ]
        }

    assert audit.why_not_fit(1.0, found("warning"), 0.95) == []
    assert audit.why_not_fit(1.0, found("error"), 0.95) == ["r: 1"]
    assert audit.why_not_fit(0.9499, {}, 0.95) != []
    assert audit.why_not_fit(0.95, {}, 0.95) == []


def test_a_set_of_pngs_is_audited_as_one_of_dicoms(ray_session: None, tmp_path: Path) -> None:
    data = synth.write(tmp_path / "set", SynthConfig(patients=6, layout="mamografias", height=96, width=80), 1)
    victims = sorted(data.root.rglob("*.png"))
    victims[0].write_bytes(victims[0].read_bytes()[:-20])
    number = victims[1].stem.partition("(")[2]
    twin = next(path for path in victims[2:] if path.stem.partition("(")[2] != number)
    victims[1].write_bytes(twin.read_bytes())
    words = ["audit", "--dicom-root", str(data.root), "--outdir", str(tmp_path / "out"), "--pixels"]
    assert cli.main(words) == 1
    found = findings(tmp_path / "out")
    names = [path.relative_to(data.root).as_posix() for path in (*victims[:2], twin)]
    assert list(found["file"][found["reason"] == "the file cannot be decoded"]) == names[:1]
    assert set(found["file"][found["reason"].str.endswith("same pixels (leak)")]) == set(names[1:])
    assert not found["reason"].str.contains("densities|views").any()  # These groups may hold several women.
    content = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert content["counts"]["kinds"] == {"PNG": len(victims)}


def test_train_leaves_out_what_the_audit_put_into_quarantine(spoilt: Audited) -> None:
    rows = catalog.build(*spoilt.source, DataConfig(quarantine=spoilt.outdir / "quarantine.csv")).rows
    listed = pd.read_csv(spoilt.outdir / "quarantine.csv", dtype=str)
    assert set(rows["path"]).isdisjoint(listed["path"])
    assert len(rows) == spoilt.content["images"] - len(listed)
