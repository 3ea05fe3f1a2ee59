"""A study as files (effects: files)."""

from pathlib import Path

from b2b_jax.report.files import write_files
from b2b_jax.report.plot import png_bytes
from b2b_jax.report.study import Study
from b2b_jax.report.study_bars import savings_figure
from b2b_jax.report.study_plot import study_figure
from b2b_jax.report.study_table import markdown_table, methods_csv, sweep_table, trials_csv


def write_study(study: Study, folder: str | Path) -> tuple[Path, ...]:
    """Write tables and pictures of a study; if one fails, earlier files stay as they are.

    Args:
        study: methods and their runs.
        folder: where to; made if missing.

    Returns:
        the paths of table.md, table.csv, trials.csv, loss_vs_flops.png, loss_vs_time.png and
        savings.png.

    Raises:
        ReportError: if matplotlib is not installed.
    """
    tables = [part for part in (markdown_table(study), sweep_table(study)) if part]
    return write_files(
        folder,
        {
            "table.md": "\n".join(tables),
            "table.csv": methods_csv(study),
            "trials.csv": trials_csv(study),
            "loss_vs_flops.png": png_bytes(study_figure(study, x="exact")),
            "loss_vs_time.png": png_bytes(study_figure(study, x="seconds")),
            "savings.png": png_bytes(savings_figure(study)),
        },
    )
