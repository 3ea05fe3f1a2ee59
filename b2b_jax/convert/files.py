"""Reading Hugging Face folders (effects: files)."""

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from safetensors import SafetensorError, safe_open

from b2b_jax.convert.errors import ConvertError
from b2b_jax.convert.safetensors_writer import DTYPES

CONFIG = "config.json"
SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


@runtime_checkable
class TensorFile(Protocol):
    """The tensors of a folder: names and shapes at once, values one by one."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape."""
        ...

    def dtype(self, name: str) -> np.dtype:
        """The dtype of one tensor."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor."""
        ...


def is_hf_folder(path: str | Path) -> bool:
    """Whether a folder holds a config.json that names a model type."""
    try:
        return "model_type" in json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def read_config(path: str | Path) -> dict[str, Any]:
    """The values of a folder's config.json.

    Raises:
        ConvertError: if there is none, or it is no JSON object.
    """
    return _read_json(Path(path) / CONFIG)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConvertError(f"{file}: no such file") from None
    except ValueError as error:
        raise ConvertError(f"{file}: is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConvertError(f"{file}: expected a JSON object, found {type(values).__name__}")
    return values


def open_tensors(path: str | Path) -> TensorFile:
    """Open the weights of a folder: safetensors where there are any, else PyTorch's own format.

    Raises:
        ConvertError: if there are none, a shard is missing, a file is truncated, or a pickle wants
            to run code.
    """
    files = weight_files(path)
    return (_Safetensors if files[0].suffix == ".safetensors" else _Pickled)(files)


def weight_files(path: str | Path) -> list[Path]:
    """The files that `open_tensors` reads, in order.

    Raises:
        ConvertError: if there are none.
    """
    folder = Path(path)
    for single, index in ((SAFE, SAFE_INDEX), (BIN, BIN_INDEX)):
        if (folder / single).exists():
            return [folder / single]
        if (folder / index).exists():
            return _shards(folder, index)
    raise ConvertError(f"{folder}: holds no weights; expected {SAFE} (or its shards) or {BIN}")


def _shards(folder: Path, index: str) -> list[Path]:
    weight_map = _read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConvertError(f"{folder / index}: has no weight_map")
    files = sorted({folder / str(name) for name in weight_map.values()})
    outside = [file.name for file in files if file.parent != folder]
    missing = [file.name for file in files if not file.exists()]
    if outside or missing:
        raise ConvertError(f"{folder / index} names shards that are not there: {outside + missing}")
    return files


class _Safetensors:
    def __init__(self, files: Sequence[Path]) -> None:
        self._handles: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            try:
                handle: Any = safe_open(file, framework="numpy")  # pyright: ignore
                for name in handle.keys():  # noqa: SIM118 - a handle is no mapping
                    self._handles[name] = handle
                    self.shapes[name] = tuple(handle.get_slice(name).get_shape())
            except SafetensorError as error:
                raise ConvertError(
                    f"{file}: is truncated or no safetensors file: {error}"
                ) from error

    def dtype(self, name: str) -> np.dtype:
        found = self._handles[name].get_slice(name).get_dtype()
        return np.dtype({code: dtype for dtype, code in DTYPES.items()}.get(found, np.void))

    def read(self, name: str) -> np.ndarray:
        return self._handles[name].get_tensor(name)


class _Pickled:
    def __init__(self, files: Sequence[Path]) -> None:
        try:
            import torch
        except ImportError as error:
            raise ConvertError(
                f"{files[0]}: reading PyTorch's own format needs PyTorch (pip install torch); "
                "safetensors files are read without it"
            ) from error
        self._tensors: dict[str, Any] = {}
        for file in files:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about pickles that are refused below
                    loaded = torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise ConvertError(
                    f"{file}: refused, since it holds more than tensors and could run code when "
                    f"it is read: {str(error).splitlines()[0]}"
                ) from error
            except (RuntimeError, EOFError, ValueError) as error:
                raise ConvertError(f"{file}: is truncated or no PyTorch file: {error}") from error
            if not isinstance(loaded, Mapping):
                raise ConvertError(f"{file}: expected a dict of tensors")
            self._tensors |= {name: v for name, v in loaded.items() if torch.is_tensor(v)}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(str(self._tensors[name].dtype).removeprefix("torch."))

    def read(self, name: str) -> np.ndarray:
        import torch

        tensor = self._tensors[name]
        if tensor.dtype == torch.bfloat16:  # numpy has none of its own
            return tensor.view(torch.int16).numpy().view(np.dtype("bfloat16"))
        return tensor.numpy()
