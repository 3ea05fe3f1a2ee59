"""Judging models."""

from b2b_jax.evaluate.attention import attention_probabilities, head_similarity
from b2b_jax.evaluate.calibrate import calibrate
from b2b_jax.evaluate.donors import HeadDonors, head_donors
from b2b_jax.evaluate.heads import HeadComparison, compare_heads
from b2b_jax.evaluate.layers import LayerError
from b2b_jax.evaluate.norms import NormError
from b2b_jax.evaluate.verify import OutputError, VerifyReport, verify

__all__ = [
    "HeadComparison",
    "HeadDonors",
    "LayerError",
    "NormError",
    "OutputError",
    "VerifyReport",
    "attention_probabilities",
    "calibrate",
    "compare_heads",
    "head_donors",
    "head_similarity",
    "verify",
]
