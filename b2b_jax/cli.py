"""The command line, ``b2b COMMAND``. Errors end in a message, not a trace."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from b2b_jax.commands.allocation import keep_freed_memory
from b2b_jax.commands.attention_options import PLOT_ATTENTION, add_attention_options
from b2b_jax.commands.grow_options import add_grow_options
from b2b_jax.commands.options import add_hf_options, heads, shard_bytes

EXIT_ERROR = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words after ``b2b``; those of the process by default.

    Returns:
        0 done, 1 an error that the message explains, 2 wrong usage, 75 stopped by SIGTERM with
        everything saved, or a process of the job was lost: repeat the command; 130 stopped by
        Ctrl-C with everything saved.
    """
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:2] == ["plot", "attention"]:
        words = [PLOT_ATTENTION, *words[2:]]
    options, rest = parser.parse_known_args(words)
    if getattr(options, "config", "") is None:
        if {"-h", "--help"} & set(rest):
            options.parser.print_help()
            return 0
        options.parser.error("the following arguments are required: config")
    if rest and options.command not in ("train", "prepare", "dry-run"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    options.overrides = rest
    # Nothing of JAX is imported before the words are known to make sense.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return _guarded(lambda: options.run(options))


def _guarded(command: Callable[[], int]) -> int:
    from b2b_jax.axes import AxisError
    from b2b_jax.convert import ConvertError
    from b2b_jax.data import DataError
    from b2b_jax.growth import GrowthError
    from b2b_jax.models import ConfigError
    from b2b_jax.report import ReportError
    from b2b_jax.train.meter import NonFiniteLoss
    from b2b_jax.train.processes import is_out_of_memory
    from b2b_jax.train.sharding import ShardingError
    from b2b_jax.train.signals import EXIT_INTERRUPTED
    from b2b_jax.train.stored import CheckpointError
    from b2b_jax.tree import StructureError

    expected = (
        AxisError,
        CheckpointError,
        ConfigError,
        ConvertError,
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
    except BrokenPipeError:  # what reads the output has ended, such as head
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except expected as error:
        print(f"b2b: {error}", file=sys.stderr)
        return EXIT_ERROR
    except RuntimeError as error:  # JAX has no kind of its own for it
        if not is_out_of_memory(error):
            raise
        print(
            f"b2b: a device has too little memory: {str(error).splitlines()[0]}. Try more "
            "--train.micro_batches, --compute.remat full or --mesh.preset fsdp with b2b dry-run",
            file=sys.stderr,
        )
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("b2b: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="b2b",
        description="Grow a trained transformer into a larger one and pre-train it in two stages.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_of_a_run(
        commands,
        "train",
        run=_train,
        help="pre-train a model; repeat the command to continue",
        description="Pre-train a model. Any field of the configuration can be given as a flag, "
        "for example --train.steps 100; 'b2b train CONFIG --help' lists them.",
    )
    dry_run = commands.add_parser(
        "dry-run",
        help="compile a run for a machine that need not be here: memory, exchanges, least time",
        description="Compile every step of a run for a machine that need not be here, and print "
        "memory per device, exchanges between devices and the least time that a step takes. "
        "Fields of the configuration are flags as in b2b train.",
    )
    dry_run.add_argument("config", help="YAML file of a run")
    dry_run.add_argument(
        "--topology",
        default="",
        help="such as v5p:8x8x8, v5e-16, v6e-256 or h100:2x8 (default: the devices at hand)",
    )
    dry_run.set_defaults(run=_dry_run)

    _add_of_a_run(
        commands,
        "prepare",
        run=_prepare,
        help="tokenize the text of a configuration once",
        description="Tokenize the text of a run and store it; b2b train does so by itself. Fields "
        "of the configuration are flags as in b2b train.",
    )
    grow = commands.add_parser("grow", help="make a larger model from a trained one")
    add_grow_options(grow)

    verify = commands.add_parser("verify", help="how far a grown model is from its source")
    verify.add_argument("source", help="folder of the smaller model")
    verify.add_argument("grown", help="folder of the larger one")
    verify.add_argument("--text", default="", help="text file to compare on (default: random ids)")
    verify.add_argument(
        "--require-exact",
        type=float,
        metavar="TOL",
        help="exit with 1 if any output differs by more",
    )
    verify.set_defaults(run=_verify)

    convert = commands.add_parser(
        "convert", help="Hugging Face folder to b2b folder, or a b2b folder to Hugging Face's"
    )
    convert.add_argument("source", help="folder to read; its kind decides the direction")
    convert.add_argument("target", help="folder to write")
    convert.add_argument(
        "--weights",
        choices=("safetensors", "bin"),
        default="safetensors",
        help="format of a Hugging Face folder's weights",
    )
    add_hf_options(convert)
    convert.set_defaults(run=_convert)

    inspect = commands.add_parser(
        "inspect", help="config, parameter table with axes, and lineage of a model folder"
    )
    inspect.add_argument("path", help="folder of a run, a grown model or a Hugging Face model")
    inspect.set_defaults(run=_inspect)

    compare = commands.add_parser(
        "compare", help="train every method of a comparison; repeat the command to continue"
    )
    compare.add_argument("config", help="YAML file of the comparison")
    compare.add_argument(
        "--dry-run",
        action="store_true",
        help="only build and compile every run on the devices at hand, and price it",
    )
    compare.set_defaults(run=_compare)

    plot = commands.add_parser(
        "plot",
        help="curves and savings of runs or of a comparison; 'plot attention': heads of two models",
        description="Curves and savings of several runs, or of the folder of a "
        "comparison. 'b2b plot attention SRC GROWN' draws "
        "attention patterns instead; a run that is called attention is ./attention.",
    )
    plot.add_argument("paths", nargs="+", help="run folders")
    plot.add_argument("--out", default="", help="folder to write to (default: the runs' parent)")
    plot.set_defaults(run=_plot)
    add_attention_options(commands.add_parser(PLOT_ATTENTION))  # without help: listed with plot
    return parser


def _add_of_a_run(commands: Any, name: str, *, run: Callable[..., int], **words: str) -> None:
    """Add a command that takes a configuration, whose own ``--help`` lists the fields."""
    parser = commands.add_parser(name, add_help=False, **words)
    parser.add_argument(
        "config", nargs="?", help="YAML file with the differences from the defaults"
    )
    parser.set_defaults(run=run, parser=parser)


def _train(options: argparse.Namespace) -> int:
    keep_freed_memory()
    from b2b_jax.commands.job import train_job

    return train_job(options.config, options.overrides, guard=_guarded)


def _dry_run(options: argparse.Namespace) -> int:
    from b2b_jax.commands.topology import parse_topology, prepare_compilers

    topology = parse_topology(options.topology) if options.topology else None
    if topology is not None:
        prepare_compilers(topology)
    from b2b_jax.commands.dry_run import dry_run_command
    from b2b_jax.config import load_run_config
    from b2b_jax.train.writers import TerminalReporter

    config = load_run_config(options.config, options.overrides)
    return dry_run_command(config, topology=topology, reporter=TerminalReporter("dry-run"))


def _prepare(options: argparse.Namespace) -> int:
    from b2b_jax.commands.prepare import prepare_command
    from b2b_jax.config import load_run_config
    from b2b_jax.train.writers import TerminalReporter

    config = load_run_config(options.config, options.overrides)
    prepare_command(config.data, reporter=TerminalReporter("prepare"))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from b2b_jax.commands.verify import verify_command
    from b2b_jax.train.writers import TerminalReporter

    return verify_command(
        options.source,
        options.grown,
        text=options.text,
        require_exact=options.require_exact,
        reporter=TerminalReporter("verify"),
    )


def _convert(options: argparse.Namespace) -> int:
    from b2b_jax.commands.convert import convert_command
    from b2b_jax.train.writers import TerminalReporter

    convert_command(
        options.source,
        options.target,
        heads=heads(options),
        init_missing=options.init_missing,
        existing="replace" if options.overwrite else "refuse",
        shard_bytes=shard_bytes(options.shard_size),
        weights=options.weights,
        reporter=TerminalReporter("convert"),
    )
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from b2b_jax.commands.inspect import inspect_command
    from b2b_jax.train.writers import TerminalReporter

    inspect_command(options.path, reporter=TerminalReporter("inspect"))
    return 0


def _compare(options: argparse.Namespace) -> int:
    keep_freed_memory()
    from b2b_jax.commands.compare import compare_command
    from b2b_jax.compare import load_compare_config
    from b2b_jax.train.writers import TerminalReporter

    config = load_compare_config(options.config)
    if options.dry_run:
        from b2b_jax.commands.compare_dry_run import compare_dry_run

        compare_dry_run(config, reporter=TerminalReporter("compare"))
        return 0
    return compare_command(
        config, command=f"b2b compare {options.config}", reporter=TerminalReporter("compare")
    )


def _plot(options: argparse.Namespace) -> int:
    from b2b_jax.commands.plot import plot_command
    from b2b_jax.train.writers import TerminalReporter

    plot_command(options.paths, out=options.out, reporter=TerminalReporter("plot"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
