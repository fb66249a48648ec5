"""CPU seconds of the baseline and of mammoray's decode on the same files, in turn, and how far apart the pixels are."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from baseline import Error, error, frame_of, shrink, windowed
from corpus import J2K, Sample

from mammoray.config import DecodeConfig
from mammoray.decode import Decoded, decode
from mammoray.plain import replace

MODES: dict[str, dict[str, Any]] = {
    "none": {"crop": "none"},
    "breast": {"crop": "breast"},
    "none, visible": {"crop": "none", "bit_planes": "visible"},
    "breast, visible": {"crop": "breast", "bit_planes": "visible"},
}
"""How tables call the crop, and whether bit planes that cannot be seen are left out; the first two are exact."""
EXACT, VISIBLE = tuple(MODES)[:2], tuple(MODES)[2:]
QUICK_S = 0.3
"""A decode below this many seconds is timed three times a round: short times scatter most."""


@dataclass(kw_only=True, slots=True)
class Timing:
    """Seconds of one file, a value a round, and its errors; keys are (target, mode)."""

    sample: Sample
    baseline: dict[tuple[int, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    pillow: dict[tuple[int, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    ours: dict[tuple[int, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[tuple[int, str], Error] = field(default_factory=dict)
    refused: str = ""
    """Why the baseline could not read the file."""

    def ratio(self, key: tuple[int, str], against: str = "baseline") -> float:
        """Median over the rounds of the baseline's seconds over ours in the same round."""
        pairs = zip(getattr(self, against)[key], self.ours[key], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def framed(target: int, mode: str) -> DecodeConfig:
    """Settings of a mode whose longer side is ``target``, without mirroring."""
    return replace(DecodeConfig(height=target, width=target, orient="none"), **MODES[mode])


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call, all threads together, and its result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def measure(sample: Sample, targets: Sequence[int], modes: Sequence[str] = EXACT, *, rounds: int) -> Timing:
    """Time one file. The full decode of a round is shared by the targets; each adds its own resize to it."""
    timing = Timing(sample=sample)
    sample.path.read_bytes()  # into the page cache
    for round_ in range(rounds):
        full, grey = _baseline(sample, timing)
        other = seconds(lambda: windowed(sample.path, "pillow"))[0] if sample.syntax == J2K else None
        for key in ((target, mode) for target in targets for mode in modes):
            spent, decoded = _ours(sample, framed(*key))
            timing.ours[key].append(spent)
            box, size, _ = frame_of(decoded)
            if not timing.refused:
                resize = seconds(partial(shrink, grey, box, size))[0]
                timing.baseline[key].append(full + resize)
                if other is not None:
                    timing.pillow[key].append(other + resize)
            if round_ == 0 and grey is not None:
                timing.errors[key] = error(decoded, grey)
    return timing


def _baseline(sample: Sample, timing: Timing) -> tuple[float, Any]:
    """Seconds of a full decode, and its image: the uncompressed file's, where the baseline cannot read this one."""
    try:
        return seconds(lambda: windowed(sample.path))
    except Exception as found:  # Every plugin has its own errors.
        timing.refused = type(found).__name__
    raw = sample.path.with_name(f"{sample.image}_1.dcm")
    return 0.0, windowed(raw) if raw.exists() else None


def _ours(sample: Sample, config: DecodeConfig) -> tuple[float, Decoded]:
    spent, decoded = seconds(lambda: decode(sample.path, config))
    if spent > QUICK_S:
        return spent, decoded
    return statistics.median([spent, *(seconds(lambda: decode(sample.path, config))[0] for _ in range(2))]), decoded


def ratios(timings: Sequence[Timing], targets: Sequence[int], mode: str, against: str = "baseline") -> list[str]:
    """Cells ``ratio of the median times, paired: median of the files' ratios (median ms of both)``, one a target.

    The first is what a set of such files takes; in the second every file counts the same, the small ones too.
    """
    return [_cell(timings, (target, mode), against) for target in targets]


def _cell(timings: Sequence[Timing], key: tuple[int, str], against: str) -> str:
    ours = _median_ms(t.ours[key] for t in timings)
    paired = [t.ratio(key, against) for t in timings if getattr(t, against)[key]]
    if not paired:
        return f"- ({ours:.0f} ms)"
    theirs = _median_ms(getattr(t, against)[key] for t in timings)
    if len(paired) == 1:
        return f"{paired[0]:.1f}x ({ours:.0f} ms)"
    return f"{theirs / ours:.1f}x, {statistics.median(paired):.1f}x paired ({theirs:.0f} : {ours:.0f} ms)"


def _median_ms(times: Iterable[Sequence[float]]) -> float:
    return 1000 * statistics.median(statistics.median(of_file) for of_file in times if of_file)


def fidelity(timings: Iterable[Timing], targets: Sequence[int], mode: str) -> list[str]:
    """Cells ``median (worst) mean error, median (worst) SSIM``, one a target."""
    cells = []
    for target in targets:
        found = [t.errors[target, mode] for t in timings if (target, mode) in t.errors]
        if not found:
            cells.append("-")
            continue
        means, similar = [e.mean for e in found], [e.ssim for e in found]
        cells.append(
            f"{statistics.median(means):.2%} ({max(means):.2%}), {statistics.median(similar):.4f} ({min(similar):.4f})"
        )
    return cells
