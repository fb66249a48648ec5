"""A few of the damaged files of ``benchmarks/fuzz.py``; all of them take a minute."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


def test_damaged_files_are_refused_or_decoded_and_no_truncated_one_is_an_image() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--files", "600", "--seed", "7"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "| all | 600 |" in done.stdout
    assert "0 faults" in done.stdout
