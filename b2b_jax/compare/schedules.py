"""A method's own settings, and its fractions as steps of a run."""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, get_args, get_type_hints

from b2b_jax.compare.methods import Method
from b2b_jax.compare.values import fraction
from b2b_jax.growth.depth import NamedDepth

METHOD_FIELDS = tuple(entry.name for entry in dataclasses.fields(Method))


def changed_method(
    method: Method, fields: Mapping[str, Any], *, where: str
) -> tuple[Method, list[str]]:
    """A method with the fields that an entry changes.

    Args:
        method: the preset.
        fields: of an entry, others than the method's among them.
        where: path of the entry, for messages.

    Returns:
        the method, and every value that cannot be used.
    """
    changes: dict[str, Any] = {}
    problems = []
    for name in METHOD_FIELDS:
        if fields.get(name) is None:
            continue
        try:
            changes[name] = _converted(name, fields[name])
        except (TypeError, ValueError, OverflowError, ZeroDivisionError):
            problems.append(f"{where}{name}: found {fields[name]!r}, expected {_expected(name)}")
    return dataclasses.replace(method, **changes), problems


def _converted(name: str, value: Any) -> Any:
    hint = get_type_hints(Method)[name]
    if hint is Fraction:
        return fraction(value)
    if name == "stages":
        if not isinstance(value, list):
            raise TypeError(value)
        return tuple(map(fraction, value))
    if name == "depth" and isinstance(value, list):
        return tuple(map(int, value))
    choices = get_args(NamedDepth) if name == "depth" else get_args(hint)
    if choices:
        if value not in choices:
            raise ValueError(value)
        return value
    if isinstance(value, bool) or (hint is int and not isinstance(value, int)):
        raise TypeError(value)
    if hint is str and not isinstance(value, str):
        raise TypeError(value)
    return hint(value)


def _expected(name: str) -> str:
    hint = get_type_hints(Method)[name]
    if hint is Fraction:
        return "a share such as 5/40 or 0.125"
    if name == "stages":
        return "a list of shares such as [5/40, 7/40]"
    choices = get_args(NamedDepth) if name == "depth" else get_args(hint)
    if choices:
        return f"one of {list(choices)}"
    return {int: "a whole number", float: "a number", str: "text"}[hint]


def scheduled(
    method: Method, scratch_steps: int, *, where: str
) -> tuple[dict[str, Any], list[str]]:
    """The fields of a run that follow from a method.

    Args:
        method: with lengths as fractions.
        scratch_steps: of training from scratch.
        where: path of the entry, for messages.

    Returns:
        nested values of a `RunConfig`, and every fraction that is less than a step.
    """
    problems = []

    def steps(name: str, share: Fraction) -> int:
        count = round(share * scratch_steps)
        if share and not count:
            problems.append(f"{where}{name}: {share} of {scratch_steps} steps is none")
        return count

    run: dict[str, Any] = {"train": {"steps": steps("length", method.length)}}
    if method.stage_one:
        run["two_stage"] = {"steps": steps("stage_one", method.stage_one)}
    if method.progressive != "none":
        stages = [steps("stages", stage) for stage in method.stages]
        run["progressive"] = {"method": method.progressive, "stage_steps": stages}
    if method.inherit:
        run["inherit"] = {
            "steps": steps("inherit", method.inherit),
            "temperature": method.temperature,
            "top_k": method.top_k,
        }
    return run, problems
