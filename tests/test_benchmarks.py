"""The benchmarks run, and print what they promise. How fast anything is, is no business of a test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def printed() -> str:
    command = [sys.executable, "-W", "ignore", "benchmarks/decode.py", "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


def cells(printed: str, title: str) -> list[list[str]]:
    """Rows of the Markdown table under a heading, without its header."""
    section = re.split(r"^### ", printed, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(title)]
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def test_speed_is_given_as_ratios_for_both_syntaxes_and_crops(printed: str) -> None:
    rows = cells(printed, "Speed, by")
    assert [row[:2] for row in rows if row[0].startswith(".")] == [
        [".90 JPEG 2000 lossless", "none"],
        [".90 JPEG 2000 lossless", "breast"],
        [".90 JPEG 2000 lossless", "none, visible"],
        [".90 JPEG 2000 lossless", "breast, visible"],
        [".70 JPEG Lossless SV1", "none"],
        [".70 JPEG Lossless SV1", "breast"],
    ]
    for row in rows:
        assert all(re.fullmatch(r"\d+\.\dx, \d+\.\dx paired \(\d+ : \d+ ms\)", cell) for cell in row[-3:]), row
    assert len(cells(printed, "Speed of .90, by geometry")) == 4 * len(cells(printed, "Corpus"))


def test_the_corpus_compresses_like_mammograms(printed: str) -> None:
    for row in cells(printed, "Corpus"):
        assert 3 < float(row[2]) < 8  # Small images are noisier by the pixel than full-size ones.
        assert 40 < int(row[3].rstrip("%")) < 57 or row[0].startswith("film")


def test_decoded_images_are_those_of_the_baseline(printed: str) -> None:
    rows = cells(printed, "Fidelity")
    assert len(rows) == 6
    for row in rows:
        for cell in row[3:]:
            mean, _, similar, _ = re.findall(r"[\d.]+", cell)
            assert float(mean) < 2 and float(similar) > 0.98


def test_every_syntax_and_decoder_is_in_a_table(printed: str) -> None:
    assert {row[0] for row in cells(printed, "Other transfer syntaxes")} >= {"uncompressed", "RLE", ".57 JPEG Lossless"}
    verdicts = {row[0]: row[3] for row in cells(printed, "Decoders")}
    assert verdicts[".90 JPEG 2000 lossless"] == verdicts[".70 JPEG Lossless SV1"] == verdicts["RLE"] == "exact"


def test_sharpness_and_the_classifier_cover_all_pairs(printed: str) -> None:
    assert len(cells(printed, "Sharpness")) == 6
    rows = cells(printed, "Telling the transfer syntax")
    assert len(rows) == 4 and all(0 <= float(cell.rstrip("%")) <= 100 for row in rows for cell in row[1:])


def test_pydicoms_own_files_are_compared(printed: str) -> None:
    found = {row[0]: row[1] for row in cells(printed, "Full size against pydicom")}
    assert int(found["bit-exact"]) > 40
