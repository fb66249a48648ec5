"""Damage files in every way that is known, decode them, and count what becomes of them.

``python benchmarks/fuzz.py [--files N] [--seed S] [--only INDEX]``. A decode may refuse a file with ``DecodeError``, or
give an image. It may not raise anything else, crash, hang, take memory that the file does not justify, quote a name
that stands in the file, or take a truncated file for an image that it is not; any of these is listed by its index, and
makes the exit status 1. Damage inside of pixel data may go unnoticed; how often it does is what the table tells.
"""

from __future__ import annotations

import argparse
import collections
import functools
import io
import itertools
import logging
import multiprocessing
import re
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mutations import mutate
from rasters import Raster, all_rasters
from rasters import mutate as mutate_raster
from subjects import Subject, all_subjects

from mammoray.config import DecodeConfig
from mammoray.decode import Decoded, decode
from mammoray.errors import DecodeError
from mammoray.header import MAX_PIXELS
from mammoray.plain import replace

HANG_S = 10.0
"""A decode of one of these files takes a few milliseconds."""
START_S = 120.0
"""For imports and, once, the compiler."""
BATCH = 2500
"""Files per process."""
ROOM = 4 << 30
"""Bytes of address space that a process may take beyond those that it starts with."""
RASTER_EVERY = 4
"""One file of so many is a raster image."""
GROWTH = 5 * MAX_PIXELS
"""Bytes by which one file may raise the peak of resident memory; 4 a pixel is what decoders work with."""

