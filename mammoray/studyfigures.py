"""The figures of a search, drawn by optuna.visualization as data for plotly.js; a sentence where one cannot be drawn.

Optuna draws; here its figures get one look, whose colours read on a light and on a dark page, and what it would refuse
is told in words before. A figure stands in the page as JSON: ``study.js`` draws it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import optuna
import plotly.graph_objects as go
import plotly.io
from optuna import visualization
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale

from mammoray.markup import Html, el, join

BLUE, ORANGE, GREY = "#3b74f0", "#dd7f3c", "#9aa6b4"
_SCALE = [[0.0, "#b4bcc6"], [1.0, "#2a5fe0"]]  # Neither end vanishes on white or on the dark page.
_AXIS = 120  # Pixels that an axis of the parallel coordinates needs for its name and its numbers.
_FEW = 20  # Of so many trials the best tenth, by which importances are judged, is two.

Figure: TypeAlias = "go.Figure | str"
"""A figure, or the sentence that says why there is none."""
Target = Callable[[FrozenTrial], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """One objective of a search."""

    name: str
    """What is measured."""
    maximize: bool
    """Whether more of it is better."""
    place: int
    """Its place among a trial's values."""
    only: bool
    """Whether it is the search's only one."""

    @property
    def target(self) -> Target | None:
        """What Optuna wants where there are several."""
        return None if self.only else lambda trial: trial.values[self.place]

    @property
    def loss(self) -> Target | None:
        """The same, less being better: the importances take a target for that, whatever its direction."""
        sign = -1 if self.maximize else 1
        return None if self.only else lambda trial: sign * trial.values[self.place]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One section of the page."""

    key: str
    """Its address in the page."""
    title: str
    """Its heading."""
    words: str
    """How to read it."""
    content: Html
    """Figures, or sentences."""


def objectives(named: Sequence[Sequence[str]]) -> list[Objective]:
    """The objectives of ``[name, direction]`` pairs, in the order of a trial's values.

    Examples
    --------
    >>> [one.maximize for one in objectives([["kappa", "maximize"], ["GFLOPs", "minimize"]])]
    [True, False]
    """
    return [
        Objective(name=name, maximize=direction == "maximize", place=place, only=len(named) == 1)
        for place, (name, direction) in enumerate(named)
    ]


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials whose values are finite."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in complete if all(math.isfinite(value) for value in trial.values)]


def settings(trials: Sequence[FrozenTrial]) -> list[str]:
    """Names of the settings that a search could choose, of those its trials drew."""
    free = {
        name
        for trial in trials
        for name, distribution in trial.distributions.items()
        if not distribution.single() and name in trial.params
    }
    return sorted(free)


def _distributions(trials: Sequence[FrozenTrial], name: str) -> list[BaseDistribution]:
    return [trial.distributions[name] for trial in trials if name in trial.distributions]


def sections(study: optuna.Study, named: Sequence[Sequence[str]], best: int | None) -> list[Section]:
    """All figures of a study, in the order of the page.

    Parameters
    ----------
    study : optuna.Study
    named : sequence of [name, direction]
        The objectives; the direction is ``maximize`` or ``minimize``.
    best : int or None
        Number of the trial to bring out.
    """
    every, trials = objectives(named), finished(study)
    made = [
        _history(study, every, trials),
        _intermediate(study, every, best),
        _parallel(study, every, trials),
        _importances(study, every, trials),
        _slices(study, every, trials),
    ]
    return made if len(every) == 1 else [*made, _front(study, every, trials)]


# One section each ------------------------------------------------------------------------------------------------


def _history(study: optuna.Study, every: Sequence[Objective], trials: Sequence[FrozenTrial]) -> Section:
    def draw(one: Objective) -> Figure:
        figure = visualization.plot_optimization_history(study, target=one.target, target_name=one.name)
        figure.update_traces(selector={"mode": "markers"}, marker={"color": BLUE, "size": 8}, name="trial")
        best = {"color": ORANGE, "width": 2, "shape": "hv"}
        figure.update_traces(selector={"mode": "lines"}, line=best, name="best so far")
        # The points lie on the line.
        figure = go.Figure(figure.data[::-1], figure.layout)
        return figure.update_layout(xaxis_title="Trial", xaxis_dtick=_stride(study.trials[-1].number), legend=_legend())

    so_far = ", and the best so far" if len(every) == 1 else ""
    return Section(
        key="history",
        title="History",
        words=f"The score of each trial that finished, in the order in which they began{so_far}.",
        content=_each(every, trials, draw),
    )


def _intermediate(study: optuna.Study, every: Sequence[Objective], best: int | None) -> Section:
    def draw() -> Figure:
        trials = study.get_trials(deepcopy=False)
        if len(every) > 1:
            return "Optuna keeps no intermediate values where a search has several objectives."
        if not any(trial.intermediate_values for trial in trials):
            return "No trial has reported a value before its end."
        figure = visualization.plot_intermediate_values(study)
        states = {f"Trial{trial.number}": trial.state for trial in trials}
        figure.for_each_trace(lambda trace: _as_curve(trace, states[trace.name], f"Trial{best}"))
        figure.add_traces(_keys(figure))
        figure.update_layout(xaxis_dtick=_stride(max(max(trial.intermediate_values, default=0) for trial in trials)))
        figure.update_layout(xaxis_title="Step", yaxis_title=every[0].name, showlegend=True, legend=_legend())
        return figure

    return Section(
        key="intermediate",
        title="Intermediate values",
        words="What each trial reported while it ran. Pruned trials end early.",
        content=_shown(_tried(draw)),
    )


def _parallel(study: optuna.Study, every: Sequence[Objective], trials: Sequence[FrozenTrial]) -> Section:
    def draw(one: Objective) -> Figure:
        if not settings(trials):
            return "No setting was searched."
        figure = visualization.plot_parallel_coordinate(study, target=one.target, target_name="score")
        return _by_quality(figure, one.maximize)

    return Section(
        key="parallel",
        title="Parallel coordinates",
        words="A line is a trial that finished, the bluer the better. It meets each axis at its value there: the "
        "score, then the settings; None where the trial did not draw that setting.",
        content=_each(every, trials, draw, width=_AXIS * (2 + len(settings(trials)))),
    )


def _importances(study: optuna.Study, every: Sequence[Objective], trials: Sequence[FrozenTrial]) -> Section:
    names = settings(trials)

    def draw(one: Objective) -> Figure:
        if len(names) < 2:
            return f"{'One setting was' if names else 'No setting was'} searched: there is nothing to compare."
        if len(trials) < 2:
            return "One trial has finished: there is nothing to compare."
        figure = visualization.plot_param_importances(study, params=names, target=one.loss, target_name=one.name)
        if not any(math.isfinite(x) and x > 0 for bars in figure.data for x in bars.x):
            return "The best trials do not differ from the others in any setting."
        figure.update_traces(marker={"color": BLUE})
        figure.update_layout(xaxis_title="Importance", yaxis_title=None, yaxis_automargin=True, margin_r=48)
        return figure.update_layout(height=90 + 34 * len(names), yaxis={"ticksuffix": "  ", "showgrid": False})

    few = f" Of {len(trials)} trials this is a rough guess." if 1 < len(trials) < _FEW else ""
    return Section(
        key="importances",
        title="Importances",
        words=f"How much of being among the best tenth of the trials goes with each setting (PED-ANOVA).{few}",
        content=_each(every, trials, draw),
    )


def _slices(study: optuna.Study, every: Sequence[Objective], trials: Sequence[FrozenTrial]) -> Section:
    def draw(one: Objective, name: str) -> Figure:
        figure = visualization.plot_slice(study, [name], target=one.target, target_name=one.name)
        figure.update_traces(marker={"size": 8, "colorscale": _SCALE, "showscale": False})
        figure.update_xaxes(selector={"type": "log"}, dtick="D2", exponentformat="e")
        choices = next((d.choices for d in _distributions(trials, name) if isinstance(d, CategoricalDistribution)), ())
        if choices:  # Optuna's labels are Python's, in quotes.
            figure.update_xaxes(tickvals=[repr(one) for one in choices], ticktext=[str(one) for one in choices])
        return figure.update_layout(height=300)

    def grid(one: Objective) -> Html:
        names = settings(trials)
        if not names:
            return _sentence("No setting was searched.")
        panels = [_shown(_tried(lambda name=name: draw(one, name))) for name in names]  # type: ignore[misc]
        return el("div", *panels, class_="two")

    return Section(
        key="slices",
        title="Slices",
        words="The scores over each setting by itself. The bluer a point, the later its trial.",
        content=_for_each(every, trials, grid),
    )


def _front(study: optuna.Study, every: Sequence[Objective], trials: Sequence[FrozenTrial]) -> Section:
    def draw(pair: tuple[Objective, Objective]) -> Figure:
        if not trials:
            return _NOTHING
        figure = visualization.plot_pareto_front(
            study,
            targets=lambda trial: [trial.values[one.place] for one in pair],
            target_names=[one.name for one in pair],
        )
        # Optuna's text for the pointer would hold all attributes of a trial, whatever they say.
        figure.update_traces(text=None, hovertemplate="%{x:.4g}, %{y:.4g}<extra></extra>", showlegend=True)
        figure.update_traces(marker={"color": GREY, "size": 8, "showscale": False}, name="other trials")
        figure.data[-1].update(marker={"color": BLUE, "size": 11}, name="on the front")
        return figure.update_layout(height=420, legend=_legend())

    return Section(
        key="front",
        title="Pareto front",
        words="A trial stands on the front where no other is better in one objective and as good in the rest.",
        content=join(_shown(_tried(lambda pair=pair: draw(pair))) for pair in combinations(every, 2)),  # type: ignore[misc]
    )


# Their look ------------------------------------------------------------------------------------------------------


def _stride(last: int) -> int:
    """Whole steps between the ticks of an axis of numbers from 0 to ``last``.

    Examples
    --------
    >>> _stride(5), _stride(24), _stride(990)
    (1, 2, 100)
    """
    steps = (digit * scale for scale in (1, 10, 100, 1_000, 10_000) for digit in (1, 2, 5))
    return next((step for step in steps if last <= 12 * step), 100_000)


def _legend() -> dict[str, Any]:
    return {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": None}


def _as_curve(trace: Any, state: TrialState, best: str) -> None:
    """Colour a trial's curve by how the trial ended."""
    strong, pruned = trace.name == best, state == TrialState.PRUNED
    colour = BLUE if strong else ORANGE if pruned else GREY
    line = {"color": colour, "width": 3.5 if strong else 1.5, "dash": "dot" if pruned else "solid"}
    trace.update(line=line, marker={"color": colour, "size": 8 if strong else 5}, showlegend=False)
    trace.update(hovertemplate=f"{trace.name.replace('Trial', 'Trial ')}: %{{y:.4g}} at %{{x}}<extra></extra>")


