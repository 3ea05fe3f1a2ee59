"""A tiny model, its optimizer and its objective, for the training tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from b2b_jax.data import TokenizerInfo
from b2b_jax.models import Compute, ModelConfig, build_model, preset
from b2b_jax.train.objective import Objective
from b2b_jax.train.optim import OptimizerConfig, make_optimizer
from b2b_jax.train.stages import SubModel
from b2b_jax.train.state import TrainState
from b2b_jax.train.step import make_train_step
from b2b_jax.tree import unflatten

VOCAB = 71
TOKENIZER = TokenizerInfo(
    vocab_size=VOCAB, pad_id=0, mask_id=4, cls_id=2, sep_id=3, special_ids=(0, 1, 2, 3, 4)
)
# The gradient of a key bias is zero but for rounding (softmax does not see a shift of all scores).
# An epsilon above that rounding keeps Adam from dividing it by itself, which no two programs or
# machines do alike.
OPTIMIZER = OptimizerConfig(
    peak_learning_rate=1e-2, warmup_steps=2, weight_decay=0.1, adam_eps=1e-5
)


def config(family: str = "bert", **changes) -> ModelConfig:
    base = preset("bert-tiny" if family == "bert" else "gpt2-tiny")
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return base.replace(**(fields | changes))


def objective(cfg: ModelConfig) -> Objective:
    if cfg.family == "bert":
        return Objective("mlm", TOKENIZER, 3)
    return Objective("clm", TOKENIZER)


def tokens(seed: int = 0, rows: int = 8, length: int = 12):
    return jnp.asarray(np.random.default_rng(seed).integers(5, VOCAB, (rows, length)), jnp.int32)


class Setup:
    """Everything that a step needs, and compiled steps by sub-model."""

    def __init__(self, cfg: ModelConfig, *, optimizer=OPTIMIZER, compute=None, micro_batches=1):
        self.cfg = cfg
        self.model = build_model(cfg, compute=compute or Compute())
        self.objective = objective(cfg)
        self.optimizer = make_optimizer(optimizer, self.model.axes, total_steps=100)
        self.micro_batches = micro_batches
        self._steps = {}

    def state(self, seed: int = 0) -> TrainState:
        """Random values in every leaf, so that nothing is zero or one by chance."""
        rng = np.random.default_rng(seed)
        params = {}
        for path, shape in self.model.shapes.items():
            centre = 1.0 if self.model.axes[path].role == "norm_scale" else 0.0
            params[path] = jnp.asarray(rng.normal(centre, 0.06, shape), jnp.float32)
        return jax.jit(lambda p: TrainState.create(p, self.optimizer))(unflatten(params))

    def step(self, sub: SubModel):
        if sub not in self._steps:
            function = make_train_step(
                self.model,
                self.optimizer,
                objective=self.objective,
                sub=sub,
                seed=3,
                micro_batches=self.micro_batches,
            )
            self._steps[sub] = jax.jit(function)
        return self._steps[sub]


@functools.cache
def shared_setup(family: str) -> Setup:
    """One setup for many tests, so that steps compile once."""
    return Setup(config(family))
