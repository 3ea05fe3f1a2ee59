"""The Python programs in the README and the documentation run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def programs():
    """Blocks that import what they use; the others are parts of programs."""
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL):
            if "import b2b_jax" in block:
                yield pytest.param(block, id=file.name)


@pytest.mark.parametrize("program", list(programs()))
def test_it_runs(program):
    exec(compile(program, "documentation", "exec"), {})


def test_there_are_programs():
    assert len(list(programs())) >= 2
