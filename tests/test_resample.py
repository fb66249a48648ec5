from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from mammoray.resample import resample
from mammoray.wavelet import low_pass

LINEAR = np.linspace(0, 1, 4096, dtype=np.float32)
H, W = 203, 158


def blob(y: float, x: float, sigma: float = 9) -> npt.NDArray[Any]:
    yy, xx = np.mgrid[0:H, 0:W]
    return np.asarray(np.rint(4000 * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 2 / sigma**2)), dtype=np.uint16)


def noise() -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(0, 4096, (H, W)).astype(np.uint16)


def test_its_own_size_leaves_an_image_as_it_is() -> None:
    image = noise()
    assert np.allclose(resample(image, 0, LINEAR, 0, (0, 0, H, W), (H, W)), LINEAR[image], atol=1e-6)
    assert np.allclose(
        resample(image, 0, LINEAR, 0, (30, 41, 101, 99), (71, 58)), LINEAR[image][30:101, 41:99], atol=1e-6
    )


@pytest.mark.parametrize("size", [(101, 79), (150, 90), (29, 158), (203, 40), (7, 5)])
def test_without_a_reduction_it_is_the_area_resize(size: tuple[int, int]) -> None:
    image = noise()
    expected = cv2.resize(LINEAR[image], size[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(resample(image, 0, LINEAR, 0, (0, 0, H, W), size) - expected).max() < 1e-5


def test_enlarging_interpolates_linearly() -> None:
    image = noise()
    expected = cv2.resize(LINEAR[image], (2 * W, 3 * H), interpolation=cv2.INTER_LINEAR)
    assert np.abs(resample(image, 0, LINEAR, 0, (0, 0, H, W), (3 * H, 2 * W)) - expected).max() < 1e-5


def centroid(image: npt.NDArray[Any]) -> tuple[float, float]:
    yy, xx = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    return float((yy * image).sum() / image.sum()), float((xx * image).sum() / image.sum())


@pytest.mark.parametrize("r", [1, 2, 3])
@pytest.mark.parametrize("at", [(60.0, 50.0), (103.25, 77.7), (140.9, 110.1)])
def test_a_reduced_level_stays_where_the_full_image_is(r: int, at: tuple[float, float]) -> None:
    """Without its phase a level lies up to half of its pixel off: 0.44 at r = 3."""
    level = blob(*at)
    for _ in range(r):
        level = np.clip(low_pass(level), 0, 4095)
    size = (H // 2**r, W // 2**r)
    y, x = centroid(resample(level, r, LINEAR, 0, (0, 0, H, W), size))
    assert (y + 0.5) * H / size[0] - 0.5 == pytest.approx(at[0], abs=0.06)
    assert (x + 0.5) * W / size[1] - 0.5 == pytest.approx(at[1], abs=0.06)


@pytest.mark.parametrize("r", [1, 2])
def test_a_reduced_level_gives_nearly_the_area_mean_of_the_full_image(r: int) -> None:
    image = np.rint(cv2.GaussianBlur(noise().astype(np.float64), (0, 0), 2.0**r)).astype(np.uint16)
    level = image
    for _ in range(r):
        level = np.clip(low_pass(level), 0, 4095)
    size = (round(H / 2**r / 1.3), round(W / 2**r / 1.3))
    box = (11, 7, 190, 151)
    expected = resample(image, 0, LINEAR, 0, box, size)
    assert np.abs(resample(level, r, LINEAR, 0, box, size) - expected).mean() < 0.002


def test_a_flat_image_stays_flat_up_to_its_borders() -> None:
    flat = np.full((26, 20), 1000, np.int32)
    out = resample(flat, 3, LINEAR, 0, (0, 0, 203, 158), (25, 19))
    assert np.allclose(out, LINEAR[1000], atol=1e-6)
