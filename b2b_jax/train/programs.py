"""The compiled programs of a run on its mesh, made once each (effects: devices)."""

import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
import optax
from jaxtyping import Int, Shaped

from b2b_jax.data import TokenizerInfo
from b2b_jax.growth import GrowthPlan, copy_distances, grow_optimizer_state
from b2b_jax.models import ConfigError, Model, build_model
from b2b_jax.train.activations import on_mesh
from b2b_jax.train.arrays import put_everywhere, put_rows
from b2b_jax.train.config import RunConfig
from b2b_jax.train.inherit import Hints, Inheritance, TopLogits
from b2b_jax.train.objective import Objective
from b2b_jax.train.optim import make_optimizer, with_moments
from b2b_jax.train.progressive import begin_phase
from b2b_jax.train.schedule import Phase
from b2b_jax.train.sharding import (
    batch_sharding,
    check_batch,
    local_rows,
    make_mesh,
    optimizer_shardings,
    param_shardings,
    replicated,
)
from b2b_jax.train.stages import SubModel
from b2b_jax.train.starting import put_moments
from b2b_jax.train.state import TrainState
from b2b_jax.train.step import EvalStep, TrainStep, make_eval_step, make_train_step, step_keys
from b2b_jax.train.vocabulary import VocabularyLoss
from b2b_jax.tree import unflatten
from b2b_jax.types import Params

Lessons = Literal["labels", "labels and teacher"]
"""What a training step learns from."""
_copy_distances = jax.jit(copy_distances, static_argnums=1)


