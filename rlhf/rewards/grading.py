"""Is the answer of a completion the gold answer? Exact, without running any text, in under a second for any input."""

import re
from functools import lru_cache

from rlhf.data.types import Verdict
from rlhf.rewards.expression import ListOf, Node, Quantity, SetOf, Variable, Words, is_expression, variables
from rlhf.rewards.extraction import Extraction, extract
from rlhf.rewards.latex import clean
from rlhf.rewards.limits import MAX_ANSWER_CHARS, LimitExceeded, ParseError, Undefined
from rlhf.rewards.numeric import Evaluator
from rlhf.rewards.parser import parse
from rlhf.rewards.structure import same_answer
from rlhf.rewards.units import SINGLE_LETTER_UNITS
from rlhf.rewards.words import (
    is_words,
    means_no_solution,
    names_option,
    number_in_words,
    plain_words,
    says_yes_or_no,
    without_option,
)

SHOWN_CHARS = 200
"""Longest answer quoted in a verdict."""


def grade(completion: str, gold: str, prompt: str | None = None) -> Verdict:
    r"""Judge a completion against the gold answer.

    The answer is the last `\boxed{}`, else the last "answer is" / "Answer:" / "####" / <answer>, else the last number;
    text inside <think> and an echo of `prompt` do not count. `gold` is an answer, or a solution that ends in a box or
    behind "####". Values are compared exactly: no rounding, no scaling by 100; units and percent, degree and currency
    signs may be dropped.

    The outcome is `right`, `wrong` (also for a completion without an answer), or `ungradable` where the gold answer
    cannot be read or a size limit (`rlhf.rewards.limits`) was hit. No text raises; no text is run.
    """
    gold = _gold_answer(gold)
    if not gold:
        return Verdict("ungradable", reason="the gold answer is empty")
    found = extract(completion, prompt)
    if found.text is None:
        return Verdict("wrong", reason=found.reason)
    answer = _collapsed(found.text)
    verdict = compare(answer, gold)
    if verdict.outcome != "right" and found.alternative is not None and found.alternative != found.text:
        if _needs_alternative(answer, gold) or _is_result(found):
            answer = _collapsed(found.alternative)
            verdict = compare(answer, gold)
    return verdict


def compare(answer: str, gold: str) -> Verdict:
    """Judge an extracted answer against the gold answer (see `grade`)."""
    shown = answer if len(answer) <= SHOWN_CHARS else f"{answer[:SHOWN_CHARS]}..."
    if answer == gold:
        return Verdict("right", shown, "identical")
    numbers = literal(answer), literal(gold)
    if None not in numbers:
        same = numbers[0] == numbers[1]
        return Verdict("right" if same else "wrong", shown, "the same number" if same else "another number")
    try:
        same, reason = _same(answer, gold)
    except LimitExceeded as limit:
        return Verdict("ungradable", shown, f"limit: {limit}")
    except _UnreadableGold as error:
        return Verdict("ungradable", shown, f"the gold answer {gold[:SHOWN_CHARS]!r} cannot be read: {error}")
    return Verdict("right" if same else "wrong", shown, reason)


class _UnreadableGold(ValueError):
    pass


def _same(answer: str, gold: str) -> tuple[bool, str]:
    gold_tree = _read_gold(gold)
    if isinstance(gold_tree, (Words, ParseError)):
        if plain_words(answer) == plain_words(gold) or says_yes_or_no(answer, gold):
            return True, "the same words"
    if len(answer) <= MAX_ANSWER_CHARS:
        cleaned, cleaned_gold = clean(answer), clean(gold)
        digits = _LETTERS_AS_DIGITS.fullmatch(cleaned_gold)
        if cleaned == cleaned_gold or (digits and cleaned == digits[1]):
            return True, "the same after normalisation"
    if isinstance(gold_tree, Variable) and gold_tree.name.isupper() and names_option(answer, gold_tree.name):
        return True, "the same option"
    if gold_tree == SetOf(()) and means_no_solution(answer):
        return True, "no solution"
    if isinstance(gold_tree, LimitExceeded):
        raise _UnreadableGold(str(gold_tree))
    if isinstance(gold_tree, ParseError):
        if is_words(gold):
            return False, "other words"
        raise _UnreadableGold(str(gold_tree))
    try:
        trees = _readings(number_in_words(answer) or answer, gold_tree)
    except ParseError as error:
        return False, f"the answer is not mathematics that is read here ({error})"
    if (_in_cents(trees[0][0]) and "\\$" in gold) or (_in_cents(gold_tree) and "\\$" in answer):
        return False, "cents are not dollars"
    evaluator = Evaluator()
    for answer_tree, gold_reading in trees:
        try:
            if same_answer(gold_reading, answer_tree, evaluator):
                return True, "equal"
        except Undefined as error:
            if gold_reading is gold_tree:
                raise _UnreadableGold(str(error)) from error
        except ParseError as error:
            return False, f"the answer is not comparable ({error})"
    return False, "not equal"


