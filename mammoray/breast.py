"""Where the breast is, on a thumbnail of stored values.

Air is the darkest clear peak of the histogram; what stands out from it is tissue, labels, markers, scanner lines and
frames. The breast is the thickest piece of that, after all thin strips and necks were cut. Where in doubt the mask is
too large: a strip of air does no harm, skin that is cut off does.

Lengths are shares of the thumbnail's long side. Grey is 0 to 255 between the ends of the range that the pixels use.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[Any]
Grey = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Histogram = npt.NDArray[np.float64]
Field = tuple[slice, slice]

_LEVELS = np.arange(256, dtype=np.float64)
_LABELS = 0.05  # No breast takes up less of the image, no label more.
_GLOW = 0.035  # Seam around bright things in which skin fades into air.
_AROUND = 0.075  # How far from that seam air is measured: padding and the far end of a film are darker or brighter.
_STRIP = 0.04  # Half width of strips that are cut off, such as the abdominal wall below the breast, ...
_SLIM = 0.3  # ... but at most this share of half the breast's own width: the axilla of a slim breast is slim.
_REACH = 0.02  # How far around what is left its own outline is followed again: a nipple, corners at the border.
_NOTCH = 0.03  # Half width of the notches that are filled.
_ROUGH = 0.012  # What the outline is smoothed by.
_BLANK = 0.025  # Margin of blank_region.


def breast_mask(thumbnail: Image, inverted: bool) -> Mask:
    """Where the breast is: one piece without holes; skin and pectoral muscle lie inside.

    Parameters
    ----------
    thumbnail : (h, w) float32 or integer
        Stored values, reduced to a long side of about 160 to 320 pixels; any range, any sign.
    inverted : bool
        True for MONOCHROME1.

    Returns
    -------
    (h, w) bool
        Never empty: the whole image, without its padding, where nothing stands out.

    Examples
    --------
    >>> thumbnail = np.zeros((160, 128), np.float32)
    >>> thumbnail[40:120, :60] = 900
    >>> thumbnail[8:20, 90:110] = 4095  # a label
    >>> bounding_box(breast_mask(thumbnail, inverted=False))
    (40, 0, 120, 60)
    """
    bright = _bright(thumbnail, inverted)
    mask = np.zeros(bright.shape, np.bool_)
    inside = mask
    for crop in (_without_frame, _without_padding):
        field = crop(bright)
        bright, inside = bright[field], inside[field]
    inside[...] = _mask_of_field(bright)
    return mask


def chest_wall_at_right(mask: Mask) -> bool:
    """Whether the chest wall is at the right: the breast is tallest there, whatever a header says about its side."""
    top, left, bottom, right = bounding_box(mask)
    third = max(1, (right - left) // 3)
    box = mask[top:bottom, left:right]
    return bool(box[:, -third:].sum() > box[:, :third].sum())


def bounding_box(mask: Mask) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a mask that is not empty, in thumbnail pixels; bottom and right are exclusive."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(ys[0]), int(xs[0]), int(ys[-1]) + 1, int(xs[-1]) + 1


def blank_region(mask: Mask) -> Mask:
    """What to keep when all else is made black: ``mask`` and a margin of 2.5 % of the long side.

    The margin is for what the mask follows less closely than the eye: a nipple in profile, hardly visible skin, and
    the steps of a mask that is enlarged to full size. A label that is nearer to the breast than that stays in part.
    """
    return np.asarray(cv2.dilate(mask.astype(np.uint8), _square(_BLANK, mask)) > 0)


def _square(share: float, image: Image) -> Grey:
    """A square structuring element that reaches ``share`` of the long side, at least one pixel."""
    side = 2 * max(1, round(share * max(image.shape))) + 1
    return np.ones((side, side), np.uint8)


def _binary(where: Mask) -> Grey:
    return where.view(np.uint8) * np.uint8(255)


def _bright(thumbnail: Image, inverted: bool) -> npt.NDArray[np.float32]:
    """Values from 0, air at the low end in both polarities."""
    values = np.asarray(thumbnail, np.float32)
    return np.float32(values.max()) - values if inverted else values - np.float32(values.min())


def _range(bright: Image) -> tuple[float, float]:
    """Low and high end of the values, without the few pixels beyond them: wavelets overshoot at sharp edges."""
    some = np.sort(bright[::3, ::3], axis=None)
    low, high = float(some[len(some) // 200]), float(some[-1 - len(some) // 200])
    return (low, high) if high > low else (float(bright.min()), float(bright.max()))


def _between(rows: npt.NDArray[np.bool_], columns: npt.NDArray[np.bool_]) -> Field:
    """The field from the first to the last row and column that are true; everything where there is none."""
    ys, xs = np.flatnonzero(rows), np.flatnonzero(columns)
    if not (len(ys) and len(xs)):
        return slice(None), slice(None)
    return slice(int(ys[0]), int(ys[-1]) + 1), slice(int(xs[0]), int(xs[-1]) + 1)


def _without_frame(bright: Image) -> Field:
    """The field inside a bright frame, which could not be told later from a breast that touches it."""
    low, high = _range(bright)
    white = high - 0.03 * (high - low)
    sides = (bright[0], bright[-1], bright[:, 0], bright[:, -1])
    # Saturated tissue may fill the border at the chest wall, but hardly three borders.
    if sum(float((side >= white).mean()) > 0.9 for side in sides) < 3:
        return slice(None), slice(None)
    frame = bright >= white
    return _between(frame.mean(axis=1) <= 0.9, frame.mean(axis=0) <= 0.9)


def _without_padding(bright: Image) -> Field:
    """The field inside padding that no header declares: it may lie so far below air that air looks like tissue."""
    low, high = _range(bright)
    content = bright > low + 0.015 * (high - low)
    rows, columns = content.mean(axis=1), content.mean(axis=0)
    field = _between(rows > rows.max() / 2, columns > columns.max() / 2)
    held = content[field].sum()
    # A breast does not fill the corners of its box, and a label is no field.
    if held > 0.98 * max(content[field].size, content.sum()) and held > 2 * _LABELS * bright.size:
        return field
    return slice(None), slice(None)


def _mask_of_field(bright: Image) -> Mask:
    mask = np.zeros(bright.shape, np.bool_)
    grey = _grey(bright)
    skin = None if grey is None else _skin_level(np.ascontiguousarray(grey[::2, ::2]))
    if grey is not None and skin is not None:
        mask = _thickest_piece(_binary(grey > skin))
    return mask if np.count_nonzero(mask) > mask.size * _LABELS / 2 else np.ones(bright.shape, np.bool_)


def _grey(bright: Image) -> Grey | None:
    """Grey levels of which the breast uses many, None for one value everywhere."""
    low, high = _range(bright)
    for _ in range(3):
        if high <= low:
            break
        scaled = (bright - np.float32(low)) * np.float32(255 / (high - low))
        grey: Grey = np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)
        histogram = _histogram(np.ascontiguousarray(grey[::2, ::2]))
        top = _split(histogram, 256)[0]
        if histogram[top:].sum() > _LABELS * histogram.sum():
            return grey
        # Only labels are up there, and tissue is squeezed into the few levels below.
        high = low + (high - low) * (int(np.flatnonzero(histogram[:top]).max(initial=0)) + 1) / 255
    return None


def _histogram(grey: Grey, where: Grey | None = None) -> Histogram:
    return np.asarray(cv2.calcHist([grey], [0], where, [256], [0, 256]), np.float64).ravel()


def _split(histogram: Histogram, top: int) -> tuple[int, float, float]:
    """Otsu's threshold of the levels below ``top``, in the middle of a gap, and the means below and above it."""
    counts, levels = histogram[:top], _LEVELS[:top]
    below, weight = np.cumsum(counts), np.cumsum(counts * levels)
    above = below[-1] - below
    low = weight / np.maximum(below, 1)
    high = (weight[-1] - weight) / np.maximum(above, 1)
    between = below * above * (high - low) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    k = int(best[0])
    return (k + int(best[-1])) // 2 + 1, float(low[k]), float(high[k])


