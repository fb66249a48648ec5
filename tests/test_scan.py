"""The head of a file: its facts, what is wrong with it, and nothing is raised, whatever the file holds."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config, uid

from mammoray import elements, header, scan
from mammoray.errors import DecodeError
from mammoray.machines import SITES, Encoding, make_dicom
from tests.audit_factory import KEY, RAMP, RAW, dicom


def scanned(content: bytes, folder: Path, name: str = "1.dcm", size: int | None = None) -> scan.Facts:
    (folder / name).write_bytes(content)
    return scan.scan(str(folder / name), name, len(content) if size is None else size, KEY)


def test_a_header_longer_than_the_first_read_is_read_on(tmp_path: Path) -> None:
    content = dicom(EncapsulatedDocument=bytes(3 * scan.HEAD))
    with pytest.raises(elements.CutError):
        elements.walk(content[: scan.HEAD])
    facts = scanned(content, tmp_path)
    assert facts.error == ()
    assert (facts.rows, facts.columns) == RAMP.shape


def test_the_view_comes_from_its_code_where_view_position_is_absent_and_from_none_that_is_modified(
    tmp_path: Path,
) -> None:
    for view, expected in (("CC", "CC"), ("MLO", "MLO"), ("LM", "LM"), ("AT", "")):
        content = make_dicom(RAMP, RAW, view=view, attributes={"ViewPosition": None})
        assert scanned(content, tmp_path).view == expected


def test_a_healthy_file_has_no_error_and_its_facts(tmp_path: Path) -> None:
    facts = scanned(make_dicom(RAMP, SITES[2]["29"].encoding, laterality="R", view="MLO"), tmp_path)
    assert facts.error == ()
    assert (facts.kind, facts.laterality, facts.view, facts.photometric) == ("DICOM", "R", "MLO", "MONOCHROME1")
    assert (facts.bits_stored, facts.windows, facts.voi_function, facts.implant) == (16, 3, "SIGMOID", "NO")


@pytest.mark.parametrize(
    ("content", "kind", "found"),
    [
        (b"", "empty", "an empty file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(300), "PNG", "a PNG image with another name"),
        (b"\xff\xd8\xff\xe0" + bytes(300), "JPEG", "a JPEG image with another name"),
        (b"PK\x03\x04" + bytes(300), "ZIP", "a ZIP archive"),
        (bytes(400), "unknown", "no DICM after 128 bytes"),
    ],
)
def test_what_is_no_dicom_is_called_by_its_name(tmp_path: Path, content: bytes, kind: str, found: str) -> None:
    facts = scanned(content, tmp_path)
    assert facts.kind == kind
    assert found in facts.error[2]


def test_a_png_by_its_own_name_is_an_image(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480) + bytes(200)
    facts = scanned(png, tmp_path, "1.png")
    assert facts.error == ()
    assert (facts.rows, facts.columns, facts.transfer_syntax) == (480, 640, "image/png")


def test_a_file_that_is_not_there_is_its_own_finding(tmp_path: Path) -> None:
    facts = scan.scan(str(tmp_path / "none.dcm"), "none.dcm", 10, KEY)
    assert facts.error[:2] == ("none.dcm", "a file that can be read")


def test_truncated_pixels_are_told_by_the_head_and_the_size(tmp_path: Path) -> None:
    content = dicom()
    assert scanned(content, tmp_path).error == ()
    for cut in (1, 100, RAMP.nbytes - 1):
        assert "bytes" in scanned(content[:-cut], tmp_path).error[2]


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless, uid.ImplicitVRLittleEndian])
def test_a_file_cut_anywhere_in_its_header_is_refused_and_raises_nothing(tmp_path: Path, syntax: str) -> None:
    content = dicom(Encoding(transfer_syntax=syntax))
    pixels = elements.walk(content).pixels
    assert pixels is not None
    for end in range(0, pixels - 12, 7):
        facts = scanned(content[:end], tmp_path)
        assert facts.error, end
        assert facts.error == scanned(content[:end], tmp_path, size=len(content)).error or end < 132  # A stale size.


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "3"),
        ({"NumberOfFrames": 5}, "5"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535"),
        ({"BitsAllocated": 32}, "32 / 12"),
        ({"PixelAspectRatio": [1, 2]}, "1:2"),
        ({"Rows": None}, "nothing"),
    ],
)
def test_what_a_decode_refuses_by_the_header_the_scan_refuses_in_the_same_words(
    tmp_path: Path, attributes: dict[str, Any], found: str
) -> None:
    content = dicom(**attributes)
    with pytest.raises(DecodeError) as refused:
        header.read(content, "1.dcm")
    assert scanned(content, tmp_path).error == refused.value.args
    assert refused.value.found == found


def test_words_that_are_no_defined_terms_are_not_told(tmp_path: Path) -> None:
    with config.disable_value_validation():  # pydicom warns of such values when it writes them.
        content = dicom(ViewPosition="Silva^Maria", Modality="MG", BurnedInAnnotation="Maria")
    facts = scanned(content, tmp_path)
    assert (facts.view, facts.burned_in) == ("", "another value")


def test_tokens_tell_equal_identifiers_and_depend_on_the_key(tmp_path: Path) -> None:
    first = scanned(make_dicom(RAMP, RAW, patient_id="000123"), tmp_path)
    assert first.patient == scan.token("123", KEY) != scan.token("123", bytes(32))
    assert "123" not in str(vars(first).values())


HEADS = [dicom(), dicom(Encoding(transfer_syntax=uid.ImplicitVRLittleEndian)), dicom(Encoding())]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(HEADS), st.lists(st.tuples(st.integers(132, 1500), st.integers(0, 255)), max_size=6), st.data())
def test_whatever_bytes_a_header_holds_the_scan_returns_facts(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    damaged = bytearray(content)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    end = data.draw(st.integers(0, len(damaged)))
    with config.disable_value_validation():  # A damaged transfer syntax is no UID, of which pydicom warns.
        facts = scanned(bytes(damaged[: end or None]), tmp_path_factory.getbasetemp())
    assert all(isinstance(part, str) for part in facts.error)


def test_a_length_that_leads_out_of_the_file_ends_the_scan_at_once(tmp_path: Path) -> None:
    content = dicom(ImageComments="x" * 100)
    at = content.index(b"\x20\x00\x00\x40LT") + 6
    damaged = content[:at] + b"\xff\xff" + content[at + 2 :]
    assert "truncated" in scanned(damaged, tmp_path).error[3]
    assert scan.scan(str(tmp_path / "1.dcm"), "1.dcm", 10**12, KEY).error  # A size that was never true.
