"""Pictures and a table of what attention heads look at (bert2BERT, Fig. 10 to 13).

Shape suffixes: L layers, H heads, T tokens.
"""

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from b2b_jax.evaluate import HeadComparison
from b2b_jax.report.plot import COLOURS, new_figure

DPI = 100
WANTED_WIDTH = 1080
"""Pixels over all cells; every attention probability is a square of whole pixels."""
SMALLEST_CELL = 44
"""Pixels; a note such as "L11 H10" has to fit over it."""
LARGEST_CELL = 240
WIDE_CELL, SMALL_NOTE, LARGE_NOTE = 64, 6, 7
"""Pixels from which on notes are larger, and their sizes in points."""
LEFT, RIGHT, TOP, BOTTOM = 76, 16, 66, 56
"""Margins in pixels: layer names, nothing, title with names of heads, the text."""
GAP, NEW_GAP, NOTE = 6, 26, 26
"""Pixels between cells, between copied and new heads, and over a cell for its note."""
COLOUR_MAP = "Blues"
NEW_COLOUR, COPIED_COLOUR, FRAME_COLOUR = COLOURS[0], "#444444", "#bbbbbb"
GAMMA = 0.5
KEY = "Row: the token that looks. Column: the token that it looks at. Darker is more."
DONOR_KEY = " Over a head: its donor, and how similar the two are."
WORD_LETTER = 7
"""Pixels, more than a letter of the text below the cells takes on average."""


@dataclass(frozen=True)
class Grid:
    """Where the cells of a picture lie, in pixels from its upper left corner.

    Attributes:
        lefts: of the columns.
        tops: of the rows.
        cell: width and height of a cell.
        width: of the picture.
        height: of the picture.
    """

    lefts: tuple[int, ...]
    tops: tuple[int, ...]
    cell: int
    width: int
    height: int


