"""`b2b verify`: how far a grown model folder is from its source (effects: reads)."""

import json

from b2b_jax.commands.costs import report_costs
from b2b_jax.commands.sample import random_sample, text_sample, tokenizer_folder
from b2b_jax.config import raise_problems
from b2b_jax.convert import is_hf_folder
from b2b_jax.growth import GrowthPlan
from b2b_jax.train.saved import SavedModel, load_model
from b2b_jax.train.writers import Reporter

EXIT_INEXACT = 1


def verify_command(
    source: str, grown: str, *, text: str, require_exact: float | None, reporter: Reporter
) -> int:
    """Compare two model folders of any kind and say in which layer they part.

    Args:
        source: folder of the smaller model.
        grown: folder of the larger one.
        text: file of plain text; "" compares on random tokens.
        require_exact: largest difference of any output that is called exact.
        reporter: where to print.

    Returns:
        0, or 1 if ``require_exact`` is not met.
    """
    large = load_model(grown)
    small = load_source(source, large)
    _check_order(small, large, source, grown)
    plan = fitting_plan(large, small)
    sample = (
        text_sample(text, tokenizer_folder([source, grown], [small, large]), small.config)
        if text
        else random_sample(small.config)
    )
    if plan is not None:
        predicted = "exact" if plan.is_exact else "not exact: " + "; ".join(plan.why_inexact)
        reporter.note(f"the plan predicts: {predicted}")
    ends = (small.config, small.params), (large.config, large.params)
    report = report_costs(*ends, sample, plan=plan, reporter=reporter)
    reporter.note("relative error of the hidden states:")
    for line in report.describe_layers().splitlines():
        reporter.note(f"  {line}")
    norms = report.describe_norms()
    if norms:
        reporter.note("norms that add most to it, each by itself:")
    for line in norms.splitlines():
        reporter.note(f"  {line}")
    if require_exact is None:
        return 0
    met = report.max_error <= require_exact
    reporter.note(
        f"largest error of any output: {report.max_error:.2e}, "
        f"{'within' if met else 'above'} the required {require_exact:g}"
    )
    return 0 if met else EXIT_INEXACT


def _check_order(small: SavedModel, large: SavedModel, *folders: str) -> None:
    """Make sure that the second model can have been grown from the first.

    Raises:
        ConfigError: lists every size in which it is smaller.
    """
    before, after = small.config.axis_sizes(), large.config.axis_sizes()
    raise_problems(
        f"{folders[1]} cannot have been grown from {folders[0]}; the smaller model comes first",
        [
            f"{axis}: {before[axis]} in the first, {after[axis]} in the second"
            for axis in sorted(before.keys() & after.keys())
            if before[axis] > after[axis]
        ],
    )


def load_source(source: str, large: SavedModel) -> SavedModel:
    """The source, of a Hugging Face folder with the heads that were grown."""
    stored = large.meta.get("lineage", {}).get("growth_plan")
    heads = (stored or {}).get("source", {}).get("heads")
    if heads is None or not is_hf_folder(source):
        return load_model(source)
    return load_model(source, heads=tuple(heads), init_missing="head")


def fitting_plan(large: SavedModel, small: SavedModel) -> GrowthPlan | None:
    """The plan by which one became the other, if the larger folder tells and it fits."""
    stored = large.meta.get("lineage", {}).get("growth_plan")
    if stored is None:
        return None
    plan = GrowthPlan.from_json(json.dumps(stored))
    found = [(cfg.axis_sizes(), set(cfg.axis_table())) for cfg in (small.config, large.config)]
    paths = set(plan.axes)
    fits = found == [(plan.source_sizes, paths), (plan.target_sizes, paths)]
    return plan if fits else None
