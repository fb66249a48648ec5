"""What an audit knows of pixels depends on the picture alone."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from mammoray import pixels
from mammoray.machines import Encoding, make_dicom
from tests.audit_factory import RAW

RAMP = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)


@pytest.mark.parametrize(
    "syntax", [uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.RLELossless, uid.ExplicitVRBigEndian]
)
def test_the_same_picture_has_one_digest_in_every_lossless_encoding(tmp_path: Path, syntax: str) -> None:
    looked = []
    for i, encoding in enumerate([RAW, Encoding(transfer_syntax=syntax)]):
        (tmp_path / "1.dcm").write_bytes(make_dicom(RAMP, encoding, key=(i,)))
        looked.append(pixels.look(str(tmp_path / "1.dcm"), "1.dcm"))
    assert looked[0] == looked[1]
    (tmp_path / "1.dcm").write_bytes(make_dicom(RAMP + 1, RAW))
    assert pixels.look(str(tmp_path / "1.dcm"), "1.dcm").digest != looked[0].digest
