"""The built-in corpus: English documentation of the installed Python packages (effects: reads).

Docstrings and help topics are read from source files without importing any of them.
"""

import ast
import gc
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

SKIPPED_FOLDERS = {
    "__pycache__",
    "b2b_jax",
    "idlelib",
    "lib2to3",
    "pip",
    "setuptools",
    "site-packages",
    "test",
    "testing",
    "tests",
}
MIN_WORDS = 8
MIN_LETTERS = 0.7
NOISE = re.compile(r"^\s*(>>>|\.\.\.|[-=~^+|#*]{3,}|\.\. |:\w+|@)")


def default_roots() -> list[Path]:
    """The standard library and the installed packages of this interpreter."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[name]) for name in ("stdlib", "purelib", "platlib")))


def builtin_documents(roots: Iterable[Path] | None = None) -> Iterator[str]:
    """One document per source file: its paragraphs of prose, separated by blank lines.

    The order is that of the sorted file names. A paragraph that has been seen before, in any file,
    is left out.

    Args:
        roots: folders of Python source; those of this interpreter by default.
    """
    seen: set[str] = set()
    for root in default_roots() if roots is None else roots:
        for path in _source_files(root):
            paragraphs = []
            for docstring in _docstrings(path):
                for paragraph in prose(docstring):
                    key = " ".join(paragraph.lower().split())
                    if key not in seen:
                        seen.add(key)
                        paragraphs.append(paragraph)
            if paragraphs:
                yield "\n\n".join(paragraphs)


def _source_files(root: Path) -> list[Path]:
    found = []
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not SKIPPED_FOLDERS.intersection(folders) and not path.name.startswith("test_"):
            found.append(path)
    return found


def _parse(path: Path) -> ast.Module | None:
    # A tree is millions of objects without cycles: collecting amid them costs a third of the time
    # and frees nothing. Invalid escapes in other people's code are not our user's to hear about.
    collecting = gc.isenabled()
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source and path.parent.name != "pydoc_data":
            return None  # one-line docstrings alone are not worth a parse
        gc.disable()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return None  # not every file of an installation is valid Python of this version
    finally:
        if collecting:
            gc.enable()


def _docstrings(path: Path) -> Iterator[str]:
    tree = _parse(path)
    if tree is None:
        return
    if path.parent.name == "pydoc_data":
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                for value in node.values:
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield value.value
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    # A walk over statements only: expressions hold no docstrings and are most of the tree.
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, documented):
            text = ast.get_docstring(node)
            if text:
                yield text
        body = getattr(node, "body", None)
        if isinstance(body, list):
            nodes.extend(reversed(body))


def prose(text: str) -> Iterator[str]:
    r"""Paragraphs of running English in a docstring, each on one line.

    Example:
        >>> list(prose("Return the sum of all the numbers\nthat are in the list.\n\n>>> f(1)"))
        ['Return the sum of all the numbers that are in the list.']
    """
    for block in re.split(r"\n\s*\n", textwrap.dedent(text)):
        lines = [line.strip() for line in block.splitlines()]
        if any(NOISE.match(line) for line in lines):
            continue
        paragraph = " ".join(" ".join(lines).replace("`", "").split())
        letters = sum(c.isalpha() or c == " " for c in paragraph)
        words = re.findall(r"[A-Za-z]{2,}", paragraph)
        if len(words) >= MIN_WORDS and letters >= MIN_LETTERS * len(paragraph):
            yield paragraph
