"""Bandwidth of growing a model, beside a plain copy of as many bytes.

Growth computes almost nothing: it reads the source once, ideally, and writes the target once. Its
figure is therefore bytes read plus written per second, with the source's and the target's bytes
counted once each, and the yardstick is a copy of the grown parameters into new memory. On CPUs all
of them are bound by page faults of new memory rather than by reading, so that the allocator's use
of huge pages decides: everything is measured with both settings and to be compared within one.

  b2b_jax fpi, aki       jax.jit(grow) of all parameters
  jax copy               jitted copy of the grown parameters into new memory
  numpy copy             the same by numpy.copyto, one thread
  torch index_select     growth (fpi) as two index_selects and a division per 2-D matrix and layer
"""

from __future__ import annotations

import time
from typing import Any

import harness


def plans(source: str, target: str, mapping: str) -> dict[str, Any]:
    from b2b_jax.growth import plan_growth
    from b2b_jax.models import preset

    small, large = preset(source), preset(target)
    return {
        method: plan_growth(small, large, method=method, mapping=mapping)  # pyright: ignore
        for method in ("fpi", "aki")
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


def build_jax(source: str, target: str, mapping: str) -> dict[str, Any]:
    """Worker: growth under jit, and a jitted copy of its result."""
    import jax
    import jax.numpy as jnp

    from b2b_jax.growth import grow
    from b2b_jax.tree import flatten, unflatten

    made = plans(source, target, mapping)
    small = jax.device_put(unflatten(random_params(made["fpi"].source_shapes)))
    compiled, compile_s = {}, {}
    for method, plan in made.items():
        start = time.perf_counter()
        compiled[f"b2b_jax {method}"] = (
            jax.jit(lambda p, plan=plan: grow(p, plan)).lower(small).compile(),
            small,
        )
        compile_s[method] = time.perf_counter() - start
    large = compiled["b2b_jax fpi"][0](small)
    sums = checksum(flatten(large))
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    compiled["jax copy"] = (copy.lower(large).compile(), large)

    def timed(name: str) -> float:
        function, argument = compiled[name]
        start = time.perf_counter()
        result = jax.block_until_ready(function(argument))
        took = time.perf_counter() - start
        del result
        return took

    for name in compiled:
        timed(name)
    return {
        "variants": {name: lambda name=name: timed(name) for name in compiled},
        "device": jax.devices()[0].device_kind,
        "compile_s": compile_s,
        "checksum": sums,
    }


def build_numpy(source: str, target: str, mapping: str) -> dict[str, Any]:
    """Worker: a copy of as many bytes into new arrays."""
    import numpy as np

    large = random_params(plans(source, target, mapping)["fpi"].target_shapes)

    def timed() -> float:
        start = time.perf_counter()
        result = {}
        for path, leaf in large.items():
            result[path] = np.empty_like(leaf)
            np.copyto(result[path], leaf)
        took = time.perf_counter() - start
        del result
        return took

    timed()
    return {"variants": {"numpy copy": timed}}


def build_torch(source: str, target: str, mapping: str, threads: int | None) -> dict[str, Any]:
    """Worker: FPI with one pair of index_selects per matrix, as PyTorch code has separate layers.

    A widened source layer is made once; the layers that repeat it are clones.
    """
    import numpy as np

    torch = harness.import_torch()
    if threads is not None:
        torch.set_num_threads(threads)
    plan = plans(source, target, mapping)["fpi"]
    head_dim = plan.source_sizes["head_dim"]

    def flat_map(names: tuple[str, ...]) -> tuple[Any, Any]:
        """Index list and copy counts of the rows or columns that some axes make up."""
        maps = [plan.maps[name] for name in names]
        if names == ("heads", "head_dim"):
            heads = maps[0]
            index = (heads.indices[:, None] * head_dim + np.arange(head_dim)).ravel()
            copies, identity = heads.copies.repeat(head_dim), heads.is_identity
        else:
            (grown,) = maps
            index, copies, identity = grown.indices, grown.copies, grown.is_identity
        if identity:
            return None, None
        divisor = None if (copies == 1).all() else torch.from_numpy(copies.astype(np.float32))
        return torch.from_numpy(index.astype(np.int64)), divisor

    # Path -> list of 1-D or 2-D tensors (one per layer, or just one), and how to widen them.
    work = {}
    for path, leaf in random_params(plan.source_shapes).items():
        axes = plan.axes[path]
        stacked = "layers" in axes.indexed
        rows = axes.consumes or tuple(name for name in axes.indexed if name != "layers")
        maps = [flat_map(names) for names in (rows, axes.produces) if names]
        if not axes.consumes and rows:
            maps[0] = (maps[0][0], None)  # tables are looked up, not summed over
        if not axes.absorbs:
            maps[-1] = (maps[-1][0], None)
        sizes = [
            int(np.prod([plan.source_sizes[name] for name in names]))
            for names in (rows, axes.produces)
            if names
        ]
        parts = list(leaf) if stacked else [leaf]
        matrices = [torch.from_numpy(np.ascontiguousarray(p.reshape(sizes))) for p in parts]
        work[path] = (matrices, maps, plan.maps["layers"].indices.tolist() if stacked else [0])

    def widen(matrix: Any, maps: list[tuple[Any, Any]]) -> Any:
        grown = matrix
        for dimension, (index, divisor) in enumerate(maps):
            if index is not None:
                grown = grown.index_select(dimension, index)
            if divisor is not None:
                grown.div_(divisor[:, None] if grown.ndim == 2 and dimension == 0 else divisor)
        return grown.clone() if grown is matrix else grown

    def grow_all() -> dict[str, list[Any]]:
        result = {}
        for path, (matrices, maps, order) in work.items():
            done: dict[int, Any] = {}
            layers = []
            for source_layer in order:
                if source_layer in done:
                    layers.append(done[source_layer].clone())
                else:
                    done[source_layer] = widen(matrices[source_layer], maps)
                    layers.append(done[source_layer])
            result[path] = layers
        return result

    def timed() -> float:
        start = time.perf_counter()
        result = grow_all()
        took = time.perf_counter() - start
        del result
        return took

    with torch.no_grad():
        sums = checksum({k: np.stack([x.numpy() for x in v]) for k, v in grow_all().items()})
    timed()
    return {"variants": {"torch index_select (fpi)": timed}, "checksum": sums}


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
    contenders: dict[str, tuple[harness.Worker, str]] = {}
    workers, sums, notes = [], {}, {}
    for setting in settings:
        env = harness.malloc_env(setting)
        for build, extra in (
            (build_jax, ()),
            (build_numpy, ()),
            (build_torch, (facts["processors used"],)),
        ):
            harness.progress(f"{setting}: starting {build.__name__.removeprefix('build_')}")
            try:
                worker = harness.Worker(build, *names, *extra, env=env, threads=args.threads)
            except harness.Unavailable as reason:
                harness.progress(f"without torch: {reason}")
                notes["left out"] = str(reason)
                continue
            workers.append(worker)
            notes |= {key: worker.facts[key] for key in ("device",) if key in worker.facts}
            if "compile_s" in worker.facts:
                notes["compile"] = {k: f"{s:.2f} s" for k, s in worker.facts["compile_s"].items()}
            if "checksum" in worker.facts:
                sums[f"{setting} {build.__name__}"] = worker.facts["checksum"]
            for name in worker.names:
                contenders[f"{name}, {setting}"] = (worker, name)
    if len(sums) > 1 and max(sums.values()) - min(sums.values()) > 1e-3 * max(
        1.0, *(abs(value) for value in sums.values())
    ):
        raise SystemExit(f"the contenders did not grow the same parameters: {sums}")
    notes["checksums of the grown parameters"] = {k: round(v, 3) for k, v in sums.items()}
    seconds = harness.interleave(contenders, rounds=args.rounds, lead_in=2, repeats=3)
    for worker in workers:
        worker.close()

    harness.print_facts("Machine", facts)
    harness.print_facts(
        f"Growth of {args.source} to {args.target}, {args.mapping} maps: "
        f"reads {read / 1e9:.2f} GB, writes {written / 1e9:.2f} GB",
        notes,
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
        )
        harness.print_table(header, rows)
    harness.write_json(
        args.json,
        {"machine": facts, "read": read, "written": written, "notes": notes, "seconds": seconds},
    )


if __name__ == "__main__":
    main()
