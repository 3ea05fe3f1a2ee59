"""Devices of machines that are not here, to compile for (effects: loads compilers)."""

import math
import os
from dataclasses import dataclass
from typing import Any

import jax

from b2b_jax.models import ConfigError
from b2b_jax.report.chips import CHIPS, Chip

CORES_PER_CHIP = {"v4": 2, "v5p": 2}
"""Accelerator types such as v5p-128 count cores."""
TORUS_DIMENSIONS = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}
GPUS_PER_HOST = 8
CUDA_CAPABILITY = {"a100": (8, 0), "h100": (9, 0), "h200": (9, 0), "b200": (10, 0)}
SHARED_MEMORY = {"a100": 166912, "h100": 232448, "h200": 232448, "b200": 232448}
CORES = {"a100": 108, "h100": 132, "h200": 132, "b200": 148}
FLOPS_PER_CLOCK = {"a100": 2048, "h100": 4096, "h200": 4096, "b200": 8192}
"""Of one core, dense bfloat16."""


@dataclass(frozen=True)
class Topology:
    """A machine to compile for.

    Attributes:
        name: as JAX's compilers take it, such as "v5p:4x4x8".
        chip: what it is made of.
        shape: chips along each dimension; for GPUs hosts and devices per host.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        """Chips in all."""
        return math.prod(self.shape)

    @property
    def is_gpu(self) -> bool:
        """Whether its compiler is that of CUDA."""
        return self.chip.is_gpu


def parse_topology(text: str) -> Topology:
    """Read a topology (``v5p:8x8x8``, ``h100:8``) or an accelerator type (``v5p-128``).

    Raises:
        ConfigError: if there is no such machine.

    Example:
        >>> parse_topology("v5p-128").name, parse_topology("v6e-256").shape
        ('v5p:4x4x4', (16, 16))
        >>> parse_topology("h100:16").shape
        (2, 8)
    """
    known = (*TORUS_DIMENSIONS, *CUDA_CAPABILITY)
    chips = {chip.name: chip for chip in CHIPS if chip.name in known}
    name, colon, sizes = text.partition(":")
    if not colon:
        name, _, sizes = text.partition("-")
    parts = sizes.split("x")
    most = 2 if name in CUDA_CAPABILITY else 3
    is_whole = all(part.isdigit() and int(part) for part in parts)
    if name not in chips or not is_whole or len(parts) > (most if colon else 1):
        raise ConfigError(
            f"topology: found {text!r}, expected CHIP:SHAPE such as v5p:8x8x8 or h100:2x8, or an "
            f"accelerator type such as v5e-16; chips: {', '.join(chips)}"
        )
    shape = tuple(map(int, parts))
    if name in CUDA_CAPABILITY:
        if len(shape) == 1:
            hosts = -(-shape[0] // GPUS_PER_HOST)
            if shape[0] % hosts:
                raise ConfigError(
                    f"topology {text}: {shape[0]} GPUs do not fill {hosts} hosts evenly"
                )
            shape = (hosts, shape[0] // hosts)
        return Topology(name, chips[name], shape)
    if not colon:
        shape = _torus(shape[0] / CORES_PER_CHIP.get(name, 1), TORUS_DIMENSIONS[name], text)
    return Topology(f"{name}:{'x'.join(map(str, shape))}", chips[name], shape)


def _torus(chips: float, dimensions: int, text: str) -> tuple[int, ...]:
    """The shape that Cloud TPU gives so many chips: as even as powers of two allow."""
    power = int(chips).bit_length() - 1
    if chips < 4 or 2**power != chips:
        raise ConfigError(f"topology {text}: expected a power of two of at least four chips")
    if chips == 4 and dimensions == 3:
        return (2, 2, 1)  # one host
    base, extra = divmod(power, dimensions)
    return tuple(2 ** (base + (index >= dimensions - extra)) for index in range(dimensions))


def topology_devices(topology: Topology) -> list[Any]:
    """Devices to compile for; none of them needs to exist here.

    Raises:
        ConfigError: if the compiler is not installed, or knows no such machine.
    """
    from jax.experimental import topologies

    extra = "cuda" if topology.is_gpu else "tpu"
    try:
        if topology.is_gpu:
            hosts, each = topology.shape
            found = topologies.get_topology_desc(
                platform="cuda",
                topology_name=topology.chip.name,
                target_config=_gpu_target(topology.chip),
                topology=f"1x{hosts}x{each}",
            )
        else:
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name)
    except Exception as error:  # plugins raise many kinds
        raise ConfigError(
            f"cannot compile for {topology.name}: {str(error).splitlines()[0]}. Its compiler comes "
            f"with the extra '{extra}': pip install 'b2b_jax[{extra}]'"
        ) from error
    return list(found.devices)


def prepare_compilers(topology: Topology) -> None:
    """Settings of the compilers, which they read when JAX starts them; set ones are kept."""
    if topology.is_gpu:
        # Kernels cannot be tried out on a card that is not here.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 {flags}".strip()
    defaults = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


def _gpu_target(chip: Chip) -> str:
    """What XLA has to know of a GPU that is not here, as its GpuTargetConfigProto."""
    major, minor = CUDA_CAPABILITY[chip.name]
    clock = chip.flops / (CORES[chip.name] * FLOPS_PER_CLOCK[chip.name]) / 1e9
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {SHARED_MEMORY[chip.name] + 1024}
  shared_memory_per_block_optin: {SHARED_MEMORY[chip.name]}
  threads_per_core_limit: 2048
  core_count: {CORES[chip.name]}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.memory_bandwidth)}
  l2_cache_size: 52428800
  clock_rate_ghz: {clock:.3f}
  device_memory_size: {int(chip.memory)}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
"""
