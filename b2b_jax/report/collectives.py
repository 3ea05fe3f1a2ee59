"""What a compiled program sends between devices, read from its text."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

CollectiveKind = Literal[
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
]
SIZES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$")
_COLLECTIVE = re.compile(
    r" (ragged-all-to-all|all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(-start)?\("
)
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_CALLED_LIST = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_LIMIT = re.compile(r" = [su]32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
# Three spellings: [groups,size]<=..., {{0,1,..},..}, and mesh['a'=4,'b'=2] {'a'}.
_GROUPS = re.compile(
    r"replica_groups=(?:\[\d+,(?P<size>\d+)\]|\{\{(?P<first>[\d,]*)\}"
    r"|mesh\[(?P<mesh>[^\]]*)\](?:, device_ids=[^{]*)? \{(?P<axes>[^}]*)\})"
)


@dataclass(frozen=True)
class Collective:
    """One exchange between devices, as often as a step does it.

    Attributes:
        kind: of exchange.
        result_bytes: of what one device has afterwards, once.
        group: devices that take part with each other.
        times: per step.
        shapes: of the result, as the program's text has them.
    """

    kind: CollectiveKind
    result_bytes: int
    group: int
    times: int
    shapes: tuple[str, ...]

    @property
    def largest_shape(self) -> str:
        """Of the arrays that are exchanged together; "-" where the text names none."""
        if self.kind == "reduce-scatter":  # operands, which are larger, may stand before
            return self.shapes[-1] if self.shapes else "-"
        return max(self.shapes, key=_bytes, default="-")

    @property
    def sent_bytes(self) -> float:
        """What one device sends per step, if every byte takes the shortest way."""
        share = (self.group - 1) / self.group
        once = {
            "all-gather": self.result_bytes * share,
            "all-reduce": 2 * self.result_bytes * share,
            "reduce-scatter": self.result_bytes * (self.group - 1),
            "all-to-all": self.result_bytes * share,
            "collective-permute": float(self.result_bytes),
        }[self.kind]
        return once * self.times


def read_collectives(text: str) -> tuple[Collective, ...]:
    """Every collective operation of a compiled program, those in loops as often as they run.

    Args:
        text: the optimized HLO, as `jax.stages.Compiled.as_text` gives it.

    Example:
        >>> text = '''ENTRY %main (p: f32[4]) -> f32[16] {
        ...   ROOT %g = f32[16]{0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}
        ... }'''
        >>> read_collectives(text)
        (Collective(kind='all-gather', result_bytes=64, group=4, times=1, shapes=('f32[16]',)),)
    """
    computations, entry = _computations(text)
    times = _times(computations, entry)
    found: dict[str, Collective] = {}
    for name, lines in computations.items():
        for index, line in enumerate(lines if times[name] else ()):
            one = _collective(line, times[name])
            if one is not None:
                # One exchange may stand in several fusions, from its start to its end, also in
                # loops that run meanwhile.
                channel = _CHANNEL.search(line)
                key = f"channel {channel[1]}" if channel else f"{name} {index}"
                if key not in found or one.times < found[key].times:
                    found[key] = one
    return tuple(found.values())


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name of a computation -> its instructions, and the name of the one that is run."""
    computations: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            current.append(line)
    return computations, entry


def _times(computations: Mapping[str, Iterable[str]], entry: str) -> Counter[str]:
    """How often every computation runs in one run of the program."""
    times: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in computations.get(name, ()):
            if "-done(" in line or "async-update(" in line:
                continue
            called = _CALLED.findall(line)
            for names in _CALLED_LIST.findall(line):
                called += [word.strip().lstrip("%") for word in names.split(",")]
            for each in called:
                visit(each, count * _trips(line, computations))

    visit(entry, 1)
    return times


def _trips(line: str, computations: Mapping[str, Iterable[str]]) -> int:
    """How often a loop runs: as annotated, or as its condition compares; 1 of anything else."""
    trips = _TRIPS.search(line)
    if trips:
        return int(trips[1])
    condition = _CONDITION.search(line)
    limits = [
        int(limit)
        for each in (computations.get(condition[1], ()) if condition else ())
        for limit in _LIMIT.findall(each)
    ]
    return max(limits, default=1)


def _collective(line: str, times: int) -> Collective | None:
    operation = _COLLECTIVE.search(line)
    if operation is None:
        return None
    kind, starts = operation[1].removeprefix("ragged-"), bool(operation[2])
    shapes = tuple(
        f"{dtype}[{sizes}]"
        for dtype, sizes in _SHAPE.findall(line[line.index(" = ") : operation.start()])
        if dtype in SIZES
    )
    total, group = sum(map(_bytes, shapes)), _group(line)
    if starts and kind == "all-gather":  # operands and results together
        total = round(total * group / (group + 1))
    elif starts and kind == "reduce-scatter":
        total = round(total / (group + 1))
    elif starts and kind in ("all-to-all", "collective-permute"):
        total = (total - sum(_bytes(shape) for shape in shapes if shape == "u32[]")) // 2
    return Collective(kind, total, group, times, shapes)  # pyright: ignore[reportArgumentType]


def _bytes(shape: str) -> int:
    dtype, _, sizes = shape.rstrip("]").partition("[")
    return SIZES[dtype] * math.prod(int(size) for size in sizes.split(",") if size)


def _group(line: str) -> int:
    found = _GROUPS.search(line)
    if found is None:
        return 2  # a permutation: each sends to one
    if found["size"]:
        return int(found["size"])
    if found["mesh"] is None:
        return max(len(found["first"].split(",")), 1)
    sizes = dict(re.findall(r"'?([\w.]+)'?=(\d+)", found["mesh"]))
    group = 1
    for axis, part in re.findall(r"'?([\w.]+)'?(?::\(\d+\)(\d+))?", found["axes"]):
        group *= int(part or sizes.get(axis, 1))  # a part of an axis says its own size
    return group
