"""What some tests need that not every machine has."""

import importlib.util
import re
from pathlib import Path

import pytest

LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra 'tpu'"
)


def _may_mount() -> bool:
    """Whether Linux lets this process mount disks: CAP_SYS_ADMIN, the 21st capability."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    held = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return held is not None and bool(int(held[1], 16) >> 21 & 1)


MOUNT = pytest.mark.skipif(not _may_mount(), reason="needs the right to mount a small disk")
