"""One file, DICOM or raster image, to one grey image, ``(H, W)``, dense tissue bright and background 0.

In the order in which it happens: header -> breast, on a thumbnail -> the wavelet level that is just large enough ->
grey by table (modality LUT, VOI, MONOCHROME1, padding: DICOM's order, PS3.3 C.7.6.3, C.11.1, C.11.2) -> mean over each
output pixel -> background to black -> mirror -> frame. Nothing is guessed: what cannot be decoded as the header says
raises :class:`~mammoray.errors.DecodeError`.

Shapes: ``H, W`` the decoded image, ``h, w`` the stored one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydicom import uid

from mammoray import breast, grey, header, machines, raster, storage, stored
from mammoray.config import DecodeConfig
from mammoray.header import Header
from mammoray.resample import resample

DECODER_VERSION = 2
"""Part of the cache key: raise it whenever the same file and settings would give other pixels."""

_THUMBNAIL = 160  # Pixels that the long side has at least where the breast is looked for; less than twice as many.

_VISIBLE_STEPS = 1  # Of the decoded grey levels; what this costs in fidelity stands in docs/benchmarks.md.


Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """How an output pixel maps back to the stored image.

    Attributes
    ----------
    top, left, height, width : int
        The crop, in stored pixels.
    mirrored : bool
        Whether the crop was mirrored left to right.
    scale_y, scale_x : float
        Output pixels per stored pixel.
    pad_top, pad_left : int
        Position of the resized crop in the output frame, in output pixels.
    level : int
        How often the image was halved before the last resample.
    """

    top: int
    left: int
    height: int
    width: int
    mirrored: bool
    scale_y: float
    scale_x: float
    pad_top: int
    pad_left: int
    level: int

    def to_source(self, row: float, column: float) -> tuple[float, float]:
        """Stored (row, column) of an output position; pixel centres are at whole numbers."""
        y = (row - self.pad_top + 0.5) / self.scale_y - 0.5
        x = (column - self.pad_left + 0.5) / self.scale_x - 0.5
        return self.top + y, self.left + (self.width - 1 - x if self.mirrored else x)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A decoded image: ``pixels`` is (H, W), uint8 or uint16 by ``DecodeConfig.depth``."""

    pixels: npt.NDArray[Any]
    geometry: Geometry
    transfer_syntax: str


def decode(source: Path | str | bytes, config: DecodeConfig, name: str | None = None) -> Decoded:
    """Decode one mammogram.

    Parameters
    ----------
    source : Path, str or bytes
        A DICOM file, or a PNG, JPEG or TIFF image (:mod:`mammoray.raster`), by its path or URI, or its content.
    config : DecodeConfig
        Size, window, crop, orientation, resize and depth.
    name : str, optional
        How errors call the file. What is called ``.dcm`` or ``.dicom`` must be a DICOM.

    Raises
    ------
    DecodeError
        Neither of them, no image, colour, several frames, a size that cannot be, pixels that contradict the header, a
        truncated or damaged codestream, or an image without content.
    OSError
        The file cannot be read at all.
    """
    name = name or ("bytes" if isinstance(source, bytes) else storage.shown(str(source)))
    content = source if isinstance(source, bytes) else storage.content(str(source))
    with header.pydicom_silent():
        return _decode(read(content, name, config.frame), config)


def warm_up() -> None:
    """Load or compile the loops that a decode calls, before any limit of time counts (:mod:`mammoray.sandbox`)."""
    ramp = np.arange(256 * 192, dtype=np.uint16).reshape(256, 192) % 4096
    for syntax in (uid.JPEG2000Lossless, uid.JPEGLosslessSV1):
        content = machines.make_dicom(ramp, machines.Encoding(transfer_syntax=syntax))
        for crop in ("none", "breast"):
            decode(content, DecodeConfig(height=64, width=48, crop=crop))


