"""Every parameter names its axes: the one table that growth, sharding and decay rules read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from b2b_jax.types import AxisSizes

Role = Literal["kernel", "bias", "embedding", "norm_scale", "norm_bias"]


class AxisError(ValueError):
    """An axis table does not describe the parameters that it is used with."""


@dataclass(frozen=True)
class Axes:
    """The named axes of one parameter, in the order of its dimensions.

    Attributes:
        role: what the parameter is; decides weight decay and fresh initialisation.
        indexed: axes along which the array is a list of independent entries (``layers``,
            ``vocab``): growing them gathers and never rescales.
        consumes: axes summed over when the parameter is applied.
        produces: axes of the result.
        absorbs: axes whose copy count this parameter takes on, element by element, on behalf of a
            later matrix that cannot be rescaled: the norm in front of a tied output embedding.
        init_std: standard deviation of a fresh kernel or embedding.
    """

    role: Role
    indexed: tuple[str, ...] = ()
    consumes: tuple[str, ...] = ()
    produces: tuple[str, ...] = ()
    absorbs: tuple[str, ...] = ()
    init_std: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """One axis name per array dimension."""
        return self.indexed + self.consumes + self.produces

    @property
    def divided(self) -> tuple[bool, ...]:
        """Per dimension, whether growth divides along it: by position, since names may repeat."""
        return (
            (False,) * len(self.indexed)
            + (True,) * len(self.consumes)
            + tuple(name in self.absorbs for name in self.produces)
        )

    def shape(self, sizes: AxisSizes) -> tuple[int, ...]:
        """The array's shape for given axis sizes; a `KeyError` names an axis without a size."""
        return tuple(sizes[name] for name in self.names)

    @classmethod
    def parse(cls, text: str, *, init_std: float = 0.0) -> "Axes":
        """Read ``role: indexed | consumed -> produced / absorbed``; every list may be empty.

        Raises:
            AxisError: if the text has another form or an unknown role.

        Example:
            >>> Axes.parse("kernel: layers | embed -> heads, head_dim").names
            ('layers', 'embed', 'heads', 'head_dim')
            >>> Axes.parse("norm_scale: | -> embed / embed").absorbs
            ('embed',)
        """
        try:
            role, rest = text.split(":")
            indexed, rest = rest.split("|")
            consumes, rest = rest.split("->")
        except ValueError:
            raise AxisError(
                f"axes {text!r} do not read 'role: indexed | consumed -> produced / absorbed', "
                "for example 'kernel: layers | embed -> heads, head_dim'"
            ) from None
        produces, _, absorbs = rest.partition("/")
        if role.strip() not in get_args(Role):
            raise AxisError(f"axes {text!r}: role {role.strip()!r} is none of {get_args(Role)}")
        return cls(
            role=role.strip(),  # pyright: ignore[reportArgumentType]
            indexed=_split(indexed),
            consumes=_split(consumes),
            produces=_split(produces),
            absorbs=_split(absorbs),
            init_std=init_std,
        )

    def __str__(self) -> str:
        left = " ".join(filter(None, (", ".join(self.indexed), "|", ", ".join(self.consumes))))
        absorbed = f" / {', '.join(self.absorbs)}" if self.absorbs else ""
        return f"{self.role}: {left} -> {', '.join(self.produces)}{absorbed}"


def _split(part: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in part.split(",") if name.strip())


AxisTable = Mapping[str, Axes]
"""Parameter path -> its axes; covers every parameter of a model."""


def shapes(table: AxisTable, sizes: AxisSizes) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a model.

    Raises:
        AxisError: names every axis that the table uses and ``sizes`` lacks.
    """
    unknown = {name for axes in table.values() for name in axes.names} - set(sizes)
    if unknown:
        raise AxisError(f"no size given for the axes {sorted(unknown)}; known: {sorted(sizes)}")
    return {path: axes.shape(sizes) for path, axes in table.items()}


def normed_axes(table: AxisTable) -> tuple[str, ...]:
    """The axes that some norm takes the statistics of."""
    norms = (axes for axes in table.values() if axes.role == "norm_scale")
    return tuple(sorted({name for axes in norms for name in axes.produces}))
