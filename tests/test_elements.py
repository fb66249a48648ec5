"""The walk over a header finds what pydicom finds, in every encoding of it."""

import io
from typing import Any

import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from mammoray import elements
from mammoray.machines import CODECS, SITES, Encoding, make_dicom
from tests.audit_factory import RAMP, dicom


def by_pydicom(content: bytes) -> dict[str, Any]:
    """What :data:`elements.WANTED` are by pydicom, as the walk gives them."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    found: dict[str, Any] = {}
    for keyword, vr in elements.WANTED.values():
        if keyword not in dataset or dataset[keyword].is_empty:
            continue
        value = dataset[keyword].value
        if keyword == "ViewCodeSequence":
            found[keyword] = "" if value[0].ViewModifierCodeSequence else value[0].CodeValue
        elif vr == b"SQ":
            found[keyword] = True
        elif vr == b"US":
            found[keyword] = int(value)
        else:
            several = isinstance(value, pydicom.multival.MultiValue)
            found[keyword] = [str(part) for part in value] if several else str(value)
    return {keyword: value for keyword, value in found.items() if value != ""}


SYNTAXES = sorted(str(syntax) for syntax in CODECS if syntax not in (uid.JPEGBaseline8Bit,))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_walk_and_pydicom_read_the_same_elements_in_every_transfer_syntax(syntax: str) -> None:
    content = dicom(Encoding(transfer_syntax=syntax), ViewPosition="AT", PixelAspectRatio=[1, 1], NumberOfFrames=1)
    found = elements.walk(content)
    assert found.values == by_pydicom(content)
    assert found.transfer_syntax == syntax
    assert found.pixels is not None


@pytest.mark.parametrize("machine", [m for site in SITES.values() for m in site.values()])
def test_the_walk_and_pydicom_agree_on_every_machine(machine: Any) -> None:
    content = make_dicom(RAMP, machine.encoding)
    assert elements.walk(content).values == by_pydicom(content)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_sequences_of_undefined_length_in_each_other_are_passed(syntax: str) -> None:
    dataset = pydicom.dcmread(io.BytesIO(dicom(Encoding(transfer_syntax=syntax))))
    inner, outer = Dataset(), Dataset()
    inner.PatientID = "inside"
    outer.ReferencedStudySequence = [inner, inner]
    dataset.ReferencedPatientSequence = [outer, Dataset()]
    for element in (dataset["ReferencedPatientSequence"], outer["ReferencedStudySequence"]):
        element.is_undefined_length = True
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    assert elements.walk(stream.getvalue()).values == by_pydicom(stream.getvalue())
    assert elements.walk(stream.getvalue()).values["PatientID"] == "1"


def test_a_walk_that_needs_more_than_it_was_given_says_so_and_reads_the_same_from_more() -> None:
    content = dicom(EncapsulatedDocument=bytes(1000))
    start = elements.walk(content).pixels
    assert start is not None
    with pytest.raises(elements.CutError) as cut:
        elements.walk(content[:800])
    assert 800 < cut.value.needed <= start
    assert elements.walk(content[:start]) == elements.walk(content)
