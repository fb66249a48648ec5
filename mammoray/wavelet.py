"""One level of the wavelet pyramid that every image is reduced by: the 5/3 low-pass of JPEG 2000.

A reversible JPEG 2000 codestream holds this pyramid and hands out its levels; all other transfer syntaxes are brought
down by the same filter here, to the same integers. So nothing in the decoded image tells how its file was encoded,
apart from streams in tiles, each of which is transformed for itself, and lossy ones, whose 9/7 wavelet is another
filter.

Shapes: ``h, w`` the level above, ``H, W`` its half, rounded up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mammoray.compiled import compiled


@compiled
def low_pass(image: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """The LL band of one reversible 5/3 decomposition.

    Sample ``i`` stands at index ``2 i`` of the level above, not between two of its pixels.

    Parameters
    ----------
    image : (h, w) integers of at most 17 bits

    Returns
    -------
    (ceil(h / 2), ceil(w / 2)) int32
        May reach beyond the range of ``image`` at sharp edges.

    References
    ----------
    ITU-T T.800 (JPEG 2000), F.4: rows of the image first, then columns, symmetric extension at the borders.
    """
    h, w = image.shape
    out = np.empty(((h + 1) // 2, (w + 1) // 2), np.int32)
    before = np.zeros(w, np.int32)  # High-pass rows above and below the row at hand.
    after = np.zeros(w, np.int32)
    low = np.empty(w, np.int32)
    for i in range(out.shape[0]):
        even = image[2 * i]
        if 2 * i + 1 < h:
            odd, below = image[2 * i + 1], image[2 * i + 2] if 2 * i + 2 < h else even
            for j in range(w):
                after[j] = np.int32(odd[j]) - ((np.int32(even[j]) + np.int32(below[j])) >> 1)
        else:
            after[:] = before
        if i == 0:
            before[:] = after
        for j in range(w):
            low[j] = np.int32(even[j]) + ((before[j] + after[j] + 2) >> 2)
        before, after = after, before
        _low_pass_row(low, out[i])
    return out


@compiled
def _low_pass_row(row: npt.NDArray[np.int32], out: npt.NDArray[np.int32]) -> None:
    w = len(row)
    before = np.int32(0)
    for j in range(w // 2):
        right = row[2 * j + 2] if 2 * j + 2 < w else row[2 * j]
        after = row[2 * j + 1] - ((row[2 * j] + right) >> 1)
        if j == 0:
            before = after
        out[j] = row[2 * j] + ((before + after + 2) >> 2)
        before = after
    if w % 2:
        out[w // 2] = row[w - 1] + ((before + before + 2) >> 2)
