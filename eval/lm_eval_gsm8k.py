r"""The verdicts of lm-evaluation-harness 0.4.13's task gsm8k (version 3.0), to put its numbers beside our grader's.

strict-match takes the first `#### number`; flexible-extract takes the last thing that looks like a number, which at low
accuracy also pays luck: the last number of a text that goes in circles. Both compare strings: commas, dollar signs,
everything up to the last `#### ` and one final full stop are dropped, case does not count, and 18.0 is not 18.
"""

import re

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_FINAL_STOP = re.compile(r"\.$")
_MARK = "#### "
NO_MATCH = "[invalid]"


def lm_eval_gsm8k(completion: str, gold: str) -> dict[str, bool]:
    """Verdict by filter: `strict-match` and `flexible-extract`.

    `completion` is the text already cut at the stop strings (`eval.templates.cut_at_stop_string`). `gold` is the answer
    or the whole reference solution that ends in `#### answer`. Linear in both texts.
    """
    wanted = _normalised(gold)
    return {name: _normalised(found) == wanted for name, found in lm_eval_extract(completion).items()}


def lm_eval_extract(completion: str) -> dict[str, str]:
    """What each filter reads in the completion; `[invalid]` where it finds nothing."""
    strict = _STRICT.search(completion)
    numbers = [match[0] for match in _FLEXIBLE.finditer(completion)]
    return {
        "strict-match": strict[1] if strict else NO_MATCH,
        "flexible-extract": numbers[-1] if numbers else NO_MATCH,
    }


def _normalised(text: str) -> str:
    text = text.replace(",", "").replace("$", "")
    # the harness's pattern .*####, which is greedy and crosses lines, without its quadratic search where there is none
    text = text.rpartition(_MARK)[2]
    return _FINAL_STOP.sub("", text).lower()
