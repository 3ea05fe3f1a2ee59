"""Judging models."""

from b2b_jax.evaluate.calibrate import calibrate
from b2b_jax.evaluate.layers import LayerError
from b2b_jax.evaluate.norms import NormError
from b2b_jax.evaluate.verify import OutputError, VerifyReport, verify

__all__ = ["LayerError", "NormError", "OutputError", "VerifyReport", "calibrate", "verify"]
