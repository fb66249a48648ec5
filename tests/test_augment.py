"""Augmentation: what each step does to a picture, that nothing else happens, and that workers do not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

import numpy as np
import pytest
import torch

from mammoray import augment
from mammoray.augment import Drawn
from mammoray.errors import ConfigError
from mammoray.recipe import AugmentConfig

OFF = AugmentConfig(rotation=0, zoom=0, shift=0, contrast=0, brightness=0, flip_vertical=0)
ALL = AugmentConfig(flip_horizontal=0.5, gamma=0.3, noise=0.05, cutout=0.3, mixup=0.4)
CPU = torch.device("cpu")


def images(batch: int = 4, height: int = 64, width: int = 48) -> torch.Tensor:
    """Random breasts at the left of black frames."""
    x = torch.zeros(batch, 1, height, width)
    inside = x[:, :, height // 4 : -height // 4, : width // 2]
    inside.copy_(torch.rand(inside.shape, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25)
    return x


def drawn(batch: int, **given: float) -> Drawn:
    """Neutral parameters, but for those given, which are the same for all images."""
    neutral = augment.draw(batch, OFF, seed=0, epoch=1, step=0)
    values = {field.name: getattr(neutral, field.name) for field in fields(Drawn)}
    return Drawn(**{**values, **{name: np.full_like(values[name], value) for name, value in given.items()}})


# Drawing ---------------------------------------------------------------------------------------------------------


def equal(a: Drawn, b: Drawn, but: str = "") -> bool:
    names = [field.name for field in fields(Drawn) if field.name not in but.split()]
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_parameters_follow_from_seed_epoch_and_step() -> None:
    first = augment.draw(50, ALL, 1, 2, 3)
    assert equal(first, augment.draw(50, ALL, 1, 2, 3))
    for other in ((9, 2, 3), (1, 9, 3), (1, 2, 9)):
        assert not equal(first, augment.draw(50, ALL, *other))


@pytest.mark.parametrize(
    ("setting", "value", "changes"),
    [
        ("flip_horizontal", 0.9, "mirror_x"),
        ("flip_vertical", 0.9, "mirror_y"),
        ("rotation", 45.0, "angle"),
        ("zoom", 0.4, "scale"),
        ("shift", 0.4, "shift_y shift_x"),
        ("contrast", 0.4, "contrast"),
        ("brightness", 0.4, "brightness"),
        ("gamma", 0.4, "gamma"),
        ("noise", 0.4, "noise"),
        ("cutout", 0.4, "cutout"),
        ("mixup", 1.4, "share"),
    ],
)
def test_another_amount_changes_its_own_parameters_and_no_other(setting: str, value: float, changes: str) -> None:
    values = {field.name: getattr(ALL, field.name) for field in fields(ALL)}
    one, other = augment.draw(40, ALL, 0, 1, 0), augment.draw(40, AugmentConfig(**{**values, setting: value}), 0, 1, 0)
    assert equal(one, other, but=changes)
    for name in changes.split():
        assert not np.array_equal(getattr(one, name), getattr(other, name))


def test_parameters_fill_their_ranges_and_do_not_leave_them() -> None:
    p = augment.draw(4000, ALL, 0, 1, 0)
    ranges = {
        "angle": (-np.deg2rad(10), np.deg2rad(10)),
        "scale": (0.9, 1.1),
        "shift_y": (-0.05, 0.05),
        "shift_x": (-0.05, 0.05),
        "contrast": (0.85, 1.15),
        "brightness": (-0.05, 0.05),
        "gamma": (np.exp(-0.3), np.exp(0.3)),
        "noise": (0, 0.05),
        "cutout_y": (0, 1),
        "cutout_x": (0, 1),
        "share": (0.5, 1),
    }
    for name, (low, high) in ranges.items():
        values, room = getattr(p, name), 0.01 * (high - low)
        assert low - 1e-6 <= values.min() < low + room and high - room < values.max() <= high + 1e-6, name
    assert abs(p.mirror_x.mean() - 0.5) < 0.04 and abs(p.mirror_y.mean() - 0.5) < 0.04
    assert len(np.unique(p.noise_seed)) == 4000


def test_an_image_has_the_same_parameters_in_a_batch_of_another_size() -> None:
    assert equal(augment.draw(32, ALL, 0, 1, 0).part(0, 8), augment.draw(8, ALL, 0, 1, 0))


@pytest.mark.parametrize("alpha", [0.001, 0.2, 1.0, 50.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    share = augment.draw(20_000, AugmentConfig(mixup=alpha), 0, 1, 0).share
    rng = np.random.default_rng(0).beta(alpha, alpha, 20_000)
    for q in (0.1, 0.5, 0.9):
        assert np.quantile(share, q) == pytest.approx(np.quantile(np.maximum(rng, 1 - rng), q), abs=0.01)


# Nothing where nothing is asked for ------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [OFF, AugmentConfig(augment=False, flip_horizontal=1, gamma=0.5, mixup=1)])
def test_amounts_of_zero_change_no_bit_and_copy_nothing(config: AugmentConfig) -> None:
    x, targets = images(), torch.eye(4)
    p = augment.draw(4, config, 0, 1, 0)
    assert augment.apply(x, p) is x
    assert augment.mix(x, targets, p) == (x, targets)


def test_images_given_are_not_changed() -> None:
    x = images(8)
    before, p = x.clone(), augment.draw(8, ALL, 0, 1, 0)
    for one in (p, drawn(8, contrast=1.1), drawn(8, gamma=0.8), drawn(8, noise=0.1), drawn(8, cutout=0.3)):
        augment.mix(augment.apply(x, one), torch.eye(8), one)
    assert torch.equal(x, before)


# Geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dim"), [("mirror_x", 3), ("mirror_y", 2)])
def test_mirrors_are_exact_alone_and_right_with_a_resampling(name: str, dim: int) -> None:
    x = images()
    assert torch.equal(augment.apply(x, drawn(4, **{name: True})), x.flip(dim))
    tiny = augment.apply(x, drawn(4, **{name: True}, shift_x=1e-6))
    assert torch.allclose(tiny, x.flip(dim), atol=1e-3)


def test_only_the_images_drawn_are_mirrored() -> None:
    x, p = images(), drawn(4)
    p.mirror_y[1] = True
    y = augment.apply(x, p)
    assert torch.equal(y[1], x[1].flip(1)) and torch.equal(y[[0, 2, 3]], x[[0, 2, 3]])


def test_a_rotation_keeps_shape_and_area() -> None:
    x = torch.zeros(1, 1, 128, 96)
    x[:, :, 54:74, 38:58] = 1.0
    y = augment.apply(x, drawn(1, angle=np.pi / 4))
    assert float(y.sum()) == pytest.approx(400, rel=0.03), "a shear by the frame's aspect would change it"
    rows, columns = (y[0, 0] > 0.5).any(1).sum(), (y[0, 0] > 0.5).any(0).sum()
    assert abs(int(rows) - int(columns)) <= 1, "a square on its corner is as high as it is wide"


def middle(y: torch.Tensor) -> tuple[float, float]:
    """Centre of mass, row and column."""
    h, w = y.shape
    total = float(y.sum())
    return float((y.sum(1) * torch.arange(h)).sum()) / total, float((y.sum(0) * torch.arange(w)).sum()) / total


@pytest.mark.parametrize(
    ("given", "row", "column"),
    [
        ({"shift_y": 0.1}, 31.5 + 6.4, 39.5),
        ({"shift_x": 0.125}, 31.5, 39.5 + 6),
        # The spot lies 16 columns right of the middle of a frame of 64 x 48.
        ({"angle": np.pi / 2}, 31.5 - 16, 23.5),
        ({"scale": 1.25}, 31.5, 23.5 + 16 * 1.25),
        ({"mirror_x": True, "shift_x": 0.125}, 31.5, 23.5 - 16 + 6),
        ({"mirror_x": True, "angle": np.pi / 2}, 31.5 + 16, 23.5),
    ],
)
def test_a_spot_goes_where_mirror_then_rotation_then_shift_take_it(
    given: dict[str, float], row: float, column: float
) -> None:
    x = torch.zeros(1, 1, 64, 48)
    x[:, :, 30:34, 38:42] = 0.8
    assert middle(augment.apply(x, drawn(1, **given))[0, 0]) == pytest.approx((row, column), abs=0.02)


def test_a_larger_scale_makes_the_breast_larger() -> None:
    x = images().sign()
    areas = [float(augment.apply(x, drawn(4, scale=scale)).sum()) for scale in (0.9, 1.0, 1.1)]
    assert areas == sorted(areas) and areas[0] < areas[1] < areas[2]


# Tone ------------------------------------------------------------------------------------------------------------


def within(x: torch.Tensor) -> tuple[float, float]:
    """Mean and deviation of the breast's pixels."""
    return float(x[x > 0].mean()), float(x[x > 0].std())


