"""Pictures of a study: held-out loss against cost, and what each method saves."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from b2b_jax.report.plot import COLOURS, SCRATCH_COLOUR, SOURCE_COLOUR, new_figure, style_axes
from b2b_jax.report.savings import Unit, first_crossing
from b2b_jax.report.study import MethodResult, Study, Trial
from b2b_jax.report.study_rows import all_methods, baselines

# One style is one line of the legend: colour and marker change with each method, dashes with each
# round of colours, so that no two of 24 look alike and none is told by colour alone.
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vPX<>*ph8"
AXIS_NAMES: dict[Unit, str] = {
    "exact": "training FLOPs (matrix products; the small model's own cost not included)",
    "electra": "training FLOPs (ELECTRA's count; the small model's own cost not included)",
    "seconds": "seconds of training (same machine; the small model's own not included)",
}
SMALL, NORMAL = 9, 10


@dataclass(frozen=True)
class MeanCurve:
    """Held-out loss of a method, averaged over seeds at equal cost.

    Attributes:
        cost: ``[n]``, rising.
        loss: ``[n]``, mean over seeds.
        deviation: ``[n]``, sample standard deviation; 0 for one seed.
        growing: bool ``[n]``, where some seed's model was not yet whole.
    """

    cost: np.ndarray
    loss: np.ndarray
    deviation: np.ndarray
    growing: np.ndarray


def mean_curve(trials: tuple[Trial, ...], unit: Unit, *, num_layers: int) -> MeanCurve | None:
    """Average cost and loss at equal steps, over the steps that all runs were evaluated at.

    Finished runs are averaged; if there is none, those that diverged or are unfinished, as far as
    all of them go. Not at equal cost: of time the fastest run would end all curves.

    Args:
        trials: runs of one method.
        unit: of the cost.
        num_layers: of the whole model.

    Returns:
        None if there is no such step.
    """
    curves = [t.curve for t in trials if t.status == "done"] or [t.curve for t in trials]
    finite = [curve.steps[np.isfinite(curve.loss)] for curve in curves]
    shared = functools.reduce(np.intersect1d, finite) if finite else np.array([])
    if not shared.size:
        return None
    seen = [np.searchsorted(curve.steps, shared) for curve in curves]
    costs = np.array([getattr(c, unit)[at] for c, at in zip(curves, seen, strict=True)])
    losses = np.array([c.loss[at] for c, at in zip(curves, seen, strict=True)])
    layers = np.array([c.layers[at] for c, at in zip(curves, seen, strict=True)])
    return MeanCurve(
        cost=costs.mean(axis=0),
        loss=losses.mean(axis=0),
        deviation=losses.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(shared.size),
        growing=np.any(layers < num_layers, axis=0),
    )


def study_figure(study: Study, *, x: Unit) -> Any:
    """Draw mean held-out loss against cost: the whole study, and the end where methods part.

    Args:
        study: methods and their runs.
        x: what the horizontal axis counts.

    Returns:
        a `matplotlib.figure.Figure`.

    Raises:
        ReportError: if matplotlib is not installed.
    """
    figure = new_figure(6.4)
    full, zoom = figure.subplots(1, 2, width_ratios=(1, 1.2))
    targets = baselines(study)
    target = targets[None].target if targets else None
    means: list[MeanCurve] = []
    for index, method in enumerate(all_methods(study)):
        mean = mean_curve(method.trials, x, num_layers=study.num_layers)
        if mean is None:
            continue
        means.append(mean)
        is_scratch = method is study.scratch
        style = _style(index - (study.scratch is not None), is_scratch=is_scratch)
        _draw_method(full, mean, style={**style, "marker": ""})
        _draw_method(zoom, mean, style={**style, "markevery": _places(index, mean.cost.size)})
        full.plot(*_start(mean), **{**style, "clip_on": False, "linestyle": ""})
        full.plot([], [], **style, label=_label(method))  # for the legend: line and marker in one
        if not is_scratch:
            _mark_crossing(zoom, mean, style=style, target=target)
    for axes in (full, zoom):
        style_axes(axes)
        axes.tick_params(labelsize=SMALL)
        if target is not None:
            axes.axhline(
                target,
                color=SCRATCH_COLOUR,
                linewidth=1,
                linestyle="--",
                label=f"scratch's final loss ({target:.3f})" if axes is full else None,
            )
    for label, curve in study.sources.items():
        full.plot(getattr(curve, x), curve.loss, color=SOURCE_COLOUR, linewidth=1, label=label)
    full.set_ylabel("held-out loss (nats per predicted token)", fontsize=NORMAL)
    grows = any(mean.growing.any() for mean in means)
    full.set_title(
        "whole runs (logarithmic)" + ("\ndotted: model still growing" if grows else ""),
        fontsize=NORMAL,
    )
    zoom.set_title(
        "the end, where methods part\nlarge marker: scratch's final loss reached; band: ± std",
        fontsize=NORMAL,
    )
    _limit(full, zoom, means=means, target=target)
    figure.supxlabel(AXIS_NAMES[x], fontsize=NORMAL)
    if means:
        place = {"loc": "outside upper center", "ncols": 4, "handlelength": 3}
        figure.legend(**place, fontsize=SMALL, frameon=False)
    return figure


def _style(index: int, *, is_scratch: bool) -> dict[str, Any]:
    if is_scratch:
        return {"color": SCRATCH_COLOUR, "linewidth": 2.2, "zorder": 3}
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "linewidth": 1.6,
        "markersize": 5,
    }


def _label(method: MethodResult) -> str:
    done = any(trial.status == "done" for trial in method.trials)
    return method.label if done else f"{method.label} (no finished run)"


def _places(index: int, count: int) -> tuple[int, int]:
    """Where a line bears small markers: five times, not at its neighbours' costs."""
    apart = max(count // 5, 1)
    return (3 * index % apart, apart)


def _start(mean: MeanCurve) -> tuple[float, float]:
    return float(mean.cost[0]), float(mean.loss[0])


def _draw_method(axes: Any, mean: MeanCurve, *, style: dict[str, Any]) -> None:
    whole = ~mean.growing
    if mean.growing.any():
        # Up to the first whole evaluation, so that the two parts of the line meet.
        last = min(int(mean.growing.sum()) + 1, mean.cost.size)
        dotted = {**style, "linewidth": 1.2, "marker": "", "linestyle": (0, (1, 1.2))}
        axes.plot(mean.cost[:last], mean.loss[:last], **dotted)
    axes.plot(mean.cost[whole], mean.loss[whole], **style)
    low, high = mean.loss - mean.deviation, mean.loss + mean.deviation
    axes.fill_between(
        mean.cost[whole], low[whole], high[whole], color=style["color"], alpha=0.13, linewidth=0
    )


def _mark_crossing(
    axes: Any, mean: MeanCurve, *, style: dict[str, Any], target: float | None
) -> None:
    whole = ~mean.growing
    if target is None or not whole.any():
        return
    cost = first_crossing(mean.cost[whole], mean.loss[whole], target=target)
    if cost is not None:
        big = {"markersize": 9, "markeredgecolor": "white", "markeredgewidth": 0.8, "zorder": 4}
        axes.plot(cost, target, style["marker"], color=style["color"], **big)


def _limit(full: Any, zoom: Any, *, means: list[MeanCurve], target: float | None) -> None:
    """Ranges and scales: everything, with room for the first fall; and the part near the target."""
    if not means:
        return
    longest = max(float(mean.cost[-1]) for mean in means)
    lowest = min(float(mean.loss.min()) for mean in means)
    highest = max(float(mean.loss.max()) for mean in means)
    # Losses fall along with the logarithm of cost; runs start at zero, which a pure one lacks.
    first = [float(mean.cost[mean.cost > 0][0]) for mean in means if (mean.cost > 0).any()]
    if first:
        full.set_xscale("symlog", linthresh=max(first), linscale=0.6)
        powers = range(math.floor(math.log10(max(first))), math.floor(math.log10(longest)) + 1)
        ticks = [n * 10.0**p for p in powers for n in (1, 2, 5)]
        ticks = [0.0, *(tick for tick in ticks if max(first) <= tick <= 1.1 * longest)]
        full.set_xticks(ticks, [f"{tick:g}".replace("e+", "e") for tick in ticks])
        full.set_xticks([n * 10.0**p for p in powers for n in range(2, 10)], minor=True)
    full.set_yscale("log")
    full.set_ylim(0.98 * lowest, 1.03 * highest)
    low, high = full.get_ylim()
    step = 1 if high - low > 4 else 0.5
    losses = np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
    full.set_yticks(losses, [f"{loss:g}" for loss in losses])
    full.set_yticks([], minor=True)
    full.set_xlim(0, 1.1 * longest)
    middle = target if target is not None else float(np.median([mean.loss[-1] for mean in means]))
    room = max(middle - lowest, 0.02 * middle)
    top = middle + 2 * room
    entries = [float(mean.cost[mean.loss <= top][0]) for mean in means if (mean.loss <= top).any()]
    start = min(entries, default=0.0)
    zoom.set_xlim(max(start - 0.02 * longest, 0), longest + 0.02 * (longest - start))
    zoom.set_ylim(lowest - 0.2 * room, top)
