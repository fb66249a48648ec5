"""Decoding: how fast, how true, and whether a decoded image tells its transfer syntax. Prints Markdown.

The baseline is what people do today: ``pydicom.dcmread(path).pixel_array``, ``apply_voi_lut``, MONOCHROME1, an area
resize. Baseline and mammoray's decode take turns on each file, in one process, from a warm page cache; times are CPU
seconds of all threads; medians over rounds, then over files.

    OMP_NUM_THREADS=1 python benchmarks/decode.py                 # everything, about ten minutes on two cores
    python benchmarks/decode.py --quick                           # a look at small images, under a minute
    python benchmarks/decode.py --data FOLDER                     # keep the synthetic corpus in FOLDER, 0.4 GB
    python benchmarks/decode.py --own FOLDER --only speed         # your own DICOM files instead

Needs the development extras (scikit-learn, scikit-image, python-gdcm: pydicom reads JPEG Lossless with it only).
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import corpus
import cv2
import decoders
import exact
import pydicom
import signature
import speed
from corpus import J2K, JLL, LABELS, Sample

from mammoray.errors import DecodeError

PARTS = ("speed", "syntaxes", "decoders", "exact", "sharpness", "classifier")
FLOORS = {(J2K, "none"): (100, 40, 12), (J2K, "breast"): (65, 20, 5.5), (JLL, "none"): (8, 7, 6)}
"""Ratios to reach at the three targets."""
LARGEST_ERROR, LEAST_SSIM = (0.012, 0.010, 0.007), 0.995
LARGEST_SHARPNESS, LARGEST_ACCURACY = 0.05, 0.55
SIGNED_MODES = ("none", "none, visible")
"""Modes in which a signature of the syntax is looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much is measured."""

    divisor: int
    """Sides of the corpus' images are divided by it."""
    targets: tuple[int, ...]
    """Longer sides of decoded images."""
    rounds: int
    images: int
    """Images that the classifier sees, in each syntax."""
    side: int
    """Rows of these."""


FULL = Size(divisor=1, targets=(224, 512, 1024), rounds=3, images=300, side=1200)
QUICK = Size(divisor=4, targets=(56, 128, 256), rounds=1, images=25, side=400)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> None:
    """Print a Markdown table under a heading."""
    print(f"\n### {title}\n")
    if note:
        print(note + "\n")
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def measured(samples: Iterable[Sample], size: Size, targets: Sequence[int], modes: Sequence[str]) -> list[speed.Timing]:
    """Timings of the files that mammoray can decode; of others, the reason is printed."""
    timings = []
    for sample in samples:
        try:
            timings.append(speed.measure(sample, targets, modes, rounds=size.rounds))
        except DecodeError as error:
            print(f"left out: {error}")
    return timings


def speed_tables(samples: Sequence[Sample], size: Size) -> None:
    """Ratios and errors by syntax and crop, then of JPEG 2000 by geometry."""
    timings = [
        timing
        for sample in samples
        for timing in measured(
            [sample], size, size.targets, tuple(speed.MODES) if sample.syntax == J2K else speed.EXACT
        )
    ]
    by_syntax: dict[str, list[speed.Timing]] = defaultdict(list)
    for timing in timings:
        by_syntax[timing.sample.syntax].append(timing)
    sides = [str(target) for target in size.targets]
    rows, errors = [], []
    for syntax, found in by_syntax.items():
        for mode in speed.MODES if syntax == J2K else speed.EXACT:
            label = [LABELS.get(syntax, syntax), mode, str(len(found))]
            rows.append([*label, *speed.ratios(found, size.targets, mode)])
            if (syntax, mode) in FLOORS and size is FULL:
                rows.append(["", "asked for", "", *(f"{floor}x" for floor in FLOORS[syntax, mode])])
            if syntax == J2K:
                rows.append(["", "against Pillow", "", *speed.ratios(found, size.targets, mode, "pillow")])
            errors.append([*label, *speed.fidelity(found, size.targets, mode)])
    note = (
        "Baseline over mammoray, CPU time: ratio of the medians over the files; paired: median of the files' ratios, "
        "in which small files count as much as large ones; both medians in milliseconds. "
        "The baseline decodes with the plugin that pydicom chooses; `against Pillow`: with its Pillow plugin instead."
    )
    table("Speed, by longer side of the decoded image", ["syntax", "crop", "files", *sides], rows, note)
    if J2K in by_syntax:
        print_by_geometry(by_syntax[J2K], size.targets)
    limits = ", ".join(f"{limit:.1%}" for limit in LARGEST_ERROR)
    note = (
        "Mean absolute difference from full decode, VOI and area resize of the same box, over the breast, as a share "
        "of the range: median (worst file); then SSIM: median (worst file). "
        f"Asked for: at most {limits}; at least {LEAST_SSIM}."
    )
    table("Fidelity", ["syntax", "crop", "files", *sides], errors, note)


def print_by_geometry(timings: Sequence[speed.Timing], targets: Sequence[int]) -> None:
    """The ratio depends on how the size falls on powers of two."""
    rows = []
    for timing in sorted(timings, key=lambda t: t.sample.shape):
        shape = f"{timing.sample.shape[0]} x {timing.sample.shape[1]}"
        for mode in speed.MODES:
            rows.append([shape, timing.sample.family, mode, *speed.ratios([timing], targets, mode)])
    table("Speed of .90, by geometry", ["rows x columns", "pixels", "crop", *map(str, targets)], rows)


