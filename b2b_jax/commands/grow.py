"""`b2b grow`: make a larger model folder from a smaller one (effects)."""

import json
from pathlib import Path
from typing import Any

import jax

from b2b_jax.commands.costs import calibrated, grow_jitted, report_costs, report_step_gain
from b2b_jax.commands.folders import refuse_filled, write_json, write_text
from b2b_jax.commands.grow_hf import grow_hf_folder
from b2b_jax.commands.request import GrowRequest
from b2b_jax.commands.sample import source_sample
from b2b_jax.convert import is_hf_folder
from b2b_jax.convert.writing import new_folder
from b2b_jax.growth import GrowthPlan
from b2b_jax.models import ModelConfig
from b2b_jax.train.arrays import host_device
from b2b_jax.train.saved import SavedModel, load_model, read_meta, save_model, total_cost
from b2b_jax.train.stored import CheckpointError
from b2b_jax.train.writers import Reporter
from b2b_jax.types import Params

PLAN_FILE = "growth_plan.json"


def grow_command(request: GrowRequest, *, reporter: Reporter) -> None:
    """Grow the newest model of a folder and write another folder, whole or not at all.

    A target that already holds this very growth is left as it is.

    Raises:
        ConfigError: if the target folder holds something else and may not be replaced.
        GrowthError: lists every reason why the target model cannot be reached.
        CheckpointError, ConvertError: if the source holds no model that can be read.
        DataError: if the text to compare on cannot be read.
    """
    if is_hf_folder(request.source):
        grow_hf_folder(request, reporter=reporter)
        return
    saved = load_model(request.source)
    source = saved.config, saved.params
    sample = source_sample(saved, [request.source], text=request.text)
    plan = request.make_plan(
        saved.config, calibrate=lambda width: calibrated(source, width, sample, reporter=reporter)
    )
    lineage = _lineage(request.source, saved, plan)
    target = Path(request.target)
    if _is_done(target, lineage):
        reporter.note(f"{target}: holds this growth of {request.source} already; nothing to do")
        return
    refuse_filled(target, source=request.source, existing=request.existing)
    for line in plan.describe().splitlines():
        reporter.note(line)
    # From file to file: the larger model need not fit one accelerator.
    with jax.default_device(host_device()):
        grown = grow_jitted(saved.params, plan)
    config = ModelConfig.from_dict(plan.target)
    _write(target, config, grown, plan=plan, lineage=lineage)
    report_costs(source, (config, grown), sample, plan=plan, reporter=reporter)
    report_step_gain(plan, reporter=reporter)
    reporter.note(f"{target}: written")


def _lineage(source: str, saved: SavedModel, plan: GrowthPlan) -> dict[str, Any]:
    cost = total_cost(saved.meta)
    return {
        "source": source,
        "source_step": saved.step,
        "source_fingerprint": saved.fingerprint,
        "source_flops": cost["flops"],
        "source_seconds": cost["seconds"],
        "source_heldout_loss": saved.meta.get("progress", {}).get("heldout_loss"),
        "method": plan.method,
        "growth_plan": json.loads(plan.to_json()),
    }


def _is_done(target: Path, lineage: dict[str, Any]) -> bool:
    try:
        meta = read_meta(target)
    except CheckpointError:
        return False
    before = meta.get("lineage", {})
    was_trained = "progress" in meta
    return not was_trained and all(
        before.get(name) == lineage[name] for name in ("source_fingerprint", "growth_plan")
    )


def _write(
    target: Path, config: ModelConfig, params: Params, *, plan: GrowthPlan, lineage: dict[str, Any]
) -> None:
    with new_folder(target) as folder:
        save_model(folder, config, params, meta={"lineage": lineage})
        write_text(folder / PLAN_FILE, plan.to_json() + "\n")
        brief = {name: value for name, value in lineage.items() if name != "growth_plan"}
        write_json(folder / "lineage.json", brief)
        write_text(
            folder / "README.md",
            f"# {target.name}\n\nGrown from `{lineage['source']}` (step "
            f"{lineage['source_step']}) by b2b_jax {plan.library_version}, not trained since.\n\n"
            f"```\n{plan.describe()}\n```\n",
        )
