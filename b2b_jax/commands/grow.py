"""`b2b grow`: make a larger model folder from a smaller one (effects)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from b2b_jax.commands.folders import refuse_filled, write_json, write_text
from b2b_jax.commands.grow_hf import grow_hf_folder
from b2b_jax.commands.sample import heldout_sample
from b2b_jax.config import load_target
from b2b_jax.convert import is_hf_folder
from b2b_jax.convert.match import InitMissing
from b2b_jax.convert.writing import new_folder
from b2b_jax.evaluate import verify
from b2b_jax.growth import GrowthError, GrowthPlan, grow, plan_growth
from b2b_jax.growth.depth import Depth
from b2b_jax.growth.mappings import Mapping as WidthMapping
from b2b_jax.growth.plan import AkiScope, Method
from b2b_jax.models import ModelConfig
from b2b_jax.train.checkpoint import CheckpointError
from b2b_jax.train.saved import SavedModel, load_model, read_meta, save_model, total_cost
from b2b_jax.train.writers import Reporter
from b2b_jax.types import Params

PLAN_FILE = "growth_plan.json"


@dataclass(frozen=True)
class GrowRequest:
    """What the user asks `b2b grow` for.

    Attributes:
        source: folder of the model to grow: a run, a grown folder or a Hugging Face folder.
        target: folder to write, of the same kind.
        to: preset, sizes or YAML file of the target; see `load_target`. Empty with a plan.
        plan: file of a plan to replay instead; "" to make one.
        method: how parameters are made.
        mapping: what new width entries copy.
        depth: what new layers copy.
        aki_scope: what AKI takes from the layer above.
        seed: of random maps and fresh parameters.
        existing: what to do with a target that holds something else.
        heads: output heads wanted of a Hugging Face folder; None for those of its class.
        init_missing: whether heads that it lacks are made fresh.
        shard_bytes: largest size of one weight file of a Hugging Face folder.
    """

    source: str
    target: str
    to: str = ""
    plan: str = ""
    method: Method = "aki"
    mapping: WidthMapping = "cyclic"
    depth: Depth = "stack"
    aki_scope: AkiScope = "all"
    seed: int = 0
    existing: Literal["refuse", "replace"] = "refuse"
    heads: tuple[str, ...] | None = None
    init_missing: InitMissing = "nothing"
    shard_bytes: int = 5 * 10**9

    def make_plan(self, source: ModelConfig) -> GrowthPlan:
        """Plan the growth, or read the plan that is to be replayed.

        Raises:
            GrowthError: if the target cannot be reached, or the plan is for another source.
        """
        if self.plan:
            plan = GrowthPlan.from_json(Path(self.plan).read_text(encoding="utf-8"))
            if plan.source_sizes != source.axis_sizes():
                raise GrowthError(
                    f"{self.plan} grows a model of the sizes {plan.source_sizes}, but "
                    f"{self.source} has {source.axis_sizes()}"
                )
            return plan
        return plan_growth(
            source,
            load_target(self.to, source),
            method=self.method,
            mapping=self.mapping,
            depth=self.depth,
            aki_scope=self.aki_scope,
            seed=self.seed,
        )


def grow_command(request: GrowRequest, *, reporter: Reporter) -> None:
    """Grow the newest model of a folder and write another folder, whole or not at all.

    A target that already holds this very growth is left as it is.

    Raises:
        ConfigError: if the target folder holds something else and may not be replaced.
        GrowthError: lists every reason why the target model cannot be reached.
        CheckpointError, ConvertError: if the source holds no model that can be read.
    """
    if is_hf_folder(request.source):
        grow_hf_folder(
            request.source,
            request.target,
            make_plan=request.make_plan,
            existing=request.existing,
            heads=request.heads,
            init_missing=request.init_missing,
            shard_bytes=request.shard_bytes,
            reporter=reporter,
        )
        return
    saved = load_model(request.source)
    plan = request.make_plan(saved.config)
    lineage = _lineage(request.source, saved, plan)
    target = Path(request.target)
    if _is_done(target, lineage):
        reporter.note(f"{target}: holds this growth of {request.source} already; nothing to do")
        return
    refuse_filled(target, source=request.source, existing=request.existing)
    for line in plan.describe().splitlines():
        reporter.note(line)
    grown = jax.jit(grow, static_argnums=1)(saved.params, plan)
    config = ModelConfig.from_dict(plan.target)
    _write(target, config, grown, plan=plan, lineage=lineage)
    sample = heldout_sample(saved)
    report = verify(saved.config, saved.params, config, grown, sample.batch, plan=plan)
    reporter.note(f"{sample.name}: {report}")
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
