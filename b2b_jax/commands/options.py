"""Command-line options that several commands share, and what their words mean."""

import argparse
from collections.abc import Sequence
from typing import Any


def add_hf_options(parser: argparse.ArgumentParser) -> None:
    """What the commands that read and write Hugging Face folders share."""
    parser.add_argument(
        "--heads",
        metavar="NAMES",
        help="output heads wanted of a Hugging Face folder, such as mlm or pooler,nsp "
        "(default: those of its class)",
    )
    parser.add_argument(
        "--init-missing",
        choices=("nothing", "head"),
        default="nothing",
        help="make heads fresh that the folder lacks",
    )
    parser.add_argument(
        "--shard-size", default="5GB", help="largest size of a weight file, such as 500MB or 5GB"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the target")


def layer_order(text: str) -> str | tuple[int, ...]:
    """The name of a layer order, or the order itself."""
    if not all(word.strip().isdecimal() for word in text.split(",")):
        return text  # whether there is such a name is said with everything else
    return tuple(int(word) for word in text.split(","))


def axis_rules(words: Sequence[str]) -> dict[str, Any]:
    """How axes are mapped, from words such as ``positions=interpolate`` and ``types=0,0``.

    Raises:
        ConfigError: if a word has another form.
    """
    from b2b_jax.models import ConfigError

    found = {}
    for word in words:
        axis, given, rule = word.partition("=")
        if not (axis and given and rule):
            raise ConfigError(
                f"--map: found {word!r}, expected AXIS=RULE, such as positions=interpolate, or "
                "types=0,0 for the donors of the new entries"
            )
        found[axis] = layer_order(rule)
    return found


def heads(options: argparse.Namespace) -> tuple[str, ...] | None:
    """The output heads asked for, or None for those of the class."""
    if options.heads is None:
        return None
    return tuple(name.strip() for name in options.heads.split(",") if name.strip())


def shard_bytes(text: str) -> int:
    """Bytes of a size such as 500MB.

    Raises:
        ConfigError: if it is no such size.
    """
    from b2b_jax.models import ConfigError

    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2], text[-2:].upper()
    try:
        size = int(float(number) * units[unit])
    except (KeyError, ValueError):
        size = 0
    if size <= 0:
        raise ConfigError(f"--shard-size: found {text!r}, expected something like 500MB or 5GB")
    return size
