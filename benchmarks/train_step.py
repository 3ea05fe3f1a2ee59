"""Time of a training step of BERT or GPT-2, against Hugging Face's models in PyTorch.

One step is forward, backward, clipping and the AdamW update, without dropout, on random tokens.
The figures are of this device and nothing else: neither input pipeline nor convergence. Contenders,
all with the same sizes and number of processors:

  b2b_jax                      what `b2b train` compiles; it also draws its masks within the step
  torch default                BertForMaskedLM(labels=...) as most people call it, with logits at
                               all positions; GPT2LMHeadModel(labels=...), the same work as ours
  torch equal work             BERT's head at the masked positions only, as ours
  ..., compiled                the same by torch.compile (needs a C++ compiler)

Torch uses scaled_dot_product_attention and fused AdamW; in bfloat16 it uses autocast. On a GPU both
may use TF32 in float32. MFU counts, for every contender, the matrix products of our step
(`b2b_jax.report.flops`, exact) against the peak of the card in bfloat16; logits that nobody asked
for earn nothing.

    python benchmarks/train_step.py --device cuda --markdown speed.md

compares BERT-base, BERT-large and GPT-2 on a GPU in bfloat16: every batch size once, then every
contender at its best one in turns. One process is on the card at a time, and one that finds too
little memory says so. `--model`, `--batch-size` and `--no-eager` make it shorter.

On CPUs the contenders of a batch size stay and work in turns. There the ratio tells as much about
the matrix-product libraries (XLA's own, MKL, oneDNN) and the processor as about the models: state
both whenever you quote it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import harness
import our_step
import torch_step
from our_step import Workload

OURS = "b2b_jax"
OUT_OF_MEMORY = (
    "RESOURCE_EXHAUSTED",
    "OutOfMemoryError",
    "out of memory",
    "OUT_OF_MEMORY",
    "ALLOC_FAILED",
    "exit code -9",
)
# Where the options leave it open.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "model": ["bert-base"],
        "batch_size": [8],
        "sequence_length": 128,
        "masked_positions": 20,
        "dtype": "float32",
        "processes": "together",
        "steps_per_round": 1,
        "rounds": 6,
        "repeats": 1,
    },
    "cuda": {
        "model": ["bert-base", "bert-large", "gpt2"],
        "batch_size": [32, 64, 128],
        "sequence_length": 512,
        "masked_positions": 80,
        "dtype": "bfloat16",
        "processes": "alone",
        "steps_per_round": 10,
        "rounds": 3,
        "repeats": 3,
    },
}


@dataclass
class Bench:
    """How contenders are started, and what they said.

    Attributes:
        device: "cpu" or "cuda".
        env: of the workers.
        threads: processors that were asked for, or None.
        processors: how many that makes.
        facts: (contender, batch size) -> what its worker said.
        problems: (contender, batch size) -> why there is no figure.
    """

    device: str
    env: Mapping[str, str]
    threads: int | None
    processors: int
    facts: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    problems: dict[tuple[str, int], str] = field(default_factory=dict)

    def start(self, labels: Sequence[str], load: Workload) -> tuple[Any, dict[str, str]] | None:
        """A worker and label -> name of its variant; None, with the reasons kept, if it fails."""
        ours = labels == [OURS]
        try:
            if ours:
                worker = harness.Worker(our_step.build, load, env=self.env, threads=self.threads)
            else:
                load = replace(load, torch=tuple(labels))
                worker = harness.Worker(
                    torch_step.build,
                    load,
                    self.device,
                    self.processors,
                    env=self.env,
                    threads=self.threads,
                )
        except harness.Unavailable as reason:
            self.fails(labels, load, str(reason))
            return None
        except RuntimeError as error:
            self.fails(labels, load, str(error))
            return None
        names = {OURS: worker.names[0]} if ours else {name: name for name in worker.names}
        for label in names:
            self.facts.setdefault((label, load.batch_size), worker.facts)
        for label, why in worker.facts.get("problems", {}).items():
            self.fails([label], load, why)
        return worker, names

    def fails(self, labels: Sequence[str], load: Workload, why: str) -> None:
        """Keep why there is no figure; of a trace its last line."""
        is_memory = any(sign in why for sign in OUT_OF_MEMORY)
        short = "out of memory" if is_memory else why.strip().rpartition("\n")[2]
        for label in labels:
            harness.progress(f"{label}, batch {load.batch_size}: {short}")
            self.problems[label, load.batch_size] = short


Groups = Sequence[tuple[list[str], Workload]]
"""Contenders that share a process, and their work."""
Seconds = dict[str, list[float]]


def together(bench: Bench, groups: Groups, *, rounds: int, repeats: int) -> Seconds:
    """Time contenders in turns; all processes stay."""
    contenders, workers = {}, []
    for labels, load in groups:
        harness.progress(f"preparing {', '.join(labels)}, batch {load.batch_size}")
        if (found := bench.start(labels, load)) is not None:
            workers.append(found[0])
            contenders |= {label: (found[0], name) for label, name in found[1].items()}
    seconds = harness.interleave(contenders, rounds=rounds, repeats=repeats)
    for worker in workers:
        worker.close()
    return seconds


def one_at_a_time(bench: Bench, groups: Groups, *, rounds: int, repeats: int) -> Seconds:
    """The same with a fresh process for every turn, so that each has the card's whole memory."""
    seconds: Seconds = {}
    for turn in range(rounds):
        for labels, load in groups:
            if (found := bench.start(labels, load)) is None:
                continue
            worker, names = found
            for label, name in names.items():
                try:
                    worker.seconds(name)
                    taken = [worker.seconds(name) for _ in range(repeats)]
                except RuntimeError as error:
                    bench.fails([label], load, str(error))
                    break  # the worker is gone
                seconds.setdefault(label, []).extend(taken)
                harness.progress(
                    f"turn {turn + 1}/{rounds}, batch {load.batch_size}, {label}: "
                    f"{harness.median(taken):.4f} s"
                )
            worker.close()
    return seconds


