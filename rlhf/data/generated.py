"""What generated tasks share: a problem, and the half of the problems it belongs to."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HELD_OUT_FIFTHS = 1  # of five: about 20 % of all problems are never trained on


@dataclass(frozen=True, slots=True)
class Problem:
    """A question in words, and what its scorer needs (`answer` among it)."""

    question: str
    columns: Mapping[str, Any]


def is_held_out(canonical: str) -> bool:
    """Whether the problem with this canonical form is kept for evaluation.

    The same for every run, whatever its seed: a checkpoint is never measured on what another run trained it on. Forms
    that a person would call the same problem (12 + 7 and 7 + 12) must have one canonical form.
    """
    digest = hashlib.blake2b(canonical.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 5 < HELD_OUT_FIFTHS
