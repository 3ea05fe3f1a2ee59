"""Growth makes large parameters in their shards: what one of eight devices holds meanwhile."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("mesh_growth.py")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["fsdp", "fsdp_tp"])
@pytest.mark.parametrize("method", ["fpi", "aki"])
def test_no_device_holds_a_whole_large_parameter(preset, method):
    words = [sys.executable, str(WORKER), preset, method]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["outputs"] == pytest.approx(found["shares"], rel=0.01)
    assert found["temporary"] < 2 * found["shares"]
    assert found["largest_array"] < found["smallest_matrix"]
