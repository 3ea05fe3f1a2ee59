"""Bandwidth of growing a model, beside a plain copy of as many bytes.

Growth computes almost nothing: it reads the source once, ideally, and writes the target once. Its
figure is therefore bytes read plus written per second, with the source's and the target's bytes
counted once each, and the yardstick is a copy of the grown parameters into new memory. On CPUs all
of them are bound by page faults of new memory rather than by reading, so that the allocator's use
of huge pages decides: everything is measured with both settings and to be compared within one.
"added MiB" is the most that a process grew by in its first call, result included.

  b2b_jax grow           jax.jit(grow) of all parameters
  b2b_jax grow_piece     grow_piece of every parameter and layer, numpy: what `b2b grow` does
  jax copy               jitted copy of the grown parameters into new memory
  numpy copy             the same by numpy.copyto, one thread
  torch index_select     growth as two index_selects and a division per 2-D matrix and layer

The whole command, from folder to folder, is measured by grow_command.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import harness

METHODS = ("fpi", "aki")


def plans(source: str, target: str, mapping: str) -> dict[str, Any]:
    from b2b_jax.growth import plan_growth
    from b2b_jax.models import preset

    small, large = preset(source), preset(target)
    return {
        method: plan_growth(small, large, method=method, mapping=mapping)  # pyright: ignore
        for method in METHODS
    }


def random_params(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Any]:
    """Path -> float32 array; the same in every worker."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}


def checksum(flat: dict[str, Any]) -> float:
    """One number that misplaced entries would change."""
    import numpy as np

    total = 0.0
    for path in sorted(flat):
        leaf = np.asarray(flat[path], np.float32).ravel()
        total += float(np.dot(leaf, np.cos(np.arange(leaf.size, dtype=np.float32))))
    return total


def timer(function: Callable[[], Any]) -> Callable[[], float]:
    """Seconds of a call; what it returns is let go after the clock has stopped."""

    def timed() -> float:
        start = time.perf_counter()
        result = function()
        took = time.perf_counter() - start
        del result
        return took

    return timed


def facts_of(
    variants: dict[str, Callable[[], float]],
    results: dict[str, Callable[[], dict[str, Any]]],
    **facts: Any,
) -> dict[str, Any]:
    """What a worker returns, after a first call of everything that also tells its memory.

    Args:
        variants: name -> what is timed.
        results: method -> the grown parameters by path, to compare with other workers'.
        facts: what else there is to know.
    """
    added = {name: harness.added_memory(variant) for name, variant in variants.items()}
    sums = {method: checksum(result()) for method, result in results.items()}
    return {"variants": variants, "added_bytes": added, "checksums": sums, **facts}


def build_jax(source: str, target: str, mapping: str) -> dict[str, Any]:
    """Worker: growth under jit, and a jitted copy of its result."""
    import jax
    import jax.numpy as jnp

    from b2b_jax.growth import grow
    from b2b_jax.tree import flatten, unflatten

    made = plans(source, target, mapping)
    small = jax.device_put(unflatten(random_params(made["fpi"].source_shapes)))
    calls, compile_s = {}, {}
    for method, plan in made.items():
        start = time.perf_counter()
        calls[f"b2b_jax grow {method}"] = (
            jax.jit(lambda p, plan=plan: grow(p, plan)).lower(small).compile(),
            small,
        )
        compile_s[method] = time.perf_counter() - start
    large = jax.block_until_ready(calls["b2b_jax grow fpi"][0](small))
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    calls["jax copy"] = (copy.lower(large).compile(), large)
    variants = {
        name: timer(lambda f=f, argument=argument: jax.block_until_ready(f(argument)))
        for name, (f, argument) in calls.items()
    }
    return facts_of(
        variants,
        {m: lambda m=m: flatten(calls[f"b2b_jax grow {m}"][0](small)) for m in made},
        device=jax.devices()[0].device_kind,
        compile_s=compile_s,
    )


