"""A search at full scale, and what its trials cost: ``python benchmarks/tune.py [TRIALS]``.

On synthetic mammograms of 100 patients at 160 x 128: 12 trials over learning rate, sampler and two small networks with
ASHA, whose driver is killed in the middle and goes on: how many end early, the best against the default, time to the
first batch of each trial. Then processor time, of all processes together: a plain second training, whose images are in
the cache; a search of one trial; a search of several without early ending, of the same settings. Ratios are over the
number of trials.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil

from mammoray import plain, synth
from mammoray.config import Config, DecodeConfig, SynthConfig
from mammoray.recipe import ModelConfig, OptimConfig, TrainConfig

BASE = Config(
    decode=DecodeConfig(height=160, width=128),
    model=ModelConfig(arch="test_resnet", pretrained=False),
    optim=OptimConfig(lr=3e-4),
    train=TrainConfig(epochs=9),
)
SPACE = """
[optim]
lr = {low = 1e-4, high = 1e-2, log = true}

[sample]
sampler = ["natural", "balanced"]
alpha = {low = 0.25, high = 1.0, when = {sampler = "balanced"}}

[model]
arch = ["test_resnet", "test_convnext"]
"""
SAME = "[optim]\nlr = [3e-4]\n"  # Every trial the same, so that times can be compared.


class Command:
    """A command of mammoray, with the processor seconds of all its processes as they were last seen."""

    def __init__(self, *words: object) -> None:
        self.lines: list[tuple[float, str]] = []
        self.seconds: dict[tuple[int, float], float] = {}
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mammoray.cli", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.readers = [threading.Thread(target=work, daemon=True) for work in (self._read, self._watch)]
        for reader in self.readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append((time.perf_counter() - self.began, line))

    def _watch(self) -> None:
        while self.process.poll() is None:
            self._look()
            time.sleep(0.1)

    def _look(self) -> None:
        try:
            own = psutil.Process(self.process.pid)
            every = [own, *own.children(recursive=True)]
        except psutil.Error:
            return
        for process in every:
            try:
                used, began = process.cpu_times(), process.create_time()
            except psutil.Error:
                continue
            self.seconds[process.pid, began] = used.user + used.system

    def wait(self) -> Command:
        """To its end."""
        self.process.wait()
        for reader in self.readers:
            reader.join()
        assert self.process.returncode == 0, "".join(line for _, line in self.lines)
        return self

    def cpu(self) -> float:
        """Processor seconds."""
        return sum(self.seconds.values())

    def kill(self, ready: Callable[[], bool]) -> None:
        """Kill it and all its processes when something holds."""
        while not ready():
            time.sleep(0.1)
        for process in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        self.process.wait()


def main() -> None:
    """Measure and print."""
    trials = int(sys.argv[1]) if sys.argv[1:] else 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = synth.write(folder / "data", SynthConfig(patients=100, height=640, width=512), 0)
        (folder / "base.toml").write_text(plain.to_toml(BASE), encoding="utf-8")
        (folder / "space.toml").write_text(SPACE, encoding="utf-8")
        (folder / "same.toml").write_text(SAME, encoding="utf-8")
        common = ["--csv", data.csv, "--dicom-root", data.root, "--config", folder / "base.toml"]
        searched(folder, common)
        costs(folder, common, trials)


def searched(folder: Path, common: list[object]) -> None:
    """A search, interrupted."""
    outdir = folder / "search"
    words = ["tune", *common, "--space", folder / "space.toml", "--outdir", outdir, "--num-trials", 12]
    words += ["--grace", 3, "--reduction", 2]
    first = Command(*words)
    first.kill(lambda: len(list(outdir.glob("trials/*/history.jsonl"))) >= 6)
    before = sorted(line for _, line in first.lines if line.startswith("trial "))
    last = Command("tune", "--resume", outdir).wait()
    again = [line for _, line in last.lines if line.startswith("trial ")]
    table = pd.read_parquet(outdir / "trials.parquet")
    counts = table["state"].value_counts().to_dict()
    best = table[table["state"] == "complete"].sort_values("score").iloc[-1]
    print(f"12 trials with ASHA, driver killed after {len(before)} of them and gone on with: {counts}")
    print(f"  told of twice: {len({line.split(':')[0] for line in before} & {line.split(':')[0] for line in again})}")
    print(f"  validation kappa: default {table['score'][0]:.3f}, best {best['score']:.3f} (trial {best['number']})")
    print(f"  epochs trained: {table['epochs'].sum():.0f} of {12 * BASE.train.epochs}", flush=True)


def costs(folder: Path, common: list[object], trials: int) -> None:
    """Processor time of a training, of a search of one trial, and of a search of several."""
    Command("train", *common, "--outdir", folder / "warm", "--epochs", 1).wait()
    plain_run = Command("train", *common, "--outdir", folder / "plain").wait()
    cpu = {}
    for count in (1, trials):
        outdir = folder / f"cost-{count}"
        words = ["tune", *common, "--space", folder / "same.toml", "--outdir", outdir]
        flags = ["--num-trials", count, "--trials-at-once", 1, "--scheduler", "none", "--no-prune-collapsed"]
        cpu[count] = Command(*words, *flags).wait().cpu()
    starts = pd.read_parquet(folder / f"cost-{trials}" / "trials.parquet")["start_seconds"]
    begun, first = (next(at for at, line in plain_run.lines if words in line) for words in ("train: ", "from epoch 0"))
    print(
        f"processor seconds: train {plain_run.cpu():.1f}, search of 1 trial {cpu[1]:.1f}, of {trials} {cpu[trials]:.1f}"
    )
    print(f"  {trials} trials by {trials} times a training: {cpu[trials] / trials / plain_run.cpu():.2f}")
    print(f"  {trials} trials by {trials} times a search of 1: {cpu[trials] / trials / cpu[1]:.2f}")
    print(
        f"  time to the first batch: of a second training {first - begun:.1f} s, and {first:.1f} s after the command; "
        f"of trials {', '.join(f'{s:.1f}' for s in starts)} s, median {statistics.median(starts):.1f} s"
    )


if __name__ == "__main__":
    main()
