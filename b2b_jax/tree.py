"""Path-wise work on nested parameter dicts."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from b2b_jax.types import FlatParams, Params


class StructureError(ValueError):
    """A parameter tree does not have the paths or the shapes that were asked for."""


def flatten(params: Mapping[str, Any]) -> FlatParams:
    """Turn a nested dict into one dict keyed by slash-joined path, in sorted order.

    Args:
        params: nested mappings; anything that is no mapping is a leaf. Keys that are numbers, as
            those of lists in `flax.nnx`, become words.

    Example:
        >>> flatten({"mlp": {"up": 1}, "bias": 2})
        {'bias': 2, 'mlp/up': 1}
    """
    flat: FlatParams = {}

    def visit(node: Mapping[Any, Any], prefix: str) -> None:
        for key in sorted(node):
            path = f"{prefix}{key}"
            if isinstance(node[key], Mapping):
                visit(node[key], f"{path}/")
            else:
                flat[path] = node[key]

    visit(params, "")
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Rebuild the nested dict that `flatten` took apart.

    Example:
        >>> unflatten({"mlp/up": 1, "bias": 2})
        {'mlp': {'up': 1}, 'bias': 2}
    """
    nested: Params = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return nested


def map_with_path(function: Callable[..., Any], tree: Mapping[str, Any], *rest: Any) -> Params:
    """Apply ``function(path, leaf, *other_leaves)`` to every leaf of nested dicts of one structure.

    Example:
        >>> map_with_path(lambda path, leaf: f"{path}={leaf}", {"a": {"b": 1}})
        {'a': {'b': 'a/b=1'}}
    """
    others = [flatten(other) for other in rest]
    return unflatten(
        {
            path: function(path, leaf, *(other[path] for other in others))
            for path, leaf in flatten(tree).items()
        }
    )


def stack_layers(params: Mapping[str, Any], pattern: str, *, to: str = "layers") -> Params:
    """Put numbered subtrees of equal structure into one whose leaves have a leading layers axis.

    Args:
        params: nested mappings, as Linen's ``params`` or `flax.nnx.to_pure_dict` give them.
        pattern: path of the subtrees with braces for the number, such as ``block_{}``.
        to: path of the stacked subtree.

    Raises:
        StructureError: if there are none, numbers are left out, or the subtrees differ.

    Example:
        >>> import numpy as np
        >>> params = {"block_0": {"bias": np.zeros(3)}, "block_1": {"bias": np.ones(3)}}
        >>> stack_layers(params, "block_{}")["layers"]["bias"].shape
        (2, 3)
    """
    if pattern.count("{}") != 1:
        raise StructureError(f"pattern: found {pattern!r}, expected one {{}} for the number")
    numbered, rest = {}, {}
    matcher = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)") + "/(.+)")
    for path, leaf in flatten(params).items():
        match = matcher.fullmatch(path)
        if match is None:
            rest[path] = leaf
        else:
            numbered.setdefault(int(match[1]), {})[match[2]] = leaf
    expected = {path: np.shape(leaf) for path, leaf in numbered.get(0, {}).items()}
    wrong = [
        f"{pattern.format(number)}: {found or 'no such subtree'}"
        for number in range(max(numbered, default=0) + 1)
        if (found := difference(numbered.get(number, {}), expected)) or number not in numbered
    ]
    if wrong:
        raise StructureError(
            f"{pattern}: expected subtrees of equal structure, numbered from 0.\n"
            + "\n".join(wrong)
        )
    taken = [path for path in rest if path == to or path.startswith(f"{to}/")]
    if taken:
        raise StructureError(f"{to}: is taken by {taken}; choose another path with to=")
    layers = [numbered[number] for number in sorted(numbered)]
    stacked = {f"{to}/{path}": jnp.stack([layer[path] for layer in layers]) for path in expected}
    return unflatten(rest | stacked)


def unstack_layers(params: Mapping[str, Any], pattern: str, *, of: str = "layers") -> Params:
    """Undo `stack_layers`.

    Example:
        >>> import numpy as np
        >>> sorted(unstack_layers({"layers": {"bias": np.ones((2, 3))}}, "block_{}"))
        ['block_0', 'block_1']
    """
    flat: FlatParams = {}
    for path, leaf in flatten(params).items():
        if path.startswith(f"{of}/"):
            for number, one in enumerate(leaf):
                flat[f"{pattern.format(number)}/{path.removeprefix(f'{of}/')}"] = one
        else:
            flat[path] = leaf
    return unflatten(flat)


@dataclass(frozen=True)
class TreeDifference:
    """How the leaves of one tree differ from what was expected; empty fields mean no difference."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        parts = [
            f"{title}:\n  " + "\n  ".join(entries)
            for title, entries in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("wrong shape", self.wrong_shape),
            )
            if entries
        ]
        return "\n".join(parts) or "no difference"


def difference(found: Mapping[str, Any], expected: Mapping[str, Iterable[int]]) -> TreeDifference:
    """Compare the leaves of a flat tree with the shapes that are expected of it.

    Args:
        found: path -> anything with a ``shape``.
        expected: path -> shape.
    """
    return TreeDifference(
        missing=tuple(sorted(expected.keys() - found.keys())),
        unexpected=tuple(sorted(found.keys() - expected.keys())),
        wrong_shape=tuple(
            f"{path}: found {tuple(found[path].shape)}, expected {tuple(expected[path])}"
            for path in sorted(found.keys() & expected.keys())
            if tuple(found[path].shape) != tuple(expected[path])
        ),
    )


def check_structure(
    params: Mapping[str, Any], expected: Mapping[str, Iterable[int]], *, where: str
) -> None:
    """Raise one `StructureError` that lists every missing, unexpected and misshapen leaf.

    Args:
        params: nested dict of arrays.
        expected: path -> shape.
        where: what the tree is, for the message.

    Raises:
        StructureError: if anything differs. Flax itself ignores unexpected leaves.
    """
    found = difference(flatten(params), expected)
    if found:
        raise StructureError(
            f"The parameters of {where} do not fit its config.\n{found}\n"
            "Pass the config that these parameters were made with."
        )
