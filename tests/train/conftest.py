"""What several modules of these tests start from."""

import pytest
from stopped_runs import StoppedRun, stop_at

from b2b_jax.train.config import CheckpointConfig


@pytest.fixture(scope="session")
def stopped(tmp_path_factory) -> StoppedRun:
    """A run with checkpoints of steps 3 and 6, and one that was not disturbed; take a copy."""
    often = CheckpointConfig(every_steps=3, every_minutes=0.0, keep_last=2, keep_best=0)
    return stop_at(6, tmp_path_factory.mktemp("stopped"), checkpoint=often)
