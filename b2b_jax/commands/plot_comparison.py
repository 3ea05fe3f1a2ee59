"""`b2b plot` of a comparison's folder: tables, curves and attention (effects)."""

import sys
from pathlib import Path

from rich.console import Console

from b2b_jax.commands.attention import AttentionRequest, attention_command
from b2b_jax.compare import Journal, read_study
from b2b_jax.compare.journal import FILE
from b2b_jax.convert import ConvertError
from b2b_jax.data import DataError
from b2b_jax.models import ConfigError
from b2b_jax.report import ReportError
from b2b_jax.report.study_table import rich_table
from b2b_jax.report.study_write import write_study
from b2b_jax.train.stored import CheckpointError
from b2b_jax.train.writers import Reporter

TABLES, ATTENTION = "tables", "attention"


def is_comparison(path: str | Path) -> bool:
    """Whether a folder is one that `b2b compare` wrote."""
    return (Path(path) / FILE).is_file()


def plot_comparison(path: str | Path, *, out: str, reporter: Reporter) -> None:
    """Write table.md, table.csv, the loss curves and attention/, and print the table.

    The same of every table that the comparison's config names, in tables/NAME/.

    Args:
        path: folder of the comparison.
        out: folder to write to; "" is the comparison's.
        reporter: where notes go.

    Raises:
        ReportError: if nothing has been trained yet, or something cannot be read.
    """
    root, folder = Path(path), Path(out or path)
    journal = Journal.read(root)
    study = read_study(root, journal)
    written = list(write_study(study, folder))
    for name in journal.tables:
        try:
            selected = read_study(root, journal, table=name)
        except ReportError as error:
            reporter.note(f"{name}: {error}")
            continue
        written += write_study(selected, folder / TABLES / name)
    first = root / "first_losses.md"
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    console.print(rich_table(study))
    if first.exists():
        reporter.note("held-out loss right after growth:\n" + first.read_text(encoding="utf-8"))
    _plot_attention(root, journal, folder / ATTENTION, reporter=reporter)
    reporter.note(f"made by {journal.command!r}, {journal.code}, on {journal.machine}")
    reporter.note("written: " + ", ".join(map(str, written)))


def _plot_attention(root: Path, journal: Journal, folder: Path, *, reporter: Reporter) -> None:
    """The heads of the first source and of what was grown from it by each method."""
    starts = [
        start
        for start in journal.starts
        if start.seed == journal.seeds[0] and start.mapping == "cyclic"
    ]
    drawn: set[str] = set()
    for start in starts:
        if start.source != starts[0].source or start.growth in drawn:
            continue
        drawn.add(start.growth)
        folders = (str(root / start.source), str(root / start.path))
        request = AttentionRequest(folders, out=str(folder), names=("source", start.growth))
        try:
            attention_command(request, reporter=reporter)
        except (CheckpointError, ConfigError, ConvertError, DataError) as error:
            reporter.note(f"attention of {folders[1]} is not drawn: {error}")