@lru_cache(maxsize=4096)
def _read_gold(gold: str) -> Node | ParseError | LimitExceeded:
    try:
        return parse(gold)
    except (ParseError, LimitExceeded) as error:
        # kept as a value: the same gold is read for every sample of its prompt
        return type(error)(str(error))


def _readings(answer: str, gold: Node) -> list[tuple[Node, Node]]:
    """The trees of the answer worth comparing: commas as thousands or as a list, `10C3`, without its unit or option."""
    tree = parse(answer)
    trees = [(tree, gold)]
    if isinstance(gold, ListOf) and _PLAIN_GROUPS.search(answer):
        trees.append((parse(answer, grouping=False), gold))
    if is_expression(_value(gold)) and not variables(gold) and variables(tree):
        cleaned = clean(answer)
        without_unit, choices = _UNIT_LETTER.fullmatch(cleaned), _CHOICES.fullmatch(cleaned)
        if choices:
            trees.append((parse(f"\\binom{{{choices[1]}}}{{{choices[2]}}}"), gold))
        if without_unit and (without_unit[2] or without_unit[3]) in SINGLE_LETTER_UNITS:
            trees.append((parse(without_unit[1]), gold))
        value = without_option(answer)
        if value is not None:
            trees.append((parse(value), gold))
    return trees


def _in_cents(node: Node) -> bool:
    return isinstance(node, Quantity) and node.unit == "cent"


def _value(node: Node) -> Node:
    return node.value if isinstance(node, Quantity) else node


_PLAIN_GROUPS = re.compile(r"\d,\d{3}")
_LETTERS_AS_DIGITS = re.compile(r"(?=[A-Z]*\d)([0-9A-Z]+)_\{?(?:1[1-9]|[23]\d)\}?")  # base 11 and above
_CHOICES = re.compile(r"(\d{1,4})\s?C\s?(\d{1,4})")
_UNIT_LETTER = re.compile(r"(.*[\d}])\s*(?:\\mathrm\s?\{\s*([A-Za-z])\s*\}|([A-Za-z]|\\Omega))(?:\^\{?[23]\}?)?")
_LITERAL = re.compile(r"(-?)\s?\\?\$?(\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(?:\.(\d*))?\s?(?:\\?%)?\$?\.?")


def literal(text: str) -> str | None:
    """The canonical spelling of a plain integer or decimal of any length, or None: compared without converting it."""
    match = _LITERAL.fullmatch(text)
    if match is None or not text.isascii():
        return None
    whole = match[2].replace(",", "").lstrip("0") or "0"
    decimals = (match[3] or "").rstrip("0")
    sign = match[1] if whole != "0" or decimals else ""
    return f"{sign}{whole}.{decimals}"


def _gold_answer(gold: str) -> str:
    """The answer inside a gold that may be a whole solution."""
    if "\\boxed" in gold or "\\fbox" in gold:
        boxed = extract(gold)
        if boxed.source == "box":
            gold = boxed.text or ""
    elif "####" in gold:
        gold = gold.rpartition("####")[2]
    return _collapsed(gold)


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _is_result(found: Extraction) -> bool:
    """True for the last number of a completion where it is all that stands behind the last equals sign around it."""
    result = (found.text or "").rpartition("=")
    return found.source == "number" and bool(result[1]) and result[2].strip(" .") == found.alternative


def _needs_alternative(answer: str, gold: str) -> bool:
    """True if a phrase is a sentence around a value: it is not read as mathematics, while the gold answer is."""
    if isinstance(_read_gold(gold), (Words, ParseError)):
        return False
    try:
        tree = parse(answer)
    except (ParseError, LimitExceeded):
        return True
    return isinstance(tree, Words)
