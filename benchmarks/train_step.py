"""Time of a training step of BERT, against Hugging Face's BertForMaskedLM in PyTorch.

One step is forward, backward, clipping and the AdamW update, without dropout, on random tokens.
The figures are seconds per step on this device with this batch, and nothing else: neither input
pipeline nor convergence. Contenders, all with the same sizes and number of processors:

  b2b_jax            what `b2b train` compiles; it also draws its masks within the step
  torch default      BertForMaskedLM(labels=...) as most people call it: logits at all positions
  torch equal work   the same model, its head at the masked positions only, as ours
  torch compiled     torch.compile of the equal work (needs a C++ compiler on CPUs)

Torch uses fused AdamW. In bfloat16 it uses autocast. On a GPU both may use TF32 in float32.
On CPUs the ratio tells as much about the matrix-product libraries (XLA's own, MKL, oneDNN) and the
processor as about the models: state both whenever you quote it.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import harness
import our_step
from our_step import Workload

OURS = "b2b_jax"
TORCH = ("torch default", "torch equal work", "torch compiled")


def build_torch(load: Workload, device: str, compiled: bool, threads: int | None) -> dict[str, Any]:
    """Worker: Hugging Face's model with the steps as variants."""
    torch = harness.import_torch()
    transformers = harness.import_transformers()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    cfg = load.model_config()
    sizes = {
        name: getattr(cfg, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        )
    }
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ).to(device)
    model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=1e-8,
        fused=True,
    )
    ids = torch.from_numpy(our_step.random_tokens(load, cfg.vocab_size)).long().to(device)
    scores = torch.rand(ids.shape, device=device)
    positions = scores.topk(load.masked_positions, dim=1).indices.sort(dim=1).values
    picked = ids.gather(1, positions)
    inputs = ids.scatter(1, positions, 4)
    labels = torch.full_like(ids, -100).scatter(1, positions, picked)

    def default_loss() -> Any:
        return model(input_ids=inputs, labels=labels).loss

    def equal_loss(inputs: Any, positions: Any, picked: Any) -> Any:
        hidden = model.bert(input_ids=inputs).last_hidden_state
        index = positions[..., None].expand(-1, -1, hidden.shape[-1])
        logits = model.cls(hidden.gather(1, index))
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), picked.flatten())

    forwards = {"torch default": default_loss}
    forwards["torch equal work"] = lambda: equal_loss(inputs, positions, picked)
    if compiled:
        fused = torch.compile(equal_loss, dynamic=False)
        forwards["torch compiled"] = lambda: fused(inputs, positions, picked)

    def one_step(forward: Any) -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=load.dtype == "bfloat16"):
            loss = forward()
        loss.backward()
        if load.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), load.clip_norm)
        optimizer.step()
        return loss

    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(name: str) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(load.steps_per_round):
            one_step(forwards[name])
        synchronize()
        return (time.perf_counter() - start) / load.steps_per_round

    first_loss = {name: float(forward().detach()) for name, forward in list(forwards.items())[:2]}
    problems, first = {}, {}
    for name in list(forwards):
        try:
            first[name] = timed(name)
        except Exception as error:
            if name != "torch compiled":
                raise
            problems[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            del forwards[name]
    return {
        "variants": {name: lambda name=name: timed(name) for name in forwards},
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "first_step_s": first,
        "first_loss": first_loss,
        "problems": problems,
    }


def main() -> None:
    parser = harness.parser(__doc__)
    harness.add_malloc(parser)
    parser.add_argument("--model", default="bert-base", help="preset of b2b_jax.models")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences (GPU: try 256)")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--masked-positions", type=int, default=20)
    our_step.add_compute(parser)
    parser.add_argument("--clip-norm", type=float, default=1.0, help="for all; 0: no clipping")
    parser.add_argument("--rounds", type=int, default=6, help="turns of every contender")
    parser.add_argument("--repeats", type=int, default=1, help="timed measurements per turn")
    parser.add_argument(
        "--steps-per-round", type=int, help="steps per measurement (default: 1; GPU: 20)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of all contenders"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = parser.parse_args()

    steps = args.steps_per_round or (20 if args.device == "cuda" else 1)
    load = Workload(
        model=args.model,
        batch_size=args.batch_size,
        sequence_length=args.sequence_length,
        masked_positions=args.masked_positions,
        dtype=args.dtype,
        clip_norm=args.clip_norm,
        scan_unroll=args.scan_unroll,
        remat=args.remat,
        steps_per_round=steps,
    )
    facts = harness.machine(malloc=args.malloc, threads=args.threads)
    env = harness.malloc_env(args.malloc) | {
        "JAX_PLATFORMS": args.device,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    contenders: dict[str, tuple[harness.Worker, str]] = {}
    notes: dict[str, Any] = {}
    harness.progress("compiling b2b_jax")
    ours = harness.Worker(our_step.build, load, env=env, threads=args.threads)
    contenders[OURS] = (ours, ours.names[0])
    notes["device"] = ours.facts["device"]
    notes["b2b_jax compile"] = f"{sum(ours.facts['compile_s'].values()):.1f} s"
    first_losses = {OURS: round(ours.facts["first_loss"], 3)}
    harness.progress("starting torch" + ("" if args.no_compile else " (torch.compile: a minute)"))
    try:
        theirs = harness.Worker(
            build_torch,
            load,
            args.device,
            not args.no_compile,
            facts["processors used"],
            env=env,
            threads=args.threads,
        )
    except harness.Unavailable as reason:
        harness.progress(f"without torch: {reason}")
        notes["left out"] = str(reason)
    else:
        for name in theirs.names:
            contenders[name] = (theirs, name)
        first_losses |= {name: round(x, 3) for name, x in theirs.facts["first_loss"].items()}
        notes |= {f"{name} left out": why for name, why in theirs.facts["problems"].items()}
        if "torch compiled" in theirs.names:
            notes["torch first compiled step"] = (
                f"{theirs.facts['first_step_s']['torch compiled']:.1f} s"
            )
    notes["loss of the first step, each from its own random parameters"] = first_losses
    seconds = harness.interleave(contenders, rounds=args.rounds, repeats=args.repeats)
    for worker in {id(worker): worker for worker, _ in contenders.values()}.values():
        worker.close()

    harness.print_facts("Machine", facts)
    harness.print_facts("Workload", asdict(load) | notes)
    tokens = load.batch_size * load.sequence_length
    rows = [
        (
            label,
            f"{harness.median(values):.4f}",
            f"{min(values):.4f} - {max(values):.4f}",
            f"{tokens / harness.median(values):.0f}",
            f"{harness.median(values) / harness.median(seconds[OURS]):.2f}",
        )
        for label, values in seconds.items()
    ]
    header = ("contender", "s/step (median)", "range", "tokens/s", "time / b2b_jax")
    harness.print_table(header, rows)
    equal = [harness.median(seconds[name]) for name in TORCH[1:] if name in seconds]
    if equal:
        best = min(equal) / harness.median(seconds[OURS])
        print(f"b2b_jax against the better of torch's equal-work steps: {best:.2f}x")
    harness.write_json(
        args.json, {"machine": facts, "load": asdict(load), "notes": notes, "seconds": seconds}
    )


if __name__ == "__main__":
    main()
