"""FLOPs, savings and pictures of finished runs."""

from b2b_jax.report.chips import peak_flops
from b2b_jax.report.errors import ReportError
from b2b_jax.report.flops import StepCost, step_cost, step_flops
from b2b_jax.report.runs import Comparison, Run, read_runs
from b2b_jax.report.write import Report, write_report

__all__ = [
    "Comparison",
    "Report",
    "ReportError",
    "Run",
    "StepCost",
    "peak_flops",
    "read_runs",
    "step_cost",
    "step_flops",
    "write_report",
]