def syntax_table(samples: Sequence[Sample], size: Size) -> None:
    """All other transfer syntaxes at the middle target, without crop."""
    target = size.targets[1]
    rows = []
    for syntax in (s for s in LABELS if s not in (J2K, JLL)):
        files = [s for s in samples if s.syntax == syntax]
        timings = measured(files, size, (target,), ("none",))
        if not timings:
            continue
        refused = ", ".join(sorted({t.refused for t in timings if t.refused}))
        cells = speed.ratios(timings, (target,), "none") + speed.fidelity(timings, (target,), "none")
        rows.append([LABELS[syntax], str(len(files)), *cells, refused])
    header = ["syntax", "files", "ratio (baseline : mammoray)", "mean error, SSIM", "the baseline says"]
    table(f"Other transfer syntaxes at {target}, no crop", header, rows)


def decoder_table(samples: Sequence[Sample], size: Size) -> None:
    """Decoders against each other, on the images that stand in all transfer syntaxes."""
    images = {s.image for s in samples if s.syntax not in (J2K, JLL, corpus.RAW)}
    rows = decoders.compare([s for s in samples if s.image in images], size.rounds)
    note = f"One codestream to stored values in full, {len(images)} images; result against the uncompressed file."
    table("Decoders", ["syntax", "decoder", "CPU ms a megapixel", "result"], rows, note)


def exact_table() -> None:
    """Print what became of pydicom's own test files."""
    found = exact.compare()
    rows = [
        ["bit-exact", str(len(found.exact)), ""],
        [f"lossy, within {exact.ROUNDING}", str(len(found.rounded)), "; ".join(found.rounded)],
        ["different", str(len(found.different)), "; ".join(found.different)],
        ["refused: colour, frames, 1 or 32 bits", str(len(found.refused)), ""],
    ]
    table("Full size against pydicom, on its own test files that it can read", ["", "files", "which"], rows)


def sharpness_table(samples: Sequence[Sample], size: Size) -> None:
    """Laplacian energy by syntax."""
    header = ["target", "crop", *(f"{name}, energy (ms)" for name in signature.SYNTAXES), "apart", "worst file"]
    rows = []
    chosen = [s for s in samples if s.syntax in signature.SYNTAXES.values()]
    for target, mode in ((target, mode) for target in size.targets for mode in SIGNED_MODES):
        found = signature.sharpness(chosen, target, mode)
        cells = [f"{found.median(name):.3f} ({ms:.0f})" for name, ms in found.milliseconds.items()]
        rows.append([str(target), mode, *cells, f"{found.apart:.1%}", f"{found.apart_worst:.1%}"])
    note = (
        "Laplacian energy over the breast, by that of the uncompressed file, and what the decode costs: medians. "
        f"Asked for: at most {LARGEST_SHARPNESS:.0%} apart."
    )
    table("Sharpness of the same pixels in three transfer syntaxes", header, rows, note)


def classifier_table(size: Size) -> None:
    """How often a logistic regression can tell the syntax."""
    found = {mode: signature.tell(size.images, size.targets[0], size.side, mode) for mode in SIGNED_MODES}
    rows = [[" or ".join(pair), *(f"{found[mode][pair]:.1%}" for mode in found)] for pair in found["none"]]
    note = (
        f"{size.images} images of {size.side} rows in each syntax, decoded to {size.targets[0]}; logistic regression "
        "on their spectrum and principal components, five folds grouped by phantom. "
        f"Asked for: at most {LARGEST_ACCURACY:.0%}; chance is 50 %. "
        "The last row is a control: JPEG 2000's low-pass samples taken for averages."
    )
    table("Telling the transfer syntax of a decoded image", ["syntaxes", *SIGNED_MODES], rows, note)


def run(parts: Sequence[str], samples: Sequence[Sample], size: Size, synthetic: bool) -> None:
    """Print what is asked for."""
    rows = corpus.describe(samples)
    if rows:
        header = ["pixels", "rows x columns", "bits a pixel as .90", "commonest value"]
        table("Corpus", header, rows)
    for part in parts:
        started = time.perf_counter()
        if part == "speed":
            speed_tables([s for s in samples if s.syntax in (J2K, JLL) or not synthetic], size)
        elif part == "syntaxes":
            syntax_table(samples, size)
        elif part == "decoders" and synthetic:
            decoder_table(samples, size)
        elif part == "exact":
            exact_table()
        elif part == "sharpness" and synthetic:
            sharpness_table(samples, size)
        elif part == "classifier":
            classifier_table(size)
        print(f"\n({part}: {time.perf_counter() - started:.0f} s)")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images, one round")
    parser.add_argument("--data", type=Path, help="folder of the synthetic corpus, written where it is not there yet")
    parser.add_argument("--own", type=Path, help="folder of DICOM files to measure instead")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    return parser.parse_args()


def main() -> None:
    """Write the corpus, measure, print."""
    chosen = arguments()
    size = QUICK if chosen.quick else FULL
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")  # pydicom's, about the odd headers of its test files
    pydicom.config.logger.disabled = True
    print(f"Python {platform.python_version()}, pydicom {pydicom.__version__}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        if chosen.own:
            samples = corpus.own(chosen.own)
        else:
            samples = corpus.write(chosen.data or Path(folder), corpus.sources(size.divisor))
        run(chosen.only, samples, size, synthetic=not chosen.own)


if __name__ == "__main__":
    main()