CONFIGS = {
    "full": DecodeConfig(height=200, width=160, crop="none", orient="none", depth=16),
    "reduced": DecodeConfig(
        height=36, width=32, crop="none", orient="none", window="none", frame="first", bit_planes="visible"
    ),
    "breast": DecodeConfig(height=48, width=40),
}
FAULTS = ("bug", "leak", "crash", "hang", "memory", "accepted truncation")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one file: ``outcome`` is refused, identical, different, or one of FAULTS."""

    index: int
    codec: str
    subject: str
    mutation: str
    config: str
    outcome: str
    detail: str = ""


@functools.cache
def subjects() -> list[Subject | Raster]:
    """The undamaged files, made once in a process: DICOMs, then raster images."""
    return [*all_subjects(), *all_rasters()]


@functools.cache
def undamaged(subject: int, config: DecodeConfig) -> Decoded:
    """The right image."""
    chosen = subjects()[subject]
    return decode(chosen.pack(chosen.content), config)


def damaged(seed: int, index: int) -> tuple[int, str, str, bytes]:
    """File ``index`` of a seed: number of its subject, mutation, name of the settings, content."""
    rng = np.random.default_rng((seed, index))
    subject: Subject | Raster
    if index % RASTER_EVERY == RASTER_EVERY - 1:
        subject, mutation, content = mutate_raster(rng, [chosen for chosen in subjects() if isinstance(chosen, Raster)])
    else:
        subject, mutation, content = mutate(rng, [chosen for chosen in subjects() if isinstance(chosen, Subject)])
    return subjects().index(subject), mutation, list(CONFIGS)[rng.integers(len(CONFIGS))], content


def examine(seed: int, index: int) -> Verdict:
    """Damage and decode one file."""
    number, mutation, config, content = damaged(seed, index)
    subject = subjects()[number]
    settings = replace(CONFIGS[config], frame="first") if subject.frames > 1 else CONFIGS[config]
    expected = undamaged(number, settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome, detail = _outcome(content, settings, expected.pixels)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    if outcome == "different" and mutation.startswith("cut"):
        outcome = "accepted truncation"
    if grown > GROWTH or "MemoryError" in detail:
        outcome, detail = "memory", f"{grown >> 20} MiB more; {detail}"
    return Verdict(index, subject.codec, subject.name, mutation, config, outcome, detail)


def _outcome(content: bytes, config: DecodeConfig, expected: npt.NDArray[Any]) -> tuple[str, str]:
    log, unraised = io.StringIO(), []
    sys.unraisablehook = unraised.append  # Some codecs drop an exception and return what they have.
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            outcome, said = _decoded(content, config, expected)
    finally:
        logging.getLogger().removeHandler(handler)
    told = said + log.getvalue() + "".join(str(warning.message) for warning in warned)
    if "DOE" in told or "JANE" in told:
        return "leak", told
    if unraised:
        return "bug", f"unraised: {unraised[0].exc_type.__name__} in {unraised[0].object}"
    return outcome, said.strip().splitlines()[-1] if said else ""


def _decoded(content: bytes, config: DecodeConfig, expected: npt.NDArray[Any]) -> tuple[str, str]:
    """What a decode gives, and all that it says of a failure."""
    try:
        pixels = decode(content, config, name="file").pixels
    except DecodeError as error:
        return "refused", "".join(traceback.format_exception(error))
    except BaseException as error:
        return "bug", "".join(traceback.format_exception(error))
    return "identical" if np.array_equal(pixels, expected) else "different", ""


def _child(seed: int, indices: Sequence[int], pipe: Connection) -> None:
    """Examine some files; the pipe first gets None, when all is loaded and compiled, and then a verdict on each."""
    for number, subject in enumerate(subjects()):
        for config in CONFIGS.values():
            undamaged(number, replace(config, frame="first") if subject.frames > 1 else config)
    if sys.platform == "linux":
        room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    pipe.send(None)
    for index in indices:
        pipe.send(examine(seed, index))


def supervised(seed: int, indices: Sequence[int], hang_s: float = HANG_S) -> Iterator[Verdict]:
    """Verdicts on the files, from processes that may crash or hang; one that did is replaced by another."""
    left = collections.deque(indices)
    context = multiprocessing.get_context("spawn")
    while left:
        receiving, sending = context.Pipe(duplex=False)
        batch = list(itertools.islice(left, BATCH))
        child = context.Process(target=_child, args=(seed, batch, sending), daemon=True)
        child.start()
        sending.close()
        if not receiving.poll(START_S):
            raise TimeoutError("the child did not start")
        receiving.recv()
        try:
            for _ in batch:
                if not receiving.poll(hang_s):
                    yield _lost(seed, left.popleft(), "hang", f"more than {hang_s:g} s")
                    break
                verdict = receiving.recv()
                left.popleft()
                yield verdict
        except EOFError:
            child.join()
            yield _lost(seed, left.popleft(), "crash", f"exit code {child.exitcode}")
        finally:
            child.kill()
            child.join()


def _lost(seed: int, index: int, outcome: str, detail: str) -> Verdict:
    number, mutation, config, _ = damaged(seed, index)
    return Verdict(index, subjects()[number].codec, subjects()[number].name, mutation, config, outcome, detail)


def table(verdicts: Sequence[Verdict], key: str) -> str:
    """Markdown: what became of the files, by codec or by mutation."""
    head = f"| {key} | files | refused | identical | different | share different | truncations | of them accepted |"
    lines = [head, "|---" + "|---:" * 7 + "|"]
    groups = collections.defaultdict(list)
    for verdict in verdicts:
        groups[getattr(verdict, key)].append(verdict)
    for name, group in [*sorted(groups.items()), ("all", list(verdicts))]:
        count = collections.Counter(verdict.outcome for verdict in group)
        cuts = sum(verdict.mutation.startswith("cut") for verdict in group)
        different = count["different"]
        counts = (len(group), count["refused"], count["identical"], different, f"{different / len(group):.1%}")
        lines.append(f"| {name} | " + " | ".join(map(str, (*counts, cuts, count["accepted truncation"]))) + " |")
    return "\n".join(lines)


def reasons(verdicts: Sequence[Verdict]) -> str:
    """Markdown: why files were refused, without the numbers."""
    count = collections.Counter(re.sub(r"\d+", "N", v.detail)[:150] for v in verdicts if v.outcome == "refused")
    return "\n".join(["| refusal | files |", "|---|---:|", *(f"| {why} | {n} |" for why, n in count.most_common(40))])


def main() -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="examine this file alone, here, and show what happens")
    parser.add_argument("--save", type=Path, help="with --only: where to write the file")
    options = parser.parse_args()
    if options.only is not None:
        if options.save:
            options.save.write_bytes(damaged(options.seed, options.only)[3])
        print(examine(options.seed, options.only))
        return 0
    started = time.perf_counter()
    verdicts = list(supervised(options.seed, range(options.files)))
    print(f"{len(verdicts)} files, seed {options.seed}, {time.perf_counter() - started:.0f} s\n")
    print(table(verdicts, "codec"), table(verdicts, "mutation"), reasons(verdicts), sep="\n\n")
    faults = [verdict for verdict in verdicts if verdict.outcome in FAULTS]
    print(f"\n{len(faults)} faults")
    for fault in faults:
        print(
            f"- {fault.outcome}: --seed {options.seed} --only {fault.index} ({fault.codec}, {fault.subject}, "
            f"{fault.mutation}, {fault.config}): {fault.detail[:300]}"
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