def _keys(figure: go.Figure) -> list[go.Scatter]:
    """Entries of a legend for the kinds of curve in a figure."""
    names = {(GREY, "solid"): "other trials", (ORANGE, "dot"): "pruned", (BLUE, "solid"): "best trial"}
    found = {(trace.line.color, trace.line.dash): trace.line for trace in figure.data}
    return [
        go.Scatter(x=[None], y=[None], mode="lines", line=found[kind], name=name)
        for kind, name in names.items()
        if kind in found
    ]


def _by_quality(figure: go.Figure, maximize: bool) -> go.Figure:
    """Colour lines by their place on the first axis, the objective's, and draw the best on top."""

    def quality(trace: Any) -> float:
        return float(trace.y[0] if maximize else 1 - trace.y[0])

    lines = sorted((trace for trace in figure.data if trace.mode == "lines" and trace.y[0] is not None), key=quality)
    for trace in lines:
        trace.update(line={"color": sample_colorscale(_SCALE, [quality(trace)])[0], "width": 2}, opacity=0.8)
    rest = [trace for trace in figure.data if trace.mode != "lines"]
    for trace in rest:
        trace.marker.update(colorscale=_SCALE, reversescale=not maximize)
        trace.marker.colorbar.update(title=None, thickness=12, outlinewidth=0)
    ordered = go.Figure([*lines, *rest], figure.layout)
    return ordered.update_layout(height=460, margin_l=56, xaxis_side="top", margin_t=64, margin_b=16)


