"""How long the table and the tree of a whole data set take, before anything is decoded.

``python benchmarks/catalog.py``: a table of RSNA's size and counts (``benchmarks/rsna_table.py``) and its 54,706 files,
empty ones, through detection, labels, match, class table, split and the checks of the split, as medians of rounds; then
a table of ten million rows for the same files.
"""

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import rsna_table
from mammoray import catalog, split
from mammoray.config import SplitConfig

ROUNDS = 5
MILLIONS = 10
T = TypeVar("T")


def write(root: Path) -> None:
    """The table and its files."""
    table = rsna_table.make()
    table.to_csv(root / "train.csv", index=False)
    for patient, images in table.groupby("patient_id")["image_id"]:
        folder = root / "train_images" / str(patient)
        folder.mkdir(parents=True)
        for image in images:
            (folder / f"{image}.dcm").touch()


def grow(root: Path) -> Path:
    """Ten million rows, of which 54,706 have a file."""
    lines = (root / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    big = root.parent / "big.csv"
    with big.open("w", encoding="utf-8") as file:
        file.writelines(lines)
        for block in range(MILLIONS * 10):
            numbers = range(block * 100_000, block * 100_000 + 100_000)
            file.writelines(f"1,x{i // 4},y{i},L,CC,61.0,0,0,0,,0,B,49,False\n" for i in numbers)
    return big


def timed(times: list[float], work: Callable[[], T]) -> T:
    """Result of one call, its processor time put down."""
    began = time.process_time()
    result = work()
    times.append(time.process_time() - began)
    return result


def main() -> None:
    """Write, measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        root.mkdir()
        write(root)
        building: list[float] = []
        splitting: list[float] = []
        for _ in range(ROUNDS):
            data = timed(building, partial(catalog.build, None, root))
            timed(splitting, partial(split.make, data.rows, SplitConfig(), "density", 0))  # Checks itself.
        print(f"{data.layout} layout ({'; '.join(data.evidence)})")
        print(catalog.class_table(data.rows, "density").to_string())
        print(f"detection, labels, match: {statistics.median(building):6.2f} s of processor")
        print(f"split and its checks:     {statistics.median(splitting):6.2f} s of processor")
        big = grow(root)
        large: list[float] = []
        found = timed(large, partial(catalog.build, big, root))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{MILLIONS} million rows ({big.stat().st_size / 1e6:.0f} MB): {large[0]:.1f} s, peak {peak:.1f} GiB,")
        print(f"  {len(found.rows)} images, {len(found.findings)} findings")


if __name__ == "__main__":
    main()
