"""Reading YAML values of a comparison, with every problem collected."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

NAME = re.compile(r"\w[\w.-]*")


class Values:
    """Reads values and keeps what is wrong in ``problems``."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def unknown(self, values: Mapping[str, Any], valid: Sequence[str], *, where: str = "") -> None:
        """Note every key that is not valid, with the nearest one that is."""
        for key in values:
            if key not in valid:
                near = difflib.get_close_matches(str(key), valid, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(valid)}"
                self.problems.append(f"{where}{key}: unknown; {hint}")

    def choice(self, values: Mapping[str, Any], name: str, *, among: Sequence[str]) -> Any:
        """One of some words; the first where nothing is said or it is none of them."""
        found = values.get(name, among[0])
        # YAML reads bare on, off, true and false as booleans.
        found = {True: "on", False: "off"}[found] if isinstance(found, bool) else found
        if found not in among:
            self.problems.append(f"{name}: found {found!r}, expected one of {list(among)}")
            return among[0]
        return found

    def mapping(self, values: Mapping[str, Any], name: str, *, where: str = "") -> dict[str, Any]:
        """A mapping; empty where nothing is said."""
        found = values.get(name)
        if found is None:
            return {}
        if isinstance(found, Mapping):
            return {str(key): value for key, value in found.items()}
        self.problems.append(f"{where}{name}: found {found!r}, expected a mapping of fields")
        return {}

    def named(self, values: Mapping[str, Any], name: str) -> dict[str, Any]:
        """A mapping whose keys become names of files."""
        found = self.mapping(values, name)
        for key in found:
            if not NAME.fullmatch(key):
                self.problems.append(
                    f"{name}.{key}: found such a name, expected letters, digits, '_', '-', '.'"
                )
        return {key: value for key, value in found.items() if NAME.fullmatch(key)}

    def text(self, values: Mapping[str, Any], name: str, *, default: str, where: str = "") -> str:
        """Text; the default where nothing is said."""
        found = values.get(name)
        if found is None:
            return default
        if not isinstance(found, str):
            self.problems.append(f"{where}{name}: found {found!r}, expected text")
            return default
        return found

    def sequence(self, values: Mapping[str, Any], name: str, *, where: str = "") -> list[Any]:
        """A list; empty where nothing is said."""
        found = values.get(name)
        if found is None or isinstance(found, list):
            return found or []
        self.problems.append(f"{where}{name}: found {found!r}, expected a list")
        return []

    def rates(self, values: Mapping[str, Any], *, where: str = "") -> tuple[float, ...]:
        """Peak learning rates."""
        name, rates = "peak_learning_rates", []
        for found in self.sequence(values, name, where=where):
            try:
                rate = float(found)
            except (TypeError, ValueError):
                rate = math.nan
            if isinstance(found, bool) or not (math.isfinite(rate) and rate > 0):
                self.problems.append(f"{where}{name}: found {found!r}, expected numbers above 0")
            rates.append(rate)
        return self._different(rates, f"{where}{name}")

    def seeds(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        """Seeds; zero where nothing is said."""
        found = self.sequence(values, "seeds") or [0]
        wrong = [
            seed
            for seed in found
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31
        ]
        if wrong:
            self.problems.append(f"seeds: found {wrong}, expected whole numbers of 0 to 2^31 - 1")
            return (0,)
        return self._different(found, "seeds")

    def _different(self, found: list[Any], name: str) -> tuple[Any, ...]:
        if len(set(found)) != len(found):
            self.problems.append(f"{name}: found {found}, expected a list of different numbers")
        return tuple(found)


def fraction(value: Any) -> Fraction:
    """A share such as 5/40, 0.125 or 1.

    Raises:
        ValueError: if it is none, or negative.

    Example:
        >>> fraction("5/40"), fraction(0.125)
        (Fraction(1, 8), Fraction(1, 8))
    """
    if isinstance(value, bool):
        raise ValueError(value)
    share = Fraction(str(value))
    if share < 0:
        raise ValueError(value)
    return share
