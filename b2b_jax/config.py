"""From YAML files and command-line flags to one validated `RunConfig` (effects: reads files)."""

import dataclasses
import difflib
import itertools
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml

from b2b_jax.models import ConfigError, ModelConfig, preset
from b2b_jax.train.config import RunConfig
from b2b_jax.train.saved import read_meta


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which no field is given twice: of two the first would be lost without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # before `<<` is resolved
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} stands in line {lines[key.value]} and again here",
                    problem_mark=key.start_mark,
                )
            lines[key.value] = key.start_mark.line + 1
        return node


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping and everything that it extends.

    ``extends: other.yaml`` (or a list of files), relative to the file itself, is read first; the
    file's own entries then replace or add to it, key by key.

    Raises:
        ConfigError: if a file is missing, is no YAML, or extends itself.
    """
    return _read_yaml(Path(path), ())


def _read_yaml(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in readers:
        raise ConfigError(f"{path}: extends itself, through {[str(r) for r in readers]}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found a {type(content).__name__}, expected 'field: value'")
    bases = content.pop("extends", [])
    merged: dict[str, Any] = {}
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: extends: found {bases!r}, expected a file or a list of files")
    for base in bases:
        merged = merge(merged, _read_yaml(path.parent / base, (*readers, path.resolve())))
    return merge(merged, content)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of which those above replace those below, key by key."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def build(schema: type, values: Any, *, base: Any = None, where: str = "") -> tuple[Any, list[str]]:
    """Fill a dataclass from nested YAML values.

    Args:
        schema: a dataclass type.
        values: a mapping of its fields.
        base: an instance that supplies the fields not mentioned; the defaults otherwise.
        where: path of this part, for messages.

    Returns:
        the instance, and every problem found: unknown keys with the nearest valid one, and values
        of a wrong type. The instance is only of use if there is none.
    """
    base = schema() if base is None else base
    if not isinstance(values, Mapping):
        return base, [f"{where.rstrip('.')}: found {values!r}, expected a mapping of fields"]
    hints = typing.get_type_hints(schema)
    valid = [entry.name for entry in dataclasses.fields(schema)]
    changes, problems = {}, []
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(valid)}"
            problems.append(f"{name}: unknown field; {hint}")
        elif dataclasses.is_dataclass(hints[key]):
            part = hints[key]
            changes[key], found = build(
                part,  # pyright: ignore[reportArgumentType]
                value,
                base=getattr(base, key),
                where=f"{name}.",
            )
            problems += found
        else:
            try:
                changes[key] = _convert(value, hints[key])
            except (TypeError, ValueError):
                problems.append(f"{name}: found {value!r}, expected {_type_name(hints[key])}")
    return dataclasses.replace(base, **changes), problems


def _convert(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is Literal:
        # YAML reads bare on and off as booleans.
        value = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        if value not in typing.get_args(hint):
            raise ValueError
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError
        return tuple(_convert(entry, typing.get_args(hint)[0]) for entry in value)
    if origin in (types.UnionType, typing.Union):
        return value
    if hint is float and not isinstance(value, bool):
        return float(value)  # also "1e-4", which YAML 1.1 reads as text
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError
    return value


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list of {_type_name(typing.get_args(hint)[0])}"
    return {int: "a whole number", float: "a number", str: "text"}.get(hint, str(hint))


def model_from_values(
    values: Any, *, base: ModelConfig | None = None, where: str = "model."
) -> tuple[ModelConfig, list[str]]:
    """A model config from YAML values; ``preset: NAME`` supplies what they do not mention."""
    if isinstance(values, Mapping) and "preset" in values:
        values = dict(values)
        name = values.pop("preset")
        try:
            base = preset(str(name))
        except ConfigError as error:
            return base or ModelConfig(), [f"{where}preset: {error}"]
    return build(ModelConfig, values, base=base, where=where)


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file, apply command-line flags, and check everything.

    Without a ``model`` section the model is that of ``init``.

    Args:
        path: YAML file with the differences from the defaults.
        overrides: flags such as ``--train.steps 100``.

    Raises:
        ConfigError: lists every unknown field, wrong type and impossible combination.
    """
    values = read_yaml(path)
    values |= _flag(overrides, "init")
    base, problems = RunConfig(), []
    if "model" in values:
        model, problems = model_from_values(values.pop("model"))
        base = dataclasses.replace(base, model=model)
    elif isinstance(values.get("init"), str) and values["init"]:
        model = ModelConfig.from_dict(read_meta(values["init"])["model"])
        base = dataclasses.replace(base, model=model)
    config, found = build(RunConfig, values, base=base)
    raise_problems(f"{path} cannot be run", problems + found)
    if overrides:
        config = tyro.cli(RunConfig, default=config, args=list(overrides), prog=f"b2b train {path}")
    raise_problems(f"{path} cannot be run", config.problems())
    return config


def load_target(to: str, source: ModelConfig) -> ModelConfig:
    """The config to grow to.

    Args:
        to: a preset, whose sizes are taken; fields such as
            ``hidden_size=768,num_attention_heads=24``; a preset and fields; or a YAML file with a
            ``model`` section or bare model fields. What is not stated stays as in the source.
        source: config of the model that is to be grown.

    Raises:
        ConfigError: if it cannot be read or built.
    """
    if to.endswith((".yaml", ".yml")) or Path(to).is_file():
        values = read_yaml(to)
    else:
        values = _inline_sizes(to)
    target, problems = model_from_values(values.get("model", values), base=source)
    raise_problems(f"{to} is no model", problems)
    return target.validate()


def _flag(words: Sequence[str], name: str) -> dict[str, str]:
    """The value of a flag that decides how the rest is read."""
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word == f"--{name}":
            return {name: following}
        if word.startswith(f"--{name}="):
            return {name: word.partition("=")[2]}
    return {}


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def _inline_sizes(to: str) -> dict[str, Any]:
    """Values of ``PRESET,field=value,...``; a preset gives its sizes only."""
    values: dict[str, Any] = {}
    for word in filter(None, (word.strip() for word in to.split(","))):
        name, is_field, value = word.partition("=")
        if is_field:
            values[name.strip()] = yaml.safe_load(value)
        else:
            named = preset(word)
            values |= {size: getattr(named, size) for size in SIZES}
    return values


def raise_problems(title: str, problems: Sequence[str]) -> None:
    """Raise one `ConfigError` with all problems, if there are any."""
    if problems:
        raise ConfigError(f"{title}:\n  " + "\n  ".join(problems))
