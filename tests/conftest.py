"""One synthetic data set of each layout, one Ray session and one finished run, shared by all tests that want them."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from mammoray import catalog, ingest, labels, pipeline, split, storage, synth
from mammoray.config import Config, DecodeConfig, IngestConfig, SynthConfig
from mammoray.recipe import EvaluateConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig
from mammoray.scale import Scale
from tests.ray_nodes import end_all, environment

# No batch norm in this network: what it computes does not depend on how a batch is divided.
ARCH = "test_convnext"
SMALL = Config(
    decode=DecodeConfig(height=96, width=80),
    sample=SampleConfig(batch_size=12),
    ingest=IngestConfig(shard_images=16),
    model=ModelConfig(arch=ARCH, pretrained=False, dropout=0.0),
    optim=OptimConfig(lr=1e-3),
    train=TrainConfig(epochs=2),
    evaluate=EvaluateConfig(bootstrap=50, examples=8),
)


@pytest.fixture(scope="session")
def rsna(tmp_path_factory: pytest.TempPathFactory) -> synth.SynthSummary:
    """30 patients in the RSNA layout, a fifth of them without labels."""
    outdir = tmp_path_factory.mktemp("data") / "rsna"
    return synth.write(outdir, SynthConfig(patients=30, height=192, width=160, unlabelled=0.2), seed=3)


@pytest.fixture(scope="session")
def irma(tmp_path_factory: pytest.TempPathFactory) -> synth.SynthSummary:
    """24 exams in the IRMA layout, one of class 5."""
    outdir = tmp_path_factory.mktemp("data") / "irma"
    return synth.write(outdir, SynthConfig(patients=24, layout="irma", height=192, width=160), seed=4)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket of a real S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", "sesame"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT"))
        yield f"s3://bucket/some/prefix?endpoint_override=127.0.0.1:{port}&scheme=http"
        server.stop()


@pytest.fixture(params=["path", "s3"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that several machines see."""
    if request.param == "path":
        return str(tmp_path / "shared")
    return storage.join(request.getfixturevalue("s3"), tmp_path.name)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with more logical CPUs than the machine may have, so that three workers find room."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Prepared:
    """Decoded rows with fold and target, ready for ``train.fit``."""

    rows: pd.DataFrame
    digest: str
    cache: str


@pytest.fixture(scope="session")
def prepared(rsna: synth.SynthSummary, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The labelled rows of ``rsna``, decoded."""
    data = catalog.build(rsna.csv, rsna.root)
    parts = split.make(data.rows, SMALL.split, SMALL.classes, SMALL.seed)
    cache = str(tmp_path_factory.mktemp("cache"))
    labelled = data.rows[data.rows["label"].notna()]
    decoded = ingest.prepare(labelled, data.root, cache, SMALL.decode, SMALL.ingest)
    rows = decoded.rows.merge(parts.rows[["image_id", "fold"]], on="image_id")
    rows["target"] = labels.class_index(rows["label"], "density")
    return Prepared(rows=rows, digest=parts.digest, cache=cache)


@dataclass(frozen=True)
class FinishedRun:
    """A run of the whole pipeline."""

    source: pipeline.Source
    config: Config
    said: list[str]


@pytest.fixture(scope="session")
def finished_run(rsna: synth.SynthSummary, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The main job on ``rsna`` with two workers."""
    outdir = tmp_path_factory.mktemp("runs") / "run"
    source = pipeline.Source(csv=rsna.csv, dicom_root=rsna.root, outdir=outdir)
    said: list[str] = []
    pipeline.run(source, SMALL, Scale(num_workers=2), said.append)
    return FinishedRun(source, SMALL, said)


@pytest.fixture
def own_ray() -> Iterator[dict[str, str]]:
    """The environment of commands that are to know of no other Ray than their own; what is left of them is ended."""
    folder = Path("/tmp") / f"mammoray-{os.getpid()}-own"
    yield environment(folder)
    end_all(folder)