def groups_of(labels: Sequence[str], load: Workload) -> list[tuple[list[str], Workload]]:
    torch = [label for label in labels if label != OURS]
    return [([OURS], load), *([(torch, load)] if torch else [])]


def compare(bench: Bench, load: Workload, sizes: Sequence[int], args: Any) -> dict[str, Any]:
    """Every contender at every batch size, then each at its best one.

    Returns:
        "sweep": label -> batch size -> seconds, and "best": label -> (batch size, seconds).
    """
    torch = [
        name
        for name in torch_step.ORDER
        if not (load.model_config().is_causal and "equal" in name)
        and not (args.no_compile and "compiled" in name)
        and not (args.no_eager and "compiled" not in name)
    ]
    measure = one_at_a_time if args.processes == "alone" else together
    sweep: dict[str, dict[int, list[float]]] = {}
    for size in sizes:
        groups = groups_of([OURS, *torch], replace(load, batch_size=size))
        rounds = args.rounds if len(sizes) == 1 else 1
        for label, taken in measure(bench, groups, rounds=rounds, repeats=args.repeats).items():
            sweep.setdefault(label, {})[size] = taken
    best = {
        label: min(by_size, key=lambda size: harness.median(by_size[size]) / size)
        for label, by_size in sweep.items()
    }
    if len(sizes) > 1:
        groups = [
            (
                [label for label in chosen if best.get(label) == size],
                replace(load, batch_size=size),
            )
            for chosen in ([OURS], torch)
            for size in sizes
            if any(best.get(label) == size for label in chosen)
        ]
        seconds = measure(bench, groups, rounds=args.rounds, repeats=args.repeats)
    else:
        seconds = {label: by_size[sizes[0]] for label, by_size in sweep.items()}
    return {"sweep": sweep, "best": {label: (best[label], seconds[label]) for label in seconds}}


