"""Our training step, made as `b2b train` makes it, for the benchmarks that time it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IN_TURN = "all in turn"
"""The variant that does one step of each sub-model, one after the other without waiting."""


PROFILE = "profile"
"""The variant that leaves a trace of some steps."""
PROFILED_STEPS = 3


@dataclass(frozen=True)
class Workload:
    """One training step's sizes; everything a worker has to know.

    Attributes:
        torch: names of PyTorch's steps, where they are compared with.
        profile: folder that our worker's variant `PROFILE` writes a trace to.
    """

    model: str = "bert-base"
    layers: int | None = None
    batch_size: int = 8
    sequence_length: int = 128
    masked_positions: int = 20
    dtype: str = "float32"
    clip_norm: float = 1.0
    scan_unroll: int = 1
    remat: str = "default"
    attention: str = "auto"
    steps_per_round: int = 1
    torch: tuple[str, ...] = ()
    profile: str = ""

    def model_config(self) -> Any:
        """The preset without dropout, at the wanted depth."""
        from b2b_jax.models import preset

        cfg = preset(self.model).replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        return cfg if self.layers is None else cfg.replace(num_hidden_layers=self.layers)


def add_compute(parser: Any) -> None:
    """Options of how our step is computed."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--scan-unroll", type=int, default=1, help="b2b_jax's compute.scan_unroll")
    parser.add_argument(
        "--remat",
        choices=("default", "none", "dots", "full"),
        default="default",
        help="b2b_jax's compute.remat",
    )
    parser.add_argument(
        "--attention",
        choices=("auto", "xla", "cudnn", "splash"),
        default="auto",
        help="b2b_jax's compute.attention",
    )


def tokenizer_info(vocab_size: int) -> Any:
    from b2b_jax.data import TokenizerInfo

    return TokenizerInfo(vocab_size, 0, 4, 2, 3, (0, 1, 2, 3, 4))


def random_tokens(load: Workload, vocab_size: int) -> Any:
    """Token ids without special ones, the same for every contender."""
    import numpy as np

    shape = (load.batch_size, load.sequence_length)
    return np.random.default_rng(0).integers(5, vocab_size, shape).astype(np.int32)


def programs(load: Workload) -> Any:
    """The `Programs` of a run with these sizes."""
    from b2b_jax.models import Compute
    from b2b_jax.train.config import RunConfig, TrainConfig
    from b2b_jax.train.optim import OptimizerConfig
    from b2b_jax.train.programs import Programs

    cfg = load.model_config()
    remat = Compute().remat if load.remat == "default" else load.remat
    config = RunConfig(
        model=cfg,
        train=TrainConfig(
            batch_size=load.batch_size,
            sequence_length=load.sequence_length,
            masked_positions=load.masked_positions,
        ),
        optimizer=OptimizerConfig(clip_norm=load.clip_norm),
        compute=Compute(
            dtype=load.dtype,  # pyright: ignore[reportArgumentType]
            scan_unroll=load.scan_unroll,
            remat=remat,  # pyright: ignore[reportArgumentType]
            attention=load.attention,  # pyright: ignore[reportArgumentType]
        ),
    )
    return Programs(config, tokenizer_info(cfg.vocab_size))


def build(load: Workload, subs: Sequence[Any] | None = None) -> dict[str, Any]:
    """Worker: compile the steps of some sub-models and offer one variant for each.

    Args:
        load: sizes.
        subs: sub-models; the full model only, by default.
    """
    import jax

    from b2b_jax.train.stages import full_model

    made = programs(load)
    layers = made.config.model.num_hidden_layers
    subs = subs or [full_model(layers)]
    holder = {"state": made.create_state(made.init_params())}
    ids = made.put(random_tokens(load, made.config.model.vocab_size))
    compile_s = {}
    for sub in subs:
        start = time.perf_counter()
        made.compile_train_step(sub, holder["state"], ids)
        compile_s[name_of(sub)] = time.perf_counter() - start
    losses: list[float] = []

    def timed(sub: Any) -> float:
        step = made.train_step(sub)
        start = time.perf_counter()
        for _ in range(load.steps_per_round):
            holder["state"], metrics = step(holder["state"], ids)
        jax.block_until_ready((holder["state"], metrics))
        took = (time.perf_counter() - start) / load.steps_per_round
        losses.append(float(metrics.loss.mean))
        return took

    def timed_in_turn() -> float:
        start = time.perf_counter()
        for _ in range(load.steps_per_round):
            for sub in subs:
                holder["state"], metrics = made.train_step(sub)(holder["state"], ids)
        jax.block_until_ready((holder["state"], metrics))
        return (time.perf_counter() - start) / load.steps_per_round

    def profiled() -> float:
        with jax.profiler.trace(load.profile):
            start = time.perf_counter()
            for _ in range(PROFILED_STEPS):
                holder["state"], metrics = made.train_step(subs[-1])(holder["state"], ids)
            jax.block_until_ready((holder["state"], metrics))
            return (time.perf_counter() - start) / PROFILED_STEPS

    first = {name_of(sub): timed(sub) for sub in subs}
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "variants": {
            **{name_of(sub): lambda sub=sub: timed(sub) for sub in subs},
            IN_TURN: timed_in_turn,
            PROFILE: profiled,
        },
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "attention": made.model.compute.attention,
        "compile_s": compile_s,
        "first_step_s": first,
        "first_loss": losses[0],
        "peak_bytes": memory.get("peak_bytes_in_use"),
    }


def name_of(sub: Any) -> str:
    """A short name of a sub-model's step."""
    return f"layers {sub.first_live}-{sub.depth} of the bottom {sub.depth}"
