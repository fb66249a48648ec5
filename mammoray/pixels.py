"""The pixels of one file to what an audit wants to know of them, and to a thumbnail: called in a child process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from mammoray import decode, header, storage, stored
from mammoray.config import DecodeConfig
from mammoray.stored import Image

warm_up = decode.warm_up
"""Before any limit of time counts (:mod:`mammoray.sandbox`)."""
_SMALL = DecodeConfig(height=240, width=180, crop="none", background="keep", orient="none", frame="first")


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelFacts:
    """What the stored values of one image are like.

    Attributes
    ----------
    digest : str
        Of size and values: the same for every lossless encoding of one image.
    lowest, highest : int
        Smallest and largest stored value.
    beyond : int
        Pixels whose value does not fit into Bits Stored (PS3.3 C.7.6.3.1, PS3.5 8.1.1); 0 for a lossy encoding, whose
        rounding may lead there.
    bits_stored : int
    """

    digest: str
    lowest: int
    highest: int
    beyond: int
    bits_stored: int


def announce(path: str, name: str) -> None:
    """As :func:`mammoray.decode.announce`."""
    decode.announce(path)


def look(path: str, name: str) -> PixelFacts:
    """Decode a file in full.

    Parameters
    ----------
    path : str
        Path or URI.
    name : str
        How errors call it.

    Raises
    ------
    DecodeError
        It cannot be decoded.
    OSError
        It cannot be read.
    """
    with header.pydicom_silent():
        head = decode.read(storage.content(path), name)
        values = stored.open_frame(head).unchecked()
    lowest, highest = int(values.min()), int(values.max())
    inside = head.transfer_syntax in stored.LOSSY or head.lowest <= lowest <= highest <= head.highest
    return PixelFacts(
        digest=digest(values),
        lowest=lowest,
        highest=highest,
        beyond=0 if inside else int(np.count_nonzero((values < head.lowest) | (values > head.highest))),
        bits_stored=head.bits_stored,
    )


def digest(values: Image) -> str:
    """Digest of an image's size and values, whatever the integers it is held in.

    Examples
    --------
    >>> digest(np.eye(4, dtype=np.uint8)) == digest(np.eye(4, dtype=np.int32)) != digest(np.eye(2, 8, dtype=np.uint8))
    True
    """
    plain = "<u2" if values.min() >= 0 and values.max() < 2**16 else "<i4"
    total = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    total.update(np.ascontiguousarray(values, plain).data)
    return total.hexdigest()


def thumbnail(path: str, name: str) -> decode.Decoded:
    """A small picture of a file, as a viewer would show the whole of it: (240, 180) uint8."""
    return decode.decode(path, _SMALL, name)
