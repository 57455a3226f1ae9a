"""How often each token of the vocabulary was looked at and rejected over a run, and the report's table of it."""

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

MOST_REJECTED = 20
"""Rows of the table."""


class TokenTally:
    """Counts by token id."""

    def __init__(self) -> None:
        self.counts: dict[int, tuple[int, int]] = {}

    def add(self, counts: Iterable[tuple[int, int, int]]) -> None:
        """(token id, times looked at, times rejected) each."""
        for token, seen, rejected in counts:
            old = self.counts.get(token, (0, 0))
            self.counts[token] = (old[0] + seen, old[1] + rejected)

    def tables(self, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """The table of the most rejected tokens (RunFolder.write_tables); none where nothing was rejected."""
        most = sorted(self.counts.items(), key=lambda item: (-item[1][1], item[0]))[:MOST_REJECTED]
        rows = [
            [repr(tokenizer.decode([token])), token, seen, rejected, f"{100 * rejected / seen:.1f} %"]
            for token, (seen, rejected) in most if rejected
        ]  # fmt: skip
        if not rows:
            return []
        return [{
            "title": "The most rejected tokens", "caption": "Since calibration, over all optimizer steps and ranks.",
            "header": ["token", "id", "looked at", "rejected", "share"], "rows": rows,
        }]  # fmt: skip

    def state(self) -> list[list[int]]:
        """Primitives for a checkpoint; `load` reads them."""
        return [[token, *both] for token, both in self.counts.items()]

    def load(self, state: Iterable[Iterable[int]]) -> None:
        """Replace the counts."""
        self.counts = {token: (seen, rejected) for token, seen, rejected in state}
