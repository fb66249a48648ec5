"""The breast is found on images that are made here: geometric ones, and phantoms as all machines would show them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from mammoray.breast import blank_region, bounding_box, breast_mask, chest_wall_at_right
from mammoray.machines import FILM, SITES, Machine, quantise
from mammoray.phantom import Phantom, anatomy, expose, render

SHAPE = (256, 208)
DIGITAL = {f"{site}-{name}": machine for site, machines in SITES.items() for name, machine in machines.items()}

Image = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def phantom(
    density: str = "B", view: str = "MLO", laterality: str = "L", seed: int = 0, implant: bool = False
) -> Phantom:
    rng = np.random.default_rng([seed, ord(density)])
    return render(anatomy(density, rng, implant=implant), laterality, view, SHAPE, rng)


def half_ellipse(height: float = 0.35, width: float = 0.6) -> Mask:
    """A breast at the left border; half axes as shares of the image's height and width."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.asarray(((y / SHAPE[0] - 0.5) / height) ** 2 + (x / SHAPE[1] / width) ** 2 < 1)


def film(seed: int = 0) -> tuple[Image, Mask]:
    """A breast on a grey, noisy background."""
    shown = phantom("C", seed=seed)
    noise = np.random.default_rng(seed).normal(0, 15, SHAPE)
    return shown.image * 3000 + 300 + noise, shown.mask


def coverage(found: Mask, true: Mask) -> float:
    return float((found & true).sum() / true.sum())


def overlap(found: Mask, true: Mask) -> float:
    return float((found & true).sum() / (found | true).sum())


def written(text: str, at: tuple[int, int]) -> Image:
    plate = np.zeros(SHAPE, np.uint8)  # OpenCV writes on 8 bits only.
    cv2.putText(plate, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 2)
    return plate * 20.0


def wavelet_low_pass(image: Image, halvings: int) -> Image:
    """The low-pass band of the 5/3 wavelet, as a JPEG 2000 decoder hands it over."""
    low_pass = np.array([-1, 2, 6, 2, -1], np.float32) / 8
    image = image.astype(np.float32)
    for _ in range(halvings):
        image = cv2.sepFilter2D(image, -1, low_pass, low_pass, borderType=cv2.BORDER_REFLECT_101)[::2, ::2]
    return np.rint(image)


@pytest.mark.parametrize("density", "ABCD")
@pytest.mark.parametrize("view", ["CC", "MLO"])
def test_the_true_breast_is_found(density: str, view: str) -> None:
    for seed in range(4):
        shown = phantom(density, view, "R", seed)
        mask = breast_mask(shown.image * 4000, False)
        assert coverage(mask, shown.mask) > 0.96
        assert overlap(mask, shown.mask) > 0.94
        assert coverage(blank_region(mask), shown.mask) > 0.97


@pytest.mark.parametrize("name", DIGITAL)
def test_the_breast_is_found_on_every_detector(name: str) -> None:
    for seed, density in enumerate("ABCD"):
        covered, met = measured(DIGITAL[name], density, seed)
        assert covered > 0.96
        assert met > 0.92


@pytest.mark.parametrize("name", FILM)
def test_the_breast_is_found_on_film(name: str) -> None:
    # Less is asked here: these tone curves draw some of the fat darker than the film around the breast.
    measures = [measured(FILM[name], density, seed) for seed in range(2) for density in "ABCD"]
    assert np.mean([covered for covered, _ in measures]) > 0.95
    assert np.mean([met for _, met in measures]) > 0.90


def measured(machine: Machine, density: str, seed: int) -> tuple[float, float]:
    """Coverage of the true breast by the region that is kept, and overlap of the mask with it."""
    rng = np.random.default_rng([seed, ord(density), 1])
    laterality, view = "LR"[seed % 2], ("CC", "MLO")[seed // 2 % 2]
    shown = render(anatomy(density, rng), laterality, view, (512, 416), rng)
    stored = np.asarray(quantise(expose(shown, machine.tone, f"{laterality} {view}", rng), machine.encoding))
    mask = breast_mask(wavelet_low_pass(stored, 1), machine.encoding.photometric == "MONOCHROME1")
    true = shown.mask[::2, ::2]
    assert chest_wall_at_right(mask) == (laterality == "R")
    return coverage(blank_region(mask), true), overlap(mask, true)


def test_the_mask_does_not_depend_on_the_polarity() -> None:
    for image in (phantom().image * 4000, film()[0]):
        stored = np.rint(image)
        np.testing.assert_array_equal(breast_mask(stored, False), breast_mask(16383 - stored, True))


def test_a_mirrored_image_has_the_mirrored_mask() -> None:
    for image in (phantom().image * 4000, film()[0]):
        mirrored = breast_mask(np.ascontiguousarray(image[:, ::-1]), False)
        assert overlap(mirrored[:, ::-1], breast_mask(image, False)) > 0.97
        assert chest_wall_at_right(mirrored)
        assert not chest_wall_at_right(mirrored[:, ::-1])


@pytest.mark.parametrize(("factor", "offset"), [(8, 0), (1, -20_000), (0.25, 100), (16, -32_768)])
def test_brightness_and_contrast_do_not_matter(factor: float, offset: float) -> None:
    for image in (phantom().image * 4000, film()[0]):
        stored = np.rint(image)
        assert overlap(breast_mask(stored * factor + offset, False), breast_mask(stored, False)) > 0.99


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float64])
def test_every_pixel_type_gives_the_same_mask(dtype: type[np.generic]) -> None:
    stored = np.rint(phantom().image * 250)
    np.testing.assert_array_equal(
        breast_mask(stored.astype(dtype), False), breast_mask(stored.astype(np.float32), False)
    )


