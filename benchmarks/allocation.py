"""Time of a training step on the CPU by what becomes of memory that is freed.

Every step takes the same large blocks as the one before it. Contenders, which take turns:

  default   glibc as it is: large blocks go back to the system, and their pages are cleared anew
  hugetlb   the same with huge pages, by GLIBC_TUNABLES=glibc.malloc.hugetlb=1
  kept      they stay with the process, as in `b2b train` and `b2b compare`
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import harness
import our_step
from our_step import Workload

KEPT = "kept"


def build(load: Workload, name: str) -> dict[str, Any]:
    """Worker: our step, in a process that keeps what is freed or does not."""
    from b2b_jax.commands.allocation import keep_freed_memory

    if name == KEPT:
        keep_freed_memory()
    facts = our_step.build(load)
    step = next(iter(facts["variants"].values()))
    return facts | {"variants": {"step": step, "memory": lambda: harness.memory_of()["VmHWM"]}}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", nargs="+", default=["bert-tiny", "bert-base"], help="presets")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--masked-positions", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    rows, raw = [], {}
    for model in args.model:
        load = Workload(
            model=model,
            batch_size=args.batch_size,
            sequence_length=args.sequence_length,
            masked_positions=args.masked_positions,
            steps_per_round=20 if model.endswith("tiny") else 1,
        )
        workers = {}
        for name in (*harness.MALLOC, KEPT):
            harness.progress(f"{model}: compiling, {name}")
            env = harness.malloc_env("default" if name == KEPT else name)
            workers[name] = harness.Worker(
                build, load, name, env=env | {"JAX_PLATFORMS": "cpu"}, threads=args.threads
            )
        seconds = harness.interleave(
            {name: (worker, "step") for name, worker in workers.items()}, rounds=args.rounds
        )
        usual = harness.median(seconds["default"])
        for name, taken in seconds.items():
            held = workers[name].seconds("memory")
            rows.append(
                (
                    model,
                    name,
                    f"{harness.median(taken):.4f}",
                    harness.spread(taken),
                    f"{usual / harness.median(taken):.2f}",
                    harness.mebibytes(int(held)),
                )
            )
            workers[name].close()
        raw[model] = {"load": asdict(load), "seconds": seconds}
    facts = harness.machine(malloc="default", threads=args.threads)
    harness.print_facts("Machine", facts)
    header = ("model", "freed memory", "s/step (median)", "range", "default / this", "peak MiB")
    harness.print_table(header, rows)
    harness.write_json(args.json, {"machine": facts, "models": raw})


if __name__ == "__main__":
    main()
