"""Memory and traffic of growth in shards: GPT of 1.3 to 4.2 billion parameters on 64 chips.

    python benchmarks/growth_on_mesh.py --topology v5p:4x4x4 --preset fsdp

Compiles `jax.jit(b2b.grow, static_argnums=1, out_shardings=...)` for a machine that need not be
here (TPUs: pip install 'b2b_jax[tpu]'), and prints what one device holds: its shares of source and
target, what is temporary besides, the largest array in the program, and what is exchanged.
"""

import argparse
import math
import re
import time
from typing import Any

import jax
import numpy as np

import b2b_jax as b2b
from b2b_jax.commands.topology import parse_topology, prepare_compilers, topology_devices
from b2b_jax.growth import grow
from b2b_jax.models import ModelConfig, build_model
from b2b_jax.report.collectives import SIZES, read_collectives
from b2b_jax.train.sharding import PRESETS, MeshConfig, make_mesh, param_shardings
from b2b_jax.tree import unflatten

SOURCE = b2b.preset("gpt2").replace(
    vocab_size=50304,
    hidden_size=2048,
    num_hidden_layers=24,
    num_attention_heads=32,
    intermediate_size=8192,
)
TARGET = SOURCE.replace(
    hidden_size=3072, num_hidden_layers=36, num_attention_heads=48, intermediate_size=12288
)


def abstract(cfg: ModelConfig, mesh: Any) -> Any:
    """Shapes and shardings of a model's parameters."""
    model = build_model(cfg)
    where = param_shardings(model.axes, model.shapes, mesh=mesh)
    return unflatten(
        {
            path: jax.ShapeDtypeStruct(shape, np.float32, sharding=where[path])
            for path, shape in model.shapes.items()
        }
    )


def largest_array(program: str) -> tuple[float, str]:
    """Bytes and type of the largest array in a compiled program."""
    found = set(re.findall(r"\b(f32|bf16|s32|u32|pred)\[([\d,]+)\]", program))
    sized = [
        (SIZES[dtype] * math.prod(map(int, sizes.split(","))), f"{dtype}[{sizes}]")
        for dtype, sizes in found
        if dtype in SIZES
    ]
    return max(sized)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5p:4x4x4")
    parser.add_argument("--preset", choices=[*PRESETS], default="fsdp")
    parser.add_argument("--methods", nargs="+", default=["fpi", "aki"])
    args = parser.parse_args()
    topology = parse_topology(args.topology)
    prepare_compilers(topology)
    mesh = make_mesh(MeshConfig(preset=args.preset), devices=topology_devices(topology))
    source, target = abstract(SOURCE, mesh), abstract(TARGET, mesh)
    leaves = [4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(target)]
    print(
        f"{args.topology}, {args.preset}: {sum(leaves) / 4e9:.2f} billion parameters, "
        f"{sum(leaves) / 1e6:,.0f} MB in all, the largest one {max(leaves) / 1e6:,.0f} MB"
    )
    for method in args.methods:
        plan = b2b.plan_growth(SOURCE, TARGET, method=method)
        before = time.monotonic()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
        compiled = (
            jax.jit(grow, static_argnums=1, out_shardings=shardings).lower(source, plan).compile()
        )
        memory, program = compiled.memory_analysis(), compiled.as_text()
        size, kind = largest_array(program)
        print(
            f"{method}: compiled in {time.monotonic() - before:.0f} s; on a device "
            f"{memory.argument_size_in_bytes / 1e6:,.0f} MB of the source, "
            f"{memory.output_size_in_bytes / 1e6:,.0f} MB of the target, "
            f"{memory.temp_size_in_bytes / 1e6:,.0f} MB besides; "
            f"largest array {kind}, {size / 1e6:,.0f} MB"
        )
        exchanged = read_collectives(program)
        for which in sorted({one.kind for one in exchanged}):
            those = [one for one in exchanged if one.kind == which]
            sent = sum(one.sent_bytes for one in those) / 1e6
            print(f"  {which}: {len(those)} times, {sent:,.1f} MB sent by a device")


if __name__ == "__main__":
    main()