def build_pieces(source: str, target: str, mapping: str) -> dict[str, Any]:
    """Worker: growth by numpy, one parameter of one layer at a time, all of it kept."""
    import numpy as np

    from b2b_jax.growth import GrowthPlan, grow_piece

    made = plans(source, target, mapping)
    small = random_params(made["fpi"].source_shapes)

    def read(path: str, layer: int | None) -> Any:
        return small[path] if layer is None else small[path][layer]

    def grow_all(plan: GrowthPlan) -> dict[str, list[Any]]:
        layers = range(plan.target_sizes["layers"])
        return {
            path: [
                grow_piece(path, layer, read, plan=plan)
                for layer in (layers if "layers" in axes.indexed else [None])
            ]
            for path, axes in plan.axes.items()
        }

    return facts_of(
        {f"b2b_jax grow_piece {m}": timer(lambda p=p: grow_all(p)) for m, p in made.items()},
        {
            m: lambda p=p: {path: np.stack(pieces) for path, pieces in grow_all(p).items()}
            for m, p in made.items()
        },
    )


def build_numpy(source: str, target: str, mapping: str) -> dict[str, Any]:
    """Worker: a copy of as many bytes into new arrays."""
    import numpy as np

    large = random_params(plans(source, target, mapping)["fpi"].target_shapes)

    def copy() -> dict[str, Any]:
        result = {}
        for path, leaf in large.items():
            result[path] = np.empty_like(leaf)
            np.copyto(result[path], leaf)
        return result

    return facts_of({"numpy copy": timer(copy)}, {})


def build_torch(source: str, target: str, mapping: str, threads: int | None) -> dict[str, Any]:
    """Worker: the loop of torch_grow.py on our parameters, in separate layers as PyTorch has them.

    A widened source layer is made once; the layers that repeat it are clones.
    """
    import numpy as np

    torch = harness.import_torch()
    from torch_grow import Step, grow_layers

    if threads is not None:
        torch.set_num_threads(threads)
    made = plans(source, target, mapping)
    plan = made["fpi"]
    sizes = plan.source_sizes

    def step(dimension: int, names: tuple[str, ...], divided: bool) -> Step | None:
        """How the rows or columns grow that some axes make up; None if they do not."""
        maps = [plan.maps[name] for name in names]
        if all(grown.is_identity for grown in maps):
            return None
        index, copies = maps[0].indices, maps[0].copies
        if names == ("heads", "head_dim"):
            index = (index[:, None] * sizes["head_dim"] + np.arange(sizes["head_dim"])).ravel()
            copies = copies.repeat(sizes["head_dim"])
        return Step(
            dimension,
            torch.from_numpy(index.astype(np.int64)),
            torch.from_numpy(copies.astype(np.float32)) if divided else None,
        )

    # Path -> matrices or vectors (one per layer, or just one), how they grow, the layers to copy.
    work = {}
    for path, leaf in random_params(plan.source_shapes).items():
        axes = plan.axes[path]
        stacked = "layers" in axes.indexed
        # Tables are looked up, not summed over.
        rows = axes.consumes or tuple(name for name in axes.indexed if name != "layers")
        groups = [(rows, bool(axes.consumes)), (axes.produces, bool(axes.absorbs))]
        groups = [(names, divided) for names, divided in groups if names]
        shape = [int(np.prod([sizes[name] for name in names])) for names, _ in groups]
        steps = [step(dimension, *group) for dimension, group in enumerate(groups)]
        parts = [part.reshape(shape) for part in (leaf if stacked else [leaf])]
        work[path] = (
            [torch.from_numpy(part) for part in parts],
            [one for one in steps if one is not None],
            plan.maps["layers"].indices.tolist() if stacked else [0],
        )

    def grow_all(plan: Any) -> dict[str, list[Any]]:
        with torch.no_grad():
            return {
                path: grow_layers(*args, aki=bool(plan.donated_axes(path)))
                for path, args in work.items()
            }

    return facts_of(
        {f"torch index_select {m}": timer(lambda p=p: grow_all(p)) for m, p in made.items()},
        {
            m: lambda p=p: {k: np.stack([x.numpy() for x in v]) for k, v in grow_all(p).items()}
            for m, p in made.items()
        },
    )


@dataclass
class Contest:
    """All contenders in memory, and what is known of them.

    Attributes:
        contenders: "NAME, SETTING OF MALLOC" -> its worker and variant.
        added_bytes: the same -> memory that it takes besides its input.
        notes: device, compilation, what was left out.
        workers: to be closed.
    """

    contenders: dict[str, tuple[harness.Worker, str]] = field(default_factory=dict)
    added_bytes: dict[str, int | None] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    workers: list[harness.Worker] = field(default_factory=list)


