"""The picture of a comparison: held-out loss against FLOPs, with the savings marked."""

import io
from typing import Any

import numpy as np

from b2b_jax.report.errors import ReportError
from b2b_jax.report.runs import Comparison, Run
from b2b_jax.report.savings import cost_of_reaching

# Okabe and Ito's palette, which colour-blind readers can tell apart.
# Okabe and Ito's without their yellow, which is hard to see on white; two dark ones beside them.
COLOURS = (
    *("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"),
    *("#7A1F5C", "#6B6100"),
)
SCRATCH_COLOUR, SOURCE_COLOUR = "#000000", "#999999"
LABEL_BOX = {"boxstyle": "square,pad=0.15", "facecolor": "#ffffffd9", "edgecolor": "none"}
WIDTH, HEIGHT, DPI = 9.0, 5.2, 150


def new_figure(
    height: float, *, width: float = WIDTH, dpi: int = DPI, layout: Any = "constrained"
) -> Any:
    """An empty `matplotlib.figure.Figure`, known to no global state.

    Args:
        height: in inches.
        width: in inches; a README's by default.
        dpi: pixels per inch.
        layout: matplotlib's layout engine; None places nothing by itself.

    Raises:
        ReportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportError("plots need matplotlib: pip install 'b2b_jax[plot]'") from error
    return Figure(figsize=(width, height), dpi=dpi, layout=layout)


def style_axes(axes: Any) -> None:
    """A light grid behind the data, and no frame where there is no scale."""
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png_bytes(figure: Any) -> bytes:
    """A figure as the contents of a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def comparison_figure(comparison: Comparison) -> Any:
    """Draw held-out loss against training FLOPs as a matplotlib figure.

    Args:
        comparison: runs that belong together.

    Returns:
        a `matplotlib.figure.Figure`, not shown and known to no global state.

    Raises:
        ReportError: if matplotlib is not installed.
    """
    figure = new_figure(HEIGHT)
    axes = figure.add_subplot()
    for source in comparison.sources:
        axes.plot(
            source.curve.exact,
            source.curve.loss,
            color=SOURCE_COLOUR,
            linewidth=1,
            label=source.label,
        )
    scratch = comparison.scratch
    if scratch:
        _draw_scratch(axes, scratch)
    for index, run in enumerate(comparison.grown):
        _draw_grown(axes, run, scratch, COLOURS[index % len(COLOURS)], index)
    _limit_losses(axes, comparison)
    axes.set_xlabel("training FLOPs (matrix products; the source's own cost not included)")
    axes.set_ylabel("held-out loss (nats per predicted token)")
    axes.set_xlim(left=0)
    style_axes(axes)
    axes.legend(loc="upper right", frameon=True, framealpha=0.95)
    return figure


def _draw_scratch(axes: Any, scratch: Run) -> None:
    final = float(scratch.curve.loss[-1])
    axes.plot(
        scratch.curve.exact,
        scratch.curve.loss,
        color=SCRATCH_COLOUR,
        linewidth=1.8,
        label=scratch.label,
    )
    axes.axhline(
        final,
        color=SCRATCH_COLOUR,
        linewidth=0.9,
        linestyle="--",
        label=f"scratch's final loss ({final:.3f})",
    )


def _draw_grown(axes: Any, run: Run, scratch: Run | None, colour: str, index: int) -> None:
    curve = run.curve
    axes.plot(curve.exact, curve.loss, color=colour, linewidth=1.8, label=run.label)
    axes.plot(curve.exact[0], curve.loss[0], "o", color=colour, markersize=7, clip_on=False)
    axes.annotate(
        f"right after growth: {curve.loss[0]:.2f}",
        (curve.exact[0], curve.loss[0]),
        xytext=(4, -38 - 12 * index),
        textcoords="offset points",
        color=colour,
        fontsize=9,
        bbox=LABEL_BOX,
    )
    if run.stage_one_steps:
        seen = np.isfinite(curve.sub_model_mean)
        axes.plot(
            curve.exact[seen],
            curve.sub_model_mean[seen],
            color=colour,
            linewidth=1.2,
            linestyle=":",
            label=f"{run.label}: mean of sub-models",
        )
        boundary = float(np.interp(run.stage_one_steps, curve.steps, curve.exact))
        axes.axvline(boundary, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            "stage 1 | stage 2",
            (boundary, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, -2 - 12 * index),
            textcoords="offset points",
            ha="center",
            va="top",
            color=colour,
            fontsize=9,
            bbox=LABEL_BOX,
        )
    if scratch is None:
        return
    final, total = float(scratch.curve.loss[-1]), float(scratch.curve.exact[-1])
    layers = run.model["num_hidden_layers"]
    cost = cost_of_reaching(curve, "exact", target=final, num_layers=layers)
    if cost is None:
        return
    axes.plot(cost, final, "D", color=colour, markersize=7)
    span = {"arrowstyle": "<->", "color": colour, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (cost, final), (total, final), arrowprops=span)
    axes.annotate(
        f"{100 * (1 - cost / total):.0f} % saved",
        ((cost + total) / 2, float(curve.loss[curve.exact >= cost].min(initial=final))),
        xytext=(0, -20 - 15 * index),
        textcoords="offset points",
        ha="center",
        color=colour,
        fontsize=11,
        fontweight="bold",
        bbox=LABEL_BOX,
    )


def _limit_losses(axes: Any, comparison: Comparison) -> None:
    """Leave the first fall of random models out, which would flatten everything that matters."""
    runs = [r for r in (comparison.scratch, *comparison.grown, *comparison.sources) if r]
    lowest = min(float(run.curve.loss.min()) for run in runs)
    shown = [float(run.curve.loss[0]) for run in comparison.grown]
    shown += [float(np.percentile(run.curve.loss, 80)) for run in runs]
    highest = max(shown)
    room = highest - lowest
    axes.set_ylim(lowest - 0.18 * room, highest + 0.12 * room)
