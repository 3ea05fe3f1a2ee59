"""Turns one docstring into paragraphs of plain prose."""

from __future__ import annotations

import inspect
import re
import string

FEWEST_WORDS = 8
"""Shorter paragraphs are mostly headings, types and labels."""

LARGEST_SYMBOL_SHARE = 0.18
"""Share of bytes that are neither letter nor space; code and tables lie above it."""

_FENCE = re.compile(r"(?:```|~~~)")
_RULE = re.compile(r"""[\s=\-~^"'*#+_.:`|<>]{3,}$""")
_TABLE = re.compile(r"[|+]")
_DIRECTIVE = re.compile(r"\.\.\s+(?:\[|_|(?P<name>[\w:-]+)::\s*(?P<rest>.*))?")
_PROSE_DIRECTIVES = frozenset(
    "note warning tip hint important caution attention seealso versionadded versionchanged "
    "deprecated admonition rubric".split()
)
_FIELD = re.compile(r":\w+[^:`]*:\s*(?=\S|$)")
_ITEM = re.compile(r"(?:[-*+•]|\d{1,2}[.)]|\(\w\))\s+(?=\S)")
_ENTRY = re.compile(r"[*`]*[A-Za-z_][\w.]*`*\s*(?:\([^)]*\))?:\s+(?=\S)")
_TYPED = re.compile(r"[*\w`][\w*`, .\[\]]*\s:(?:\s|$)")
_HEADING = re.compile(r"\w[\w ]{0,30}:$")

_ROLE = re.compile(r":[\w:.+-]+:(?=`)")
_LINK = re.compile(r"`([^`<>]+?)\s*<[^`>]*>`_{0,2}")
_TARGET = re.compile(r"`[~!]")
_TICKS = re.compile(r"`+_{0,2}")
_EMPHASIS = re.compile(r"\*{1,2}(?=\S)([^*]+?)(?<=\S)\*{1,2}")

_LETTERS_AND_SPACE = (string.ascii_letters + " ").encode()
_COMMON_WORDS = frozenset(
    "the a an of to is in and for if this that be are it with or as by on from not".split()
)


def prose_paragraphs(docstring: str) -> list[str]:
    """Split a docstring into paragraphs of prose, each on one line.

    Code, doctests, tables, rules and bare parameter names are left out; reStructuredText
    and Markdown marks are taken off the words.

    Example:
        >>> prose_paragraphs('''Sort the list in place and return nothing at all.
        ...
        ...     >>> x.sort()
        ... ''')
        ['Sort the list in place and return nothing at all.']
    """
    paragraphs = []
    for lines in _blocks(inspect.cleandoc(docstring).splitlines()):
        text = _plain(" ".join(lines))
        if is_prose(text):
            paragraphs.append(text)
    return paragraphs


def is_prose(text: str) -> bool:
    """Tell whether a paragraph has enough words, mostly letters, and reads like English.

    Example:
        >>> is_prose("x[0] = f(y, z)"), is_prose("The first item of the list is kept as it was.")
        (False, True)
    """
    words = text.split()
    if len(words) < FEWEST_WORDS:
        return False
    data = text.encode("utf-8", "replace")
    symbols = len(data.translate(None, _LETTERS_AND_SPACE))
    if symbols > LARGEST_SYMBOL_SHARE * len(data):
        return False
    return not _COMMON_WORDS.isdisjoint(word.lower() for word in words)


def _plain(text: str) -> str:
    if "`" in text:
        text = _ROLE.sub("", text)
        text = _LINK.sub(r"\1", text)
        text = _TARGET.sub("`", text)
        text = _TICKS.sub("", text)
    if "*" in text:
        text = _EMPHASIS.sub(r"\1", text)
    return " ".join(text.split())


def _blocks(lines: list[str]) -> list[list[str]]:
    """Group the prose lines of a docstring; every group is one paragraph, marks stripped."""
    groups: list[list[str]] = []
    current: list[str] = []
    indent = 0  # of the line before
    skip_above: int | None = None  # leave out lines indented deeper than this
    fenced = doctest = False

    def close() -> None:
        nonlocal current
        if current:
            groups.append(current)
        current = []

    for line in lines:
        text = line.strip()
        if not text:
            close()
            doctest = False
            continue
        here = len(line) - len(line.lstrip())
        if _FENCE.match(text):
            close()
            fenced = not fenced
            continue
        if skip_above is not None and here <= skip_above:
            skip_above = None
        if fenced or doctest or skip_above is not None:
            continue
        if text.startswith(">>>"):
            close()
            doctest = True  # its output runs to the next blank line
            continue
        if _RULE.match(text):
            current = []  # the line above an underline is a heading
            continue
        if _TABLE.match(text) and not text.startswith("+ "):
            close()
            continue
        directive = _DIRECTIVE.match(text)
        if directive:
            close()
            if directive["name"] not in _PROSE_DIRECTIVES:
                skip_above = here
            indent = here
            continue
        if here < indent or (here > indent and _is_label(current)):
            close()
        text = _open_paragraph(text, here=here, close=close, current=current)
        indent = here
        if text.endswith("::"):
            text, skip_above = text[:-1], here
        if text:
            current.append(text)
    close()
    return groups


def _is_label(lines: list[str]) -> bool:
    # "ndarray" above its indented description, but not the first line of a hanging item.
    return len(lines) == 1 and len(lines[0].split()) < 4


def _open_paragraph(text, *, here, close, current) -> str:
    """Start a new paragraph where a list item or parameter starts; return the line unmarked."""
    if not current and _HEADING.match(text):
        return ""
    if _TYPED.match(text):
        close()
        return ""
    marks = [_FIELD, _ITEM, _ENTRY] if here else [_FIELD, _ITEM]
    for mark in marks:
        match = mark.match(text)
        if match and not _ROLE.match(text):
            close()
            return text[match.end() :]
    return text
