"""The built-in reward functions: pure, one completion in, one number out. Settings: `rlhf.config.rewards`."""

import re
from collections.abc import Sequence
from typing import Literal

from rlhf.data.types import Verdict
from rlhf.rewards.extraction import extract


def correctness(verdict: Verdict) -> float:
    """1 for a right answer, 0 for a wrong or ungradable one (the latter is counted apart)."""
    return float(verdict.outcome == "right")


_BOX = re.compile(r"\\boxed(?![A-Za-z])")
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_BETWEEN = re.compile(r"</think>\s*<answer>")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def format(text: str, shape: Literal["boxed", "think_answer", "number_only"]) -> float:
    r"""1 if `text` has the shape, else 0.

    `boxed`: exactly one \boxed{...} with something in it; `think_answer`: <think>...</think><answer>...</answer> and
    nothing around it; `number_only`: a bare number.
    """
    if shape == "boxed":
        return float(sum(1 for _ in _BOX.finditer(text)) == 1 and extract(text).source == "box")
    stripped = text.strip()
    if shape == "number_only":
        return float(stripped.isascii() and _NUMBER.fullmatch(stripped) is not None)
    framed = stripped.startswith("<think>") and stripped.endswith("</answer>")
    once = all(stripped.count(tag) == 1 for tag in _TAGS)
    return float(framed and once and _BETWEEN.search(stripped) is not None)


def length(completion_tokens: int, target_tokens: int) -> float:
    """Linear from 0 at no tokens to -1 at `target_tokens` and beyond."""
    return -min(1.0, completion_tokens / target_tokens)


def repetition(completion_ids: Sequence[int], ngram: int) -> float:
    """Minus the share of n-grams of tokens that occurred before: 0 if all differ, towards -1 in a loop."""
    total = len(completion_ids) - ngram + 1
    if total < 1:
        return 0.0
    distinct = len({tuple(completion_ids[i : i + ngram]) for i in range(total)})
    return distinct / total - 1.0


def soft_overlong(completion_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 up to max - buffer, then linear to -1 at max."""
    overlong = completion_tokens - (max_tokens - buffer_tokens)
    return -min(1.0, max(0.0, overlong / buffer_tokens))
