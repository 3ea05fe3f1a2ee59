"""Text to batches: sources, tokenizers, packed tokens, masking."""

from b2b_jax.data.config import DataConfig
from b2b_jax.data.errors import DataError
from b2b_jax.data.masking import MaskedBatch, mask_tokens
from b2b_jax.data.pipeline import heldout_batches, train_batches, window_dataset
from b2b_jax.data.prepare import Prepared, load_prepared, prepare
from b2b_jax.data.tokenizer import TokenizerInfo

__all__ = [
    "DataConfig",
    "DataError",
    "MaskedBatch",
    "Prepared",
    "TokenizerInfo",
    "heldout_batches",
    "load_prepared",
    "mask_tokens",
    "prepare",
    "train_batches",
    "window_dataset",
]
