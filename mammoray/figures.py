"""The report's figures, as HTML and inline SVG.

They are drawn as markup and not with a plotting library: their colours are the page's CSS variables, so that one
figure reads well in light mode, in dark mode and on paper; their text can be selected and read aloud; and the same
numbers give the same bytes whatever is installed.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from mammoray.markup import Html, defined, el, number, percent

# Interval strips, matrices and bars ------------------------------------------------------------------------------


def interval_strip(value: float | None, low: float | None, high: float | None, baseline: float | None) -> Html:
    """Draw a metric's value, interval and baseline on a line from 0, or -1 where anything is negative, to 1."""
    shown = [x for x in (value, low, high, baseline) if x is not None and math.isfinite(x)]
    left = -1.0 if any(x < 0 for x in shown) else 0.0

    def at(x: float) -> str:
        return f"{100 * (min(max(x, left), 1.0) - left) / (1.0 - left):.1f}%"

    parts = []
    if low is not None and high is not None and defined(low) and defined(high):
        width = 100 * (min(high, 1.0) - max(low, left)) / (1.0 - left)
        parts.append(el("span", class_="ci", style=f"left:{at(low)};width:{width:.1f}%"))
    if baseline is not None and defined(baseline):
        parts.append(el("span", class_="base", style=f"left:{at(baseline)}"))
    if value is not None and defined(value):
        parts.append(el("span", class_="dot", style=f"left:{at(value)}"))
    label = f"{number(value, 2)}, interval {number(low, 2)} to {number(high, 2)}, baseline {number(baseline, 2)}"
    scale = el("div", el("span", number(left, 0)), el("span", "1"), class_="scale", aria_hidden="true")
    return el("div", el("div", *parts, class_="track", role="img", aria_label=label), scale, class_="strip")


DEEP = 0.72
"""Share of a row from which white text has more contrast than black on the light theme's fill; see report.html."""


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], caption: str) -> Html:
    """Confusion matrix as a table: rows are the truth, cells hold the count and the share of their row.

    Parameters
    ----------
    counts : sequence of sequence of int
        (K, K) counts, truth by prediction.
    classes : sequence of str
        The K names.
    caption : str
        What was counted.
    """
    names = [el("th", name, scope="col") for name in classes]
    head = el(
        "thead",
        el("tr", el("td"), el("th", "predicted", scope="colgroup", colspan=len(classes), class_="axis")),
        el("tr", el("th", "truth", scope="col", class_="axis"), *names),
    )
    body = []
    for i, row in enumerate(counts):
        total = sum(row)
        heading = el("th", classes[i], el("small", f"n = {total:,}"), scope="row")
        body.append(el("tr", heading, *(_confusion_cell(n, total, i == j) for j, n in enumerate(row))))
    table_ = el("table", el("caption", caption), head, el("tbody", *body), class_="confusion")
    return el("div", table_, class_="scroll")


def _confusion_cell(count: int, total: int, hit: bool) -> Html:
    share = count / total if total else 0.0
    kind = " ".join(name for name, on in (("hit", hit), ("deep", share >= DEEP)) if on)
    return el(
        "td", el("b", f"{count:,}"), el("small", percent(count, total)), class_=kind or None, style=f"--s:{share:.3f}"
    )


def shade(index: int, classes: int) -> int:
    """Step 0 to 3 of the density colours for class ``index`` of ``classes``: the ends are always the ends."""
    return round(3 * index / max(classes - 1, 1))


def stacked_bar(counts: Mapping[str, int], label: str) -> Html:
    """One bar whose segments are the shares of the classes; narrow segments keep their colour but not their text."""
    total = sum(counts.values())
    segments = [
        el(
            "span",
            f"{name} {percent(n, total)}" if n / total >= 0.12 else name if n / total >= 0.04 else "",
            class_=f"seg k{shade(i, len(counts))}",
            style=f"width:{100 * n / total:.3f}%",
            title=f"{name}: {n:,} ({percent(n, total)})",
        )
        for i, (name, n) in enumerate(counts.items())
        if n
    ]
    described = f"{label}: " + ", ".join(f"{name} {n:,}" for name, n in counts.items())
    return el("div", *segments, class_="bar", role="img", aria_label=described)


def class_legend(classes: Sequence[str]) -> Html:
    """Which colour of :func:`stacked_bar` is which class."""
    keys = (
        el("span", el("span", class_=f"square k{shade(i, len(classes))}"), name, class_="key")
        for i, name in enumerate(classes)
    )
    return el("div", *keys, class_="legend")


