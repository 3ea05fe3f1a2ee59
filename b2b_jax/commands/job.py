"""`b2b train` in one process of a job, or the only one (effects: processes)."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from b2b_jax.commands.train import train_command
from b2b_jax.config import load_run_config
from b2b_jax.train.config import RunConfig
from b2b_jax.train.disk import naming_full_disk
from b2b_jax.train.processes import (
    LostProcess,
    is_alone,
    is_first,
    join_processes,
    naming_lost_processes,
)
from b2b_jax.train.signals import EXIT_PREEMPTED
from b2b_jax.train.writers import QuietReporter, TerminalReporter

EXIT_ERROR = 1


def train_job(
    path: str, overrides: Sequence[str], *, guard: Callable[[Callable[[], int]], int]
) -> int:
    """Join the other processes, if there are any, and train.

    A process of several that fails ends at once: leaving in order would wait for the others, which
    wait for it in the middle of a step.

    Args:
        path: YAML file of the run.
        overrides: flags.
        guard: turns expected errors into a message and an exit code.

    Returns:
        the exit code.
    """
    join_processes()
    try:
        with naming_lost_processes():
            config = load_run_config(path, overrides)
            reporter = TerminalReporter("train") if is_first() else QuietReporter()
            with naming_full_disk(*_folders(config)):
                return train_command(config, reporter=reporter).exit_code
    except LostProcess as error:
        print(f"b2b: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_PREEMPTED)
    except (Exception, KeyboardInterrupt) as error:
        if is_alone():
            raise
        os._exit(_said(error, guard))


def _folders(config: RunConfig) -> list[str]:
    """Where a run writes to."""
    folders = [config.run_dir, config.data.prepared_dir]
    return [*folders, config.inherit.cache_dir] if config.inherit.top_k else folders


def _said(error: BaseException, guard: Callable[[Callable[[], int]], int]) -> int:
    def fail() -> int:
        raise error

    try:
        code = guard(fail)
    except Exception:
        traceback.print_exc()
        code = EXIT_ERROR
    sys.stderr.flush()
    return code