def announce(source: Path | str | bytes, *rest: Any) -> None:
    """Say that :func:`decode` is going to be called: a file of a storage is fetched while another one is decoded."""
    if not isinstance(source, bytes):
        storage.announce(str(source))


def read(content: bytes | memoryview, name: str, frame: str = "only") -> Header:
    """The header and frame of a file of either sort; its bytes say which it is.

    Raises
    ------
    DecodeError
        As :func:`mammoray.raster.told`, :func:`mammoray.header.read` and :func:`mammoray.raster.read`.
    """
    found = raster.told(bytes(content[: raster.FIRST]), name)
    return raster.read(content, name, frame) if found in raster.MEDIA_TYPES else header.read(content, name, frame)


def _decode(head: Header, config: DecodeConfig) -> Decoded:
    pyramid = stored.open_frame(head)
    view = _View.find(head, pyramid, config)
    table = grey.table(head, config.window, view.tissue)
    size = _size(view.box, config)
    r = _level(view.box, size, config.detail)
    level = pyramid.level(r, _invisible(table, config))
    padded, padding_shows = grey.blacken_padding(table, head)
    # What overshoots at a reduced level may look like padding: there it is told by its surroundings.
    image = resample(level, r, table if r else padded, head.lowest, view.box, size)
    if padding_shows and r:
        image *= _resample_mask(~_near_padding(level, head), r, view.box, size)
    if config.crop == "breast" and config.background == "black" and view.mask is not None:
        image *= _resample_mask(breast.blank_region(view.mask), view.level, view.box, size)
    if image.min() == image.max():
        found, remedy = "one grey everywhere", "Use another --window, or leave the file out of the CSV."
        raise head.error("VOI window", "a window that shows something", found, remedy)
    frame, pad_top, pad_left = _frame(image[:, ::-1] if view.mirrored else image, config)
    top, left, bottom, right = view.box
    geometry = Geometry(
        top=top,
        left=left,
        height=bottom - top,
        width=right - left,
        mirrored=view.mirrored,
        scale_y=size[0] / (bottom - top),
        scale_x=size[1] / (right - left),
        pad_top=pad_top,
        pad_left=pad_left,
        level=r,
    )
    return Decoded(pixels=frame, geometry=geometry, transfer_syntax=head.transfer_syntax)


