"""What the benchmarks share: worker processes, interleaved rounds, the machine, tables.

Every contender lives in a process of its own, started with the same environment, and only one of
them works at a time. So allocators, thread pools and GPU libraries of one framework cannot disturb
another, and a change in the machine's load meets all contenders alike (A B C A B C ...).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

MALLOC = {"default": "", "hugetlb": "glibc.malloc.hugetlb=1"}
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers"),
    *("jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
)
# Pause before every turn, so that the other process's threads have stopped spinning.
SETTLE_S = 0.25

Variants = Mapping[str, Callable[[], float]]
"""Name -> a function that does the work once and returns its seconds."""


class Unavailable(Exception):
    """A contender cannot run here; the message says why."""


def progress(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def import_torch() -> Any:
    """Torch, or `Unavailable` with what to install."""
    try:
        import torch
    except ImportError as error:
        raise Unavailable(
            f"PyTorch is not installed ({error}); run: pip install 'b2b_jax[parity]'"
        ) from error
    return torch


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise Unavailable(
            f"transformers is not installed ({error}); run: pip install 'b2b_jax[parity]'"
        ) from error
    return transformers


def _serve(connection: Any, cpus: list[int] | None, build: Callable[..., Any], args: Any) -> None:
    """The worker's side: build the variants once, then time one of them per request."""
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
    try:
        facts = build(*args)
        variants: Variants = facts.pop("variants", {})
        connection.send(("ready", {**facts, "names": list(variants)}))
        while (name := connection.recv()) is not None:
            connection.send(("seconds", variants[name]()))
    except Unavailable as reason:
        connection.send(("unavailable", str(reason)))
    except EOFError:
        pass
    except Exception:
        connection.send(("failed", traceback.format_exc()))


class Contender(Protocol):
    """Whatever can be timed in turn with others: a worker, or commands that are run anew."""

    def seconds(self, name: str) -> float:
        """Do the work of one variant once."""
        ...


class Worker:
    """A fresh process that holds one contender.

    Args:
        build: a module-level function, run in the process. It returns a dict of facts; under
            "variants" it has the functions to time.
        args: its arguments.
        env: environment variables of the process besides our own.
        threads: processors it may use; None, all of them.
    """

    def __init__(
        self,
        build: Callable[..., dict[str, Any]],
        *args: Any,
        env: Mapping[str, str] | None = None,
        threads: int | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        cpus = None
        if threads is not None and hasattr(os, "sched_setaffinity"):
            cpus = sorted(os.sched_getaffinity(0))[:threads]
        self._process = context.Process(
            target=_serve, args=(theirs, cpus, build, args), daemon=True
        )
        with environment(env or {}):
            self._process.start()
        theirs.close()
        self.facts: dict[str, Any] = self._receive()
        self.names: list[str] = self.facts.pop("names")

    def _receive(self) -> Any:
        try:
            kind, content = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(f"a worker died with exit code {code} (out of memory?)") from None
        if kind in ("unavailable", "failed"):
            self._process.join()  # it may hold what the next one needs, such as a card's memory
        if kind == "unavailable":
            raise Unavailable(content)
        if kind == "failed":
            raise RuntimeError(f"a worker failed:\n{content}")
        return content

    def seconds(self, name: str) -> float:
        """Do the work of one variant once."""
        self._connection.send(name)
        return self._receive()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self._connection.send(None)
        self._process.join()


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while; an empty value unsets."""
    before = {name: os.environ.get(name) for name in changes}

    def put(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value:
                os.environ[name] = value
            else:
                os.environ.pop(name, None)

    put(changes)
    try:
        yield
    finally:
        put(before)


def malloc_env(setting: str) -> dict[str, str]:
    """Environment that selects glibc's allocation of large blocks."""
    return {"GLIBC_TUNABLES": MALLOC[setting]}


def interleave(
    contenders: Mapping[str, tuple[Contender, str]],
    *,
    rounds: int,
    lead_in: int = 1,
    repeats: int = 1,
) -> dict[str, list[float]]:
    """Time all contenders in turn, round after round, after one round that is not counted.

    A contender that waited for the others is slower at first: its caches are cold, and in a virtual
    machine its freed memory may have gone back to the host (free page reporting doubled the first
    training step after seven idle seconds). Work that goes on without pauses, as training does, is
    what is to be measured, so every turn begins with work that is not timed.

    Args:
        contenders: label -> (worker or commands, name of the variant).
        rounds: turns of every contender.
        lead_in: untimed calls at the beginning of every turn.
        repeats: timed calls in every turn.

    Returns:
        label -> seconds of every timed call.
    """
    seconds: dict[str, list[float]] = {label: [] for label in contenders}
    for turn in range(rounds + 1):
        for label, (worker, name) in contenders.items():
            time.sleep(SETTLE_S)
            for call in range(lead_in + repeats):
                took = worker.seconds(name)
                if turn and call >= lead_in:
                    seconds[label].append(took)
        title = f"round {turn}/{rounds}" if turn else "warm-up"
        latest = (f"{label} {values[-1]:.3f} s" for label, values in seconds.items() if values)
        progress(f"{title}: {', '.join(latest)}" if turn else title)
    return seconds


def memory_of(process: int | str = "self") -> dict[str, int]:
    """Bytes that a process has in memory, by the names of Linux; empty elsewhere, or if it ended.

    VmRSS is all of it, VmHWM the most so far, RssAnon the part that mirrors no file.
    """
    lines = (line.split() for line in _read(f"/proc/{process}/status").splitlines())
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[-1:] == ["kB"]}


