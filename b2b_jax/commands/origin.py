"""Where the first state of a run comes from: random values, or another folder (effects: files)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from b2b_jax.config import raise_problems
from b2b_jax.convert import is_hf_folder
from b2b_jax.models import ConfigError, ModelConfig
from b2b_jax.train.config import RunConfig
from b2b_jax.train.programs import Programs
from b2b_jax.train.saved import in_float32, load_model, read_meta, total_cost
from b2b_jax.train.starting import load_optimizer, load_params
from b2b_jax.train.state import TrainState
from b2b_jax.train.stored import CheckpointError
from b2b_jax.train.writers import Reporter
from b2b_jax.types import Params


@dataclass(frozen=True)
class Origin:
    """Where a run starts from.

    Attributes:
        lineage: JSON values to keep.
        initial: makes the first state.
    """

    lineage: dict[str, Any]
    initial: Callable[[Programs], TrainState] = field(
        default=lambda programs: programs.create_state(programs.init_params())
    )


def find_origin(config: RunConfig, *, reporter: Reporter) -> Origin:
    """What `config.init` says; parameters are put into their shards later.

    Of folders that do not say their fingerprint, which are those of runs and Hugging Face's, the
    whole model is read for it.

    Raises:
        ConfigError: if the folder holds another model, or one that cannot start so.
        CheckpointError, ConvertError: if it holds none.
    """
    lineage: dict[str, Any] = {"library_version": version("b2b_jax")}
    if not config.init:
        return Origin(lineage)
    init = _open_init(config.init)
    _check_same_model(config, init.config)
    reporter.note(f"init: parameters of {config.init}")
    # A teacher of what came before is in source_flops; this run may have another one.
    before = init.meta.get("lineage", {})
    lineage |= {name: v for name, v in before.items() if not name.startswith("teacher")}
    lineage |= {"init": config.init, "init_fingerprint": init.fingerprint}
    lineage |= {"init_step": init.meta.get("step", 0)}
    if "progress" in init.meta:  # what was spent on it counts as well
        cost = total_cost(init.meta)
        lineage |= {"source_flops": cost["flops"], "source_seconds": cost["seconds"]}
        lineage.setdefault("source", config.init)
    if config.optimizer.state == "reset":
        return Origin(lineage, lambda programs: programs.create_state(init.params(programs)))
    if "progress" in init.meta or "growth_plan" not in lineage:
        raise ConfigError(
            f"optimizer.state: found 'grow', but {config.init} is no grown model, or was trained "
            "since it was grown; set it to 'reset', or init to what b2b grow wrote"
        )
    try:
        source = load_optimizer(
            lineage["source"],
            step=lineage.get("source_step", -1),
            fingerprint=lineage["source_fingerprint"],
        )
    except CheckpointError as error:
        raise CheckpointError(
            f"optimizer.state is 'grow', but {error}. Put the run back that was grown, or set "
            "optimizer.state to 'reset'"
        ) from error
    reporter.note(f"init: moments of {lineage['source']}, grown as its parameters were")
    return Origin(lineage, lambda programs: programs.grown_state(init.params(programs), source))


def init_fingerprint(path: str) -> str:
    """The fingerprint of the model in a folder, read anew only where the folder does not say it."""
    return _open_init(path).fingerprint


@dataclass(frozen=True)
class _Init:
    """The model of a folder.

    Attributes:
        config: sizes and constants.
        meta: what it says about itself.
        fingerprint: of its parameters.
        params: puts them into the shards of a run.
    """

    config: ModelConfig
    meta: dict[str, Any]
    fingerprint: str
    params: Callable[[Programs], Params]


def _open_init(path: str) -> _Init:
    if not is_hf_folder(path):
        meta = read_meta(path)
        step, model = meta["step"], ModelConfig.from_dict(meta["model"])
        fingerprint = meta.get("fingerprint") or load_model(path, step=step).fingerprint

        def read(programs: Programs) -> Params:
            return load_params(path, step=step, shardings=programs.param_shardings)

        return _Init(model, meta, fingerprint, read)
    saved = load_model(path)
    params = in_float32(saved.params)
    return _Init(
        saved.config, saved.meta, saved.fingerprint, lambda programs: programs.put_params(params)
    )


def _check_same_model(config: RunConfig, model: ModelConfig) -> None:
    dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")
    found, wanted = model.to_dict(), config.model.to_dict()
    raise_problems(
        f"init {config.init} holds another model than the config asks for; leave the model section "
        "out to take the model of init",
        [
            f"model.{name}: init has {found[name]!r}, the config {wanted[name]!r}"
            for name in found
            if name not in dropouts and found[name] != wanted[name]
        ],
    )
