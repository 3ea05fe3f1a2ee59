"""Memory of the host that a long job uses again, not giving it back (effects: the process)."""

import ctypes
import os
import platform
from collections.abc import Mapping

OPTIONS = {
    "arena_max": (-8, 1),  # one heap for all threads, of which only the first may grow large
    "mmap_max": (-4, 0),  # large blocks come from the heap too
    "trim_threshold": (-1, -1),  # the end of the heap is not given back
}
"""Tunables of glibc -> their numbers for `mallopt`, and what they are set to."""


def keep_freed_memory(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Let glibc keep memory that is freed, for the rest of this process.

    On a CPU every training step takes the same large blocks as the one before it. glibc gives
    blocks of this size back to the system when they are freed, which clears their pages when they
    are taken again: half of the time of a small step (``benchmarks/allocation.py``).
    Elsewhere than on glibc nothing happens, and what the environment sets by itself stays, as
    ``MALLOC_MMAP_MAX_`` or in ``GLIBC_TUNABLES``.

    Args:
        environment: of the process, by default.

    Returns:
        which of `OPTIONS` were set.
    """
    found = os.environ if environment is None else environment
    if platform.libc_ver()[0] != "glibc":
        return ()
    tunables = found.get("GLIBC_TUNABLES", "")
    mallopt = ctypes.CDLL(None).mallopt
    done = []
    for name, (number, value) in OPTIONS.items():
        variables = (f"MALLOC_{name.upper()}", f"MALLOC_{name.upper()}_")
        chosen = f"glibc.malloc.{name}=" in tunables or any(word in found for word in variables)
        if not chosen and mallopt(number, value):
            done.append(name)
    return tuple(done)