def test_background_stays_black_and_values_stay_in_range() -> None:
    for seed in range(5):
        y = augment.apply(images(), augment.draw(4, ALL, seed, 1, 0))
        assert float(y.min()) >= 0.0 and float(y.max()) <= 1.0
        # Half of a side and half of the other, moved a little, and less the square.
        assert float((y == 0).float().mean()) > 0.6
    for given in ({"contrast": 1.2}, {"brightness": 0.2}, {"gamma": 0.7}, {"noise": 0.3}):
        assert torch.all(augment.apply(images(), drawn(4, **given))[images() == 0] == 0)


def test_contrast_spreads_the_breast_around_its_mean() -> None:
    mean, deviation = within(images())
    for factor in (0.8, 1.2):
        now = within(augment.apply(images(), drawn(4, contrast=factor)))
        assert now == pytest.approx((mean, deviation * factor), rel=1e-3)


def test_brightness_shifts_the_breast_alone() -> None:
    mean, deviation = within(images())
    assert within(augment.apply(images(), drawn(4, brightness=0.1))) == pytest.approx((mean + 0.1, deviation), rel=1e-3)


@pytest.mark.parametrize("exponent", [0.7, 1.4])
def test_gamma_is_the_power_and_keeps_black_and_white(exponent: float) -> None:
    x = torch.linspace(0, 1, 256)[None, None, None].repeat(2, 1, 3, 1)
    y = augment.apply(x, drawn(2, gamma=exponent))
    assert torch.allclose(y, x**exponent, atol=1e-4)
    assert torch.all(y.diff(dim=3) > 0) and float(y.max()) == 1.0 and torch.all(y[..., 0] == 0)


