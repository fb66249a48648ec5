import numpy as np
import pytest
import torch

from mammoray import augment


def image(batch: int = 4) -> torch.Tensor:
    x = torch.zeros(batch, 1, 64, 48)
    x[:, :, 16:48, :24] = torch.rand(batch, 1, 32, 24) * 0.5 + 0.25
    return x


IDENTITY = np.array([[1, 0, 1, 0, 0, 1, 0]], dtype=np.float32)


def test_neutral_parameters_change_nothing() -> None:
    x = image()
    assert torch.allclose(augment.apply(x, IDENTITY.repeat(4, axis=0)), x, atol=1e-5)


def test_a_mirror_sign_turns_the_image_top_to_bottom() -> None:
    x = image()
    mirrored = IDENTITY.repeat(4, axis=0)
    mirrored[:, 0] = -1
    assert torch.allclose(augment.apply(x, mirrored), x.flip(2), atol=1e-5)


def test_a_rotation_keeps_shape_and_area() -> None:
    x = torch.zeros(1, 1, 128, 96)
    x[:, :, 54:74, 38:58] = 1.0
    turned = IDENTITY.copy()
    turned[:, 1] = np.pi / 4
    y = augment.apply(x, turned)
    assert float(y.sum()) == pytest.approx(400, rel=0.03), "a shear by the frame's aspect would change it"
    rows, columns = (y[0, 0] > 0.5).any(1).sum(), (y[0, 0] > 0.5).any(0).sum()
    assert abs(int(rows) - int(columns)) <= 1, "a square on its corner is as high as it is wide"


def test_background_stays_black_and_values_stay_in_range() -> None:
    y = augment.apply(image(), augment.draw(4, 0, 1, 0))
    assert float(y.min()) >= 0.0
    assert float(y.max()) <= 1.0
    assert float((y == 0).float().mean()) > 0.3


def test_parameters_follow_from_seed_epoch_and_step_and_are_in_their_ranges() -> None:
    drawn = augment.draw(500, 1, 2, 3)
    assert np.array_equal(drawn, augment.draw(500, 1, 2, 3))
    assert not np.array_equal(drawn, augment.draw(500, 1, 2, 4))
    assert set(drawn[:, 0]) == {-1.0, 1.0}
    assert np.abs(drawn[:, 1]).max() <= np.deg2rad(10.0) + 1e-6
    assert drawn[:, [2, 5]].min() > 0.8
