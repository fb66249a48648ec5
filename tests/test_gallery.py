"""The images of a report: those of training in rows of variants, and the words for how they vary."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pandas as pd
import pytest

from mammoray.config import Config
from mammoray.gallery import amounts, augmented
from mammoray.plain import to_toml
from mammoray.recipe import AugmentConfig
from mammoray.runfolder import read_run
from tests.run_factory import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_training_images_stand_in_rows_of_what_was_decoded_and_its_variants(run: Path) -> None:
    images = pd.read_parquet(run / "augmented.parquet")
    images.sample(frac=1, random_state=0).to_parquet(run / "augmented.parquet")
    html = augmented(read_run(run))
    alts = re.findall(r'alt="([^"]*)"', html)
    assert alts == [
        f"Image {name}, {title}"
        for name in ("1459540000", "1459540001")
        for title in ("as decoded", "variant 1", "variant 2", "variant 3")
    ]
    assert 'style="--n:4"' in html
    assert len(set(re.findall(r'src="([^"]*)"', html))) == 8, "each picture is its own"
    first = base64.b64decode(re.findall(r"base64,([^\"]*)", html)[0])
    assert first[16:24] == (72).to_bytes(4, "big") + (96).to_bytes(4, "big")


def test_a_run_that_kept_none_says_so_and_still_tells_the_amounts(run: Path) -> None:
    (run / "augmented.parquet").unlink()
    html = augmented(read_run(run))
    assert "This run kept no such images." in html and "turned by up to 10°" in html
    (run / "config.toml").write_text(to_toml(Config(augment=AugmentConfig(augment=False))))
    assert "Training images were not varied (--no-augment)." in augmented(read_run(run))


def test_every_amount_that_is_not_zero_is_told_in_the_order_of_the_pipeline() -> None:
    every = AugmentConfig(
        flip_horizontal=0.25, flip_vertical=0.5, rotation=12, zoom=0.11, shift=0.06, contrast=0.13, brightness=0.07,
        gamma=0.2, noise=0.02, cutout=0.3, mixup=0.4,
    )  # fmt: skip
    said = amounts(every).replace("\u00a0", " ")
    wanted = ["0.25)", "0.5)", "12°", "11 %", "6 %", "13 %", "7 %", "0.2,", "2 %", "30 %", "mixed in pairs"]
    places = [said.index(text) for text in wanted]
    assert places == sorted(places)


def test_nothing_is_told_of_what_is_zero() -> None:
    zero = dict.fromkeys(("flip_vertical", "rotation", "zoom", "shift", "contrast", "brightness"), 0.0)

    def told(**given: float) -> str:
        return amounts(AugmentConfig(**{**zero, **given}))  # type: ignore[arg-type]

    assert told() == "Training images were not varied."
    assert told(rotation=5).endswith("in this order: turned by up to 5°.")
    assert told(mixup=0.2) == "Images are mixed in pairs, and their labels alike; the mixtures are not shown."
