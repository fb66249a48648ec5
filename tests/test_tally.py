"""The counts of a data set: every image is in each of them once, whatever its file is."""

from pathlib import Path

from pydicom import uid

from mammoray import tally
from mammoray.machines import Encoding, Window, make_dicom
from tests.audit_factory import RAMP, table


def encoded(window: Window | None, bits: int = 12) -> bytes:
    return make_dicom(RAMP, Encoding(transfer_syntax=uid.ExplicitVRLittleEndian, bits_stored=bits, window=window))


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