# From figure to page ---------------------------------------------------------------------------------------------

_NOTHING = "No trial has finished with a score."


def _each(
    every: Sequence[Objective], trials: Sequence[FrozenTrial], draw: Callable[[Objective], Figure], width: int = 0
) -> Html:
    return _for_each(every, trials, lambda one: _shown(_tried(lambda: draw(one)), width))


def _for_each(every: Sequence[Objective], trials: Sequence[FrozenTrial], show: Callable[[Objective], Html]) -> Html:
    """Show a figure for each objective, under its name where there are several."""
    if not trials:
        return _sentence(_NOTHING)
    if len(every) == 1:
        return show(every[0])
    return join(join([el("h3", one.name), show(one)]) for one in every)


def _tried(draw: Callable[[], Figure]) -> Figure:
    try:
        with warnings.catch_warnings():
            # That importances are of low values: Objective.loss is made for that.
            warnings.simplefilter("ignore")
            return draw()
    except Exception as error:  # Optuna's figures refuse odd studies with errors of any class; the page is worth more.
        return f"Optuna could not draw it ({type(error).__name__}: {error})."


def _shown(figure: Figure, width: int = 0) -> Html:
    """A panel with a figure, as JSON that no browser takes for a script."""
    if isinstance(figure, str):
        return _sentence(figure)
    figure.update_layout(title=None, template=None, autosize=True, width=None)
    height = figure.layout.height or 380
    # plotly writes <, > and / as escapes, so that no value can end the element.
    data = el("script", Html(plotly.io.to_json(figure, validate=False, engine="json")), type="application/json")
    plot = el("div", data, class_="plot", style=f"height:{height}px;min-width:{width}px")
    return el("div", el("div", plot, class_="scroll"), class_="panel")


def _sentence(text: str) -> Html:
    return el("p", text, class_="quiet")