def first_loss(facts: Mapping[str, Any], label: str) -> float:
    told = facts["first_loss"]
    return told[label] if isinstance(told, Mapping) else told


def report(model: str, load: Workload, found: Mapping[str, Any], bench: Bench) -> str:
    """The tables of one model as Markdown."""
    from b2b_jax.report.chips import peak_flops
    from b2b_jax.report.flops import step_cost
    from b2b_jax.train.stages import full_model

    cfg = load.model_config()
    cost = step_cost(
        cfg,
        full_model(cfg.num_hidden_layers),
        batch_size=1,
        sequence_length=load.sequence_length,
        predictions=load.masked_positions,
    )
    rates = {
        label: size * load.sequence_length / harness.median(seconds)
        for label, (size, seconds) in found["best"].items()
    }
    rows = []
    for label, (size, seconds) in found["best"].items():
        facts = bench.facts[label, size]
        peak = peak_flops(facts["device"]) if load.dtype == "bfloat16" else None
        speed = rates[label] / load.sequence_length * cost.exact
        bytes_held = facts.get("peak_bytes")
        if isinstance(bytes_held, Mapping):
            bytes_held = bytes_held.get(label)
        rows.append(
            (
                f"{label}, {facts['attention']} attention" if label == OURS else label,
                size,
                f"{harness.median(seconds):.4f}",
                f"{min(seconds):.4f} - {max(seconds):.4f}",
                f"{rates[label]:,.0f}",
                f"{100 * speed / peak:.1f} %" if peak else "",
                f"{bytes_held / 2**30:.1f}" if bytes_held else "",
                f"{rates[OURS] / rates[label]:.2f}" if OURS in rates else "",
            )
        )
    header = (
        "contender",
        "batch",
        "s/step (median)",
        "range",
        "tokens/s",
        "MFU",
        "GiB",
        "time per token / b2b_jax",
    )
    per_token = cost.exact / load.sequence_length / 1e9
    parts = [
        f"## {model}, {load.sequence_length} tokens, {load.dtype}",
        f"{per_token:.3f} GFLOP per token (exact count).",
        harness.table(header, rows),
    ]
    sizes = sorted({size for by_size in found["sweep"].values() for size in by_size})
    sizes = sorted({*sizes, *(size for _, size in bench.problems)})
    if len(sizes) > 1:
        cells = []
        for label in (OURS, *torch_step.ORDER):
            known = found["sweep"].get(label, {})
            if not known and not any(name == label for name, _ in bench.problems):
                continue
            row = [label]
            for size in sizes:
                if size in known:
                    row.append(f"{size * load.sequence_length / harness.median(known[size]):,.0f}")
                else:
                    row.append(bench.problems.get((label, size), ""))
            cells.append(row)
        parts += [
            "Tokens per second by batch size, one turn each:",
            harness.table(("contender", *map(str, sizes)), cells),
        ]
    losses = ", ".join(
        f"{label} {first_loss(bench.facts[label, size], label):.3f}"
        for label, (size, _) in found["best"].items()
    )
    parts.append(f"Loss of the first step, each from its own random parameters: {losses}.")
    equal = torch_step.equal_work(rates, causal=cfg.is_causal)
    if equal and OURS in rates:
        fastest = max(equal, key=lambda name: rates[name])
        parts.append(
            f"b2b_jax does {rates[OURS] / rates[fastest]:.2f} times the tokens per second of "
            f"PyTorch's fastest step of equal work ({fastest})."
        )
    told = [
        f"{label}, batch {size}: {why}"
        for (label, size), why in bench.problems.items()
        if size not in found["sweep"].get(label, {})  # else it came off in another turn
    ]
    return "\n\n".join([*parts, *(["Left out: " + "; ".join(told) + "."] if told else [])])


