"""Judging models."""

from b2b_jax.evaluate.verify import VerifyReport, verify

__all__ = ["VerifyReport", "verify"]