def grid(rows: int, *, is_new: Sequence[bool], tokens: int) -> Grid:
    """Lay cells out so that a picture is about as wide as a page, whatever it holds.

    Args:
        rows: layers.
        is_new: for every head whether it is new; a wider gap is in front of the first new one.
        tokens: rows and columns of a cell.
    """
    share = min(WANTED_WIDTH // len(is_new) - GAP, LARGEST_CELL)
    cell = max(round(share / tokens), math.ceil(SMALLEST_CELL / tokens)) * tokens
    lefts, left = [], LEFT
    for number, new in enumerate(is_new):
        if number and new and not is_new[number - 1]:
            left += NEW_GAP
        lefts.append(left)
        left += cell + GAP
    tops = tuple(TOP + NOTE + row * (cell + GAP + NOTE) for row in range(rows))
    return Grid(tuple(lefts), tops, cell, left + RIGHT, tops[-1] + cell + BOTTOM)


def attention_figure(
    probabilities: Float[np.ndarray, "L H T T"],
    *,
    title: str,
    layers: Sequence[int],
    heads: Sequence[int],
    comparison: HeadComparison | None = None,
    words: Sequence[str] = (),
) -> Any:
    """Draw attention patterns as heat maps: layers are rows, heads are columns.

    Over every head that was copied stands how similar it is to its donor, and over a new one also
    which head of the source that is. The colours go with the square root of the probability, from
    0 to 1 in every picture.

    Args:
        probabilities: of one text, all layers and heads.
        title: what model it is.
        layers: which of the layers to draw.
        heads: which of the heads.
        comparison: of all heads with those of the source; None for the source itself.
        words: the tokens of the text.

    Returns:
        a `matplotlib.figure.Figure`.

    Raises:
        ReportError: if matplotlib is not installed.
    """
    donors = None if comparison is None else comparison.donors
    is_new = [donors is not None and bool(donors.is_new[head]) for head in heads]
    places = grid(len(layers), is_new=is_new, tokens=probabilities.shape[-1])
    figure = new_figure(places.height / DPI, width=places.width / DPI, dpi=DPI, layout=None)
    for top, layer in zip(places.tops, layers, strict=True):
        _text(figure, places, LEFT - 8, top + places.cell / 2, _row_name(layer, comparison), "row")
        for left, head, new in zip(places.lefts, heads, is_new, strict=True):
            colour = NEW_COLOUR if new else FRAME_COLOUR
            _draw_cell(
                figure, places, probabilities[layer, head], corner=(left, top), colour=colour
            )
            note = _note(layer, head, comparison, new=new)
            kind = "new note" if new else "note"
            _text(figure, places, left + places.cell / 2, top - 3, note, kind)
    for left, head, new in zip(places.lefts, heads, is_new, strict=True):
        kind = "new head" if new else "head"
        _text(figure, places, left + places.cell / 2, TOP - 4, f"H{head}", kind)
    _text(figure, places, LEFT, 20, title, "title")
    if any(is_new):
        _text(figure, places, places.lefts[is_new.index(True)], TOP - 20, "new heads", "label")
    letters = (places.width - LEFT - RIGHT) // WORD_LETTER
    shown = textwrap.shorten(" ".join(words), letters, placeholder=" ...")
    _text(figure, places, LEFT, places.height - BOTTOM + 18, shown, "words")
    key = textwrap.shorten(KEY if donors is None else KEY + DONOR_KEY, letters)
    _text(figure, places, LEFT, places.height - BOTTOM + 36, key, "words")
    return figure


def _row_name(layer: int, comparison: HeadComparison | None) -> str:
    donors = None if comparison is None else comparison.donors
    if donors is None or donors.layers[layer, 0] in (layer, -1):
        return f"L{layer}"
    return f"L{layer}\nfrom L{donors.layers[layer, 0]}"


def _note(layer: int, head: int, comparison: HeadComparison | None, *, new: bool) -> str:
    if comparison is None:
        return ""
    donors = comparison.donors
    if donors is None or not donors.is_known[layer, head]:
        return "no donor" if donors is not None else ""
    similarity = f"{comparison.to_donor[layer, head]:.2f}"
    if not new:
        return similarity
    return f"L{donors.layers[layer, head]} H{donors.heads[layer, head]}\n{similarity}"


STYLES: dict[str, dict[str, Any]] = {
    "row": {"fontsize": 9, "ha": "right", "va": "center", "color": COPIED_COLOUR},
    "note": {"ha": "center", "va": "bottom", "color": COPIED_COLOUR},
    "new note": {"ha": "center", "va": "bottom", "color": NEW_COLOUR},
    "head": {"fontsize": 9, "ha": "center", "va": "bottom", "color": COPIED_COLOUR},
    "new head": {"fontsize": 9, "ha": "center", "va": "bottom", "color": NEW_COLOUR},
    "title": {"fontsize": 12, "ha": "left", "va": "center", "color": "#000000"},
    "label": {"fontsize": 9, "ha": "left", "va": "bottom", "color": NEW_COLOUR},
    "words": {"fontsize": 8, "ha": "left", "va": "center", "color": COPIED_COLOUR},
}


def _text(figure: Any, places: Grid, x: float, y: float, text: str, style: str) -> None:
    # Not parsed: a "$" of the text would start a formula.
    style_of = {"fontsize": SMALL_NOTE if places.cell < WIDE_CELL else LARGE_NOTE} | STYLES[style]
    figure.text(x / places.width, 1 - y / places.height, text, parse_math=False, **style_of)


def _draw_cell(
    figure: Any,
    places: Grid,
    pattern: Float[np.ndarray, "T T"],
    *,
    corner: tuple[int, int],
    colour: str,
) -> None:
    left, top = corner
    size = places.cell
    axes = figure.add_axes(
        (
            left / places.width,
            1 - (top + size) / places.height,
            size / places.width,
            size / places.height,
        )
    )
    axes.imshow(pattern**GAMMA, cmap=COLOUR_MAP, vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=(), yticks=())
    for side in axes.spines.values():
        side.set(linewidth=0.6, color=colour)


def csv_table(comparison: HeadComparison) -> str:
    """One line per grown head: its donor and how similar they are, its twin, the closest head."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        "layer head group donor_layer donor_head similarity twin_similarity closest_layer "
        "closest_head closest_similarity".split()
    )
    groups, donors = comparison.groups, comparison.donors
    for place in np.ndindex(*comparison.to_donor.shape):
        known = donors is not None and bool(donors.is_known[place])
        writer.writerow(
            [
                *place,
                next(name for name, chosen in groups.items() if chosen[place]),
                donors.layers[place] if donors is not None and known else "",
                donors.heads[place] if donors is not None and known else "",
                *(
                    "" if np.isnan(found[place]) else float(found[place])
                    for found in (comparison.to_donor, comparison.to_twin)
                ),
                comparison.closest_layers[place],
                comparison.closest_heads[place],
                float(comparison.to_closest[place]),
            ]
        )
    return out.getvalue()