# Line charts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve of a :func:`line_chart`."""

    name: str
    """What the legend says."""
    style: str
    """CSS class of its colour and dashes: l0 to l3."""
    values: tuple[float | None, ...]
    """One value per x; null is a gap."""


WIDTH, HEIGHT = 520, 290
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 24, 40


def ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``; whole numbers only if asked.

    Examples
    --------
    >>> ticks(0, 20, whole=True)
    [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / count))
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(m * power for m in factors if m * power >= span / count * 0.999)
    if whole:
        step = max(step, 1.0)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Axes:
    """Data to SVG units: a linear map of x0..x1 and y0..y1 onto the plot's area."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x0) / (self.x1 - self.x0):.1f}"

    def y(self, value: float) -> str:
        return f"{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y0) / (self.y1 - self.y0):.1f}"

    def grid(self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str) -> list[Html]:
        """Horizontal lines, the numbers of both axes, and the name of the x axis."""
        floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        # As many decimals as the step needs, the same on every tick.
        digits = max((len(f"{tick:g}".partition(".")[2]) for tick in y_ticks), default=0)
        parts = []
        for tick in y_ticks:
            parts.append(el("line", x1=LEFT, x2=right, y1=self.y(tick), y2=self.y(tick), class_="grid"))
            name = number(tick, digits)
            parts.append(el("text", name, x=LEFT - 8, y=self.y(tick), dy="0.35em", text_anchor="end"))
        parts += [el("text", f"{tick:g}", x=self.x(tick), y=floor + 17, text_anchor="middle") for tick in x_ticks]
        middle = (LEFT + right) / 2
        return [*parts, el("text", x_label, x=f"{middle:.1f}", y=HEIGHT - 5, text_anchor="middle", class_="axis")]


def _svg(parts: Iterable[Html], label: str) -> Html:
    return el("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label, class_="chart")


def line_chart(title: str, epochs: Sequence[int], lines: Sequence[Line], best: int, unit_range: bool) -> Html:
    """Values over epochs; epoch 0, the untrained network, stands hollow in a shaded band, the best epoch has a line.

    Parameters
    ----------
    title : str
        Heading of the figure.
    epochs : sequence of int
        The x values, ascending.
    lines : sequence of Line
        The curves, each with one value per epoch.
    best : int
        The epoch whose checkpoint was kept.
    unit_range : bool
        Whether the values are scores that end at 1: the axis then runs from 0, or the lowest value, to 1.
    """
    legend = [el("span", el("span", class_=f"swatch {line.style}"), line.name, class_="key") for line in lines]
    if epochs[0] == 0:
        legend.append(el("span", el("span", class_="ring"), "epoch 0: untrained", class_="key"))
    caption = el("figcaption", el("b", title), el("span", *legend, class_="legend"))
    seen = [v for line in lines for v in line.values if v is not None and math.isfinite(v)]
    if not seen:
        return el("figure", caption, el("p", "Undefined in every epoch.", class_="quiet"), class_="panel")
    axes = _chart_axes(epochs, seen, unit_range)
    marks = _epoch_marks(axes, epochs, best)
    grid = axes.grid(ticks(epochs[0], max(epochs[-1], 1), 8, whole=True), ticks(axes.y0, axes.y1), "epoch")
    curves = [part for line in lines for part in _curve(axes, epochs, line)]
    last = ", ".join(f"{line.name} {number(line.values[-1])}" for line in lines)
    label = f"{title} over {len(epochs)} epochs. Best epoch: {best}. At the end: {last}."
    return el("figure", caption, _svg([*marks, *grid, *curves], label), class_="panel")


def _chart_axes(epochs: Sequence[int], seen: Sequence[float], unit_range: bool) -> _Axes:
    low, high = min(seen), max(seen)
    margin = max(0.06 * (high - low), 0.02)
    # Where nothing is negative, the margin must not suggest that something could be.
    bottom = max(0.0, low - margin) if low >= 0 else low - margin
    y0, y1 = (min(0.0, bottom), 1.0) if unit_range else (bottom, high + margin)
    return _Axes(x0=epochs[0] - 0.5, x1=max(epochs[-1], 1) + 0.35, y0=y0, y1=y1)


def _epoch_marks(axes: _Axes, epochs: Sequence[int], best: int) -> list[Html]:
    floor = HEIGHT - BOTTOM
    marks: list[Html] = []
    if epochs[0] == 0:
        width = float(axes.x(0.5)) - LEFT
        marks.append(el("rect", x=LEFT, y=TOP, width=f"{width:.1f}", height=floor - TOP, class_="untrained"))
    if best in epochs:
        x = axes.x(best)
        anchor = "end" if float(x) > 0.8 * WIDTH else "start" if float(x) < 0.2 * WIDTH else "middle"
        marks.append(el("line", x1=x, x2=x, y1=TOP, y2=floor, class_="best"))
        marks.append(el("text", f"best: epoch {best}", x=x, y=TOP - 8, text_anchor=anchor, class_="note strong"))
    return marks


def _curve(axes: _Axes, epochs: Sequence[int], line: Line) -> list[Html]:
    path, dots, pen_up = [], [], True
    for epoch, value in zip(epochs, line.values, strict=True):
        if value is None or not math.isfinite(value):
            pen_up = True
            continue
        x, y = axes.x(epoch), axes.y(value)
        path.append(f"{'M' if pen_up else 'L'}{x} {y}")
        pen_up = False
        tip = el("title", f"{line.name}, epoch {epoch}: {number(value, 4)}")
        kind = f"{line.style} open" if epoch == 0 else line.style
        dots.append(el("circle", tip, cx=x, cy=y, r="3" if len(epochs) <= 60 else "1.5", class_=kind))
    return [el("path", d=" ".join(path), class_=line.style), *dots] if path else []


def reliability(bins: Sequence[tuple[float, float, int]], title: str) -> Html:
    """How often the network was right, against how sure it was; on the diagonal the two agree.

    Parameters
    ----------
    bins : sequence of (float, float, int)
        Mean probability of the predicted class, share that was right, and number of images, of each bin.
    title : str
        Heading of the figure.
    """
    axes = _Axes(x0=0, x1=1, y0=0, y1=1)
    steps = [0, 0.2, 0.4, 0.6, 0.8, 1]
    corners = {"x1": axes.x(0), "y1": axes.y(0), "x2": axes.x(1), "y2": axes.y(1)}
    parts = [*axes.grid(steps, steps, "probability given to the predicted class"), el("line", **corners, class_="best")]
    largest = max((n for _, _, n in bins), default=1)
    for sure, right, n in bins:
        x, y, radius = axes.x(sure), axes.y(right), 4 + 10 * math.sqrt(n / largest)
        tip = el("title", f"{n} images: mean probability {sure:.2f}, right {right:.2f}")
        parts.append(el("circle", tip, cx=x, cy=y, r=f"{radius:.1f}", class_="l0 bubble"))
        # Beside the bubble, on the side that has room.
        side = -1 if sure > 0.85 else 1
        anchor = "end" if side < 0 else "start"
        parts.append(
            el("text", f"{n}", x=f"{float(x) + side * (radius + 4):.1f}", y=y, dy="0.35em", text_anchor=anchor)
        )
    described = "; ".join(f"{n} images at {sure:.2f}: {right:.2f} right" for sure, right, n in bins)
    key = el(
        "span", el("span", el("span", class_="swatch ideal"), "as often right as sure", class_="key"), class_="legend"
    )
    return el("figure", el("figcaption", el("b", title), key), _svg(parts, f"{title}. {described}."), class_="panel")


# Images ----------------------------------------------------------------------------------------------------------

THUMBNAIL_HEIGHT = 384


def png_uri(pixels: bytes, height: int, width: int) -> str:
    """Encode a grey image as a data URI, made smaller where it is taller than ``THUMBNAIL_HEIGHT``.

    Parameters
    ----------
    pixels : bytes
        (H, W) uint8, row-major.
    height, width : int
        H and W.
    """
    image = Image.frombytes("L", (width, height), pixels)
    if height > THUMBNAIL_HEIGHT:
        image = image.resize((max(1, width * THUMBNAIL_HEIGHT // height), THUMBNAIL_HEIGHT), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def short_id(identifier: str, length: int = 14) -> str:
    """Keep the end of a long id, where ids such as DICOM UIDs differ.

    Examples
    --------
    >>> short_id("1459541791"), short_id("1.2.826.0.1.3680043.8.498.4711")
    ('1459541791', '…43.8.498.4711')
    """
    return identifier if len(identifier) <= length else "…" + identifier[-length + 1 :]
