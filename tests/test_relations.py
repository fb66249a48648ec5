"""Each rule about several images: copies, leaks, pseudonyms, missing views, odd sizes."""

from pathlib import Path

import numpy as np
import pandas as pd

from mammoray import relations
from mammoray.machines import make_dicom
from tests.audit_factory import RAMP, RAW, table


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
