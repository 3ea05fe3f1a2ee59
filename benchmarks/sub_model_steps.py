"""Time of every sub-model's training step, beside what its FLOPs predict.

Stage one of two-stage pre-training (bert2BERT, Algorithm 2) draws a sub-model per step: the bottom
d of L layers run, the top l_b of those are trained. The "time" column is the measured ratio to a
full step; the "FLOPs" column is the same ratio of matrix-product FLOPs (`b2b_jax.report.flops`).
Where time is above FLOPs, the saving on this device is smaller than the count of FLOPs claims: what
does not shrink with the layers, such as the head and the table's update, weighs more.

Every time is of steps of one sub-model that follow each other. What switching costs is measured by
one step of each in turn, without waiting in between, beside the sum of their times.
"""

from __future__ import annotations

import os
from dataclasses import asdict

import harness
import our_step
from our_step import Workload


def main() -> None:
    parser = harness.parser(__doc__)
    harness.add_malloc(parser)
    parser.add_argument("--model", default="bert-base", help="preset, such as bert-12x384")
    parser.add_argument("--layers", type=int, help="number of layers (default: the preset's)")
    parser.add_argument("--layers-per-block", type=int, default=3, help="l_b")
    parser.add_argument("--embeddings", choices=("first", "never", "always"), default="first")
    parser.add_argument("--tied-table", choices=("head", "embeddings"), default="head")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--masked-positions", type=int, default=20)
    our_step.add_compute(parser)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps-per-round", type=int, default=1, help="GPU: try 20")
    parser.add_argument("--device", choices=("cpu", "cuda", "tpu"), help="default: what JAX finds")
    args = parser.parse_args()

    from b2b_jax.report.flops import step_cost
    from b2b_jax.train.stages import TwoStageConfig, full_model, sub_models

    load = Workload(
        model=args.model,
        layers=args.layers,
        batch_size=args.batch_size,
        sequence_length=args.sequence_length,
        masked_positions=args.masked_positions,
        dtype=args.dtype,
        scan_unroll=args.scan_unroll,
        remat=args.remat,
        attention=args.attention,
        steps_per_round=args.steps_per_round,
    )
    cfg = load.model_config()
    two_stage = TwoStageConfig(
        steps=1,
        layers_per_block=args.layers_per_block,
        embeddings=args.embeddings,
        tied_table=args.tied_table,
    )
    problems = two_stage.problems(cfg.num_hidden_layers, 1)
    if problems:
        parser.error("; ".join(problems))
    full = full_model(cfg.num_hidden_layers)
    subs = [*sub_models(cfg.num_hidden_layers, two_stage), full]
    facts = harness.machine(malloc=args.malloc, threads=args.threads)
    harness.progress(f"compiling {len(subs)} steps")
    worker = harness.Worker(
        our_step.build,
        load,
        subs,
        env=harness.malloc_env(args.malloc)
        | ({"JAX_PLATFORMS": args.device} if args.device else {})
        | {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]},
        threads=args.threads,
    )
    labels = {sub: f"sub-model {sub.depth}" if sub != full else "full model" for sub in subs}
    seconds = harness.interleave(
        {labels[sub]: (worker, our_step.name_of(sub)) for sub in subs}
        | {our_step.IN_TURN: (worker, our_step.IN_TURN)},
        rounds=args.rounds,
    )
    worker.close()

    costs = {
        sub: step_cost(
            cfg,
            sub,
            batch_size=load.batch_size,
            sequence_length=load.sequence_length,
            predictions=load.masked_positions,
        )
        for sub in subs
    }
    harness.print_facts("Machine", facts)
    harness.print_facts(
        "Workload",
        asdict(load)
        | asdict(two_stage)
        | {name: worker.facts[name] for name in ("device", "attention")},
    )
    time_of = {sub: harness.median(seconds[labels[sub]]) for sub in subs}
    rows, gaps = [], {}
    for sub in subs:
        time_ratio = time_of[sub] / time_of[full]
        flops_ratio = costs[sub].exact / costs[full].exact
        gaps[labels[sub]] = time_ratio / flops_ratio - 1
        rows.append(
            (
                labels[sub],
                f"{sub.first_live}..{sub.depth - 1}",
                f"{time_of[sub]:.4f}",
                harness.spread(seconds[labels[sub]]),
                f"{time_ratio:.3f}",
                f"{flops_ratio:.3f}",
                f"{time_ratio / flops_ratio:.2f}",
                f"{costs[sub].exact / time_of[sub] / 1e9:.0f}",
            )
        )
    stage = subs[:-1]
    time_ratio = sum(time_of[sub] for sub in stage) / len(stage) / time_of[full]
    flops_ratio = sum(costs[sub].exact for sub in stage) / len(stage) / costs[full].exact
    rows.append(
        (
            "mean of stage one",
            "",
            f"{time_ratio * time_of[full]:.4f}",
            "",
            f"{time_ratio:.3f}",
            f"{flops_ratio:.3f}",
            f"{time_ratio / flops_ratio:.2f}",
            "",
        )
    )
    harness.print_table(
        (
            "step",
            "trained",
            "s/step (median)",
            "range",
            "time / full",
            "FLOPs / full",
            "time / FLOPs",
            "GFLOP/s",
        ),
        rows,
    )
    worst = max(gaps, key=lambda label: abs(gaps[label]))
    print(f"largest gap between time and FLOPs: {100 * gaps[worst]:+.1f} % ({worst})")
    switching = harness.median(seconds[our_step.IN_TURN]) / sum(time_of.values()) - 1
    print(f"one step of each in turn, beside the sum of their times: {100 * switching:+.1f} %")
    harness.write_json(
        args.json,
        {
            "machine": facts,
            "load": asdict(load),
            "seconds": seconds,
            "gaps": gaps,
            "switching": switching,
            "exact_flops": {labels[sub]: costs[sub].exact for sub in subs},
        },
    )


if __name__ == "__main__":
    main()
