"""Training images for the report: which are shown, and that they are what training makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from mammoray import cache, showcase
from mammoray.config import Config, DecodeConfig
from mammoray.recipe import AugmentConfig

Pixels = npt.NDArray[Any]


def stored(folder: Path, config: DecodeConfig, images: int = 6) -> tuple[pd.DataFrame, Pixels]:
    """Rows of a cache in ``folder``, of classes A, B, A, B..., and their pixels."""
    rng, top = np.random.default_rng(0), 2**config.depth
    dtype = np.dtype("u1" if config.depth == 8 else "<u2")
    pixels = np.zeros((images, config.height, config.width), dtype)
    pixels[:, 4:-4, : config.width // 2] = rng.integers(
        top // 4, top // 2, (images, config.height - 8, config.width // 2)
    )
    store = cache.cache_folder(str(folder), config)
    cache.make_folder(store)
    cache.write_shard(store, [{"key": f"{i}", "pixels": image.tobytes()} for i, image in enumerate(pixels)])
    index = cache.read_index(store).to_pandas()
    rows = index.assign(
        shard=cache.shard_paths(store, index["shard"]),
        image_id=[f"image{key}" for key in index["key"]],
        label=["AB"[int(key) % 2] for key in index["key"]],
    )
    return rows, pixels


def pictures(table: pd.DataFrame) -> Pixels:
    return np.stack([np.frombuffer(r.pixels, np.uint8).reshape(r.height, r.width) for r in table.itertuples()])


@pytest.mark.parametrize("depth", [8, 16])
def test_first_comes_the_image_as_decoded_and_then_its_variants(tmp_path: Path, depth: Any) -> None:
    config = Config(decode=DecodeConfig(height=40, width=32, depth=depth))
    rows, pixels = stored(tmp_path, config.decode)
    table = showcase.augmented(rows, config, images=2, variants=3)
    assert table["image_id"].tolist() == ["image0"] * 4 + ["image1"] * 4, "one of each class"
    assert table["variant"].tolist() == [0, 1, 2, 3] * 2
    shown = pictures(table)
    top = 2**depth - 1
    assert np.array_equal(shown[[0, 4]], np.rint(pixels[:2] / top * 255).astype(np.uint8))
    assert len({picture.tobytes() for picture in shown}) == 8


def test_variants_are_those_of_the_settings_and_the_seed(tmp_path: Path) -> None:
    size = DecodeConfig(height=40, width=32)
    rows, _ = stored(tmp_path, size)
    only = AugmentConfig(flip_vertical=1, rotation=0, zoom=0, shift=0, contrast=0, brightness=0)
    mirrored = Config(decode=size, augment=only)
    shown = pictures(showcase.augmented(rows, mirrored, images=1, variants=1))
    assert np.array_equal(shown[1], shown[0][::-1])
    config = Config(decode=size)
    first, again = (showcase.augmented(rows, config) for _ in range(2))
    assert first.equals(again)
    assert not first.equals(showcase.augmented(rows, Config(decode=size, seed=5)))


def test_without_augmentation_the_images_stand_alone(tmp_path: Path) -> None:
    config = Config(decode=DecodeConfig(height=40, width=32), augment=AugmentConfig(augment=False))
    table = showcase.augmented(stored(tmp_path, config.decode)[0], config)
    assert table["variant"].tolist() == [0, 0, 0, 0]


def test_tall_images_are_reduced_and_few_images_are_all_shown(tmp_path: Path) -> None:
    config = Config(decode=DecodeConfig(height=512, width=384))
    rows, _ = stored(tmp_path, config.decode, images=2)
    table = showcase.augmented(rows, config, images=9, variants=1)
    assert pictures(table).shape == (4, 256, 192)


def test_rows_are_dealt_over_the_classes_whatever_their_order() -> None:
    rows = pd.DataFrame({"image_id": list("abcdef"), "label": list("AAAABC")})
    mixed = rows.sample(frac=1, random_state=1)
    for table in (rows, mixed):
        assert sorted(table.loc[showcase.spread(table, 3), "label"]) == ["A", "B", "C"]
        assert table.loc[showcase.spread(table, 4), "image_id"].tolist()[3] == "b"
    assert len(showcase.spread(rows, 99)) == 6
