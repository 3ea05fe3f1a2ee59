"""The rules of the package's structure, each tried on a small bad example first."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "b2b_jax"

# Imports go from a layer to lower ones, or stay within one part. Parts are the modules and
# subpackages directly below the package.
LAYERS = (
    ("types",),
    ("tree",),
    ("axes",),
    ("growth", "models", "convert", "data"),
    ("train",),
    ("evaluate", "report"),
    ("config",),
    ("compare",),
    ("__init__",),
    ("commands",),
    ("cli", "__main__"),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# Neighbours in a layer where the first may import the second.
SIDEWAYS = {("convert", "models"), ("report", "evaluate")}
# Parts that see less of the package than their layer would let them.
ONLY = {"growth": {"types", "tree", "axes"}}
FLAX_PARTS = {"models"}
# Heavy or not always installed: imported inside the function that needs them.
OPTIONAL = {
    "matplotlib",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "transformers",
    "wandb",
}
MAX_LINES = 300
BANNED_FILES = {"utils.py", "util.py", "helpers.py", "misc.py"}
# Written in two pieces, so that this file does not hold what it looks for.
BANNED_TEXT = (
    "files." + "pythonhosted",
    "pypi." + "org",
    "index" + "-url",
    "extra-" + "index",
    "find" + "-links",
)


def part_of(module: str) -> str:
    """The part that a dotted module of the package belongs to."""
    _, _, rest = module.partition(".")
    return rest.split(".")[0] or "__init__"


def imports(source: str, module: str, *, top_only: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, relative imports resolved.

    Args:
        source: text of the module.
        module: its dotted name; a package's own module ends in ``.__init__``.
        top_only: leave out imports inside functions, and those for type checkers only.
    """
    for node in _nodes(ast.parse(source), top_only=top_only):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base] if base else parents)
            # `from b2b_jax import data` imports the part `data`, not only the top.
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def _nodes(node: ast.AST, *, top_only: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if top_only:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
        yield child
        yield from _nodes(child, top_only=top_only)


def may_import(part: str, other: str) -> bool:
    """Whether a part of the package may import another one."""
    if part in ONLY:
        return other in ONLY[part]
    return LEVEL[other] < LEVEL[part] or (part, other) in SIDEWAYS


def wrong_directions(source: str, module: str) -> list[str]:
    """Imports of the package that go up, or sideways into another part of the same layer."""
    part = part_of(module)
    if part not in LEVEL:
        return [f"{module}: {part} has no layer; give it one in LAYERS"]
    found = []
    for line, name in imports(source, module):
        if name.split(".")[0] != PACKAGE:
            continue
        # What is no part is a public name of the top, as in `from b2b_jax import grow`.
        other = part_of(name) if part_of(name) in LEVEL else "__init__"
        if other != part and not may_import(part, other):
            found.append(f"{module}:{line}: {part} must not import {other} ({name})")
    return found


def misplaced_flax(source: str, module: str) -> list[str]:
    """Imports of flax outside the models."""
    return [
        f"{module}:{line}: only {', '.join(sorted(FLAX_PARTS))} may import flax"
        for line, name in imports(source, module)
        if name.split(".")[0] == "flax" and part_of(module) not in FLAX_PARTS
    ]


def optional_at_top(source: str, module: str) -> list[str]:
    """Imports of heavy or optional packages that run when the module is imported."""
    return [
        f"{module}:{line}: import {name} inside the function that needs it"
        for line, name in imports(source, module, top_only=True)
        if name.split(".")[0] in OPTIONAL
    ]


def undocumented(source: str, module: str) -> list[str]:
    """Public functions, classes and methods, and the module, that have no docstring."""
    tree = ast.parse(source)
    # An empty __init__.py says nothing that needs saying.
    found = [f"{module}:1: the module"] if tree.body and not ast.get_docstring(tree) else []

    def visit(node: ast.AST, prefix: str, *, flax: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If | ast.Try):
                visit(child, prefix, flax=flax)
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            # A flax module is described by its class; setup needs no words of its own.
            if child.name.startswith("_") or (flax and child.name == "setup"):
                continue
            overloaded = any("overload" in ast.unparse(d) for d in child.decorator_list)
            if not ast.get_docstring(child) and not overloaded:
                found.append(f"{module}:{child.lineno}: {prefix}{child.name}")
            if isinstance(child, ast.ClassDef):
                bases = {ast.unparse(base) for base in child.bases}
                visit(child, f"{prefix}{child.name}.", flax="nn.Module" in bases)

    visit(tree, "", flax=False)
    return found


def too_long(source: str, module: str) -> list[str]:
    """The file, if it has more lines than a reader keeps in mind."""
    lines = len(source.splitlines())
    return [f"{module}: {lines} lines, at most {MAX_LINES}"] if lines > MAX_LINES else []


def badly_named(path: str) -> list[str]:
    """The path, if its file is named after no subject."""
    name = path.rsplit("/", 1)[-1]
    return [f"{path}: name a file after its subject"] if name in BANNED_FILES else []


def named_servers(text: str, path: str) -> list[str]:
    """Lines that name a package server or choose one."""
    return [
        f"{path}:{number}: {banned}"
        for number, line in enumerate(text.splitlines(), start=1)
        for banned in BANNED_TEXT
        if banned in line.lower()
    ]


def modules() -> dict[str, str]:
    """Text of every module of the package, by dotted name."""
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / PACKAGE).rglob("*.py"))
    }
    assert f"{PACKAGE}.axes" in found
    assert f"{PACKAGE}.growth.__init__" in found
    return found


