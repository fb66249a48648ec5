"""Synthetic mammograms: anatomy first, then what a machine makes of it. No file format here.

Three steps, each with its own randomness::

    anatomy(density)  one woman: her percentage of fibroglandular tissue, size, texture   (shared by all her views)
    render(woman)     one view: linear attenuation, dense tissue bright, background 0
    expose(phantom)   one exposure: brightness, tone curve, noise, lead marker, border    (display values)

The density class is carried by the share of the breast's area that is fibroglandular and by its texture. Brightness,
contrast, size and position vary independently of it, so that mean grey alone does not give the class away.

Lengths are in units of the image height, so that all shapes show the same anatomy. Images are drawn with the chest
wall at the left and mirrored at the end for right breasts.

References
----------
Sickles et al., ACR BI-RADS Mammography, 5th ed., 2013: breast composition categories a to d.
Burgess et al., "Human observer detection experiments with mammograms and power-law noise", Med. Phys. 28, 2001:
the power spectrum of breast structure falls as 1 / f^beta with beta near 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import scipy.fft

FloatImage = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

PERCENT: dict[str, tuple[float, float]] = {"A": (0.03, 0.25), "B": (0.25, 0.50), "C": (0.50, 0.75), "D": (0.75, 0.95)}
"""Share of the breast's projected area that is fibroglandular, by class: the quartiles of BI-RADS' 4th edition."""
VIEWS = ("CC", "MLO", "ML", "LM", "LMO", "AT")
"""Views that can be drawn. All but CC are taken from the side and show the pectoral muscle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """What all views of one woman share."""

    percent: float
    """Fibroglandular share of the breast's area, 0 to 1."""
    size: float
    """Half height of the breast in a CC view, in image heights."""
    depth: float
    """Distance from the chest wall to the nipple as a share of twice ``size``."""
    patchiness: float
    """0: one compact disc of tissue behind the nipple; 1: islands all over the breast."""
    beta: float
    """Exponent of the texture's power spectrum, 1 / f^beta."""
    contrast: float
    """Attenuation of fibroglandular tissue above that of fat."""
    strands: float
    """Visibility of Cooper's ligaments, above fat."""
    implant: bool = False
    """Whether an implant lies before the chest wall."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tone:
    """How one machine turns attenuation into display values."""

    gamma: float = 1.0
    """Exponent of the tone curve: above 1 darkens fat."""
    knee: float = 0.0
    """Share of an S-curve that is mixed in, 0 to 1."""
    sharpen: float = 0.0
    """Strength of edge enhancement."""
    noise: float = 0.01
    """Standard deviation of the noise at mid grey, in display units."""
    air: float = 0.0
    """Display value of the background, 0 to 1: film base and fog, or an unmasked detector."""
    line: float = 0.0
    """Probability of a bright grey line over the full height of a border."""
    marker: float = 0.6
    """Probability of a lead marker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phantom:
    """One view before exposure."""

    image: FloatImage
    """Linear attenuation (H, W), 0 (air) to 1."""
    mask: Mask
    """Breast with pectoral muscle, (H, W)."""
    gland: Mask
    """Fibroglandular tissue, (H, W), a subset of ``mask``."""
    fraction: float
    """Area of ``gland`` over the area of the breast without pectoral muscle and implant, 0 to 1."""


@dataclass(frozen=True, slots=True)
class _Outline:
    edge: npt.NDArray[np.float32]  # (H,) skin's distance from the chest wall in each row
    nipple: float
    half: float
    depth: float


def anatomy(density: str, rng: np.random.Generator, *, implant: bool = False) -> Anatomy:
    """Draw one woman of a density class A to D; her percentage lies within the class's range."""
    low, high = PERCENT[density]
    percent = low + (high - low) * float(rng.beta(2, 2))
    # Scattered tissue is the rule between the extremes (BI-RADS b and c), but no marker of the class by itself.
    patchiness = float(np.clip(0.75 - 0.6 * percent + rng.normal(0, 0.15), 0.1, 1))
    return Anatomy(
        percent=percent,
        size=float(rng.uniform(0.25, 0.42)),
        depth=float(rng.uniform(0.62, 0.95)),
        patchiness=patchiness,
        beta=float(rng.uniform(2.6, 3.2)),
        contrast=float(rng.uniform(0.30, 0.44)),
        strands=float(rng.uniform(0.05, 0.14)),
        implant=implant,
    )


