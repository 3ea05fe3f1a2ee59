"""Comparisons of methods: which runs they consist of, and what has been done of them."""

from b2b_jax.compare.config import CompareConfig, Entry, SourceSpec
from b2b_jax.compare.journal import Journal, read_study
from b2b_jax.compare.methods import METHODS, Method
from b2b_jax.compare.plan import Plan
from b2b_jax.compare.reading import load_compare_config

__all__ = [
    "METHODS",
    "CompareConfig",
    "Entry",
    "Journal",
    "Method",
    "Plan",
    "SourceSpec",
    "load_compare_config",
    "read_study",
]