def test_an_image_without_a_breast_stays_black() -> None:
    y = augment.apply(torch.zeros(4, 1, 64, 48), augment.draw(4, ALL, 0, 1, 0))
    assert torch.equal(y, torch.zeros_like(y))


# Noise -----------------------------------------------------------------------------------------------------------


def test_noise_is_normal_and_without_memory() -> None:
    z = augment.gaussian(np.array([1, 2, 3], np.int32), 200_001, CPU).double()
    assert z.shape == (3, 200_001)
    assert z.mean(1).abs().max() < 0.01 and (z.std(1) - 1).abs().max() < 0.01
    for moment, expected in ((3, 0.0), (4, 3.0)):
        assert float((z**moment).mean()) == pytest.approx(expected, abs=0.05)
    for lag in (1, 2, 384, 100_001):
        assert abs(float((z[:, lag:] * z[:, :-lag]).mean())) < 0.01
    assert (torch.corrcoef(z) - torch.eye(3)).abs().max() < 0.01


def test_noise_is_the_hash_of_counter_and_seed() -> None:
    """Against the same in numpy's unsigned integers: torch's signed ones must wrap alike."""
    seed, count = 123456789, 1000
    h = np.arange(count // 2, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(seed)
    for right, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> np.uint32(right))) * np.uint32(factor)
    chosen = np.concatenate([h >> np.uint32(20), (h >> np.uint32(8)) & np.uint32(4095)]).astype(np.int64)
    order = augment.gaussian(np.array([seed], np.int32), count, CPU)[0]
    ranks = torch.searchsorted(torch.unique(augment.gaussian(np.array([1], np.int32), 200_000, CPU)), order)
    assert np.array_equal(ranks.numpy(), chosen)


