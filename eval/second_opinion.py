"""A second opinion on a completion: math-verify (Hugging Face), to be run only in a killable process.

Its own time limits are alarms, which hold only in a main thread and not against every input; here they are off, and
the process of `rlhf.rewards.pool.GraderPool` around it is ended when the time is up. Importing this module needs the
package `math-verify` (`make setup` installs it; elsewhere `pip install -e '.[eval]'` from a checkout).
"""

from collections.abc import Mapping
from typing import Any

import math_verify

from rlhf.data.types import Verdict

SHOWN_CHARS = 200


def math_verify_task(task: Mapping[str, Any]) -> Verdict:
    """Judge `{"completion", "gold"}` as math-verify's README has it: the gold answer in dollars, the whole completion.

    `right` or `wrong` is math-verify's word (its `extracted` is the first of its readings); `ungradable` means that it
    could read nothing in the gold answer. It knows no prompt, so an echo of the prompt is part of the completion.
    """
    # parsing_timeout and timeout_seconds None: no alarm is set
    gold = math_verify.parse(_in_dollars(task["gold"]), parsing_timeout=None)
    if not gold:
        return Verdict("ungradable", reason="math-verify reads nothing in the gold answer")
    answer = math_verify.parse(task["completion"], parsing_timeout=None)
    shown = str(answer[-1])[:SHOWN_CHARS] if answer else None
    same = bool(answer) and math_verify.verify(gold, answer, timeout_seconds=None)
    return Verdict("right" if same else "wrong", shown, "" if answer else "math-verify finds no answer")


def _in_dollars(gold: str) -> str:
    """`gold` as mathematics, unless it is a solution whose answer math-verify finds by itself."""
    return gold if "$" in gold.replace("\\$", "") or "\\boxed" in gold or "####" in gold else f"${gold}$"
