"""What a comparison records of models and machines (effects: reads files)."""

import os
import platform

import jax

from b2b_jax.compare.identity import digest
from b2b_jax.train.saved import load_model


def model_fingerprint(folder: str) -> str:
    """Of a model that was not trained here: parameters and config."""
    saved = load_model(folder)
    return digest({"parameters": saved.fingerprint, "config": saved.config.to_dict()})


def machine() -> str:
    """Devices, cores and version, in a line."""
    device = jax.devices()[0].device_kind
    cores = f"{os.cpu_count()} cores, {platform.machine()}"
    return f"{jax.device_count()} x {device}, {cores}, jax {jax.__version__}"
