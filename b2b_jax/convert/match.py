"""Finding every tensor of a model among those of a file, strictly (pure)."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from b2b_jax.convert.errors import ConvertError
from b2b_jax.convert.scheme import Scheme
from b2b_jax.convert.tables import IGNORED, OLD_NAMES, PREFIX, ties
from b2b_jax.models import ModelConfig
from b2b_jax.models.config import HEADS
from b2b_jax.tree import TreeDifference

Read = Callable[[str], np.ndarray]
"""Reads one tensor of a file by the name that it has there."""
InitMissing = Literal["nothing", "head"]
"""Whether absent output heads are an error or made fresh."""


@dataclass(frozen=True)
class Match:
    """Which tensor of a file is which.

    Attributes:
        cfg: the model that the file holds.
        names: name without prefix, as it is called today -> name in the file.
        ignored: names in the file that are known to be no parameters.
        left_out: names in the file that belong to heads that were not asked for.
        missing_heads: our paths that the file lacks and that are to be made fresh.
    """

    cfg: ModelConfig
    names: dict[str, str]
    ignored: tuple[str, ...]
    left_out: tuple[str, ...]
    missing_heads: tuple[str, ...]


def plain_name(name: str) -> str:
    """A tensor's name as it is called today, without the encoder's prefix.

    Example:
        >>> plain_name("bert.embeddings.LayerNorm.gamma")
        'embeddings.LayerNorm.weight'
    """
    for prefix in PREFIX.values():
        name = name.removeprefix(prefix)
    for pattern, replacement in OLD_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def match(
    found: Mapping[str, tuple[int, ...]],
    cfg: ModelConfig,
    *,
    where: str,
    heads: tuple[str, ...] | None = None,
    init_missing: InitMissing = "nothing",
) -> Match:
    """Find every tensor of a model among those of a file, strictly.

    Args:
        found: name in the file -> shape.
        cfg: what config.json says.
        where: the file, for messages.
        heads: output heads that are wanted instead of those of the config's class; tensors of other
            heads are left out.
        init_missing: whether absent heads are an error or made fresh.

    Raises:
        ConvertError: lists every missing, unexpected and misshapen tensor.
    """
    wanted = cfg if heads is None else cfg.replace(heads=heads).validate()
    plain: dict[str, str] = {}
    twice: list[str] = []
    for name in found:
        other = plain.setdefault(plain_name(name), name)
        twice += [f"{name}: the same tensor as {other}"] * (other != name)
    ignored = {p for p in plain if any(re.fullmatch(pattern, p) for pattern in IGNORED)}
    headless = heads is None and cfg.heads == ("pooler",)
    if headless and not any(name.startswith("pooler.") for name in plain):
        # The class comes with and without a pooler, and config.json does not say which.
        wanted = wanted.replace(heads=())
    scheme = Scheme(wanted)
    for copy, original in ties(wanted).items():
        if original not in plain and copy in plain:
            plain[original] = plain.pop(copy)
    expected = scheme.hf_shapes
    tied = ties(wanted)
    others = Scheme(cfg.replace(heads=HEADS[cfg.family])).hf_shapes.keys() | ties(
        cfg.replace(heads=HEADS[cfg.family])
    )
    left_out = set() if heads is None else {p for p in plain if p in others - expected.keys()}
    left_out -= tied.keys()
    head_of = {name: t.head for t in scheme.tensors for name, _ in scheme.names(t)}
    absent = expected.keys() - plain.keys()
    fresh = {name for name in absent if head_of[name]} if init_missing == "head" else set()
    problems = TreeDifference(
        missing=tuple(sorted(scheme.full_names[name] for name in absent - fresh)),
        unexpected=tuple(
            sorted(
                [
                    plain[name]
                    for name in plain.keys() - expected.keys() - tied.keys() - ignored - left_out
                ]
                + twice
            )
        ),
        wrong_shape=tuple(
            f"{plain[name]}: found {tuple(found[plain[name]])}, expected {shape}"
            for name, shape in expected.items()
            if name in plain and tuple(found[plain[name]]) != shape
        ),
    )
    if problems:
        hint = ""
        if absent and all(head_of[name] for name in absent - fresh):
            hint = "\nTo make missing heads fresh, pass --init-missing head."
        raise ConvertError(f"{where}: the tensors do not fit config.json.\n{problems}{hint}")
    return Match(
        cfg=wanted,
        names={name: plain[name] for name in (*expected, *tied) if name in plain},
        ignored=tuple(sorted(plain[name] for name in ignored)),
        left_out=tuple(sorted(plain[name] for name in left_out)),
        missing_heads=tuple(
            path for t in scheme.tensors if t.head and t.name in fresh for path in t.paths
        ),
    )


def check_ties(read: Read, matched: Match) -> None:
    """Make sure that tensors which ours hold once are copies of each other in the file.

    Raises:
        ConvertError: names those that differ; a decoder of its own is not supported.
    """
    untied = [
        f"{matched.names[copy]} differs from {matched.names[original]}"
        for copy, original in ties(matched.cfg).items()
        if copy in matched.names
        and original in matched.names
        and not np.array_equal(read(matched.names[copy]), read(matched.names[original]))
    ]
    if untied:
        raise ConvertError("an untied decoder is not supported:\n  " + "\n  ".join(untied))
