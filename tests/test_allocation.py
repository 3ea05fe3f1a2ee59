"""Memory that a process keeps: counted in pages that it has to be given again."""

import platform
import subprocess
import sys

import pytest

from b2b_jax.commands.allocation import OPTIONS, keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="acts on glibc only")

# Takes and frees 64 MiB again and again, in a thread, as XLA's threads do.
SCRIPT = """
import resource, sys, threading
from b2b_jax.commands.allocation import keep_freed_memory
print(*keep_freed_memory())

def work():
    bytearray(2**26)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        bytearray(2**26)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
PAGES = 8 * 2**26 // 4096


def run(**environment: str) -> tuple[list[str], int]:
    """What was set, and how many pages were taken anew."""
    path = {"PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=path | environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    names, faults = ended.stdout.splitlines()
    return names.split(), int(faults)


def test_large_blocks_are_used_again():
    names, faults = run()
    assert names == list(OPTIONS)
    assert faults < 0.01 * PAGES


def test_what_the_environment_sets_stays():
    variables = {f"MALLOC_{name.upper()}_": "1000" for name in ("mmap_max", "trim_threshold")}
    names, faults = run(MALLOC_ARENA_MAX="4", **variables)
    assert names == [] and faults > 0.5 * PAGES
    tunables = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4:glibc.malloc.mmap_max=1000"}
    names, faults = run(**tunables)
    assert names == ["trim_threshold"] and faults > 0.5 * PAGES


def test_nothing_happens_without_glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory({}) == ()
