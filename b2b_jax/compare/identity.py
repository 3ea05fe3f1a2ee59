"""What a result depends on: settings and code, as short hashes (effects: reads the package)."""

import ast
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

# What decides the numbers of a run; reports, commands and conversion do not.
PARTS = ("growth", "models", "data", "train", "report/flops.py", "axes.py", "tree.py")
LIBRARIES = ("jax", "jaxlib", "flax", "optax")


def digest(values: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of JSON values.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache
def code_version() -> str:
    """Version of the package and hash of the code that a result depends on, libraries included.

    Comments, docstrings and layout are left out, so that only what may change a number does.
    """
    root = Path(__file__).resolve().parents[1]
    total = hashlib.sha256(str([version(name) for name in LIBRARIES]).encode())
    for part in PARTS:
        path = root / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            total.update(str(file.relative_to(root)).encode())
            total.update(_without_docstrings(file.read_text(encoding="utf-8")).encode())
    return f"{version('b2b_jax')}+{total.hexdigest()[:12]}"


def _without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [entry for entry in body if not _is_text(entry)]
            node.body = kept or [ast.Pass()]  # pyright: ignore
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
