from __future__ import annotations

import cv2
import numpy as np
import pytest

from mammoray.phantom import PERCENT, VIEWS, Tone, anatomy, draw, expose, render

SHAPE = (160, 128)


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("laterality", ["L", "R"])
def test_image_is_attenuation_inside_the_mask_and_zero_outside(laterality: str, view: str) -> None:
    phantom = draw("B", laterality, view, SHAPE, rng(1))
    assert phantom.image.shape == phantom.mask.shape == phantom.gland.shape == SHAPE
    assert phantom.image.dtype == np.float32 and phantom.mask.dtype == bool
    assert (phantom.image[phantom.mask] > 0).all() and phantom.image.max() <= 1
    assert not phantom.image[~phantom.mask].any()
    assert not (phantom.gland & ~phantom.mask).any()
    assert 0.08 < phantom.mask.mean() < 0.9


@pytest.mark.parametrize("shape", [(64, 64), (64, 200), (333, 64), (640, 512)])
@pytest.mark.parametrize("view", ["CC", "MLO"])
def test_every_shape_can_be_drawn(shape: tuple[int, int], view: str) -> None:
    phantom = draw("C", "L", view, shape, rng(2))
    assert phantom.image.shape == shape and phantom.mask.any() and np.isfinite(phantom.image).all()
    assert expose(phantom, Tone(), "L CC", rng(3)).shape == shape


@pytest.mark.parametrize("laterality", ["L", "R"])
@pytest.mark.parametrize("seed", range(5))
def test_breast_enters_from_the_side_of_its_laterality(laterality: str, seed: int) -> None:
    mask = draw("B", laterality, ["CC", "MLO"][seed % 2], SHAPE, rng(seed)).mask
    left, right = mask[:, 0].mean(), mask[:, -1].mean()
    assert (left > 0.3 and right == 0) if laterality == "L" else (right > 0.3 and left == 0)


def test_right_is_the_mirror_image_of_left() -> None:
    left, right = (draw("C", side, "MLO", SHAPE, rng(4)) for side in "LR")
    np.testing.assert_array_equal(left.image, right.image[:, ::-1])


@pytest.mark.parametrize("seed", range(3))
def test_breast_is_one_region_that_the_image_border_does_not_cut_in_two(seed: int) -> None:
    for view in ("CC", "MLO"):
        mask = draw("A", "L", view, SHAPE, rng(seed, 7)).mask
        assert cv2.connectedComponents(mask.astype(np.uint8))[0] == 2


def test_only_views_from_the_side_show_the_pectoral_muscle_in_the_upper_corner() -> None:
    cc, mlo = ([draw("A", "L", view, SHAPE, rng(s)).image[:8, :8].mean() for s in range(8)] for view in ("CC", "MLO"))
    assert max(cc) < 0.1
    assert min(mlo) > 0.25


def test_same_generator_state_gives_the_same_image_and_another_gives_another() -> None:
    first, again, other = (draw("D", "R", "CC", SHAPE, rng(s)).image for s in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_percentage_lies_within_the_range_of_its_class() -> None:
    for density, (low, high) in PERCENT.items():
        assert all(low <= anatomy(density, rng(s)).percent <= high for s in range(50))


def test_area_fraction_increases_with_density() -> None:
    mean = [np.mean([draw(d, "L", "CC", SHAPE, rng(s)).fraction for s in range(12)]) for d in "ABCD"]
    assert mean[0] < 0.25 < mean[1] < 0.5 < mean[2] < 0.75 < mean[3]


def test_views_of_one_woman_share_her_percentage() -> None:
    for s in range(6):
        woman = anatomy("BC"[s % 2], rng(s))
        views = [render(woman, "LR"[k % 2], view, SHAPE, rng(s, k)) for k, view in enumerate(VIEWS)]
        assert max(abs(v.fraction - woman.percent) for v in views) < 0.1


def test_views_of_one_woman_are_not_copies() -> None:
    woman = anatomy("C", rng(1))
    first, second = (render(woman, "L", "CC", SHAPE, rng(s)) for s in (1, 2))
    assert (first.gland != second.gland).mean() > 0.05


def test_implant_is_bright_and_not_counted_as_fibroglandular() -> None:
    for s in range(4):
        phantom = render(anatomy("A", rng(s), implant=True), "L", "CC", SHAPE, rng(s))
        rows = np.flatnonzero(phantom.mask[:, 0])
        assert phantom.image[int(rows.mean()), 2] > 0.6
        assert phantom.fraction < 0.35


def test_exposure_keeps_the_breast_apart_from_a_masked_background() -> None:
    phantom = draw("B", "L", "CC", SHAPE, rng(8))
    shown = expose(phantom, Tone(marker=0), "L CC", rng(9))
    assert shown.dtype == np.float32
    assert not shown[~phantom.mask].any()
    assert shown[phantom.mask].min() >= 0.0199 and shown[phantom.mask].max() <= 0.9801


def test_lead_marker_never_touches_the_breast() -> None:
    met = 0
    for s in range(12):
        phantom = draw("C", "LR"[s % 2], ["CC", "MLO"][s // 6], (320, 256), rng(s))
        plain, marked = (expose(phantom, Tone(marker=p), "R MLO", rng(s)) for p in (0.0, 1.0))
        np.testing.assert_array_equal(plain[phantom.mask], marked[phantom.mask])
        met += bool((plain != marked).any())
    assert met >= 8


def test_border_line_has_full_height() -> None:
    phantom = draw("C", "L", "CC", SHAPE, rng(1))
    shown = expose(phantom, Tone(line=1, marker=0), "L CC", rng(2))
    assert min(shown[:, 0].min(), shown[:, -1].min()) >= 0.5 or max(shown[:, 0].min(), shown[:, -1].min()) >= 0.5


def test_mean_grey_of_the_breast_does_not_order_the_classes() -> None:
    grey: dict[str, list[float]] = {d: [] for d in "ABCD"}
    for d, values in grey.items():
        for s in range(15):
            phantom = draw(d, "L", "CC", SHAPE, rng(s, ord(d)))
            values.append(float(expose(phantom, Tone(), "L CC", rng(s, ord(d), 1)).mean()))
    assert max(grey["A"]) > min(grey["D"]) and max(grey["B"]) > np.median(grey["C"])


@pytest.mark.parametrize(("laterality", "view"), [("B", "CC"), ("L", "XCCL")])
def test_unknown_laterality_or_view_is_refused(laterality: str, view: str) -> None:
    with pytest.raises(ValueError, match=f"{laterality} {view}"):
        draw("A", laterality, view, SHAPE, rng(0))
