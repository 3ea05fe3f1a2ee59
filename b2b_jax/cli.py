"""The command line: ``b2b prepare | train | grow | plot``. Errors end in a message, not a trace."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import get_args

EXIT_ERROR = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words after ``b2b``; those of the process by default.

    Returns:
        0 done, 1 an error that the message explains, 2 wrong usage, 75 stopped by SIGTERM with
        everything saved, 130 stopped by Ctrl-C with everything saved.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("train", "prepare"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    options.overrides = rest
    # Nothing of JAX is imported before the words are known to make sense.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return _guarded(lambda: options.run(options))


def _guarded(command: Callable[[], int]) -> int:
    from b2b_jax.axes import AxisError
    from b2b_jax.data import DataError
    from b2b_jax.growth import GrowthError
    from b2b_jax.models import ConfigError
    from b2b_jax.report import ReportError
    from b2b_jax.train.checkpoint import CheckpointError
    from b2b_jax.train.meter import NonFiniteLoss
    from b2b_jax.train.sharding import ShardingError
    from b2b_jax.train.signals import EXIT_INTERRUPTED
    from b2b_jax.tree import StructureError

    expected = (
        AxisError,
        CheckpointError,
        ConfigError,
        DataError,
        GrowthError,
        NonFiniteLoss,
        ReportError,
        ShardingError,
        StructureError,
        OSError,
    )
    try:
        return command()
    except expected as error:
        print(f"b2b: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("b2b: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    from b2b_jax.growth.depth import Depth
    from b2b_jax.growth.maps import Mapping
    from b2b_jax.growth.plan import AkiScope, Method

    parser = argparse.ArgumentParser(
        prog="b2b",
        description="Grow a trained transformer into a larger one and pre-train it in two stages.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="pre-train a model; repeat the command to continue",
        description="Pre-train a model. Any field of the configuration can be given as a flag, "
        "for example --train.steps 100; 'b2b train CONFIG --help' lists them.",
        add_help=False,
    )
    train.add_argument("config", help="YAML file with the differences from the defaults")
    train.set_defaults(run=_train)

    prepare = commands.add_parser(
        "prepare", help="tokenize the text of a configuration once", add_help=False
    )
    prepare.add_argument("config", help="YAML file of a run")
    prepare.set_defaults(run=_prepare)

    grow = commands.add_parser("grow", help="make a larger model from a trained one")
    grow.add_argument("source", help="folder of a trained model")
    grow.add_argument("target", help="folder to write the grown model to")
    grow.add_argument("--to", required=True, help="YAML file or preset with the target's sizes")
    for name, choices, default, text in (
        ("--method", Method, "aki", "how parameters are made"),
        ("--mapping", Mapping, "cyclic", "what new width entries copy"),
        ("--depth", Depth, "stack", "what new layers copy"),
        ("--aki-scope", AkiScope, "all", "what AKI takes from the layer above"),
    ):
        grow.add_argument(name, choices=get_args(choices), default=default, help=text)
    grow.add_argument("--seed", type=int, default=0, help="of random maps and fresh parameters")
    grow.add_argument("--overwrite", action="store_true", help="replace what is in the target")
    grow.set_defaults(run=_grow)

    plot = commands.add_parser("plot", help="curves and savings of several runs")
    plot.add_argument("paths", nargs="+", help="run folders")
    plot.add_argument("--out", default="", help="folder to write to (default: the runs' parent)")
    plot.set_defaults(run=_plot)
    return parser


def _train(options: argparse.Namespace) -> int:
    from b2b_jax.commands.train import train_command
    from b2b_jax.config import load_run_config
    from b2b_jax.train.writers import TerminalReporter

    config = load_run_config(options.config, options.overrides)
    return train_command(config, reporter=TerminalReporter("train")).exit_code


def _prepare(options: argparse.Namespace) -> int:
    from b2b_jax.commands.prepare import prepare_command
    from b2b_jax.config import load_run_config
    from b2b_jax.train.writers import TerminalReporter

    config = load_run_config(options.config, options.overrides)
    prepare_command(config.data, reporter=TerminalReporter("prepare"))
    return 0


def _grow(options: argparse.Namespace) -> int:
    from b2b_jax.commands.grow import grow_command
    from b2b_jax.train.writers import TerminalReporter

    grow_command(
        options.source,
        options.target,
        to=options.to,
        method=options.method,
        mapping=options.mapping,
        depth=options.depth,
        aki_scope=options.aki_scope,
        seed=options.seed,
        existing="replace" if options.overwrite else "refuse",
        reporter=TerminalReporter("grow"),
    )
    return 0


def _plot(options: argparse.Namespace) -> int:
    from b2b_jax.commands.plot import plot_command
    from b2b_jax.train.writers import TerminalReporter

    plot_command(options.paths, out=options.out, reporter=TerminalReporter("plot"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
