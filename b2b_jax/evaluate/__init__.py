"""Judging models."""

from b2b_jax.evaluate.layers import LayerError
from b2b_jax.evaluate.verify import OutputError, VerifyReport, verify

__all__ = ["LayerError", "OutputError", "VerifyReport", "verify"]
