"""`b2b plot`: curves and the savings table of several runs (effects)."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from b2b_jax.commands.plot_comparison import is_comparison, plot_comparison
from b2b_jax.report import write_report
from b2b_jax.report.savings import rich_table
from b2b_jax.train.writers import Reporter


def plot_command(paths: Sequence[str], *, out: str, reporter: Reporter) -> None:
    """Write report.png, table.md and table.csv for some runs, and print the table.

    Args:
        paths: run folders; others among them are skipped with a note. Or the folder of a
            comparison, which has tables and pictures of its own.
        out: folder to write to; empty means the folder that the runs share.
        reporter: where notes go.
    """
    if len(paths) == 1 and is_comparison(paths[0]):
        plot_comparison(paths[0], out=out, reporter=reporter)
        return
    folder = out or os.path.commonpath([Path(path).absolute().parent for path in paths])
    report = write_report(paths, os.path.relpath(folder))
    for note in report.comparison.skipped:
        reporter.note(note)
    # Elsewhere than on a terminal rich assumes 80 columns and folds every heading.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    console.print(rich_table(report.rows))
    reporter.note("written: " + ", ".join(str(path) for path in report.files))
