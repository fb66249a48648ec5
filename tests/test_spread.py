"""Decoding over several nodes, each of them real, and through what befalls nodes, files and storage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mammoray import cache, catalog, ingest, split
from mammoray.synth import SynthSummary
from tests.conftest import SMALL
from tests.ray_nodes import ROOT, end_all, environment

pytestmark = [pytest.mark.cluster, pytest.mark.long]
Facts = dict[str, dict[str, Any]]


def play(scene: str, folder: Path) -> Facts:
    """What a scene of ``node_jobs`` tells, in processes of its own."""
    # Near the root: paths of Unix sockets have a limit of 107 characters.
    ray_folder = Path("/tmp") / f"mammoray-{os.getpid()}-{scene}"
    ray_folder.mkdir()
    words = [sys.executable, "-m", "tests.node_jobs", scene, str(folder)]
    log = folder / f"{scene}.log"
    own = environment(ray_folder, WHO=str(folder / "who"))
    try:
        with log.open("w") as file:
            done = subprocess.run(words, cwd=ROOT, env=own, stdout=file, stderr=file, timeout=500, check=False)
    finally:
        end_all(ray_folder)
    assert done.returncode == 0, log.read_text()
    facts: Facts = json.loads((folder / f"{scene}.json").read_text())
    return facts


def seen(rows: pd.DataFrame) -> pd.DataFrame:
    """What a cache says and holds of each image, but for where it stands and how long it took."""
    images = cache.load_pixels(rows["shard"].tolist(), rows["position"].to_numpy(), SMALL.decode)
    told = rows.drop(columns=["shard", "position", "seconds"]).assign(pixels=[image.tobytes() for image in images])
    return told.sort_values("image_id", ignore_index=True)


class TestNodes:
    """Clusters of three nodes and two."""

    folder: Path
    facts: Facts

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _scene(cls, irma: SynthSummary, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folder = tmp_path_factory.mktemp("nodes")
        shutil.copytree(irma.table.parent, cls.folder / "data")
        cls.facts = play("nodes", cls.folder)

    @pytest.fixture(scope="class")
    @classmethod
    def alone(cls, _scene: None, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
        """The rows as one node decodes them."""
        data = catalog.build(cls.folder / "data" / "classificacao.csv", cls.folder / "data")
        store = str(tmp_path_factory.mktemp("alone"))
        return ingest.prepare(data.rows, data.root, store, SMALL.decode, SMALL.ingest).rows

    def rows(self, name: str) -> pd.DataFrame:
        assert "error" not in self.facts[name]
        return pd.read_parquet(self.folder / f"{name}.parquet")

    def files_by_node(self, name: str) -> dict[int, list[str]]:
        return {int(raylet): files for raylet, files in self.facts[name]["who"].items()}

    @pytest.mark.parametrize("name", ["three", "full", "killed", "added"])
    def test_any_nodes_and_what_befalls_them_leave_the_images_the_index_and_the_split_of_one_node(
        self, name: str, alone: pd.DataFrame
    ) -> None:
        rows = self.rows(name)
        assert self.facts[name]["failures"] == {"path": [], "exception": []}
        assert rows["image_id"].is_unique
        pd.testing.assert_frame_equal(seen(rows), seen(alone), check_dtype=False)
        digests = {split.make(each, SMALL.split, SMALL.classes, SMALL.seed).digest for each in (rows, alone)}
        assert len(digests) == 1

    def test_decoding_spreads_over_all_nodes(self) -> None:
        rows, files = self.rows("three"), self.files_by_node("three")
        assert set(files) == set(self.facts["three"]["nodes"])
        node_of = {file: node for node, of_node in files.items() for file in of_node}
        shards = Counter(rows.assign(node=rows["path"].map(node_of)).drop_duplicates("shard")["node"])
        fair = shards.total() / 3
        assert min(shards.values()) > fair / 2, shards

    def test_a_file_that_crashes_its_decoder_is_listed_and_costs_nothing_else(self) -> None:
        rows = self.rows("poison")
        assert self.facts["poison"]["failures"]["exception"] == ["SIGSEGV"]
        assert len(rows) == len(self.rows("three")) - 1
        assert not set(self.facts["poison"]["failures"]["path"]) & set(rows["path"])

    def test_a_decode_beside_full_object_stores_finishes(self) -> None:
        assert self.facts["full"]["spilled"] > 0
        assert len(self.rows("full")) == self.facts["full"]["new"]

    def test_what_a_lost_node_had_in_hand_the_others_decode(self) -> None:
        told = self.facts["killed"]
        assert told["happened"]
        (lost,) = set(told["nodes"]) - set(told["after"])
        files = self.files_by_node("killed")
        assert files[lost], "it had begun"
        assert len(self.rows("killed")) == told["new"]

    def test_a_node_that_comes_gets_work(self) -> None:
        told = self.facts["added"]
        (come,) = set(told["after"]) - set(told["nodes"])
        assert self.files_by_node("added").get(come)

    def test_workers_on_all_nodes_are_fed_evenly_and_with_every_row_once(self) -> None:
        told = self.facts["feed"]
        assert len(set(told["raylets"])) == 3
        sizes = np.array([[len(batch) for batch in worker] for worker in told["trained"]])
        assert (np.ptp(sizes, axis=0) <= 1).all(), "images of one batch"
        assert sorted(row for worker in told["trained"] for batch in worker for row in batch) == sorted(told["order"])
        judged = [len(worker) for worker in told["judged"]]
        assert max(judged) - min(judged) <= 1
        assert sorted(row for worker in told["judged"] for row in worker) == list(range(told["rows"]))


class TestOutage:
    """Files and cache on an S3 that does not answer."""

    facts: Facts

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _scene(cls, irma: SynthSummary, s3: str, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("outage")
        shutil.copytree(irma.table.parent, folder / "data")
        (folder / "s3").write_text(s3)
        cls.facts = play("outage", folder)

    def test_half_a_minute_of_it_costs_time_and_no_file(self) -> None:
        told = self.facts["refused"]
        assert told["happened"] and told["times"] > 0
        assert "error" not in told
        assert told["failures"] == {"path": [], "exception": []}
        assert told["seconds"] > 30

    @pytest.mark.parametrize("name", ["gone", "lost"])
    def test_if_it_lasts_the_decode_ends_and_says_so(self, name: str) -> None:
        told = self.facts[name]
        assert "s3://bucket/some/prefix" in told["error"]
        assert "un again" in told["error"]
        assert told["seconds"] < 240

    def test_files_that_nothing_delivers_are_no_bad_files(self) -> None:
        assert "a storage that answers" in self.facts["lost"]["error"]