def repository_files() -> list[Path]:
    """Files that git tracks or would track; without git, those of the known folders."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        names = [name for name in listing.stdout.decode().split("\0") if name]
        paths = [ROOT / name for name in names]
    else:
        folders = (PACKAGE, "configs", "docs", "launch", "tests", "benchmarks", ".github", ".ci")
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
        paths += list(ROOT.glob("*"))
    return sorted(path for path in paths if path.is_file() and "__pycache__" not in path.parts)


MODULE_RULES = (wrong_directions, misplaced_flax, optional_at_top, undocumented, too_long)


@pytest.mark.parametrize("rule", MODULE_RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule):
    broken = [line for name, source in modules().items() for line in rule(source, name)]
    assert not broken, "\n".join(broken)


def test_files_are_named_after_their_subject():
    broken = [line for name in modules() for line in badly_named(name.replace(".", "/") + ".py")]
    assert not broken, "\n".join(broken)


def test_no_file_names_a_package_server():
    broken = []
    files = repository_files()
    assert ROOT / "pyproject.toml" in files
    for path in files:
        text = path.read_bytes().decode("utf-8", errors="ignore")
        broken += named_servers(text, str(path.relative_to(ROOT)))
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (wrong_directions, "b2b_jax.growth.grow", "import b2b_jax.models.config"),
        (wrong_directions, "b2b_jax.growth.grow", "from b2b_jax.train.live import merge"),
        (wrong_directions, "b2b_jax.growth.grow", "from b2b_jax import data"),
        (wrong_directions, "b2b_jax.growth.grow", "from ..convert import files"),
        (wrong_directions, "b2b_jax.growth.__init__", "from .. import train"),
        (wrong_directions, "b2b_jax.growth.grow", "def f():\n    import b2b_jax.models"),
        (wrong_directions, "b2b_jax.growth.grow", "from b2b_jax import preset"),
        (wrong_directions, "b2b_jax.types", "from b2b_jax.axes import Axes"),
        (wrong_directions, "b2b_jax.models.bert", "from b2b_jax.growth import grow"),
        (wrong_directions, "b2b_jax.data.pipeline", "from b2b_jax.models import Model"),
        (wrong_directions, "b2b_jax.data.pipeline", "import b2b_jax.train"),
        (wrong_directions, "b2b_jax.train.loop", "from b2b_jax.report.flops import step_flops"),
        (wrong_directions, "b2b_jax.train.loop", "from b2b_jax.config import RunConfig"),
        (wrong_directions, "b2b_jax.train.loop", "import b2b_jax"),
        (wrong_directions, "b2b_jax.evaluate.verify", "from b2b_jax.cli import main"),
        (wrong_directions, "b2b_jax.evaluate.verify", "from b2b_jax.report import plot"),
        (wrong_directions, "b2b_jax.novelty", "import json"),
        (misplaced_flax, "b2b_jax.train.state", "import flax.struct"),
        (misplaced_flax, "b2b_jax.growth.grow", "def f():\n    from flax import linen"),
        (optional_at_top, "b2b_jax.report.plot", "import matplotlib.pyplot as plt"),
        (optional_at_top, "b2b_jax.data.sources", "import tensorflow_datasets as tfds"),
        (optional_at_top, "b2b_jax.convert.hf", "try:\n    import torch\nexcept ImportError: 0"),
        (optional_at_top, "b2b_jax.convert.hf", "class A:\n    from transformers import AutoModel"),
        (optional_at_top, "b2b_jax.train.writers", "if 1:\n    import wandb, tensorflow"),
        (undocumented, "b2b_jax.m", '"""M."""\ndef f(): ...'),
        (undocumented, "b2b_jax.m", '"""M."""\nasync def f(): ...'),
        (undocumented, "b2b_jax.m", '"""M."""\nclass A: ...'),
        (undocumented, "b2b_jax.m", '"""M."""\nclass A:\n    """A."""\n    def f(self): ...'),
        (undocumented, "b2b_jax.m", "x = 1"),
        (too_long, "b2b_jax.m", "x = 1\n" * (MAX_LINES + 1)),
        (named_servers, "Makefile", "pip install --" + "index" + "-url https://example.invalid x"),
        (named_servers, "uv.lock", 'url = "https://Files.' + 'PythonHosted.example"'),
    ],
)
def test_a_rule_finds_what_breaks_it(rule, module, source):
    assert rule(source, module)


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (wrong_directions, "b2b_jax.growth.grow", "from b2b_jax.growth.maps import invert"),
        (wrong_directions, "b2b_jax.growth.grow", "from .maps import invert"),
        (wrong_directions, "b2b_jax.growth.grow", "import numpy\nfrom b2b_jax.tree import flatten"),
        (wrong_directions, "b2b_jax.models.bert", "from b2b_jax.axes import Axes"),
        (wrong_directions, "b2b_jax.train.step", "from b2b_jax.models import Model"),
        (wrong_directions, "b2b_jax.evaluate.verify", "from b2b_jax.growth import grow"),
        (wrong_directions, "b2b_jax.config", "from b2b_jax.data.config import DataConfig"),
        (wrong_directions, "b2b_jax.cli", "import b2b_jax.config, b2b_jax.commands.train"),
        (wrong_directions, "b2b_jax.__init__", "from b2b_jax.evaluate import verify"),
        (misplaced_flax, "b2b_jax.models.bert", "from flax import linen as nn"),
        (optional_at_top, "b2b_jax.report.plot", "def f():\n    import matplotlib"),
        (
            optional_at_top,
            "b2b_jax.convert.hf",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        ),
        (undocumented, "b2b_jax.m", ""),
        (undocumented, "b2b_jax.m", '"""M."""\ndef f():\n    """F."""\n    def inner(): ...'),
        (undocumented, "b2b_jax.m", '"""M."""\ndef _f(): ...\nclass _A:\n    def f(self): ...'),
        (too_long, "b2b_jax.m", "x = 1\n" * MAX_LINES),
        (named_servers, "README.md", "pip install b2b_jax"),
    ],
)
def test_a_rule_leaves_good_code_alone(rule, module, source):
    assert not rule(source, module)


def test_names_without_a_subject_are_found():
    assert badly_named("b2b_jax/train/utils.py")
    assert not badly_named("b2b_jax/train/loop.py")