def test_the_reduction_hardly_matters() -> None:
    rng = np.random.default_rng(4)
    large = render(anatomy("B", rng), "L", "MLO", (1024, 832), rng)
    stored = np.rint(large.image * 4000).astype(np.uint16)
    area = cv2.resize(stored, SHAPE[::-1], interpolation=cv2.INTER_AREA)
    assert overlap(breast_mask(area, False), breast_mask(wavelet_low_pass(stored, 2), False)) > 0.97


def test_the_size_of_the_thumbnail_hardly_matters() -> None:
    image, true = film()
    for shape in ((160, 130), (320, 260)):
        mask = breast_mask(cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA), False)
        again = cv2.resize(mask.astype(np.uint8), SHAPE[::-1], interpolation=cv2.INTER_NEAREST) > 0
        assert overlap(again, true) > 0.95


def test_labels_and_lines_are_no_breast() -> None:
    clean, true = film()
    image = clean.copy()
    image[8:34, 160:190] = 6000  # a plate of lead
    image = np.maximum(image, written("L MLO", (120, 245)))
    image[:, 200:202] = 3000  # a scanner line over the full height
    mask = breast_mask(image, False)
    assert overlap(mask, true) > 0.96
    assert not blank_region(mask)[8:34, 160:190].any()
    assert not blank_region(mask)[:, 200:202].any()


def test_a_label_that_touches_the_breast_is_cut_off() -> None:
    image = np.where(half_ellipse(), 1500.0, 0.0)
    image[120:136, 120:126] = 4000  # A neck from the skin to ...
    image[100:150, 126:170] = 4000  # ... a plate
    mask = breast_mask(image, False)
    assert overlap(mask, half_ellipse()) > 0.95
    assert not mask[100:150, 140:170].any()


@pytest.mark.parametrize("width", [2, 6, 25])
def test_a_bright_frame_is_no_breast(width: int) -> None:
    image, true = film()
    framed = np.pad(image, width, constant_values=6000)
    mask = breast_mask(framed, False)
    inside = mask[width:-width, width:-width]
    assert overlap(inside, true) > 0.95
    assert mask.sum() - inside.sum() < 0.03 * true.sum()


def test_a_bright_border_wider_than_labels_is_no_breast() -> None:
    image, true = film()
    bordered = np.concatenate([image, np.full((SHAPE[0], 40), 4000.0)], axis=1)
    mask = breast_mask(bordered, False)
    assert overlap(mask[:, : SHAPE[1]], true) > 0.95
    assert not mask[:, SHAPE[1] :].any()


def test_padding_that_no_header_declares_is_no_background() -> None:
    image, true = film()
    mask = breast_mask(np.pad(image, 20, constant_values=-2000), False)
    assert overlap(mask[20:-20, 20:-20], true) > 0.95
    assert mask.sum() == mask[20:-20, 20:-20].sum()


def test_film_beside_padding_is_no_breast() -> None:
    image, true = film()
    padded = np.pad(image, ((0, 0), (60, 60)), constant_values=220)
    mask = breast_mask(padded, False)
    assert overlap(mask[:, 60:-60], true) > 0.95


def test_dim_fat_is_not_cut_off() -> None:
    breast, gland = half_ellipse(), half_ellipse(0.12, 0.25)
    for fat in (0.05, 0.1, 0.3):
        image = breast * fat * 4000.0 + gland * (1 - fat) * 4000
        mask = breast_mask(image, False)
        assert coverage(mask, breast) > 0.99
        assert overlap(mask, breast) > 0.97


