"""What growth asks of a model, and how a model that is only a table of axes answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from b2b_jax.axes import Axes, AxisTable
from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.plan import NormPosition

GrownSizes = Mapping[str, int | tuple[int, int]]
"""Axis name -> its size, or its sizes in the source and in the target."""


@runtime_checkable
class GrowableConfig(Protocol):
    """What growth asks of a model config; any model with an axis table can offer it."""

    @property
    def norm_position(self) -> NormPosition:
        """Whether blocks normalise their input or the sum of input and output."""
        ...

    def axis_sizes(self) -> dict[str, int]:
        """Size of every axis that the parameters name."""
        ...

    def axis_table(self) -> AxisTable:
        """Parameter path -> named axes."""
        ...

    def invariants(self) -> dict[str, Any]:
        """Fields that growth cannot change, because the function would change with them."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        ...


@dataclass(frozen=True)
class TableModel:
    """A model of which only the axis table and the sizes are known.

    Attributes:
        axes: parameter path -> named axes.
        sizes: axis name -> size.
        norm_position: where its blocks normalise.
    """

    axes: AxisTable
    sizes: dict[str, int]
    norm_position: NormPosition

    def axis_sizes(self) -> dict[str, int]:
        """Size of every axis."""
        return dict(self.sizes)

    def axis_table(self) -> AxisTable:
        """Parameter path -> named axes."""
        return self.axes

    def invariants(self) -> dict[str, Any]:
        """Nothing is known that must stay."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """The sizes; the plan holds the table beside them."""
        return {"sizes": dict(self.sizes)}


def table_models(
    axes: Mapping[str, Axes | str], sizes: GrownSizes, norm_position: NormPosition
) -> tuple[TableModel, TableModel]:
    """Source and target of a growth that a table and pairs of sizes describe.

    Raises:
        AxisError: if an entry of the table cannot be read.
        GrowthError: if an axis has no size.
    """
    table = {
        path: entry if isinstance(entry, Axes) else Axes.parse(entry)
        for path, entry in axes.items()
    }
    names = {name for entry in table.values() for name in entry.names}
    found = [] if table else ["axes: found no parameter"]
    if names - sizes.keys():
        found.append(f"sizes: none given for the axes {sorted(names - sizes.keys())}")
    if sizes.keys() - names:
        found.append(f"sizes: no parameter has the axes {sorted(sizes.keys() - names)}")
    ends: dict[str, tuple[int, int]] = {}
    for name, size in sizes.items():
        pair = size if isinstance(size, tuple | list) else (size, size)
        if len(pair) != 2 or not all(isinstance(end, int | np.integer) for end in pair):
            found.append(
                f"sizes: {name}: found {size!r}, expected a whole number, or source and target size"
            )
        else:
            ends[name] = int(pair[0]), int(pair[1])
    if found:
        raise GrowthError("This model cannot be grown:\n  " + "\n  ".join(found))
    small, large = ({name: pair[end] for name, pair in ends.items()} for end in (0, 1))
    return TableModel(table, small, norm_position), TableModel(table, large, norm_position)
