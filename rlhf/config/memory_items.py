"""A line of the memory plan."""

import math
from dataclasses import dataclass
from typing import Literal

BYTES = {"float32": 4, "bfloat16": 2}
GIB = 1024**3

Place = Literal["device", "host"]
"""Where it lies: in the memory of the rank's device, or in that of its machine."""


@dataclass(frozen=True)
class MemoryItem:
    """One line of the plan."""

    name: str
    bytes: int
    formula: str
    place: Place = "device"


def item(name: str, amount: float, formula: str, place: Place = "device") -> MemoryItem:
    """With its bytes rounded up."""
    return MemoryItem(name, math.ceil(amount), formula, place)
