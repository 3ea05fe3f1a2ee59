"""Picture of a study: what each method saves, as bars."""

from typing import Any

from b2b_jax.report.plot import COLOURS, new_figure, style_axes
from b2b_jax.report.study import Study
from b2b_jax.report.study_rows import MethodRow, Spread, study_rows
from b2b_jax.report.study_table import outcome, saving_text

# Of a bar without and with the small model's cost.
LOOKS: tuple[dict[str, Any], ...] = (
    {"facecolor": COLOURS[1]},
    {"facecolor": "white", "edgecolor": COLOURS[1], "hatch": "////"},
)
SMALL, NORMAL = 9, 10
THICK = 0.36  # of a bar; two of them belong to one method


def savings_figure(study: Study) -> Any:
    """Draw the savings in FLOPs of every method, with and without the small model's cost.

    Args:
        study: methods and their runs.

    Returns:
        a `matplotlib.figure.Figure`.

    Raises:
        ReportError: if matplotlib is not installed.
    """
    rows = [row for row in study_rows(study) if not row.is_scratch]
    figure = new_figure(1.4 + 0.5 * len(rows))
    from matplotlib.patches import Patch  # behind new_figure, which says what to install

    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        _draw_method(axes, row, place)
    axes.set_yticks(range(len(rows)), [row.method.label for row in rows], fontsize=NORMAL)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xlabel("FLOPs saved until scratch's final loss (%)", fontsize=NORMAL)
    style_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=SMALL)
    left, right = axes.get_xlim()
    # Room for the words right of the bars, and for those where there are no bars at all.
    axes.set_xlim(min(left, -1), max(right, 10) + 0.17 * (max(right, 10) - left))
    words = ("training of the grown model only", "small model's cost counted")
    keys = [Patch(**look, label=label) for look, label in zip(LOOKS, words, strict=True)]
    figure.legend(handles=keys, loc="outside upper center", ncols=2, fontsize=NORMAL, frameon=False)
    return figure


def _draw_method(axes: Any, row: MethodRow, place: int) -> None:
    exact = row.costs["exact"]
    if exact.saving is None or row.missed == row.counted:
        reason = f"not reached ({row.missed} of {row.counted})" if row.missed else ""
        text = "; ".join(filter(None, [reason, outcome(row)])) or "nothing to compare with"
        axes.annotate(
            text, (0, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=SMALL
        )
        return
    values = (exact.saving, exact.saving_with_source)
    for offset, value, look in zip((-THICK / 2, THICK / 2), values, LOOKS, strict=True):
        if value is not None:
            _draw_bar(axes, row, value, height=place + offset, look=look)


def _draw_bar(axes: Any, row: MethodRow, value: Spread, *, height: float, look: dict) -> None:
    axes.barh(height, 100 * value.mean, THICK, **look)
    deviation = 100 * (value.std or 0)
    if deviation:
        axes.errorbar(100 * value.mean, height, xerr=deviation, color="black", capsize=2.5)
    # Right of the bar, or of zero: left of a negative bar it would run into the method's name.
    axes.annotate(
        saving_text(row, value),
        (max(100 * value.mean + deviation, 0), height),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
    )