def test_noise_has_the_deviation_drawn_and_is_another_for_each_image() -> None:
    x = torch.full((2, 1, 200, 200), 0.5)
    y = augment.apply(x, drawn(2, noise=0.1)) - 0.5
    assert y.std((1, 2, 3)).tolist() == pytest.approx([0.1, 0.1], rel=0.02)
    assert abs(float((y[0] * y[1]).mean())) < 0.001


# Cutout ----------------------------------------------------------------------------------------------------------


def test_cutout_is_a_square_of_the_size_asked_for_anywhere_in_the_frame() -> None:
    x = torch.ones(500, 1, 40, 30)
    p = augment.draw(500, AugmentConfig(cutout=0.2), 0, 1, 0)
    values = {field.name: getattr(p, field.name) for field in fields(Drawn)}
    neutral = drawn(500)
    square = {name: values[name] for name in ("cutout", "cutout_y", "cutout_x")}
    y = augment.apply(x, Drawn(**{**{f.name: getattr(neutral, f.name) for f in fields(Drawn)}, **square}))
    black = y[:, 0] == 0
    assert torch.all(black.sum((1, 2)) == 36)
    rows, columns = black.any(2), black.any(1)
    assert torch.all(rows.sum(1) == 6) and torch.all(columns.sum(1) == 6)
    first = {(int(r.int().argmax()), int(c.int().argmax())) for r, c in zip(rows, columns, strict=True)}
    assert {r for r, _ in first} == set(range(35)) and {c for _, c in first} == set(range(25))


# Mixing ----------------------------------------------------------------------------------------------------------


def test_mixing_shares_neighbours_and_their_targets_alike() -> None:
    x, targets, p = images(), torch.eye(4), augment.draw(4, ALL, 0, 1, 0)
    y, mixed = augment.mix(x, targets, p)
    for i, partner in enumerate((1, 0, 3, 2)):
        share = float(p.share[i])
        assert torch.allclose(y[i], share * x[i] + (1 - share) * x[partner], atol=1e-6)
        assert mixed[i, i] == pytest.approx(share) and mixed[i, partner] == pytest.approx(1 - share, abs=1e-6)
    assert torch.allclose(mixed.sum(1), torch.ones(4))
    assert len(set(p.share.tolist())) == 4, "each image has its own share"


def test_mixing_refuses_an_odd_part_of_a_batch() -> None:
    p = augment.draw(6, ALL, 0, 1, 0)
    with pytest.raises(ConfigError, match="an even number of images in each worker's part of a batch"):
        augment.mix(images(3), torch.eye(3), p.part(0, 3))


# Workers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("height", "width"), [(64, 48), (131, 97)])
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_workers_make_the_very_pictures_and_targets_that_one_would(
    threads: Callable[[int], None], height: int, width: int, parts: int
) -> None:
    x, targets = images(12, height, width), torch.eye(12)
    p, share = augment.draw(12, ALL, 0, 1, 0), 12 // parts
    whole = augment.mix(augment.apply(x, p), targets, p)
    threads(5)
    for start in range(0, 12, share):
        rows, mine = slice(start, start + share), p.part(start, start + share)
        part = augment.mix(augment.apply(x[rows], mine), targets[rows], mine)
        assert torch.equal(part[0], whole[0][rows]) and torch.equal(part[1], whole[1][rows])


def test_no_bit_depends_on_where_a_thread_ends(threads: Callable[[int], None]) -> None:
    """With pow for gamma, this fails: in vector registers it rounds otherwise than at the end of a thread's share."""
    x = torch.rand(7, 1, 333, 217, generator=torch.Generator().manual_seed(0))
    p = augment.draw(7, ALL, 0, 1, 0)
    results = []
    for n in (1, 3, 5):
        threads(n)
        results.append(augment.apply(x, p))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    "change", [lambda x: x.to("meta"), lambda x: x.double()], ids=["another device", "another precision"]
)
def test_results_are_of_the_kind_of_what_came(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x, p = change(images()), augment.draw(4, ALL, 0, 1, 0)
    y, targets = augment.mix(augment.apply(x, p), change(torch.eye(4)), p)
    assert (y.dtype, y.device, y.shape, targets.device) == (x.dtype, x.device, x.shape, x.device)