def added_memory(function: Callable[[], Any]) -> int | None:
    """The most bytes that this process held during a call beyond those before; None if unknown."""
    # Or what was freed before, which JAX does in another thread, would be used again unseen.
    time.sleep(SETTLE_S)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    before = memory_of()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM anew
    except OSError:
        before = {}
    function()
    return memory_of()["VmHWM"] - before["VmRSS"] if before else None


def mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f}"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Lowest and highest round."""
    return f"{min(values):.3f} - {max(values):.3f}"


def machine(*, malloc: str, threads: int | None) -> dict[str, Any]:
    """Everything that one has to know to read the figures."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "processors used": min(threads or allowed or 1, allowed or 1),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "malloc": f"{malloc} (GLIBC_TUNABLES={MALLOC.get(malloc) or 'unset'})",
        "transparent huge pages": _thp(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "load average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "scheduling": _scheduling(),
        "driver": _driver(),
    }


def _driver() -> str:
    """Of NVIDIA's cards."""
    first = _read("/proc/driver/nvidia/version").partition("\n")[0]
    return first.partition(":")[2].strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return f"{size / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"


def _thp() -> str:
    text = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _scheduling() -> str:
    if not hasattr(os, "sched_getscheduler"):
        return "unknown"
    names = {os.SCHED_OTHER: "normal", os.SCHED_FIFO: "real-time FIFO", os.SCHED_RR: "real-time"}
    return names.get(os.sched_getscheduler(0), "other")


def facts_lines(facts: Mapping[str, Any]) -> list[str]:
    """``name: value`` of all that is known."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        if value not in ("", None, ()):
            lines.append(f"{name}: {value}")
    return lines


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    print(f"\n{title}")
    for line in facts_lines(facts):
        print(f"  {line}")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, aligned."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    return "\n".join(lines)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print(f"\n{table(header, rows)}\n")


def write_json(path: str | None, content: Mapping[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(content, indent=1) + "\n")
        progress(f"wrote {path}")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--threads", type=int, help="processors to use (default: all)")
    made.add_argument("--json", metavar="FILE", help="also write the raw figures there")
    return made


def add_malloc(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--malloc",
        choices=sorted(MALLOC),
        default="hugetlb",
        help="allocation of large blocks, the same for all contenders: glibc's default, or with "
        "huge pages (default: hugetlb; nothing but glibc reads it)",
    )