def draw(density: str, laterality: str, view: str, shape: tuple[int, int], rng: np.random.Generator) -> Phantom:
    """Draw one view of a new woman; :func:`anatomy` and :func:`render` do it for several views of the same one.

    Parameters
    ----------
    density : str
        Class A to D.
    laterality : str
        L: the breast enters from the left border; R: from the right.
    view : str
        One of :data:`VIEWS`.
    shape : tuple of int
        Rows and columns.
    rng : numpy.random.Generator
        The only source of randomness.

    Returns
    -------
    Phantom

    Examples
    --------
    >>> phantom = draw("C", "R", "MLO", (128, 96), np.random.default_rng(0))
    >>> phantom.image.shape, bool(phantom.mask[:, -1].sum() > phantom.mask[:, 0].sum())
    ((128, 96), True)
    """
    return render(anatomy(density, rng), laterality, view, shape, rng)


def render(woman: Anatomy, laterality: str, view: str, shape: tuple[int, int], rng: np.random.Generator) -> Phantom:
    """Draw one view of ``woman``; parameters and result as in :func:`draw`."""
    if laterality not in ("L", "R") or view not in VIEWS:
        raise ValueError(f"laterality L or R and a view among {', '.join(VIEWS)} are needed, not {laterality} {view}")
    height, width = shape
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) / height)[None, :]
    outline = _outline(woman, view, y[:, 0], width / height, rng)
    mask = x < outline.edge[:, None]
    skin = _distance_to_skin(mask)
    muscle = _pectoral(view, x, y, rng) * mask
    implant = _implant(outline, x, y, rng) * mask if woman.implant else np.zeros_like(muscle)
    tissue = mask & (muscle < 0.5) & (implant < 0.5)
    fine = _power_law(shape, woman.beta, rng)
    gland, amount = _gland(woman, outline, x, y, skin, tissue, fine, rng)
    lines = _strands(shape, rng)
    fat = 0.16 + 0.022 * fine + woman.strands * lines * np.clip(0.4 + 0.5 * fine, 0, 1)
    dense = 0.16 + woman.contrast * (0.70 + 0.35 * amount + 0.11 * fine + 0.15 * lines)
    image = fat + gland * (dense - fat)
    image += muscle * (0.16 + 0.9 * woman.contrast + 0.02 * fine - image)
    image += implant * (0.75 - image)
    image = image * _thickness(skin, rng) + 0.05 * np.exp(-((skin / 0.004) ** 2))
    image = np.where(mask, np.clip(image, 0.01, 1), 0).astype(np.float32)
    filled = (gland > 0.5) & tissue
    fraction = float(filled.sum() / max(int(tissue.sum()), 1))
    if laterality == "R":
        image, mask, filled = (np.ascontiguousarray(a[:, ::-1]) for a in (image, mask, filled))
    return Phantom(image=image, mask=mask, gland=filled, fraction=fraction)


def _outline(woman: Anatomy, view: str, y: Any, aspect: float, rng: np.random.Generator) -> _Outline:
    size = woman.size * rng.uniform(0.95, 1.05)
    depth = min(2 * size * woman.depth * rng.uniform(0.95, 1.05), 0.92 * aspect)
    if view == "CC":
        nipple = 0.5 + rng.uniform(-1, 1) * max(0.47 - size, 0.02)
        upper = lower = size
    else:  # the axilla runs off the top, and the breast hangs: the nipple is below the middle
        nipple = rng.uniform(0.54, 0.66)
        lower = min(size * rng.uniform(0.75, 0.95), 0.97 - nipple)
        upper = nipple + rng.uniform(0.05, 0.30)
    t = (y - nipple) / np.where(y < nipple, upper, lower)
    power = rng.uniform(1.9, 2.4)
    edge = depth * np.sqrt(np.clip(1 - np.abs(t) ** power, 0, None))
    wave = sum(rng.normal(0, 0.006 / k) * np.sin(2 * np.pi * (k * y + rng.uniform())) for k in (1, 2, 3))
    edge = np.where(edge > 0, edge + wave * np.clip(edge / 0.1, 0, 1), 0)
    edge += rng.uniform(0.005, 0.018) * np.exp(-(((y - nipple) / 0.014) ** 2))
    if view != "CC":  # skin of the abdomen below the inframammary fold
        edge = np.maximum(edge, rng.uniform(0.0, 0.05) * np.clip((y - nipple) / lower, 0, 1))
    return _Outline(np.minimum(edge, 0.97 * aspect).astype(np.float32), nipple, (upper + lower) / 2, depth)


