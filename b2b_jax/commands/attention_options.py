"""The words of `b2b plot attention`."""

import argparse

PLOT_ATTENTION = "plot attention"
"""What the first two words are to the parser: a command of its own."""


def add_attention_options(parser: argparse.ArgumentParser) -> None:
    """Say what the command reads, and what runs it."""
    parser.description = (
        "Draw what the heads of a model and of one grown from it look at, and say how similar "
        "every grown head is to the one that it was made from."
    )
    parser.add_argument(
        "folders", nargs="*", metavar="FOLDER", help="two: of a model, and of the one grown from it"
    )
    parser.add_argument(
        "--text", default="", help="text file to read (default: the source's held-out text)"
    )
    parser.add_argument(
        "--out", default="", help="folder to write to (default: NAME_attention, next to the grown)"
    )
    parser.add_argument("--tokens", type=int, default=24, help="tokens per row (default: 24)")
    for name in ("layers", "heads"):
        parser.add_argument(
            f"--{name}", type=_numbers, default=(), metavar="0,1,2", help=f"{name} to draw"
        )
    parser.set_defaults(run=_run)


def _numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers such as 0,1,2")
    return tuple(int(word) for word in words)


def _run(options: argparse.Namespace) -> int:
    from b2b_jax.commands.attention import AttentionRequest, attention_command
    from b2b_jax.train.writers import TerminalReporter

    request = AttentionRequest(
        tuple(options.folders),
        text=options.text,
        out=options.out,
        tokens=options.tokens,
        layers=options.layers,
        heads=options.heads,
    )
    attention_command(request, reporter=TerminalReporter("plot"))
    return 0
