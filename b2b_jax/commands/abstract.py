"""Stand-ins for what a run reads, to trace its programs with nothing at hand."""

import dataclasses

import jax
import jax.numpy as jnp

from b2b_jax.data import TokenizerInfo
from b2b_jax.models import ModelConfig
from b2b_jax.train.config import RunConfig
from b2b_jax.train.inherit import Hints, TopLogits
from b2b_jax.train.programs import Programs
from b2b_jax.train.schedule import Phase
from b2b_jax.train.sharding import batch_sharding

# Where BERT's vocabulary has [PAD], [UNK], [CLS], [SEP] and [MASK].
BERT_SPECIALS = (0, 100, 101, 102, 103)


def stand_in_tokenizer(model: ModelConfig) -> TokenizerInfo:
    """A tokenizer of the model's size; no data is read."""
    first = tuple(range(5))
    specials = BERT_SPECIALS if model.vocab_size > max(BERT_SPECIALS) else first
    pad, _, cls, sep, mask = specials
    return TokenizerInfo(model.vocab_size, pad, mask, cls, sep, specials)


def without_growth(config: RunConfig) -> RunConfig:
    """A run as if it did not start from a grown model; only factors of its rates differ."""
    optimizer = dataclasses.replace(config.optimizer, rate_scale="none", state="reset")
    return dataclasses.replace(config, optimizer=optimizer)


def abstract_hints(programs: Programs, phase: Phase) -> Hints | None:
    """What a teacher gives to the steps of a phase, without values; None where there is none."""
    if not phase.needs_teacher:
        return None
    run = programs.config
    if run.inherit.top_k:
        rows = batch_sharding(programs.mesh)
        length, masked = run.train.sequence_length, run.train.masked_positions
        predictions = length if run.model.is_causal else masked
        kept = (run.train.batch_size, predictions, run.inherit.top_k)
        return TopLogits(
            jax.ShapeDtypeStruct(kept, jnp.int32, sharding=rows),
            jax.ShapeDtypeStruct(kept, jnp.float32, sharding=rows),
        )
    assert programs.inheritance is not None
    shapes = jax.eval_shape(programs.inheritance.teacher.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        programs.teacher_shardings,
    )
