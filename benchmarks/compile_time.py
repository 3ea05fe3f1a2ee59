"""Time to trace and to compile the training step, by number of layers.

The layers are stacked and run by one scan, so that the program is about as large at 24 layers as
at 4; the ratio of the last to the first row says how nearly that holds. Every measurement is made
in a fresh process that has compiled another, tiny, step before, so that neither imports nor a cache
is in it. Nothing is run and no parameters are made. The persistent compilation cache is off.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import harness
import our_step
from our_step import Workload

TINY = Workload(model="bert-tiny", layers=2, batch_size=2, sequence_length=16, masked_positions=2)


def measure(load: Workload) -> tuple[float, float]:
    """Seconds of tracing and lowering, and of compiling, as `Programs.compile_train_step` does."""
    from b2b_jax.train.stages import full_model

    made = our_step.programs(load)
    full = full_model(made.config.model.num_hidden_layers)
    start = time.perf_counter()
    lowered = made.lower_train_step(full, made.abstract_state(), made.abstract_batch())
    traced = time.perf_counter()
    lowered.compile()
    return traced - start, time.perf_counter() - traced


def build(load: Workload) -> dict[str, Any]:
    """Worker: one measurement."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    measure(TINY)
    trace, compiled = measure(load)
    return {"trace": trace, "compile": compiled, "device": jax.devices()[0].device_kind}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="bert-base", help="preset of b2b_jax.models")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 12, 24])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    our_step.add_compute(parser)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    load = Workload(
        model=args.model,
        batch_size=args.batch_size,
        sequence_length=args.sequence_length,
        dtype=args.dtype,
        scan_unroll=args.scan_unroll,
        remat=args.remat,
    )
    facts = harness.machine(malloc="default", threads=args.threads)
    seconds: dict[int, dict[str, list[float]]] = {
        n: {"trace": [], "compile": [], "total": []} for n in args.layers
    }
    device = ""
    for turn in range(args.rounds):
        for layers in args.layers:
            worker = harness.Worker(build, replace(load, layers=layers), threads=args.threads)
            worker.close()
            device = worker.facts["device"]
            trace, compiled = worker.facts["trace"], worker.facts["compile"]
            seconds[layers]["trace"].append(trace)
            seconds[layers]["compile"].append(compiled)
            seconds[layers]["total"].append(trace + compiled)
            harness.progress(
                f"round {turn + 1}/{args.rounds}, {layers} layers: "
                f"trace and lower {trace:.2f} s, compile {compiled:.2f} s"
            )

    harness.print_facts("Machine", facts)
    harness.print_facts("Workload", asdict(load) | {"device": device, "layers": args.layers})
    base = seconds[args.layers[0]]["total"]
    rows = [
        (
            layers,
            f"{harness.median(found['trace']):.2f}",
            f"{harness.median(found['compile']):.2f}",
            f"{harness.median(found['total']):.2f}",
            harness.spread(found["total"]),
            f"{harness.median(found['total']) / harness.median(base):.2f}",
        )
        for layers, found in seconds.items()
    ]
    harness.print_table(
        ("layers", "trace + lower, s", "compile, s", "total, s", "range", "ratio to the first"),
        rows,
    )
    harness.write_json(args.json, {"machine": facts, "load": asdict(load), "seconds": seconds})


if __name__ == "__main__":
    main()