def _air_top(histogram: Histogram) -> int:
    """A level between air and the darkest tissue that is plainly no air."""
    peaks = np.convolve(histogram, np.ones(5), "same")
    top, _, _ = _split(histogram, 256)
    # This first split may be between fat and gland, or below a bright border.
    for _ in range(2):
        lower, dark, light = _split(histogram, top)
        # Film and its padding are nearer to each other; a hole in the film is the smaller peak, noise half of one.
        largest_above = max(peaks[lower:top].max(), 2 * peaks[lower])
        if light - dark < 20 or peaks[:lower].max() < largest_above:
            break
        top = lower
    return top


def _skin_level(grey: Grey) -> int | None:
    """The level just above air, None where no air is seen."""
    histogram = _histogram(grey)
    top = _air_top(histogram)
    glow = cv2.dilate(_binary(grey >= top), _square(_GLOW, grey))
    air = _histogram(grey, cv2.dilate(glow, _square(_AROUND, grey)) ^ glow)
    if air.sum() < 0.005 * grey.size:  # The breast fills the image: what air there is lies in the seam.
        air = histogram.copy()
        air[int(np.argmax(air[:top])) + 1 :] = 0
    middle, upper = np.searchsorted(np.cumsum(air), np.array([0.5, 0.95]) * air.sum())
    tissue = float(histogram[top:] @ _LEVELS[top:] / max(histogram[top:].sum(), 1))
    skin = int(middle + 1.3 * (upper - middle) + max(1.0, 0.015 * (tissue - middle)))
    # Where tissue fills the image, its fat is taken for air; but that is a slope rather than a peak, and uneven.
    # Films and detectors: at least 6 times as high as what follows, spread over at most 0.08 of the way to tissue.
    peak = np.convolve(histogram, np.ones(5), "same")[: skin + 1].max()
    is_peak = peak > 4 * histogram[skin + 1 : skin + 6].sum() and upper - middle < 0.1 * (tissue - middle)
    return skin if is_peak else None


