"""What checking a checkpoint costs: checksums of all arrays beside writing and reading them.

A run keeps the checksum of every array of its parameters and moments and compares it when it
continues, since Orbax gives back flipped bytes without a word. "checksums" is what that adds to a
save, where it holds up the run, and to a restore.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="bert-base", help="preset")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    import jax

    from b2b_jax.models import build_model, preset
    from b2b_jax.train.checkpoint import Checkpoints
    from b2b_jax.train.checksums import tree_checksums
    from b2b_jax.train.config import CheckpointConfig
    from b2b_jax.train.optim import OptimizerConfig, make_optimizer
    from b2b_jax.train.state import TrainState

    model = build_model(preset(args.model))
    optimizer = make_optimizer(OptimizerConfig(), model.axes, total_steps=100_000)
    state = jax.jit(lambda key: TrainState.create(model.init(key), optimizer))(jax.random.key(0))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=single), state
    )
    seconds: dict[str, list[float]] = {}

    def timed(name: str, action: Callable[[], object]) -> None:
        before = time.perf_counter()
        action()
        seconds.setdefault(name, []).append(time.perf_counter() - before)

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), CheckpointConfig(keep_last=1, keep_best=0))
        tree_checksums(state)  # compiles
        for step in range(args.rounds):
            timed("checksums", lambda: tree_checksums(state))
            timed(
                "save, until the run goes on, checksums included",
                lambda step=step: checkpoints.save(state, {}, step=step),
            )
            timed("save, from then until it is on disk", checkpoints.wait)
            timed(
                "restore, checksums included",
                lambda step=step: checkpoints.restore(step, abstract),
            )
        checkpoints.close()
    print(f"{args.model} with moments, {size / 1e9:.2f} GB, {jax.devices()[0].device_kind}")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:50s} {middle:7.3f} s  {size / 1e9 / middle:7.2f} GB/s")


if __name__ == "__main__":
    main()
