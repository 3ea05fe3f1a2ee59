"""Growth from one Hugging Face folder to another, one tensor at a time (effects)."""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from b2b_jax.commands.costs import calibrated, report_costs, report_step_gain
from b2b_jax.commands.folders import refuse_filled
from b2b_jax.commands.request import GrowRequest
from b2b_jax.commands.sample import text_sample, tokenizer_folder
from b2b_jax.convert import HfFolder, open_folder
from b2b_jax.convert.files import weight_files
from b2b_jax.convert.hf import HfTensor, encode_all, layout
from b2b_jax.convert.hf_config import to_hf
from b2b_jax.convert.writing import Extras, carried_files, write_folder
from b2b_jax.growth import GrowthPlan, NormCalibration, grow_piece
from b2b_jax.models import ConfigError, ModelConfig
from b2b_jax.train.saved import SavedModel, load_model, read_lineage
from b2b_jax.train.writers import Reporter


def grow_hf_folder(request: GrowRequest, *, reporter: Reporter) -> None:
    """Read, grow and write tensor by tensor: never more than a few of them are in memory.

    Only comparing on a text, and calibrating norms on it, takes the whole models.

    Raises:
        ConvertError: if the source cannot be read.
        ConfigError: if the target folder holds something else and may not be replaced.
        GrowthError: lists every reason why the target model cannot be reached.
        DataError: if the text cannot be read.
    """
    source, target = request.source, request.target
    folder = open_folder(source, heads=request.heads, init_missing=request.init_missing)
    for note in folder.notes():
        reporter.note(note)

    def load(path: str) -> SavedModel:
        return load_model(path, heads=request.heads, init_missing=request.init_missing)

    sample = None
    if request.text:
        sample = text_sample(request.text, tokenizer_folder([source], []), folder.config)

    def calibrate(width: int) -> NormCalibration:
        if sample is None:
            raise ConfigError("--norm calibrated needs --text FILE to calibrate on")
        saved = load(source)
        return calibrated((saved.config, saved.params), width, sample, reporter=reporter)

    plan = request.make_plan(folder.config, calibrate=calibrate)
    lineage = {
        "source": source,
        "source_fingerprint": _fingerprint(folder),
        "method": plan.method,
        "growth_plan": json.loads(plan.to_json()),
    }
    before = read_lineage(target)
    if all(before.get(k) == lineage[k] for k in ("source_fingerprint", "growth_plan")):
        reporter.note(f"{target}: holds this growth of {source} already; nothing to do")
        return
    refuse_filled(Path(target), source=source, existing=request.existing)
    for line in plan.describe().splitlines():
        reporter.note(line)
    config = ModelConfig.from_dict(plan.target)
    read = folder.pieces()
    fresh = set(folder.matched.missing_heads)
    dtypes = {
        path: np.dtype(np.float32) if path in fresh else folder.dtype(path) for path in plan.axes
    }
    entries = layout(config, dtypes)

    def grown(path: str, layer: int | None) -> np.ndarray:
        return grow_piece(path, layer, read, plan=plan)

    written = _with_progress(entries, encode_all(config, entries, grown), reporter)
    write_folder(
        target,
        to_hf(config, base=folder.values),
        entries,
        written,
        extras=Extras(carried_files(source), tuple(_texts(folder, target, plan, lineage).items())),
        shard_bytes=request.shard_bytes,
    )
    reporter.close()
    if sample is not None:
        small, large = load(source), load_model(target)
        ends = (small.config, small.params), (large.config, large.params)
        report_costs(*ends, sample, plan=plan, reporter=reporter)
    report_step_gain(plan, reporter=reporter)
    hint = "" if sample else f"; compare with: b2b verify {source} {target} --text FILE"
    reporter.note(f"{target}: written{hint}")


def _with_progress(
    entries: list[HfTensor], arrays: Iterator[np.ndarray], reporter: Reporter
) -> Iterator[np.ndarray]:
    total, done, start = sum(entry.nbytes for entry in entries), 0, time.monotonic()
    for entry, array in zip(entries, arrays, strict=True):
        yield array
        done += entry.nbytes
        left = (time.monotonic() - start) * (total - done) / max(done, 1)
        reporter.update(done >> 20, total >> 20, text=f"MiB  {entry.name}", seconds_left=left)


def _fingerprint(folder: HfFolder) -> str:
    """The sha256 of the weight files, and of what was asked of them."""
    digest = hashlib.sha256(json.dumps(folder.config.to_dict(), sort_keys=True).encode())
    for file in weight_files(folder.path):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _texts(
    folder: HfFolder, target: str, plan: GrowthPlan, lineage: dict[str, Any]
) -> dict[str, str]:
    name = folder.values.get("_name_or_path") or folder.path.resolve().name
    source, large = ModelConfig.from_dict(plan.source), ModelConfig.from_dict(plan.target)
    brief = {key: value for key, value in lineage.items() if key != "growth_plan"}
    card = f"""---
base_model: {name}
library_name: transformers
tags:
- b2b_jax
- model-growth
---

# {Path(target).name}

`{name}` ({_sizes(source)}) grown to {_sizes(large)} by
b2b_jax {plan.library_version}, and not trained since.

- method: {plan.method}, width map: {plan.mapping}, norms: {plan.norm}, split: {plan.split},
  noise: {plan.noise:g}, layer order: {plan.depth}, seed: {plan.seed}
- {"computes" if plan.is_exact else "does not compute"} the source's function exactly{
        "" if plan.is_exact else ": " + "; ".join(plan.why_inexact)
    }
- `growth_plan.json` holds the whole plan; `b2b grow SOURCE OUT --plan growth_plan.json` repeats it

```
{plan.describe()}
```
"""
    return {
        "growth_plan.json": plan.to_json() + "\n",
        "lineage.json": json.dumps(brief, indent=1) + "\n",
        "README.md": card,
    }


def _sizes(cfg: ModelConfig) -> str:
    return (
        f"{cfg.num_hidden_layers} layers, width {cfg.hidden_size}, {cfg.num_attention_heads} heads"
    )
