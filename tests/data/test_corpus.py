"""The built-in corpus, on a small folder of source files."""

import sys
from pathlib import Path

import pytest

from b2b_jax.data.corpus import builtin_documents, default_roots

MODULE = '''"""Grow a list in place and give back the number of items in it.

    >>> this = doctest("and not a part of the text that is wanted here")

Too short.
"""

raise RuntimeError("documentation is read without running the file")


class Thing:
    """Hold one thing at a time and forget it when another one comes along."""

    def method(self):
        """Return the thing that is held, or the default where nothing is held.

        name    size    speed
        ======  ======  =====
        a       1       2
        """


async def later():
    """Wait for the thing to arrive and then say so in a single sentence."""
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "b.py").write_text(MODULE)
    (tmp_path / "a.py").write_text(
        '"""The first file in the order of names comes before others."""'
    )
    (tmp_path / "copy.py").write_text(
        '"""HOLD one thing at a time   and forget it when\nanother one comes along."""'
    )
    (tmp_path / "bad.py").write_text('"""This file does not parse and is left out of it all."""\n(')
    (tmp_path / "odd.py").write_bytes(
        b'# coding: latin-1\n"""The caf\xe9 is open to all that come in and sit."""'
    )
    (tmp_path / "torn.py").write_bytes(
        b'"""\xff This is no text in any encoding that was said to be."""'
    )
    for folder in ("tests", "b2b_jax", "pip"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.py").write_text(
            f'"""The folder {folder} holds nothing that should be in the corpus."""'
        )
    return tmp_path


def test_documents_are_the_docstrings_of_a_file_in_order(root):
    assert list(builtin_documents([root])) == [
        "The first file in the order of names comes before others.",
        "Grow a list in place and give back the number of items in it.\n\n"
        "Hold one thing at a time and forget it when another one comes along.\n\n"
        "Return the thing that is held, or the default where nothing is held.\n\n"
        "Wait for the thing to arrive and then say so in a single sentence.",
        "The café is open to all that come in and sit.",
    ]


def test_a_paragraph_occurs_once_in_all_roots(root):
    once = list(builtin_documents([root]))
    assert list(builtin_documents([root, root])) == once


def test_help_topics_are_read(tmp_path):
    folder = tmp_path / "pydoc_data"
    folder.mkdir()
    topic = "A statement does one thing and is written on a line of its own.\\n\\nx = 1\\n"
    (folder / "topics.py").write_text(f"topics = {{'statement': '{topic}'}}\n")
    assert list(builtin_documents([tmp_path])) == [
        "A statement does one thing and is written on a line of its own."
    ]


def test_the_standard_library_has_documentation():
    json_folder = Path(sys.modules["json"].__file__ or "").parent
    text = "\n\n".join(builtin_documents([json_folder]))
    assert "JSON (JavaScript Object Notation)" in text
    assert all(root.is_dir() for root in default_roots())
