"""`b2b grow`: make a larger model folder from a smaller one (effects)."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from b2b_jax.commands.folders import write_json, write_text
from b2b_jax.config import load_target
from b2b_jax.data import DataError, heldout_batches, load_prepared, mask_tokens
from b2b_jax.evaluate import verify
from b2b_jax.evaluate.verify import IGNORED_LABEL
from b2b_jax.growth import GrowthPlan, grow, plan_growth
from b2b_jax.growth.depth import Depth
from b2b_jax.growth.maps import Mapping as WidthMapping
from b2b_jax.growth.plan import AkiScope, Method
from b2b_jax.models import ConfigError, ModelConfig
from b2b_jax.train.checkpoint import CheckpointError, SavedModel, load_model, read_meta, save_model
from b2b_jax.train.step import HELDOUT_SEED
from b2b_jax.train.writers import Reporter
from b2b_jax.types import Params

PLAN_FILE = "growth_plan.json"


def grow_command(
    source: str,
    target: str,
    *,
    to: str,
    method: Method,
    mapping: WidthMapping,
    depth: Depth,
    aki_scope: AkiScope,
    seed: int,
    existing: Literal["refuse", "replace"],
    reporter: Reporter,
) -> None:
    """Grow the newest model of ``source`` and write it to ``target``, whole or not at all.

    A target that already holds this very growth is left as it is.

    Raises:
        ConfigError: if the target folder holds something else and may not be replaced.
        GrowthError: lists every reason why the target model cannot be reached.
        CheckpointError: if the source holds no model.
    """
    saved = load_model(source)
    plan = plan_growth(
        saved.config,
        load_target(to, saved.config),
        method=method,
        mapping=mapping,
        depth=depth,
        aki_scope=aki_scope,
        seed=seed,
    )
    lineage = _lineage(source, saved, plan)
    if _is_done(Path(target), lineage):
        reporter.note(f"{target}: holds this growth of {source} already; nothing to do")
        return
    if existing == "refuse" and Path(target).exists() and any(Path(target).iterdir()):
        raise ConfigError(
            f"{target}: is not empty and holds something else; choose another folder or pass "
            "--overwrite"
        )
    for line in plan.describe().splitlines():
        reporter.note(line)
    grown = jax.jit(grow, static_argnums=1)(saved.params, plan)
    config = ModelConfig.from_dict(plan.target)
    _write(Path(target), config, grown, plan=plan, lineage=lineage)
    text, batch = _sample(saved)
    report = verify(saved.config, saved.params, config, grown, batch)
    reporter.note(f"{text}: {report}")
    reporter.note(f"{target}: written")


def _lineage(source: str, saved: SavedModel, plan: GrowthPlan) -> dict[str, Any]:
    progress = saved.meta.get("progress", {})
    return {
        "source": source,
        "source_step": saved.step,
        "source_fingerprint": saved.fingerprint,
        "source_flops": progress.get("flops"),
        "source_seconds": progress.get("seconds"),
        "source_heldout_loss": progress.get("heldout_loss"),
        "method": plan.method,
        "growth_plan": json.loads(plan.to_json()),
    }


def _is_done(target: Path, lineage: dict[str, Any]) -> bool:
    try:
        before = read_meta(target)["lineage"]
    except (CheckpointError, KeyError):
        return False
    return all(before[name] == lineage[name] for name in ("source_fingerprint", "growth_plan"))


def _write(
    target: Path, config: ModelConfig, params: Params, *, plan: GrowthPlan, lineage: dict[str, Any]
) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_model(temporary, config, params, meta={"lineage": lineage})
    write_text(temporary / PLAN_FILE, plan.to_json() + "\n")
    write_json(temporary / "lineage.json", {k: v for k, v in lineage.items() if k != "growth_plan"})
    write_text(
        temporary / "README.md",
        f"# {target.name}\n\nGrown from `{lineage['source']}` (step {lineage['source_step']}) by "
        f"b2b_jax {plan.library_version}, not trained since.\n\n```\n{plan.describe()}\n```\n",
    )
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def _sample(saved: SavedModel) -> tuple[str, dict[str, Any]]:
    """Tokens to compare on: the source's held-out text where it lies prepared, else random ids."""
    run = saved.meta.get("config")
    try:
        if run is not None:
            prepared = load_prepared(saved.meta["data"]["path"])
            length = run["train"]["sequence_length"]
            batch = next(
                iter(
                    heldout_batches(
                        prepared,
                        sequence_length=length,
                        layout=saved.config.family,
                        batch_size=16,
                        max_batches=1,
                    )
                )
            )
            ids = jnp.asarray(batch["input_ids"])
            if saved.config.family == "gpt2":
                return "held-out text", {"input_ids": ids}
            masked = mask_tokens(
                jax.random.key(HELDOUT_SEED),
                ids,
                num_masked=run["train"]["masked_positions"],
                tokenizer=prepared.tokenizer,
            )
            rows = np.arange(len(ids))[:, None]
            labels = (
                jnp.full(ids.shape, IGNORED_LABEL)
                .at[rows, masked.positions]
                .set(jnp.where(masked.weights > 0, masked.labels, IGNORED_LABEL))
            )
            return "held-out text", {"input_ids": masked.input_ids, "labels": labels}
    except (DataError, KeyError, OSError):
        pass  # the text is gone; what the growth cost can still be seen on random ids
    rng = np.random.default_rng(0)
    length = min(64, saved.config.max_position_embeddings)
    return "random tokens", {"input_ids": rng.integers(saved.config.vocab_size, size=(8, length))}
