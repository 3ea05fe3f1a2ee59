"""Table and picture of a comparison as files (effects: files)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from b2b_jax.report.files import write_files
from b2b_jax.report.plot import comparison_figure, png_bytes
from b2b_jax.report.runs import Comparison, read_runs
from b2b_jax.report.savings import TableRow, csv_table, markdown_table, savings_table


@dataclass(frozen=True)
class Report:
    """What `write_report` found and wrote.

    Attributes:
        comparison: the runs.
        rows: the savings table.
        files: report.png, table.md and table.csv.
    """

    comparison: Comparison
    rows: tuple[TableRow, ...]
    files: tuple[Path, ...]


def write_report(paths: Sequence[str | Path], folder: str | Path) -> Report:
    """Compare the runs among some paths and write report.png, table.md and table.csv.

    Args:
        paths: run folders; what holds no run is skipped.
        folder: where to write; made if missing.

    Raises:
        ReportError: if no run can be read, some are broken, or matplotlib is missing.
    """
    comparison = read_runs(paths)
    rows = tuple(savings_table(comparison))
    files = {
        "report.png": png_bytes(comparison_figure(comparison)),
        "table.md": markdown_table(rows),
        "table.csv": csv_table(rows),
    }
    return Report(comparison, rows, write_files(folder, files))
