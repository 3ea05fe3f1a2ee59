"""Rendering of tables: for a README, for a terminal, for a program."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table


def render_markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a README: the first column to the left, the others to the right.

    Example:
        >>> print(render_markdown(["run", "loss"], [["a", "5.6"]]), end="")
        | run | loss |
        | --- | ---: |
        | a | 5.6 |
    """
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def render_rich(title: str, headings: Sequence[str], *, rows: Iterable[Sequence[str]]) -> Table:
    """A table for a terminal, aligned as `render_markdown` does."""
    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def render_csv(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Numbers unrounded, None as an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    return out.getvalue()
