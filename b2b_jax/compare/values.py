"""Reading YAML values of a comparison, with every problem collected."""

import difflib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any


class Values:
    """Reads values and keeps what is wrong in ``problems``."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def unknown(self, where: str, values: Mapping[str, Any], valid: tuple[str, ...]) -> None:
        """Note every key that is not valid, with the nearest one that is."""
        for key in values:
            if key not in valid:
                near = difflib.get_close_matches(str(key), valid, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(valid)}"
                self.problems.append(f"{where}{key}: unknown; {hint}")

    def choice(self, values: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> Any:
        """One of some words; the first where nothing is said or it is none of them."""
        found = values.get(name, choices[0])
        # YAML reads bare on, off, true and false as booleans.
        found = {True: "on", False: "off"}[found] if isinstance(found, bool) else found
        if found not in choices:
            self.problems.append(f"{name}: found {found!r}, expected one of {list(choices)}")
            return choices[0]
        return found

    def mapping(self, values: Mapping[str, Any], name: str) -> dict[str, Any]:
        """A mapping; empty where nothing is said."""
        found = values.get(name) or {}
        if isinstance(found, Mapping):
            return {str(key): value for key, value in found.items()}
        self.problems.append(f"{name}: found {found!r}, expected a mapping")
        return {}

    def numbers(self, values: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
        """A list of different numbers; empty where nothing is said."""
        found = values.get(name, [])
        try:
            numbers = tuple(kind(entry) for entry in found)
        except (TypeError, ValueError):
            numbers = None
        if numbers is None or isinstance(found, str) or len(set(numbers)) != len(numbers):
            words = "a list of different numbers"
            self.problems.append(f"{name}: found {found!r}, expected {words}")
            return ()
        return numbers


def fraction(value: Any) -> Fraction:
    """A share such as 5/40, 0.125 or 1.

    Raises:
        ValueError: if it is none, or negative.
    """
    share = Fraction(str(value))
    if share < 0:
        raise ValueError
    return share