def start(
    names: tuple[str, str, str], settings: list[str], *, threads: int | None, used: int
) -> Contest:
    """Start every contender in a process of its own and make sure that all grow the same.

    Args:
        names: presets of source and target, and the mapping.
        settings: of malloc; all contenders are started with each.
        threads: processors asked for.
        used: processors that there are.
    """
    contest, sums = Contest(), {method: {} for method in METHODS}
    for setting in settings:
        for build in (build_jax, build_pieces, build_numpy, build_torch):
            harness.progress(f"{setting}: starting {build.__name__.removeprefix('build_')}")
            extra = (used,) if build is build_torch else ()
            env = harness.malloc_env(setting)
            try:
                worker = harness.Worker(build, *names, *extra, env=env, threads=threads)
            except harness.Unavailable as reason:
                harness.progress(f"without torch: {reason}")
                contest.notes["left out"] = str(reason)
                continue
            contest.workers.append(worker)
            facts = worker.facts
            if "device" in facts:
                compiled = {k: f"{s:.2f} s" for k, s in facts["compile_s"].items()}
                contest.notes |= {"device": facts["device"], "compile": compiled}
            for method, value in facts["checksums"].items():
                sums[method][f"{setting} {build.__name__}"] = value
            for name in worker.names:
                contest.contenders[f"{name}, {setting}"] = (worker, name)
                contest.added_bytes[f"{name}, {setting}"] = facts["added_bytes"][name]
    for found in sums.values():
        if max(found.values()) - min(found.values()) > 1e-3 * max(1.0, *map(abs, found.values())):
            raise SystemExit(f"the contenders did not grow the same parameters: {sums}")
    contest.notes["checksums of the grown parameters"] = {
        method: sorted({round(value, 3) for value in found.values()})
        for method, found in sums.items()
    }
    return contest


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--source", default="bert-base", help="preset of b2b_jax.models")
    parser.add_argument("--target", default="bert-large", help="preset of b2b_jax.models")
    parser.add_argument("--mapping", choices=("cyclic", "balanced", "uniform"), default="cyclic")
    parser.add_argument(
        "--malloc",
        choices=("default", "hugetlb", "both"),
        default="both",
        help="allocation of large blocks (default: both, interleaved)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender")
    args = parser.parse_args()

    import numpy as np

    plan = plans(args.source, args.target, args.mapping)["fpi"]
    read = sum(4 * int(np.prod(shape)) for shape in plan.source_shapes.values())
    written = sum(4 * int(np.prod(shape)) for shape in plan.target_shapes.values())
    settings = ["default", "hugetlb"] if args.malloc == "both" else [args.malloc]
    facts = harness.machine(malloc=settings[0], threads=args.threads)
    facts["malloc"] = "; ".join(f"{name}: {harness.MALLOC[name] or 'unset'}" for name in settings)
    names = (args.source, args.target, args.mapping)
    contest = start(names, settings, threads=args.threads, used=facts["processors used"])
    seconds = harness.interleave(contest.contenders, rounds=args.rounds, lead_in=2, repeats=3)
    for worker in contest.workers:
        worker.close()

    harness.print_facts("Machine", facts)
    harness.print_facts(
        f"Growth of {args.source} to {args.target}, {args.mapping} maps: "
        f"reads {read / 1e9:.2f} GB, writes {written / 1e9:.2f} GB",
        contest.notes,
    )
    for setting in settings:
        ceiling = harness.median(seconds[f"jax copy, {setting}"])
        rows = []
        for label, values in seconds.items():
            name, _, its_setting = label.rpartition(", ")
            if its_setting != setting:
                continue
            moved = 2 * written if "copy" in name else read + written
            middle = harness.median(values)
            rows.append(
                (
                    name,
                    f"{1e3 * middle:.0f}",
                    f"{1e3 * min(values):.0f} - {1e3 * max(values):.0f}",
                    f"{moved / middle / 1e9:.1f}",
                    f"{written / middle / 1e9:.1f}",
                    f"{middle / ceiling:.2f}",
                    harness.mebibytes(contest.added_bytes[label]),
                )
            )
        print(f"\nmalloc: {setting}", end="")
        header = (
            "contender",
            "ms (median)",
            "range",
            "r+w GB/s",
            "written GB/s",
            "time / jax copy",
            "added MiB",
        )
        harness.print_table(header, rows)
    harness.write_json(
        args.json,
        {
            "machine": facts,
            "read": read,
            "written": written,
            "notes": contest.notes,
            "added_bytes": contest.added_bytes,
            "seconds": seconds,
        },
    )


if __name__ == "__main__":
    main()