def test_skin_that_fades_into_the_background_lies_inside() -> None:
    breast = half_ellipse()
    depth = cv2.distanceTransform(np.pad(breast, ((0, 0), (9, 0)), mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[:, 9:]
    noise = np.random.default_rng(1).normal(0, 10, SHAPE)
    image = 200 + noise + 2500 * np.clip(depth / 14, 0, 1) ** 2
    mask = breast_mask(image, False)
    assert coverage(mask, depth > 2) > 0.99
    assert coverage(blank_region(mask), breast) > 0.995


def test_an_implant_does_not_hide_the_breast_around_it() -> None:
    for view in ("CC", "MLO"):
        shown = phantom("A", view, implant=True)
        for gamma in (1.0, 1.5):
            assert overlap(breast_mask(shown.image**gamma * 4000, False), shown.mask) > 0.95


@pytest.mark.parametrize("brightness", [4095, 65_535])
def test_a_label_far_brighter_than_tissue_does_not_hide_it(brightness: int) -> None:
    shown = phantom("C")
    image = shown.image * 2000
    image[10:30, 150:200] = brightness
    assert overlap(breast_mask(image, False), shown.mask) > 0.95


def test_a_breast_that_fills_the_image_is_kept_whole() -> None:
    rng = np.random.default_rng(2)
    tissue = cv2.GaussianBlur(rng.normal(0, 1, SHAPE), (0, 0), 10) * 6000 + 2000
    assert breast_mask(tissue, False).all()
    assert breast_mask(tissue, True).all()
    corner = tissue.copy()
    air = np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1])) < 50
    corner[air] = 0
    mask = breast_mask(corner, False)
    assert coverage(mask, ~air) > 0.99
    assert not mask[:15, :15].any()


def test_a_magnified_part_of_a_breast_is_kept_whole() -> None:
    kept = []
    for seed in range(6):
        for density in "ABCD":
            part = phantom(density, seed=seed).image[70:180, :60]
            mask = breast_mask(cv2.resize(part, SHAPE[::-1]) * 3000, False)
            kept.append(mask.mean())
    # Between fat and gland there may be as clear a step as between air and skin.
    assert np.mean(np.array(kept) > 0.9) > 0.9


def test_an_image_without_a_breast_is_kept_whole() -> None:
    dot = np.zeros(SHAPE)
    dot[100:103, 50:53] = 3000
    for image in (
        np.full(SHAPE, 7),
        dot,
        3000 - dot,
        written("NO IMAGE", (20, 120)),
        np.random.default_rng(3).normal(0, 1, SHAPE),
    ):
        assert breast_mask(image, False).all()
        assert breast_mask(image, True).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 2), (3, 300), (300, 2), (4, 4), (5, 5), (16, 9)])
def test_no_size_is_too_small(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    ramp = np.arange(shape[0] * shape[1]).reshape(shape)
    for image in (rng.integers(-32_768, 65_535, shape), ramp, np.zeros(shape), rng.integers(0, 2, shape) * 65_535):
        for inverted in (False, True):
            mask = breast_mask(image, inverted)
            assert mask.shape == shape and mask.dtype == np.bool_ and mask.any()
            top, left, bottom, right = bounding_box(mask)
            assert 0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]
            assert (blank_region(mask) >= mask).all()
            assert chest_wall_at_right(mask) in (True, False)


@pytest.mark.parametrize("density", "AD")
def test_the_mask_is_one_piece_without_holes(density: str) -> None:
    for seed in range(3):
        image = film(seed)[0] if density == "D" else phantom(density, seed=seed).image * 4000
        mask = breast_mask(image, False).astype(np.uint8)
        assert cv2.connectedComponents(mask, connectivity=8)[0] == 2
        outside = np.pad(1 - mask, 1, constant_values=1)
        assert cv2.connectedComponents(outside, connectivity=8)[0] == 2


def test_the_input_stays_as_it_is() -> None:
    image = (phantom().image * 4000).astype(np.float32)
    before = image.copy()
    breast_mask(image, False)
    breast_mask(image, True)
    np.testing.assert_array_equal(image, before)


def test_the_box_is_the_smallest_around_the_mask() -> None:
    mask = np.zeros((20, 30), np.bool_)
    mask[3:8, 11] = mask[5, 4:21] = True
    assert bounding_box(mask) == (3, 4, 8, 21)


def test_the_blank_region_is_wider_by_its_margin() -> None:
    mask = np.zeros((200, 100), np.bool_)
    mask[50:60, 40:50] = True
    assert bounding_box(blank_region(mask)) == (45, 35, 65, 55)
