"""Files of an object store, fetched one after the other or ahead of the decoder: ``python benchmarks/remote.py``.

``[--images 120] [--side 2560] [--rounds 5]``: phantoms in the bucket of a real S3 server on loopback, behind a door
that holds every request for some milliseconds, as a storage far away does; a file takes two. One decoder, as each core
has, with ``mammoray.decode.announce`` and without it, in turn; ratios are of one round's pair, and then the median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

# The door of the tests, and the server that they use.
sys.path.insert(0, str(Path(__file__).parents[1]))
import unannounced

from mammoray import catalog, decode, storage, synth
from mammoray.config import DecodeConfig, SynthConfig
from mammoray.sandbox import Sandbox
from tests.proxy import Door

SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "it", "AWS_DEFAULT_REGION": "us-east-1"}
WAYS = {"one after the other": unannounced.__name__, "ahead of the decoder": decode.__name__}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("images", 120), ("side", 2560), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    os.environ |= KEYS | {"AWS_EC2_METADATA_DISABLED": "true"}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdout
    door = Door(int(server.stdout.readline()))
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{door.port}/bucket", method="PUT"))
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), given.images, given.side, door.port)
    print(f"{given.images} files of {given.side} rows, medians of {given.rounds} rounds\n")
    print("| a request takes, ms | one after the other, images/s | ahead, images/s | faster | CPU, ratio |")
    print("|---:|---:|---:|---:|---:|")
    for delay in (0.0, 0.02, 0.05, 0.1):
        door.delay = delay
        rounds = [{way: measure(module, files) for way, module in WAYS.items()} for _ in range(given.rounds)]
        row(delay, rounds, given.images)
    server.kill()


def write(folder: Path, images: int, side: int, port: int) -> list[str]:
    """Phantoms in a bucket; returns their URIs."""
    data = synth.write(folder / "data", SynthConfig(patients=images // 4, height=side, width=side * 4 // 5), 0)
    root = f"s3://bucket/set?endpoint_override=127.0.0.1:{port}&scheme=http"
    files = []
    for path in catalog.build(data.csv, data.root).rows["path"].head(images):
        files.append(storage.join(root, path))
        storage.upload(Path(data.root, path), files[-1])
    return files


def measure(module: str, files: list[str]) -> tuple[float, float]:
    """Wall seconds of one decoder, and processor seconds of its calls."""
    child = Sandbox(f"{module}:decode", 120.0)
    jobs = [(file, DecodeConfig(), str(number)) for number, file in enumerate(files)]
    list(child.run(jobs[:8]))
    began = time.perf_counter()
    outcomes = list(child.run(jobs))
    wall = time.perf_counter() - began
    child.close()
    assert all(outcome.value is not None for outcome in outcomes)
    return wall, sum(outcome.seconds for outcome in outcomes)


def row(delay: float, rounds: list[dict[str, tuple[float, float]]], images: int) -> None:
    """Print the medians of a delay."""
    before, after = (
        [[told[way][part] for told in rounds] for part in (0, 1)]
        for way in ("one after the other", "ahead of the decoder")
    )
    ratios = [statistics.median(a / b for a, b in zip(before[part], after[part], strict=True)) for part in (0, 1)]
    speeds = [images / statistics.median(way[0]) for way in (before, after)]
    print(f"| {1000 * delay:.0f} | {speeds[0]:.1f} | {speeds[1]:.1f} | {ratios[0]:.2f} | {1 / ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
