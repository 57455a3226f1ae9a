"""What an evaluation says first: an accuracy, or what a turn of a session earns; and how it changed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.training.statistics import difference_interval, format_share

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval. `is_share`: it is a share of 1, shown in percent."""

    name: str
    value: float
    low: float
    high: float
    is_share: bool

    @property
    def label(self) -> str:
        return self.name.replace("_", " ")

    @property
    def short(self) -> str:
        """The value alone."""
        return format_share(self.value) if self.is_share else f"{self.value:.3f}"

    @property
    def text(self) -> str:
        """The value and its interval."""
        if self.is_share:
            return format_share(self.value, (self.low, self.high))
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Change:
    """After less before, with its 95 % interval."""

    value: float
    low: float
    high: float
    is_share: bool

    @property
    def text(self) -> str:
        if self.is_share:
            return f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def main_figure(record: Record) -> Figure:
    """Of a line of evaluations.jsonl."""
    name = "accuracy" if "accuracy" in record else "reward_per_turn"
    return Figure(name, record[name], record["low"], record["high"], name == "accuracy")


def by_figure(records: Sequence[Record]) -> list[list[Record]]:
    """The records that can share an axis."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(main_figure(record).name, []).append(record)
    return list(groups.values())


def change_between(before: Record, after: Record) -> Change:
    """The change of the main figure of two evaluations of the same set; the interval is of two independent estimates,
    so rather too wide: of shares Newcombe's, of rewards with the two half widths added in squares."""
    old, new = main_figure(before), main_figure(after)
    if new.is_share:
        low, high = difference_interval(before["right"], before["n"], after["right"], after["n"])
    else:
        low = new.value - old.value - math.hypot(new.value - new.low, old.high - old.value)
        high = new.value - old.value + math.hypot(new.high - new.value, old.value - old.low)
    return Change(new.value - old.value, low, high, new.is_share)