class Programs:
    """Model, optimizer, mesh and the jitted functions of one run."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer: TokenizerInfo,
        *,
        plan: GrowthPlan | None = None,
        teacher: Model | None = None,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self.config, self.plan = config, plan
        self.mesh = make_mesh(config.mesh, devices=devices)
        model = build_model(config.model, compute=config.compute)
        tokens = config.train.sequence_length
        self.model = on_mesh(model, self.mesh, tokens=tokens)
        self.vocabulary = VocabularyLoss(self.mesh)
        self.inheritance = None
        if teacher is not None:
            try:
                teacher = on_mesh(teacher, self.mesh, tokens=tokens)
            except ConfigError as error:
                raise ConfigError(f"inherit.teacher: {error}") from error
            self.inheritance = Inheritance(teacher, config.inherit)
        check_batch(self.mesh, config.train.batch_size, parts=config.train.micro_batches)
        self.optimizer = self._optimizer()
        causal = config.model.is_causal
        self.objective = Objective(
            "clm" if causal else "mlm", tokenizer, 0 if causal else config.train.masked_positions
        )
        self._train_steps: dict[tuple[SubModel, Lessons], TrainStep] = {}
        self._eval_steps: dict[tuple[int, ...], EvalStep] = {}

    def _optimizer(self, peak: jax.Array | None = None) -> optax.GradientTransformation:
        return make_optimizer(
            self.config.optimizer,
            self.model.axes,
            total_steps=self.config.train.steps,
            plan=self.plan,
            peak=peak,
        )

    @cached_property
    def param_shardings(self) -> Params:
        """Nested dict of the parameters' shardings."""
        return unflatten(param_shardings(self.model.axes, self.model.shapes, mesh=self.mesh))

    @cached_property
    def state_shardings(self) -> TrainState:
        """Shardings of the whole state."""
        shapes = jax.eval_shape(self._create, self.abstract_params())
        optimizer = optimizer_shardings(
            shapes.opt_state, shapes.params, self.param_shardings, mesh=self.mesh
        )
        return TrainState(replicated(self.mesh), self.param_shardings, optimizer)

    def _create(self, params: Params) -> TrainState:
        return TrainState.create(params, self.optimizer)

    def abstract_params(self) -> Params:
        """Shapes, dtypes and shardings of the parameters."""
        shapes = unflatten(
            {
                path: jax.ShapeDtypeStruct(shape, np.float32)
                for path, shape in self.model.shapes.items()
            }
        )
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            shapes,
            self.param_shardings,
        )

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the whole state, to restore a checkpoint into."""
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            jax.eval_shape(self._create, self.abstract_params()),
            self.state_shardings,
        )

    def init_params(self) -> Params:
        """Fresh parameters, created in their shards."""
        init = jax.jit(self.model.init, out_shardings=self.param_shardings)
        return init(jax.random.key(self.config.train.seed))

    def put_params(self, params: Params) -> Params:
        """Parameters from elsewhere, moved to their shards."""
        return jax.tree.map(put_everywhere, params, self.param_shardings)

    def create_state(self, params: Params) -> TrainState:
        """The state before the first update."""
        return jax.jit(self._create, out_shardings=self.state_shardings)(params)

    def grown_state(self, params: Params, source_state: Any) -> TrainState:
        """The state before the first update, with the source's moments grown as its parameters.

        Args:
            params: the grown parameters.
            source_state: optimizer state of the source when it was grown, of numpy arrays.
        """
        plan = self.plan
        assert plan is not None

        def create(params: Params, source_state: Any) -> TrainState:
            state = self._create(params)
            moments = with_moments(state.opt_state, grow_optimizer_state(source_state, plan))
            return TrainState(state.step, state.params, moments)

        source_state = put_moments(source_state, plan, mesh=self.mesh)
        return jax.jit(create, out_shardings=self.state_shardings)(params, source_state)

    def copy_distances(self, params: Params) -> dict[str, float]:
        """How far the copies that growth made have parted, by axis; nothing without a growth."""
        if self.plan is None:
            return {}
        distances = _copy_distances(params, self.plan)
        return {f"copy_distance_{axis}": float(value) for axis, value in distances.items()}

    @cached_property
    def local_rows(self) -> np.ndarray:
        """Which rows of a batch this process has to read, ascending."""
        return local_rows(self.mesh, self.config.train.batch_size)

    def put(self, rows: np.ndarray) -> Int[jax.Array, "B T"]:
        """The `local_rows` of a batch as one array over all devices."""
        size, where = self.config.train.batch_size, batch_sharding(self.mesh)
        return put_rows(rows, self.local_rows, sharding=where, batch_size=size)

    def put_whole(self, rows: np.ndarray) -> Shaped[jax.Array, "B ..."]:
        """Rows of a whole batch that every process has, as one array over all devices."""
        return put_everywhere(rows, batch_sharding(self.mesh))

    def is_compiled(self, sub: SubModel, *, lessons: Lessons = "labels") -> bool:
        """Whether the step of a sub-model has been compiled."""
        return (sub, lessons) in self._train_steps

    def compile_train_step(
        self,
        sub: SubModel,
        state: TrainState,
        input_ids: Int[jax.Array, "B T"],
        *,
        hints: Hints | None = None,
    ) -> None:
        """Compile what `lower_train_step` traces, for `train_step` to run."""
        whole = replicated(self.mesh)
        knobs = {name: put_everywhere(value, whole) for name, value in self._knobs.items()}
        lessons: Lessons = "labels" if hints is None else "labels and teacher"
        compiled = self.lower_train_step(sub, state, input_ids, hints=hints).compile()
        self._train_steps[sub, lessons] = functools.partial(compiled, knobs)

    @cached_property
    def _knobs(self) -> dict[str, np.ndarray]:
        """What runs of one comparison differ in: arguments of the compiled step."""
        return {
            "seed": np.asarray(self.config.train.seed, np.uint32),
            "peak_learning_rate": np.asarray(self.config.optimizer.peak_learning_rate, np.float32),
        }

    def lower_train_step(
        self,
        sub: SubModel,
        state: TrainState,
        input_ids: Int[jax.Array, "B T"] | jax.ShapeDtypeStruct,
        *,
        hints: Hints | None = None,
    ) -> jax.stages.Lowered:
        """Trace the step of a sub-model for arguments like these, for devices of any kind.

        Args:
            sub: what runs and what is trained.
            state: the state, or its abstract form.
            input_ids: a batch, or its abstract form.
            hints: of the teacher, for a step that learns from one.
        """

        def step(knobs: dict[str, jax.Array], state: TrainState, *batch: Any) -> Any:
            train_one = make_train_step(
                self.model,
                self._optimizer(knobs["peak_learning_rate"]),
                objective=self.objective,
                sub=sub,
                seed=knobs["seed"],
                micro_batches=self.config.train.micro_batches,
                vocabulary=self.vocabulary,
                inheritance=None if hints is None else self.inheritance,
            )
            return train_one(state, *batch)

        # Seed and rate are arguments, so that runs of one comparison find each other's program in
        # the persistent compilation cache.
        whole = replicated(self.mesh)
        knobs = {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=whole)
            for name, value in self._knobs.items()
        }
        jitted = jax.jit(step, donate_argnums=1, out_shardings=(self.state_shardings, None))
        arguments = (state, input_ids) if hints is None else (state, input_ids, hints)
        return jitted.lower(knobs, *arguments)

    def abstract_batch(self) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of a batch."""
        shape = (self.config.train.batch_size, self.config.train.sequence_length)
        return jax.ShapeDtypeStruct(shape, np.int32, sharding=batch_sharding(self.mesh))

    def train_step(self, sub: SubModel, *, lessons: Lessons = "labels") -> TrainStep:
        """The compiled step that trains a sub-model; its state argument is donated."""
        return self._train_steps[sub, lessons]

    def begin_phase(self, state: TrainState, phase: Phase) -> TrainState:
        """The layers and moments that a phase begins with; the old state is donated."""

        def begin(state: TrainState) -> TrainState:
            return begin_phase(state, phase, self.model.axes)

        return jax.jit(begin, donate_argnums=0, out_shardings=self.state_shardings)(state)

    @cached_property
    def teacher_shardings(self) -> Params:
        """Nested dict of the shardings of the teacher's parameters."""
        assert self.inheritance is not None
        teacher = self.inheritance.teacher
        return unflatten(param_shardings(teacher.axes, teacher.shapes, mesh=self.mesh))

    def put_teacher(self, params: Params) -> Params:
        """The teacher's parameters from elsewhere, moved to their shards."""
        return jax.tree.map(put_everywhere, params, self.teacher_shardings)

    @cached_property
    def keep_predictions(self) -> Callable[..., TopLogits]:
        """``(teacher's parameters, input_ids, step) -> TopLogits`` of the step's own masks."""
        inheritance, seed = self.inheritance, self.config.train.seed
        assert inheritance is not None

        def keep(params: Params, input_ids: jax.Array, step: jax.Array) -> TopLogits:
            example = self.objective.example(input_ids, step_keys(seed, step)[0])
            parts = self.vocabulary.parts(*example.labels.shape, vocab=self.config.model.vocab_size)
            return inheritance.keep(params, example, parts=parts)

        return jax.jit(keep)

    def eval_step(self, depths: tuple[int, ...]) -> EvalStep:
        """The evaluation of some prefixes of the model."""
        if depths not in self._eval_steps:
            step = make_eval_step(
                self.model,
                objective=self.objective,
                depths=depths,
                micro_batches=self.config.train.micro_batches,
                vocabulary=self.vocabulary,
            )
            self._eval_steps[depths] = jax.jit(step, out_shardings=replicated(self.mesh))
        return self._eval_steps[depths]