def _thickest_piece(foreground: Grey) -> Mask:
    """The thickest piece of ``foreground`` (0 or 255) without thin strips, filled and smoothed."""
    height, width = foreground.shape
    half = cv2.resize(foreground, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA)
    core = _core(_binary(half > 100))
    outline = foreground & _enlarged(cv2.dilate(core, _square(_REACH / 2, foreground)), foreground)
    filled = _enlarged(cv2.morphologyEx(core, cv2.MORPH_CLOSE, _square(_NOTCH, core)), foreground)
    smooth = _binary(cv2.blur(outline | filled, _square(_ROUGH, foreground).shape) > 110)
    contours, _ = cv2.findContours(smooth, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask = np.zeros((height, width), np.uint8)
    if contours:
        cv2.drawContours(mask, [max(contours, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return mask.view(np.bool_)


def _enlarged(half: Grey, like: Grey) -> Grey:
    return np.asarray(cv2.resize(half, like.shape[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


def _core(foreground: Grey) -> Grey:
    """The thickest piece of ``foreground`` after opening by a disc; 0 or 255."""
    # A frame of zeros: a strip along the border is as thin as it looks.
    framed = cv2.copyMakeBorder(foreground, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, 3)
    radius = min(_STRIP * max(foreground.shape), _SLIM * float(depth.max()))
    _, pieces = cv2.connectedComponents(_binary(depth > radius), connectivity=4)
    # By depth rather than by area: a label is smaller, and a wide border thinner, than a breast.
    volume = np.bincount(pieces.ravel(), depth.ravel())
    volume[0] = 0
    away = cv2.distanceTransform(_binary(pieces != np.argmax(volume)), cv2.DIST_L2, 3)
    return _binary(away <= radius)[1:-1, 1:-1]