def _distance_to_skin(mask: Mask) -> FloatImage:
    """Distance of each breast pixel to the skin, in image heights; the image's borders are not skin."""
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, 1:-1]
    return np.asarray(distance / mask.shape[0], np.float32)


def _thickness(skin: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Relative thickness of the compressed breast: flat between the paddles, round towards the skin."""
    rim = rng.uniform(0.05, 0.11)
    rounded = 1 - np.clip(skin / rim, 0, 1)
    return np.asarray(np.sqrt(np.clip(1 - rounded**2.2, 0, 1)) ** 0.8, np.float32)


def _pectoral(view: str, x: Any, y: Any, rng: np.random.Generator) -> Any:
    """Soft mask of the muscle: a triangle in the upper corner at the chest wall, seen in views from the side."""
    if view == "CC":
        return np.zeros((y.shape[0], x.shape[1]), np.float32)
    narrow = 0.6 if view in ("ML", "LM") else 1.0
    top, bottom = narrow * rng.uniform(0.18, 0.34), rng.uniform(0.45, 0.75)
    bulge = rng.uniform(-0.02, 0.03)
    border = top * (1 - y / bottom) + bulge * np.sin(np.pi * np.clip(y / bottom, 0, 1))
    return 1 / (1 + np.exp(np.clip((x - border) / 0.004, -30, 30)))


def _implant(outline: _Outline, x: Any, y: Any, rng: np.random.Generator) -> Any:
    r = (x / (0.6 * outline.depth)) ** 2 + ((y - outline.nipple) / (0.55 * outline.half)) ** 2
    return 1 / (1 + np.exp(np.clip((np.sqrt(r) - rng.uniform(0.85, 1.0)) / 0.012, -30, 30)))


def _gland(
    woman: Anatomy, outline: _Outline, x: Any, y: Any, skin: Any, tissue: Mask, fine: Any, rng: np.random.Generator
) -> tuple[FloatImage, FloatImage]:
    """Fibroglandular tissue that covers the woman's percentage of ``tissue``, give or take the view.

    Returns its soft mask, 0 to 1, and how much of it lies in the beam, 0 at its border to 1 deep inside.
    """
    coarse = _resized(_power_law((max(tissue.shape[0] // 8, 8), max(tissue.shape[1] // 8, 8)), 3.0, rng), tissue.shape)
    # The disc of tissue sits behind the nipple, its centre a little above it (the upper outer quadrant).
    above = rng.uniform(-0.05, 0.25) * outline.half
    disc = ((x - 0.48 * outline.depth) / (0.62 * outline.depth)) ** 2
    disc = disc + ((y - outline.nipple + above) / (0.75 * outline.half)) ** 2
    subcutaneous = np.exp(-skin / 0.018)
    potential = woman.patchiness * (0.75 * coarse + 0.30 * fine) + 0.12 * fine - 0.9 * disc - 2.0 * subcutaneous
    percent = float(np.clip(woman.percent + rng.normal(0, 0.015), 0.02, 0.97))
    inside = potential[::2, ::2][tissue[::2, ::2]]
    level = float(np.quantile(inside, 1 - percent)) if inside.size else 0.0
    above_level = potential - level
    gland = 1 / (1 + np.exp(np.clip(-above_level / rng.uniform(0.07, 0.16), -30, 30)))
    amount = np.clip(above_level / rng.uniform(0.9, 1.5), 0, 1)
    return np.asarray(gland, np.float32), np.asarray(amount, np.float32)


def _strands(shape: tuple[int, int], rng: np.random.Generator) -> FloatImage:
    """Cooper's ligaments: thin curved lines, 0 to 1, which run rather towards the nipple than along the chest wall."""
    # Zero crossings of a smooth field are long thin curves; a field that is stretched in x has them run along x.
    field = _power_law((max(shape[0] // 2, 8), max(shape[1] // 6, 8)), 4.0, rng)
    high = field - cv2.GaussianBlur(field, (0, 0), max(shape[0] / 40, 1.0))
    lines = np.exp(-((high / (0.20 * float(high.std()))) ** 2))
    return _resized(lines.astype(np.float32), shape)


def _power_law(shape: tuple[int, int], beta: float, rng: np.random.Generator) -> FloatImage:
    """Gaussian random field of zero mean and unit variance whose power spectrum falls as 1 / f^beta."""
    height, width = shape
    f = np.hypot(scipy.fft.fftfreq(height)[:, None] * height, scipy.fft.rfftfreq(width)[None, :] * height)
    # Below four periods an image the spectrum of breast texture is flat; without it one blob would fill the field.
    amplitude = (np.maximum(f, 4.0) ** (-beta / 2)).astype(np.float32)
    amplitude[0, 0] = 0
    phase = rng.standard_normal((2, *f.shape), dtype=np.float32)
    field = scipy.fft.irfft2((phase[0] + 1j * phase[1]) * amplitude, s=shape)
    return np.asarray(field / max(float(field.std()), 1e-12), np.float32)


def _resized(image: FloatImage, shape: tuple[int, int]) -> FloatImage:
    return np.asarray(cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), np.float32)


def expose(phantom: Phantom, tone: Tone, label: str, rng: np.random.Generator) -> FloatImage:
    """Turn attenuation into display values as one machine with one exposure would.

    Parameters
    ----------
    phantom : Phantom
        One view.
    tone : Tone
        The machine.
    label : str
        Text of the lead marker, such as ``"R MLO"``; set outside of the breast, or left out where it does not fit.
    rng : numpy.random.Generator
        Source of exposure, contrast, noise, marker and border.

    Returns
    -------
    numpy.ndarray
        (H, W) float32 display values, 0 black to 1 white; breast within 0.02 to 0.98.
    """
    image, mask = phantom.image, phantom.mask
    mean = float(image[mask].mean()) if mask.any() else 0.3
    # Automatic exposure control brings every breast to about the same mean: what is left of it is mostly chance.
    target = 0.40 * float(np.exp(rng.normal(0, 0.16)))
    value = image * 1.3 * (target / mean) ** 0.5
    value = target + (value - target) * rng.uniform(0.75, 1.15)
    value = np.clip(value, 0.0, 1.0) ** (tone.gamma * float(np.exp(rng.normal(0, 0.08))))
    value += tone.knee * (value * value * (3 - 2 * value) - value)
    if tone.sharpen:
        value += tone.sharpen * (value - cv2.GaussianBlur(value, (0, 0), max(value.shape[0] / 200, 0.8)))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * (tone.noise * rng.uniform(0.6, 1.4))
    value = np.clip(value + noise * (0.5 + value), 0.02, 0.98)
    air = np.clip(tone.air + 0.3 * noise, 0, 1) if tone.air else np.zeros_like(noise)
    shown = np.where(mask, value, air).astype(np.float32)
    if rng.random() < tone.marker:
        _stamp(shown, mask, label, rng)
    if rng.random() < tone.line:
        thick = max(shown.shape[1] // 200, 1)
        columns = slice(0, thick) if rng.random() < 0.5 else slice(-thick, None)
        shown[:, columns] = rng.uniform(0.5, 0.9)
    return shown


def _stamp(shown: FloatImage, mask: Mask, label: str, rng: np.random.Generator) -> None:
    """Write ``label`` into a free corner of ``shown``, in place; leave it out where all corners are taken."""
    height, width = shown.shape
    scale = height / 900 * rng.uniform(0.8, 1.3)
    (wide, tall), base = cv2.getTextSize(label, cv2.FONT_HERSHEY_DUPLEX, scale, max(round(2 * scale), 1))
    rows, columns = tall + base + 6, wide + 8
    margin = max(int(height * rng.uniform(0.02, 0.06)), 1)
    for top in rng.permutation([margin, height - margin - rows]):
        for left in rng.permutation([margin, width - margin - columns]):
            box = (slice(max(top - 4, 0), top + rows + 4), slice(max(left - 4, 0), left + columns + 4))
            if top < 0 or left < 0 or mask[box].any():
                continue
            plate = np.zeros(mask[box].shape[:2], np.uint8)  # OpenCV writes text on 8 bits only
            if rng.random() < 0.3:
                cv2.rectangle(plate, (2, 2), (columns - 1, rows - 1), 255, 1)
            cv2.putText(plate, label, (8, tall + 7), cv2.FONT_HERSHEY_DUPLEX, scale, 255, max(round(2 * scale), 1))
            shown[box] = np.maximum(shown[box], plate.astype(np.float32) / 255 * float(rng.uniform(0.75, 1.0)))
            return
