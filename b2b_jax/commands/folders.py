"""Small files of run folders: written whole or not at all (effects)."""

import json
import os
from pathlib import Path
from typing import Any

import yaml


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
