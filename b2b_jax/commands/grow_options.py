"""The words of `b2b grow`."""

import argparse
from typing import get_args

from b2b_jax.commands.options import add_hf_options, axis_rules, heads, layer_order, shard_bytes


def add_grow_options(parser: argparse.ArgumentParser) -> None:
    """Say what the command reads, and what runs it."""
    from b2b_jax.growth.depth import NamedDepth
    from b2b_jax.growth.mappings import Mapping, Split
    from b2b_jax.growth.plan import AkiScope, Method, NormRule

    parser.add_argument("source", help="folder of a trained model: a run's, or Hugging Face's")
    parser.add_argument("target", help="folder to write the grown model to, of the same kind")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--to",
        default="",
        help="the target's sizes: a preset, fields such as "
        "hidden_size=768,num_attention_heads=24, a preset with fields, or a YAML file",
    )
    size.add_argument("--plan", default="", help="growth_plan.json to repeat, instead of --to")
    for name, choices, default, text in (
        ("--method", Method, "aki", "how parameters are made"),
        ("--mapping", Mapping, "cyclic", "what new width entries copy"),
        ("--aki-scope", AkiScope, "all", "what AKI takes from the layer above"),
        ("--norm", NormRule, "plain", "how norms meet a width that is no multiple"),
        ("--split", Split, "equal", "how weights are parted among copies"),
    ):
        parser.add_argument(name, choices=get_args(choices), default=default, help=text)
    parser.add_argument(
        "--depth",
        type=layer_order,
        default="stack",
        metavar="ORDER",
        help=f"what new layers copy: one of {', '.join(get_args(NamedDepth))}, or the source layer "
        "of every target layer, such as 0,1,1,2 (default: stack)",
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        help="added to one copy, taken from the other; in units of the initialisation (default: 0)",
    )
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="AXIS=RULE",
        help="another rule for one axis (vocab, positions, types, embed, heads, mlp): a mapping, "
        "mean, interpolate, or the donors of the new entries; may be repeated",
    )
    parser.add_argument(
        "--text", default="", help="text file to calibrate norms on and to compare the models on"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random maps and fresh parameters")
    add_hf_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from b2b_jax.commands.grow import grow_command
    from b2b_jax.commands.request import GrowRequest
    from b2b_jax.train.writers import TerminalReporter

    request = GrowRequest(
        options.source,
        options.target,
        to=options.to,
        plan=options.plan,
        method=options.method,
        mapping=options.mapping,
        depth=options.depth,
        aki_scope=options.aki_scope,
        norm=options.norm,
        text=options.text,
        split=options.split,
        noise=options.noise,
        maps=axis_rules(options.map),
        seed=options.seed,
        existing="replace" if options.overwrite else "refuse",
        heads=heads(options),
        init_missing=options.init_missing,
        shard_bytes=shard_bytes(options.shard_size),
    )
    grow_command(request, reporter=TerminalReporter("grow"))
    return 0
