"""The teacher of a run: read, checked, and written down where the run came from (effects)."""

from collections.abc import Mapping
from typing import Any

import jax

from b2b_jax.config import raise_problems
from b2b_jax.models import ConfigError
from b2b_jax.train.config import RunConfig
from b2b_jax.train.saved import SavedModel, in_float32, load_model, total_cost


def load_teacher(config: RunConfig) -> SavedModel:
    """Read the model that a run learns from.

    Raises:
        ConfigError: lists every way in which it does not fit the run.
        CheckpointError, ConvertError: if the folder holds no model.
    """
    saved = load_model(config.inherit.teacher)
    teacher, model = saved.config, config.model
    problems = [
        f"{name}: the teacher has {found!r}, the run {wanted!r}"
        for name, found, wanted in (
            ("vocab_size", teacher.vocab_size, model.vocab_size),
            ("objective", _objective(teacher.is_causal), _objective(model.is_causal)),
        )
        if found != wanted
    ]
    head = "lm" if teacher.is_causal else "mlm"
    if head not in teacher.heads:
        problems.append(f"heads: the teacher has {list(teacher.heads)}, expected {head!r}")
    room = teacher.max_position_embeddings - teacher.position_offset
    if room < config.train.sequence_length:
        problems.append(
            f"train.sequence_length: found {config.train.sequence_length}, but the teacher has "
            f"{room} positions"
        )
    if config.inherit.top_k and jax.process_count() > 1:
        problems.append("inherit.top_k: a cache is made by one process; set 0 to do without")
    raise_problems(f"inherit.teacher {config.inherit.teacher} cannot teach this run", problems)
    return SavedModel(teacher, in_float32(saved.params), saved.meta, saved.step, saved.fingerprint)


def _objective(is_causal: bool) -> str:
    return "the next token" if is_causal else "masked tokens"


def with_teacher(
    lineage: Mapping[str, Any], teacher: SavedModel, config: RunConfig
) -> dict[str, Any]:
    """The lineage of a run with its teacher and what that has cost.

    Raises:
        ConfigError: if the run began with another teacher.
    """
    before = lineage.get("teacher_fingerprint", teacher.fingerprint)
    if before != teacher.fingerprint:
        raise ConfigError(
            f"{config.run_dir}: began with another teacher than {config.inherit.teacher} holds by "
            "now; put that model back, or choose another run_dir"
        )
    added: dict[str, Any] = {
        "teacher": config.inherit.teacher,
        "teacher_fingerprint": teacher.fingerprint,
    }
    if "progress" in teacher.meta:
        cost = total_cost(teacher.meta)
        added |= {"teacher_flops": cost["flops"], "teacher_seconds": cost["seconds"]}
    return {**lineage, **added}
