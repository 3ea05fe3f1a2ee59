"""The least time that a training step can take on a machine, and what sets it."""

from collections.abc import Sequence
from dataclasses import dataclass

from b2b_jax.report.chips import Chip
from b2b_jax.report.collectives import Collective


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a step runs.

    Attributes:
        parameters: its share of them.
        optimizer: its share of the moments.
        work: activations, gathered parameters, gradients and everything else that is temporary.
        peak: all together, with the program itself.
    """

    parameters: int
    optimizer: int
    work: int
    peak: int


@dataclass(frozen=True)
class Bound:
    """Seconds that a step needs at the peaks of a chip, for each of what it uses.

    Attributes:
        compute: matrix products, at the dense bfloat16 peak.
        memory: what the step reads and writes of parameters and moments, and temporaries, each
            written and read once.
        links: what is sent, over all links at once.
    """

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The least that a step takes, if all three overlap."""
        return max(self.compute, self.memory, self.links)

    @property
    def binds(self) -> str:
        """Which of the three sets it."""
        times = {"compute": self.compute, "memory": self.memory, "links": self.links}
        return max(times, key=times.__getitem__)


def step_bound(
    chip: Chip, *, flops: float, moved: float, collectives: Sequence[Collective]
) -> Bound:
    """The bound of a step from what one device does.

    Args:
        chip: its peaks.
        flops: of its share of the matrix products.
        moved: bytes that it reads from its memory or writes to it.
        collectives: of the step.

    Example:
        >>> from b2b_jax.report.chips import CHIPS
        >>> bound = step_bound(CHIPS[1], flops=197e10, moved=0, collectives=())
        >>> bound.seconds, bound.binds
        (0.01, 'compute')
    """
    return Bound(
        compute=flops / chip.flops,
        memory=moved / chip.memory_bandwidth,
        links=sum(one.sent_bytes for one in collectives) / chip.link_bandwidth,
    )
