"""Time and memory of `b2b grow`, folder to folder, and of growth in memory, beside PyTorch.

In one run, on one machine, in turns:

  b2b grow               the whole command, a process: start, imports, hash, read, grow, write
  b2b inspect            the same without growing: what of it is start and imports
  torch index_select     torch_grow.py, a process: load_file, a loop over layers, save_file
  import torch           what of that is start and imports
  copyfile, cp           a plain copy of the file that `b2b grow` wrote, on the same disk
  in memory              growth without files; see grow_bandwidth.py

GB/s counts the bytes written, once. The yardstick of folders is copyfile, that of growth in memory
the numpy copy. "peak MiB" is the most that the process had in memory, pages of mapped files
included, "anonymous" the part that mirrors no file; in memory it is what one call adds to the
process, result included. Nothing waits for the disk: files are written to the page cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grow_bandwidth
import harness
from grow_bandwidth import METHODS

PEER = Path(__file__).with_name("torch_grow.py")
POLL_S = 0.005
TOLERANCE = 1e-6


def build_source(folder: Path, source: str, target: str) -> dict[str, Any]:
    """Worker: write a model of random weights, and tell the sizes that its target has."""
    import b2b_jax as b2b
    from b2b_jax.tree import unflatten

    small, large = b2b.preset(source), b2b.preset(target)
    # Biases too are random, unlike those of a fresh model, so that comparing them means something.
    plan = grow_bandwidth.plans(source, target, "cyclic")["fpi"]
    b2b.save(folder, small, unflatten(grow_bandwidth.random_params(plan.source_shapes)))
    fields = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    return {"family": small.family, "sizes": {name: getattr(large, name) for name in fields}}


def weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


class Folders:
    """What goes from folder to folder, and the memory that it takes.

    Attributes:
        work: name -> words of a command, or a function; either makes `target`.
        peaks: name of a command -> most bytes in memory, and those of them that mirror no file.
        target: the folder that is made anew every time.
        kept: a copy of what growth makes.
    """

    def __init__(self, target: Path, kept: Path) -> None:
        self.work: dict[str, Sequence[str] | Callable[[], Any]] = {}
        self.peaks: dict[str, tuple[int, int]] = {}
        self.target = target
        self.kept = kept

    def seconds(self, name: str) -> float:
        """Do one of them once, into a folder that is not there yet."""
        shutil.rmtree(self.target, ignore_errors=True)
        if self.kept.exists():
            # New pages may come from a virtual machine's host, slowly; those just freed do not. So
            # that nobody gains by whom he follows, all begin with as many as they will write.
            shutil.copytree(self.kept, self.target)
            shutil.rmtree(self.target)
        work = self.work[name]
        if callable(work):
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        took, most, anonymous = run(work)
        before = self.peaks.get(name, (0, 0))
        self.peaks[name] = max(most, before[0]), max(anonymous, before[1])
        return took


def run(words: Sequence[str]) -> tuple[float, int, int]:
    """Seconds of a process and its most bytes in memory, all and those that mirror no file.

    Not by getrusage: a child inherits the maximum of the process that started it.
    """
    most = anonymous = 0
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            memory = harness.memory_of(process.pid)
            most = max(most, memory.get("VmHWM", 0))
            anonymous = max(anonymous, memory.get("RssAnon", 0))
            time.sleep(POLL_S)
        took = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(words)} failed:\n{output.read()}")
    return took, most, anonymous


def largest_difference(ours: Path, theirs: Path) -> float:
    """Over all tensors of two folders, which must have the same names."""
    import numpy as np
    from safetensors import safe_open

    def opened(folder: Path) -> dict[str, Any]:
        handles: list[Any] = [safe_open(f, framework="numpy") for f in weights(folder)]  # pyright: ignore
        return {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118

    left, right = opened(ours), opened(theirs)
    if left.keys() != right.keys():
        raise SystemExit(f"the folders differ in tensors: {sorted(left.keys() ^ right.keys())}")
    return max(
        float(np.abs(left[name].get_tensor(name) - right[name].get_tensor(name)).max())
        for name in left
    )


def folder_work(root: Path, args: argparse.Namespace, notes: dict[str, Any]) -> tuple[Folders, int]:
    """Everything that goes from folder to folder, checked, and the bytes that growing writes."""
    small, target, kept = root / "small", root / "target", root / "kept"
    worker = harness.Worker(build_source, small, args.source, args.target)
    worker.close()
    folders = Folders(target, kept)
    work = folders.work
    b2b = (sys.executable, "-m", "b2b_jax.cli")
    work["b2b inspect"] = (*b2b, "inspect", str(small))
    for method in METHODS:
        grow = ("grow", str(small), str(target), "--to", args.target, "--method", method)
        work[f"b2b grow {method}"] = (*b2b, *grow)
    reason = ""
    if not importlib.util.find_spec("torch"):  # not imported, for this process is to stay small
        reason = "PyTorch is not installed; run: pip install 'b2b_jax[parity]'"
    elif worker.facts["family"] != "bert":
        reason = "PyTorch's loop from folder to folder knows the tensor names of BERT only"
    if reason:
        notes["left out of the folders"] = reason
        harness.progress(f"without torch: {reason}")
    else:
        work["import torch"] = (sys.executable, "-c", "import safetensors.torch")
        for method in METHODS:
            words = [sys.executable, str(PEER), str(small), str(target), "--method", method]
            for name, size in worker.facts["sizes"].items():
                words += [f"--{name.replace('_', '-')}", str(size)]
            work[f"torch index_select {method}"] = words
    for method in METHODS:
        harness.progress(f"{method}: growing once to compare")
        folders.seconds(f"b2b grow {method}")
        shutil.rmtree(kept, ignore_errors=True)
        target.rename(kept)
        if f"torch index_select {method}" in work:
            folders.seconds(f"torch index_select {method}")
            difference = largest_difference(kept, target)
            if not difference < TOLERANCE:
                raise SystemExit(f"{method}: PyTorch's loop grew something else: {difference}")
            notes[f"{method}: largest difference from PyTorch's loop"] = difference
    work["copyfile"] = lambda: shutil.copytree(kept, target, copy_function=shutil.copyfile)
    work["cp"] = ("cp", "-R", str(kept), str(target))
    os.sync()  # or these files would be on their way to the disk while the others are timed
    return folders, sum(file.stat().st_size for file in weights(kept))


def main() -> None:
    parser = harness.parser(__doc__)
    harness.add_malloc(parser)
    parser.set_defaults(malloc="default")  # as commands are typed
    parser.add_argument("--source", default="bert-base", help="preset of b2b_jax.models")
    parser.add_argument("--target", default="bert-large", help="preset of b2b_jax.models")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender")
    parser.add_argument("--dir", help="where to make the temporary folder (default: the system's)")
    args = parser.parse_args()

    if args.threads and hasattr(os, "sched_setaffinity"):  # commands inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    facts = harness.machine(malloc=args.malloc, threads=args.threads)
    env, notes = harness.malloc_env(args.malloc), {}
    with tempfile.TemporaryDirectory(dir=args.dir) as root, harness.environment(env):
        folders, written = folder_work(Path(root), args, notes)
        contenders = {name: (folders, name) for name in folders.work}
        seconds = harness.interleave(contenders, rounds=args.rounds, lead_in=0)
    contest = grow_bandwidth.start(
        (args.source, args.target, "cyclic"),
        [args.malloc],
        threads=args.threads,
        used=facts["processors used"],
    )
    in_memory = harness.interleave(contest.contenders, rounds=args.rounds, lead_in=2, repeats=3)
    for worker in contest.workers:
        worker.close()

    harness.print_facts("Machine", facts)
    harness.print_facts(
        f"{args.source} to {args.target}: writes {written / 1e9:.2f} GB", notes | contest.notes
    )
    rows = []
    for work, timed, yardstick in (
        ("folders", seconds, "copyfile"),
        ("memory", in_memory, f"numpy copy, {args.malloc}"),
    ):
        for label, values in timed.items():
            name, middle = label.removesuffix(f", {args.malloc}"), harness.median(values)
            what, _, method = name.rpartition(" ")
            writes = name not in ("b2b inspect", "import torch")
            peaks = folders.peaks.get(label, (contest.added_bytes.get(label), None))
            rows.append(
                (
                    work,
                    *((what, method) if method in METHODS else (name, "")),
                    f"{middle:.3f}",
                    harness.spread(values),
                    f"{written / middle / 1e9:.2f}" if writes else "",
                    f"{middle / harness.median(timed[yardstick]):.2f}" if writes else "",
                    *map(harness.mebibytes, peaks),
                )
            )
    header = (
        "work",
        "what",
        "method",
        "s (median)",
        "range",
        "GB/s",
        "time / copy",
        "peak MiB",
        "anonymous MiB",
    )
    harness.print_table(header, rows)
    harness.write_json(
        args.json,
        {
            "machine": facts,
            "written": written,
            "notes": notes | contest.notes,
            "seconds": seconds,
            "peak_and_anonymous_bytes": folders.peaks,
            "seconds in memory": in_memory,
            "added_bytes in memory": contest.added_bytes,
        },
    )


if __name__ == "__main__":
    main()
