"""Arrays of the host as arrays over all devices of a job (effects: devices)."""

from typing import Any

import jax
import numpy as np


def host_device() -> Any:
    """The host's memory as a device: whole models fit in there that one accelerator cannot hold.

    The first accelerator where JAX has not been started for the host.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def put_everywhere(whole: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has, as one array over all devices."""
    if jax.process_count() == 1:
        return jax.device_put(whole, sharding)
    values = np.asarray(whole)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def put_rows(
    rows: np.ndarray, numbers: np.ndarray, *, sharding: jax.sharding.Sharding, batch_size: int
) -> jax.Array:
    """The rows of a batch that a process has, as one array over all devices.

    Args:
        rows: those that the devices of this process need.
        numbers: which rows of the batch they are, ascending.
        sharding: over rows.
        batch_size: rows of the whole batch.
    """
    place_of = {number: place for place, number in enumerate(numbers.tolist())}
    shape = (batch_size, *rows.shape[1:])

    def shard(index: Any) -> np.ndarray:
        wanted = range(*index[0].indices(batch_size))
        return rows[place_of[wanted[0]] : place_of[wanted[-1]] + 1, *index[1:]]

    return jax.make_array_from_callback(shape, sharding, shard)
