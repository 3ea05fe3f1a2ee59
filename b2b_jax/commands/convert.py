"""`b2b convert`: Hugging Face folder to b2b folder and back (effects)."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from b2b_jax.commands.folders import refuse_filled, write_json
from b2b_jax.convert import is_hf_folder, open_folder, save_folder
from b2b_jax.convert.match import InitMissing
from b2b_jax.convert.writing import carried_files, new_folder
from b2b_jax.train.saved import SavedModel, load_model, read_lineage, save_model
from b2b_jax.train.writers import Reporter

HF_CONFIG = "hf_config.json"
"""Where a b2b folder keeps the config.json that it came with."""


def convert_command(
    source: str,
    target: str,
    *,
    heads: tuple[str, ...] | None,
    init_missing: InitMissing,
    existing: Literal["refuse", "replace"],
    shard_bytes: int,
    weights: Literal["safetensors", "bin"],
    reporter: Reporter,
) -> None:
    """Write the model of a folder in the other format, whole or not at all.

    Raises:
        ConvertError: if a Hugging Face folder cannot be read, or no class fits the model.
        CheckpointError: if a b2b folder holds no model.
        ConfigError: if the target holds something and may not be replaced.
    """
    refuse_filled(Path(target), source=source, existing=existing)
    if is_hf_folder(source):
        _to_b2b(source, target, heads=heads, init_missing=init_missing, reporter=reporter)
    else:
        saved = load_model(source)
        like = _hf_files(source, saved)
        save_folder(
            target,
            saved.config,
            saved.params,
            base=like.base,
            files=like.files,
            texts={"README.md": _card(source, target, saved)},
            shard_bytes=shard_bytes,
            weights=weights,
        )
    reporter.note(f"{target}: written")


def _to_b2b(
    source: str,
    target: str,
    *,
    heads: tuple[str, ...] | None,
    init_missing: InitMissing,
    reporter: Reporter,
) -> None:
    folder = open_folder(source, heads=heads, init_missing=init_missing)
    for note in folder.notes():
        reporter.note(note)
    lineage = {**read_lineage(source), "converted_from": source}
    with new_folder(target) as new:
        save_model(new, folder.config, folder.params(), meta={"lineage": lineage})
        write_json(new / HF_CONFIG, folder.values)
        for file in carried_files(source):
            shutil.copyfile(file, new / file.name)
        brief = {name: value for name, value in lineage.items() if name != "growth_plan"}
        write_json(new / "lineage.json", brief)


@dataclass(frozen=True)
class _Like:
    """What of a b2b folder goes into a Hugging Face folder beside the model."""

    base: dict[str, Any] | None
    files: tuple[Path, ...]


def _hf_files(source: str, saved: SavedModel) -> _Like:
    folder = Path(source)
    folder = folder.parent if folder.name == "checkpoints" else folder
    files = carried_files(folder)
    base = None
    if (folder / HF_CONFIG).exists():
        base = json.loads((folder / HF_CONFIG).read_text(encoding="utf-8"))
    if not files and "data" in saved.meta:
        files = carried_files(saved.meta["data"]["path"])
    return _Like(base, files)


def _card(source: str, target: str, saved: SavedModel) -> str:
    lineage = saved.meta.get("lineage", {})
    origin = lineage.get("source") or lineage.get("converted_from")
    front = f"---\nlibrary_name: transformers\n{f'base_model: {origin}' if origin else ''}".rstrip()
    text = f"{front}\ntags:\n- b2b_jax\n---\n\n# {Path(target).name}\n\n"
    text += f"Step {saved.step} of `{source}`, a model trained with b2b_jax.\n"
    if lineage.get("method"):
        text += f"It was grown from `{origin}` by {lineage['method']}.\n"
    return text
