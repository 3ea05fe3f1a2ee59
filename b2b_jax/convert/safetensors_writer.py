"""Writing safetensors one tensor at a time (effects: files).

The safetensors library wants all tensors of a file in memory at once; a grown model is larger than
that allows. The format: length of the header in 8 bytes, JSON header, then the tensors' bytes.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes  # noqa: F401 - makes bfloat16 a numpy dtype
import numpy as np

from b2b_jax.convert.hf import HfTensor

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
}


def header(entries: Sequence[HfTensor]) -> bytes:
    """The first bytes of a file with these tensors, up to where their values begin."""
    ends = list(itertools.accumulate(entry.nbytes for entry in entries))
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for entry, end in zip(entries, ends, strict=True):
        fields[entry.name] = {
            "dtype": DTYPES[entry.dtype.name],
            "shape": list(entry.shape),
            "data_offsets": [end - entry.nbytes, end],
        }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values start at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text


def write_safetensors(
    file: Path, entries: Sequence[HfTensor], arrays: Iterator[np.ndarray]
) -> None:
    """Write one file; takes as many arrays as there are entries, each only when it is its turn.

    Raises:
        ValueError: if an array is not what its entry announced (a defect of this package).
    """
    with file.open("wb") as out:
        out.write(header(entries))
        for entry in entries:
            array = next(arrays)
            if (array.shape, array.dtype) != (entry.shape, entry.dtype):
                raise ValueError(
                    f"{entry.name}: {array.dtype}{array.shape} instead of "
                    f"{entry.dtype}{entry.shape}"
                )
            # Bytes in the order of the dimensions, whatever the strides of the array are.
            out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