@dataclass(frozen=True, slots=True)
class _View:
    """What is shown of an image: the box, in stored pixels (top, left, bottom, right), and whether it is mirrored."""

    box: tuple[int, int, int, int]
    mirrored: bool
    level: int
    thumbnail: npt.NDArray[Any] | None
    mask: Mask | None

    @property
    def tissue(self) -> npt.NDArray[Any] | None:
        """Stored values of the breast, without its border, which the background is mixed into."""
        if self.thumbnail is None or self.mask is None:
            return None
        inside = cv2.erode(self.mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.bool_)
        return self.thumbnail[inside if inside.any() else self.mask]

    @staticmethod
    def find(head: Header, pyramid: stored.Pyramid, config: DecodeConfig) -> _View:
        whole = (0, 0, head.rows, head.columns)
        mirrored = config.orient == "laterality" and _side(head) == "R"
        if config.crop == "none" and config.orient != "content" and config.window != "percentile":
            return _View(whole, mirrored, 0, None, None)
        r = max(0, (max(head.rows, head.columns) // _THUMBNAIL).bit_length() - 1)
        thumbnail = pyramid.level(r)
        mask = breast.breast_mask(_level_padding(thumbnail, head), head.inverted)
        if config.orient == "content":
            # The breast is tallest at the chest wall, whatever the header says about its side.
            mirrored = breast.chest_wall_at_right(mask)
        box = whole if config.crop == "none" else _stored_box(breast.bounding_box(mask), r, head)
        return _View(box, mirrored, r, thumbnail, mask)


def _level_padding(thumbnail: npt.NDArray[Any], head: Header) -> npt.NDArray[np.float32]:
    """The thumbnail with padding at its darkest other value, so that no range or threshold is drawn to it."""
    values = thumbnail.astype(np.float32)
    low, high = head.padding or (1, 0)
    is_padding = (thumbnail >= low) & (thumbnail <= high)
    if is_padding.any() and not is_padding.all():
        values[is_padding] = values[~is_padding].max() if head.inverted else values[~is_padding].min()
    return values


def _stored_box(box: tuple[int, int, int, int], r: int, head: Header) -> tuple[int, int, int, int]:
    """A box of the thumbnail in stored pixels: sample ``i`` of level ``r`` stands for those around ``2**r * i``."""
    half, sides = 2**r // 2, (head.rows, head.columns)
    top, left = (max(0, edge * 2**r - half) for edge in box[:2])
    # The last sample stands for all that follows it.
    bottom, right = (
        side if edge == -(-side >> r) else min(side, edge * 2**r - half)
        for edge, side in zip(box[2:], sides, strict=True)
    )
    return top, left, max(bottom, top + 1), max(right, left + 1)


def _side(head: Header) -> str:
    if head.laterality is None:
        expected, remedy = "L or R", "Use --orient content."
        raise head.error("Image Laterality (0020,0062)", expected, "neither of them", remedy)
    return head.laterality


def _size(box: tuple[int, int, int, int], config: DecodeConfig) -> tuple[int, int]:
    """Rows and columns that the box is brought to, at most those of the frame."""
    if config.resize == "stretch":
        return config.height, config.width
    height, width = box[2] - box[0], box[3] - box[1]
    scale = min(config.height / height, config.width / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _level(box: tuple[int, int, int, int], size: tuple[int, int], detail: float) -> int:
    """The deepest level at which the box still has ``detail`` samples per output pixel, along either side."""
    ratio = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    return max(0, int(ratio / detail).bit_length() - 1)


def _invisible(table: grey.Table, config: DecodeConfig) -> int:
    """Bit planes of stored values below a step of the decoded depth, where the table is steepest."""
    steepest = float(np.abs(np.diff(table)).max()) * (2**config.depth - 1)
    if config.bit_planes == "all" or steepest == 0:
        return 0
    return max(0, int(np.log2(_VISIBLE_STEPS / steepest)))


def _near_padding(level: npt.NDArray[Any], head: Header) -> Mask:
    """Padding of a reduced image, and what its neighbourhood was mixed into.

    The low-pass of padding is padding again, but not within two samples of its border. A single sample of that value
    may be an overshoot beside bright tissue: real padding covers three by three.
    """
    low, high = head.padding or (0, -1)
    is_padding = ((level >= low) & (level <= high)).astype(np.uint8)
    inside = cv2.erode(is_padding, np.ones((3, 3), np.uint8))
    return np.asarray(cv2.dilate(inside, np.ones((7, 7), np.uint8)), dtype=np.bool_)


def _resample_mask(
    mask: Mask, r: int, box: tuple[int, int, int, int], size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Share of each output pixel, (H, W), that a mask at level ``r`` covers."""
    return resample(mask.astype(np.uint8), r, np.array([0, 1], np.float32), 0, box, size)


def _frame(image: npt.NDArray[np.float32], config: DecodeConfig) -> tuple[npt.NDArray[Any], int, int]:
    """The image in a frame of zeros, in whole numbers, and where it stands in it."""
    pad_top = (config.height - image.shape[0]) // 2
    # The chest wall stays at the left edge: padding goes to the nipple's side.
    pad_left = 0 if config.orient != "none" else (config.width - image.shape[1]) // 2
    frame = np.zeros((config.height, config.width), dtype=np.uint8 if config.depth == 8 else np.uint16)
    inside = frame[pad_top : pad_top + image.shape[0], pad_left : pad_left + image.shape[1]]
    inside[...] = np.rint(np.clip(image, 0, 1) * np.float32(2**config.depth - 1))
    return frame, pad_top, pad_left
