"""How fast the heads of a data set are audited, against a bare loop that reads the same bytes.

``python benchmarks/audit.py [FILES]``: FILES (default 50000) synthetic DICOMs of all machines, 3 GB. In one run, in
turn, as medians of rounds: a loop that opens each file and reads its first 64 KiB, in the order of the catalog; the
scan of those heads in one process; the same over Ray, on all cores; and the whole of what follows the scan (rules,
relations, counts). Each from the disk, where the system was told to forget the files (posix_fadvise), and from the
page cache.
"""

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import ray

from mammoray import inventory, relations, rules, scan, tally
from mammoray.config import AuditConfig
from mammoray.machines import SITES, make_dicom

ROUNDS = 5
COPIES = 6
KEY = bytes(32)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time and processor time of one call."""
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def write(root: Path, count: int) -> pd.DataFrame:
    """Rows of ``count`` files in the layout of RSNA, four a patient; files are copies of a few of each machine."""
    rng = np.random.default_rng(0)
    originals: list[bytes] = []
    machines = [machine for site in SITES.values() for machine in site.values()]
    for number, (machine, _) in enumerate(itertools.product(machines, range(COPIES))):
        pixels = rng.integers(0, 2**machine.encoding.bits_stored, (208, 176), dtype=np.uint16)
        originals.append(make_dicom(pixels, machine.encoding, key=(number,)))
    paths = [f"{i // 4}/{i}.dcm" for i in range(count)]
    for i, path in enumerate(paths):
        if i % 4 == 0:
            (root / str(i // 4)).mkdir()
        (root / path).write_bytes(originals[i % len(originals)])
    os.sync()
    sizes = [len(original) for original in originals]
    return pd.DataFrame(
        {
            "image_id": [str(i) for i in range(count)], "patient_id": [path.split("/")[0] for path in paths],
            "path": paths,
            "size": np.resize(sizes, count),
            "laterality": np.resize(["L", "L", "R", "R"], count),
            "view": np.resize(["CC", "MLO"], count), "label": np.resize(list("ABCD"), count), "site_id": "1",
            "machine_id": "49", "implant": "0",
        }
    )  # fmt: skip


def read(jobs: list[scan.Job]) -> int:
    """The bare loop: opens each file and reads its head."""
    total = 0
    for path, _, _ in jobs:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the least that Python can do.
            total += len(file.read(scan.HEAD))
    return total


def forget(jobs: list[scan.Job]) -> None:
    """Have the system drop the files from the page cache."""
    for path, _, _ in jobs:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def judge(data: pd.DataFrame) -> None:
    """What follows the scan."""
    rules.of_images(data)
    relations.between_images(data, "patient_id")
    tally.tally(data)
    tally.classes(data)


def main() -> None:
    """Write the files and measure."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    cpus = os.cpu_count() or 1
    # Ray's workers give way to all other processes of a machine by default.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray writes it so.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = write(root, count)
        jobs = [(str(root / path), path, int(size)) for path, size in zip(rows["path"], rows["size"], strict=True)]
        megabytes = rows["size"].clip(upper=scan.HEAD).sum() / 1e6
        ray.init(num_cpus=cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        over_ray = partial(inventory.take, rows, str(root), AuditConfig())
        started = time.perf_counter()
        data = over_ray()
        cold = time.perf_counter() - started
        bare, alone, spread, disk_bare, disk_spread = [], [], [], [], []
        for _ in range(ROUNDS):
            forget(jobs)
            disk_bare.append(seconds(partial(read, jobs)))
            bare.append(seconds(partial(read, jobs)))
            alone.append(seconds(partial(scan.scan_all, jobs, KEY)))
            forget(jobs)
            disk_spread.append(seconds(over_ray))
            spread.append(seconds(over_ray))
        after = seconds(partial(judge, data))[0]
        ray.shutdown()
    loop, one, many, disk_loop, disk_many = (
        statistics.median(wall for wall, _ in times) for times in (bare, alone, spread, disk_bare, disk_spread)
    )
    cpu = statistics.median(used for _, used in alone) / count * 1000
    print(f"{count} files, {megabytes:.0f} MB of heads, {cpus} cores, medians of {ROUNDS} rounds")
    print("from the disk")
    print(f"bare loop of reads, one process:    {count / disk_loop:9,.0f} files/s")
    print(
        f"scan over Ray, {cpus} cores:            {count / disk_many:9,.0f} files/s, {disk_loop / disk_many:.2f} of it"
    )
    print("from the page cache")
    print(f"bare loop of reads, one process:    {count / loop:9,.0f} files/s, {loop / count * 1000:.3f} ms a file")
    print(f"scan, one process:                  {count / one:9,.0f} files/s, {cpu:.3f} ms of processor a file")
    print(f"scan over Ray, {cpus} cores:            {count / many:9,.0f} files/s, {loop / many:.2f} of the bare loop")
    print(f"  of the scan on as many cores:     {one / cpus / many:9.2f}")
    print(f"  first time, workers starting:     {cold:9.1f} s, {many:.1f} s when they run")
    print(f"rules, relations and counts:        {after:9.1f} s")


if __name__ == "__main__":
    main()
