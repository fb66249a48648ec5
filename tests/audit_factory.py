"""DICOM files of one ramp, and the rows of a catalog made of them: what the tests of heads and of rules look at."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydicom import uid

from mammoray import inventory, scan
from mammoray.machines import Encoding, make_dicom

KEY = bytes(range(32))
RAMP = np.arange(32 * 24, dtype=np.uint16).reshape(32, 24)
RAW = Encoding(transfer_syntax=uid.ExplicitVRLittleEndian)


def dicom(encoding: Encoding | None = None, **attributes: Any) -> bytes:
    return make_dicom(RAMP, encoding or RAW, attributes=attributes)


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
