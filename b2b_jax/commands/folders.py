"""Small files of run folders: written whole or not at all (effects)."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import yaml

from b2b_jax.models import ConfigError


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that no kill leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, readable by people."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_yaml(path: Path, value: Any) -> None:
    """Write YAML in the order of the fields."""
    write_text(path, yaml.safe_dump(value, sort_keys=False))


MODEL_FILES = ("checkpoints", "config.json", "growth_plan.json", "config.yaml")


def refuse_filled(target: Path, *, source: str, existing: Literal["refuse", "replace"]) -> None:
    """Make sure that a folder may be written, and that replacing it loses nothing but a model.

    Raises:
        ConfigError: if it holds something and may not be replaced, if it is or holds the source, or
            if what it holds is no model.
    """
    here, there = target.resolve(), Path(source).resolve()
    if here == there or here in there.parents:
        raise ConfigError(f"{target}: is or holds the source {source}; choose another folder")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if existing == "refuse":
        raise ConfigError(
            f"{target}: is not empty and holds something else; choose another folder or pass "
            "--overwrite"
        )
    if not any((target / name).exists() for name in MODEL_FILES):
        raise ConfigError(
            f"{target}: holds no model (none of {', '.join(MODEL_FILES)}), so it is not replaced; "
            "choose another folder or remove it yourself"
        )
