"""Settings that change between epochs."""

import pytest

from mammoray import changes
from mammoray.config import Config
from mammoray.errors import ConfigError
from mammoray.plain import replace


def config(*texts: str) -> Config:
    base = Config()
    return replace(base, train=replace(base.train, changes=texts))


def test_a_change_holds_from_its_epoch_on_and_a_later_one_goes_before_it() -> None:
    own = config("3: optim.lr = 0.01", "5: optim.lr = 0.02", "4: augment.rotation = 3.0")
    assert [changes.at(own, epoch).optim.lr for epoch in range(2, 7)] == [3e-4, 0.01, 0.01, 0.02, 0.02]
    assert [changes.at(own, epoch).augment.rotation for epoch in (3, 4)] == [10.0, 3.0]
    assert changes.at(changes.at(own, 4), 6) == changes.at(own, 6)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 2.4e-17, 123456789.123])
def test_the_text_of_a_change_is_read_back_exactly(value: float) -> None:
    change = changes.Change(7, "loss.focal_gamma", value)
    assert changes.parse(str(change)) == change


@pytest.mark.parametrize("name", changes.CHANGEABLE)
def test_every_setting_that_can_change_exists_and_is_a_number(name: str) -> None:
    section, last = name.split(".")
    assert isinstance(getattr(getattr(Config(), section), last), float)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("optim.lr = 0.1", "optim.lr = 0.1"),
        ("3: optim.lr = fast", "fast"),
        ("3: model.arch = 1", "model.arch"),
        ("1: optim.lr = 0.1", "found 1"),
        ("21: optim.lr = 0.1", "found 21"),
        ("3: optim.lr = -1", "-1"),
        ("3: optim.weight_decay = 0", "found 0"),
    ],
)
def test_what_cannot_change_is_an_error(text: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        changes.check(config(text))
