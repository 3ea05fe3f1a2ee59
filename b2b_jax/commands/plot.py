"""`b2b plot`: curves and the savings table of several runs (effects)."""

import os
from collections.abc import Sequence
from pathlib import Path

from b2b_jax.report import write_report
from b2b_jax.train.writers import Reporter


def plot_command(paths: Sequence[str], *, out: str, reporter: Reporter) -> None:
    """Write report.png, table.md and table.csv for some runs, and print the table.

    Args:
        paths: run folders; others among them are skipped with a note.
        out: folder to write to; empty means the folder that the runs share.
        reporter: where the table goes.
    """
    folder = Path(out or os.path.commonpath([Path(path).resolve().parent for path in paths]))
    write_report([Path(path) for path in paths], folder)
    reporter.note(f"written: {folder}")
