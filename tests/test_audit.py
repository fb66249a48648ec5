"""Each rule of the audit on a data set with that fault, the verdict, the exit status, and no identity in any output."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom import uid

from mammoray import audit, catalog, cli, inventory, relations, rules, scan, synth, tally
from mammoray.config import AuditConfig, DataConfig, SynthConfig
from mammoray.findings import Finding, Severity
from mammoray.machines import Encoding, Window, make_dicom
from mammoray.synth import SynthSummary
from tests import sandbox_jobs, spoil

RAMP = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)
RAW = Encoding(transfer_syntax=uid.ExplicitVRLittleEndian)
KEY = bytes(32)
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
    assert content["findings"] == len(spoilt.found) == sum(content["by_severity"].values())
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
    assert "another value" in texts["audit.csv"]


# Rules on tables without Ray: one file, one fault --------------------------------------------------------------------


def table(folder: Path, files: list[dict[str, Any]], contents: list[bytes] | None = None) -> pd.DataFrame:
    """Rows of a catalog, ``files`` being their columns and ``contents`` their files, with their heads."""
    defaults = {
        "patient_id": "1", "laterality": "L", "view": "CC", "label": "A", "site_id": "1", "machine_id": "49",
        "implant": "0",
    }  # fmt: skip
    rows, heads = [], []
    for i, row in enumerate(files):
        content = contents[i] if contents else make_dicom(RAMP, RAW, key=(i,), **row.pop("make", {}))
        path = folder / f"{i}.dcm"
        path.write_bytes(content)
        rows.append({"image_id": str(i), "path": path.name, "size": len(content), **defaults, **row})
        heads.append(vars(scan.scan(str(path), path.name, len(content), KEY)))
    return inventory.with_heads(pd.DataFrame(rows), heads, KEY)


def broken(data: pd.DataFrame) -> dict[str, list[str]]:
    """Rule to the images that break it."""
    return {name: [f.image_id for f in found] for name, found in rules.of_images(data).items() if found}


def encoded(window: Window | None, bits: int = 12) -> bytes:
    return make_dicom(RAMP, Encoding(transfer_syntax=uid.ExplicitVRLittleEndian, bits_stored=bits, window=window))


@pytest.mark.parametrize(
    ("attributes", "rule"),
    [
        ({"Modality": "RG"}, "modality"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
        ({"QualityControlImage": "YES"}, "quality_control"),
        ({"BurnedInAnnotation": "YES"}, "burned_in"),
        ({"WindowCenter": None, "WindowWidth": None}, "no_window"),
        ({"WindowWidth": 0}, "window_width"),
        ({"WindowWidth": [4096, -1], "WindowCenter": [2048, 2048]}, "window_width"),
        ({"WindowCenter": 32768, "WindowWidth": 4096}, "window_range"),
        ({"WindowCenter": 2048, "WindowWidth": 65536}, "window_range"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "unreadable"),
        ({"NumberOfFrames": 2}, "unreadable"),
        ({"ImageLaterality": "R"}, "laterality"),
        ({"ViewPosition": "MLO"}, "view"),
        ({"BreastImplantPresent": "YES"}, "implant"),
    ],
)
def test_each_rule_is_broken_by_its_own_fault_alone(tmp_path: Path, attributes: dict[str, Any], rule: str) -> None:
    data = table(tmp_path, [{}, {"make": {"attributes": attributes}}])
    assert broken(data) == {rule: ["1"]}


def test_a_window_is_held_against_the_values_after_the_rescale(tmp_path: Path) -> None:
    shifted = {"RescaleIntercept": 100_000, "WindowCenter": 102_048}
    assert broken(table(tmp_path, [{"make": {"attributes": shifted}}])) == {}
    assert broken(table(tmp_path, [{"make": {"attributes": {**shifted, "RescaleIntercept": 0}}}])) != {}


def test_a_sigmoid_window_may_be_narrower_than_one(tmp_path: Path) -> None:
    for function, expected in (("SIGMOID", {}), ("LINEAR", {"window_width": ["0"]})):
        window = {"WindowWidth": 0.5, "VOILUTFunction": function}
        assert broken(table(tmp_path, [{"make": {"attributes": window}}])) == expected


def test_a_row_or_a_header_that_says_nothing_contradicts_nothing(tmp_path: Path) -> None:
    silent = {"ImageLaterality": None, "ViewPosition": None, "ViewCodeSequence": None, "BreastImplantPresent": None}
    data = table(tmp_path, [{"laterality": "", "view": "", "implant": ""}, {"make": {"attributes": silent}}])
    assert broken(data) == {}


def patients(tmp_path: Path, headers: list[str], ids: list[str]) -> pd.DataFrame:
    return table(tmp_path, [{"patient_id": i, "make": {"patient_id": h}} for h, i in zip(headers, ids, strict=True)])


def test_another_patient_is_an_error_where_most_headers_name_the_csvs(tmp_path: Path) -> None:
    data = patients(tmp_path, ["1", "2", "3", "4"], ["1", "2", "3", "3"])
    found = relations.between_images(data, "patient_id")
    assert [f.image_id for f in found["another_id"]] == ["3"]
    assert found["several_patients"] == found["shared_patient"] == []


def test_pseudonyms_of_another_scheme_are_a_note_and_their_mixtures_errors(tmp_path: Path) -> None:
    headers = ["a", "a", "b", "c", "d", "d", "e", "f"]
    ids = ["1", "1", "2", "2", "3", "4", "5", "6"]
    found = relations.between_images(patients(tmp_path, headers, ids), "patient_id")
    assert [f.severity for f in found["another_id"]] == ["note"]
    assert [f.image_id for f in found["several_patients"]] == ["2", "3"]
    assert [(f.severity, f.found) for f in found["shared_patient"]] == [("error", "2: 3, 4")]


def test_two_exams_of_one_woman_are_a_warning_where_patients_are_not_known(tmp_path: Path) -> None:
    data = patients(tmp_path, list("aabcdef"), ["001", "002", "003", "004", "005", "006", "007"])
    found = relations.shared_patient(data, "AccessionNumber")
    assert [(f.severity, f.found) for f in found] == [("warning", "2: 001, 002")]


def test_the_word_of_an_anonymiser_is_no_patient(tmp_path: Path) -> None:
    data = patients(tmp_path, ["ANON"] * 6, list("123456"))
    assert relations.shared_patient(data, "patient_id") == []


def test_one_sop_instance_uid_is_a_leak_across_patients_and_a_warning_within_one(tmp_path: Path) -> None:
    content = make_dicom(RAMP, RAW, key=(7,))
    other = make_dicom(RAMP, RAW, key=(8,))
    data = table(tmp_path, [{"patient_id": p} for p in "1223"], [content, content, other, make_dicom(RAMP, RAW)])
    assert [f.image_id for f in relations.same_uid_across(data, "patient_id")] == ["0", "1"]
    assert relations.same_uid_within(data, "patient_id") == []
    assert [f.image_id for f in relations.same_uid_within(data.assign(patient_id="1"), "patient_id")] == ["0", "1"]


def test_findings_about_many_copies_name_five_and_count_the_rest(tmp_path: Path) -> None:
    data = table(tmp_path, [{"patient_id": str(i)} for i in range(9)], [make_dicom(RAMP, RAW)] * 9)
    found = relations.same_uid_across(data, "patient_id")
    assert len(found) == 9
    assert all(f.found.endswith("and 3 more") and f.found.count(" of patient ") == 5 for f in found)


@pytest.mark.parametrize(
    "syntax", [uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.RLELossless, uid.ExplicitVRBigEndian]
)
def test_the_same_picture_has_one_digest_in_every_lossless_encoding(tmp_path: Path, syntax: str) -> None:
    from mammoray import pixels

    looked = []
    for i, encoding in enumerate([RAW, Encoding(transfer_syntax=syntax)]):
        (tmp_path / "1.dcm").write_bytes(make_dicom(RAMP, encoding, key=(i,)))
        looked.append(pixels.look(str(tmp_path / "1.dcm"), "1.dcm"))
    assert looked[0] == looked[1]
    (tmp_path / "1.dcm").write_bytes(make_dicom(RAMP + 1, RAW))
    assert pixels.look(str(tmp_path / "1.dcm"), "1.dcm").digest != looked[0].digest


def test_views_are_taken_from_the_header_where_the_table_has_none(tmp_path: Path) -> None:
    files = [
        {"patient_id": "7", "laterality": "", "view": "", "make": {"laterality": side, "view": view}}
        for side, view in relations.STANDARD_VIEWS
    ]
    assert relations.missing_views(table(tmp_path, [dict(f) for f in files]), "AccessionNumber") == []
    found = relations.missing_views(table(tmp_path, [dict(f) for f in files[:2]]), "AccessionNumber")
    assert [f.found for f in found] == ["patient 7 without R CC, R MLO"]


def test_different_densities_of_one_patient_are_a_warning(tmp_path: Path) -> None:
    data = table(tmp_path, [{"label": "A"}, {"label": "B"}, {"patient_id": "2", "label": None}, {"patient_id": "2"}])
    assert [f.found for f in relations.different_labels(data, "patient_id")] == ["A, B of 1"]


def test_sizes_far_from_the_usual_and_very_narrow_images_are_warnings(tmp_path: Path) -> None:
    shapes = [(64, 48)] * 6 + [(256, 256), (16, 16), (110, 30)]
    contents = [make_dicom(np.arange(h * w, dtype=np.uint16).reshape(h, w) % 4096, RAW, key=(h,)) for h, w in shapes]
    found = relations.odd_sizes(table(tmp_path, [{} for _ in shapes], contents), "patient_id")
    assert [f.image_id for f in found] == ["6", "7", "8"]
    assert found[0].expected == "about 64 x 48"


def test_the_class_table_counts_images_and_patients_by_site_and_machine(tmp_path: Path) -> None:
    data = table(
        tmp_path,
        [{"label": "A"}, {"label": "A"}, {"patient_id": "2", "label": "B"},
         {"patient_id": "3", "label": None, "site_id": "2", "machine_id": "21"}],
    )  # fmt: skip
    assert tally.classes(data) == [
        {
            "site_id": "", "machine_id": "",
            "classes": {
                "A": {"images": 2, "patients": 1}, "B": {"images": 1, "patients": 1},
                "none": {"images": 1, "patients": 1},
            },
        },
        {
            "site_id": "1", "machine_id": "49",
            "classes": {"A": {"images": 2, "patients": 1}, "B": {"images": 1, "patients": 1}},
        },
        {"site_id": "2", "machine_id": "21", "classes": {"none": {"images": 1, "patients": 1}}},
    ]  # fmt: skip


def test_every_count_of_files_adds_up(tmp_path: Path) -> None:
    contents = [
        encoded(Window()),
        encoded(None),
        encoded(Window(function="SIGMOID")),
        encoded(Window(), 16),
        b"\xff\xd8\xff",
    ]
    counts = tally.tally(table(tmp_path, [{} for _ in contents], contents))
    for name in ("kinds", "views"):
        assert sum(counts[name].values()) == 5
    for name in ("photometric", "bits_stored", "modalities", "intents", "burned_in"):
        assert sum(counts[name].values()) == 4
    assert counts["bits_stored"] == {"12 of 16": 3, "16 of 16": 1}
    assert (counts["windows"]["none"], counts["windows"]["one"], counts["windows"]["sigmoid"]) == (1, 3, 1)
    assert sum(row["files"] for row in counts["transfer_syntaxes"]) == 5
    assert counts["machines"] == [{"manufacturer": "mammoray synthetic", "model": "", "files": 4}]


def test_rows_without_a_file_count_as_unreadable(tmp_path: Path) -> None:
    data = table(tmp_path, [{} for _ in range(18)])
    assert tally.share_readable(data, 0) == (18, 1.0)
    assert tally.share_readable(data, 2) == (18, 0.9)


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


# Accidents -----------------------------------------------------------------------------------------------------------


def test_a_crash_a_hang_and_an_exception_are_findings_of_their_files(
    rsna: SynthSummary, ray_session: None, tmp_path: Path
) -> None:
    data = spoil.copied(rsna, tmp_path / "set")
    rows = catalog.build(data.csv, data.root).rows.head(8)
    accidents = {1: "segfault", 3: "sleep", 5: "raise", 6: "exit"}
    sandbox_jobs.plant(data.root.parent, {rows["path"][i]: what for i, what in accidents.items()})
    config = AuditConfig(pixels=True, limit_seconds=4)
    taken = inventory.take(rows, str(data.root), config, function="tests.sandbox_jobs:look_with_accidents")
    bad = {i: error[2] for i, error in enumerate(taken["pixel_error"]) if error}
    assert set(bad) == set(accidents)
    assert "SIGSEGV" in bad[1]
    assert "none until then" in bad[3]
    assert "TypeError" in bad[5]
    assert [f.image_id for f in rules.unreadable(taken)] == [rows["image_id"][i] for i in accidents]


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
