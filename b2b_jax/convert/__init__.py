"""Hugging Face folders in and out: tables as data, pure conversion, files at the rim."""

from b2b_jax.convert.errors import ConvertError
from b2b_jax.convert.files import is_hf_folder
from b2b_jax.convert.folder import HfFolder, open_folder, save_folder
from b2b_jax.convert.hf import params_to_hf

__all__ = [
    "ConvertError",
    "HfFolder",
    "is_hf_folder",
    "open_folder",
    "params_to_hf",
    "save_folder",
]
