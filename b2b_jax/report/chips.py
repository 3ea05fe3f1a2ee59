"""What accelerators can do at most, from their makers' data sheets."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Peaks of one device.

    Attributes:
        name: as topologies call it.
        kinds: parts of what JAX calls such a device, lower case.
        flops: dense bfloat16 FLOP/s.
        memory: bytes.
        memory_bandwidth: bytes per second, read and written together.
        link_bandwidth: bytes per second that it can send to the others, over all its links.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU and not a TPU."""
        return not self.kinds[0].startswith("tpu")


GIB = 2.0**30
# Links: one way, half of what the sheets advertise for both directions, of TPUs and of NVLink.
CHIPS = (
    Chip("v4", ("tpu v4",), 275e12, 32 * GIB, 1.228e12, 300e9),
    Chip("v5e", ("tpu v5 lite", "tpu v5e"), 197e12, 16 * GIB, 0.819e12, 200e9),
    Chip("v5p", ("tpu v5",), 459e12, 95 * GIB, 2.765e12, 600e9),
    Chip("v6e", ("tpu v6",), 918e12, 32 * GIB, 1.64e12, 400e9),
    Chip("a100-40gb", ("a100-sxm4-40gb", "a100-pcie-40gb"), 312e12, 40e9, 1.555e12, 300e9),
    Chip("a100", ("a100",), 312e12, 80e9, 2.039e12, 300e9),
    Chip("h100-pcie", ("h100 pcie",), 756e12, 80e9, 2.0e12, 64e9),
    Chip("h100-nvl", ("h100 nvl",), 835e12, 94e9, 3.9e12, 300e9),
    Chip("h100", ("h100",), 989e12, 80e9, 3.35e12, 450e9),
    Chip("h200", ("h200",), 989e12, 141e9, 4.8e12, 450e9),
    Chip("b200", ("b200",), 2250e12, 180e9, 8e12, 900e9),
)


def chip_of_kind(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None where unknown, CPUs among them.

    Example:
        >>> chip_of_kind("NVIDIA H200").name, chip_of_kind("cpu")
        ('h200', None)
    """
    kind = device_kind.lower()
    # Whole words: a GH200 is no H200.
    return next(
        (
            chip
            for chip in CHIPS
            if any(re.search(rf"\b{name}(?![0-9])", kind) for name in chip.kinds)
        ),
        None,
    )


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device of a kind, None where unknown (CPUs among them).

    Args:
        device_kind: what JAX calls the device.

    Example:
        >>> peak_flops("NVIDIA H200"), peak_flops("cpu")
        (989000000000000.0, None)
    """
    chip = chip_of_kind(device_kind)
    return None if chip is None else chip.flops