@contextmanager
def environment(args: Any) -> Iterator[dict[str, str]]:
    """Of the workers; on a card with a cache, for processes that compile what one did before."""
    env = harness.malloc_env(args.malloc) | {"JAX_PLATFORMS": args.device}
    if args.device == "cpu":
        yield env
        return
    # One card, whatever the machine has: PyTorch's steps use one.
    env |= {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    if args.processes == "alone":
        env |= {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    with tempfile.TemporaryDirectory() as folder:
        yield env | {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }


def trace(bench: Bench, load: Workload, folder: str) -> None:
    """Leave a trace of some of our steps."""
    found = bench.start([OURS], replace(load, profile=folder))
    if found is not None:
        found[0].seconds(our_step.PROFILE)
        found[0].close()
        harness.progress(f"wrote a trace to {folder}; open it with XProf or Perfetto")


def options() -> Any:
    parser = harness.parser(__doc__)
    harness.add_malloc(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of all")
    parser.add_argument("--model", nargs="+", help="presets of b2b_jax.models")
    parser.add_argument("--batch-size", type=int, nargs="+", help="sequences; several: each's best")
    parser.add_argument("--sequence-length", type=int)
    parser.add_argument("--masked-positions", type=int)
    our_step.add_compute(parser)
    parser.set_defaults(dtype=None)
    parser.add_argument("--clip-norm", type=float, default=1.0, help="for all; 0: no clipping")
    parser.add_argument("--rounds", type=int, help="turns of every contender")
    parser.add_argument("--repeats", type=int, help="timed measurements per turn")
    parser.add_argument("--steps-per-round", type=int, help="steps per measurement")
    parser.add_argument(
        "--processes",
        choices=("together", "alone"),
        help="whether contenders stay while others work (default: alone on a GPU)",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-eager", action="store_true", help="torch.compile only")
    parser.add_argument("--markdown", metavar="FILE", help="also write the report there")
    parser.add_argument("--profile", metavar="DIR", help="leave traces of our steps there")
    args = parser.parse_args()
    for name, value in DEFAULTS[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main() -> None:
    args = options()
    facts = harness.machine(malloc=args.malloc, threads=args.threads)
    parts, raw, device, text = [], {}, "", ""
    with environment(args) as env:
        for model in args.model:
            load = Workload(
                model=model,
                batch_size=args.batch_size[0],
                sequence_length=args.sequence_length,
                masked_positions=args.masked_positions,
                dtype=args.dtype,
                clip_norm=args.clip_norm,
                scan_unroll=args.scan_unroll,
                remat=args.remat,
                attention=args.attention,
                steps_per_round=args.steps_per_round,
            )
            bench = Bench(args.device, env, args.threads, facts["processors used"])
            found = compare(bench, load, args.batch_size, args)
            parts.append(report(model, load, found, bench))
            said = {f"{label}, batch {n}": fact for (label, n), fact in bench.facts.items()}
            problems = {f"{label}, batch {n}": why for (label, n), why in bench.problems.items()}
            raw[model] = {"load": asdict(load), **found, "facts": said, "problems": problems}
            device = device or next((fact["device"] for fact in said.values()), "")
            if args.profile and OURS in found["best"]:
                best = replace(load, batch_size=found["best"][OURS][0])
                trace(bench, best, str(Path(args.profile) / model))
            # After every model, for the next one may end badly.
            shared = {
                "clip norm": args.clip_norm,
                "remat": args.remat,
                "scan unroll": args.scan_unroll,
            }
            about = harness.facts_lines({"device": device, **facts, **shared})
            text = "\n\n".join(["\n".join(f"- {line}" for line in about), *parts])
            if args.markdown:
                Path(args.markdown).write_text(f"{text}\n")
            harness.write_json(args.json, {"machine": facts, "device": device, "models": raw})
    print(f"\n{text}\n")


if __name__ == "__main__":
    main()
