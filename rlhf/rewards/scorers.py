"""Who judges correctness: the math grader, or a generated task's own scorer. No text is run; countdown walks an AST.

A task is a dictionary of plain values, so that it can be sent to a worker process (`rlhf.rewards.pool`).
"""

import ast
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from rlhf.data.types import Prompt, Verdict
from rlhf.rewards.extraction import extract, last_number, without_thinking
from rlhf.rewards.grading import grade, literal

GradingTask = dict[str, Any]
MAX_EXPRESSION_CHARS = 200
MAX_EXPRESSION_DIGITS = 12


def grading_task(prompt: Prompt, completion: str) -> GradingTask:
    """What a worker needs to judge `completion`: scorer, text, and the prompt's gold columns.

    Raises `ValueError`, naming the prompt and the column, if a gold column is missing.
    """
    columns = prompt.columns
    wanted = ("numbers", "target") if prompt.scorer == "countdown" else ("answer",)
    missing = [name for name in wanted if columns.get(name) is None]
    if missing:
        raise ValueError(
            f"prompt {prompt.id!r} cannot be graded by scorer {prompt.scorer!r}: it has no column "
            f"{' and no column '.join(map(repr, missing))} (columns: {', '.join(columns) or 'none'}); add it to the "
            "dataset, or do not use the reward `correctness`"
        )
    task: GradingTask = {"scorer": prompt.scorer, "completion": completion}
    if prompt.scorer == "countdown":
        return task | {"numbers": [int(n) for n in columns["numbers"]], "target": int(columns["target"])}
    return task | {"gold": str(columns["answer"]), "prompt": prompt.text if isinstance(prompt.text, str) else None}


def score_task(task: Mapping[str, Any]) -> Verdict:
    """Judge one task made by `grading_task`; pure, and light enough for a worker: it imports no torch."""
    if task["scorer"] == "math":
        return grade(task["completion"], task["gold"], task.get("prompt"))
    if task["scorer"] == "arithmetic":
        return score_arithmetic(task["completion"], task["gold"])
    if task["scorer"] == "countdown":
        return score_countdown(task["completion"], task["numbers"], task["target"])
    raise ValueError(f"unknown scorer {task['scorer']!r}: it is one of math, arithmetic, countdown")


def score_completion(prompt: Prompt, completion: str) -> Verdict:
    """Judge one completion of `prompt` by its own scorer, in this process. Raises as `grading_task` does."""
    return score_task(grading_task(prompt, completion))


def score_arithmetic(completion: str, gold: str) -> Verdict:
    """Right if the last number of the completion (outside <think>) is exactly the integer `gold`.

    Thousands commas and a decimal part of zeros are read; digits are compared as text, so their number does not matter.
    """
    wanted = literal(gold.strip())
    if wanted is None or not wanted.endswith("."):
        return Verdict("ungradable", reason=f"the gold answer {gold[:50]!r} is not an integer")
    found = last_number(without_thinking(completion))
    if found is None:
        return Verdict("wrong", reason="no answer found")
    right = literal(found) == wanted
    return Verdict("right" if right else "wrong", found[:50], "the same integer" if right else "another number")


def score_countdown(completion: str, numbers: list[int], target: int) -> Verdict:
    """Right if the completion's last expression has exactly the value `target`, uses only + - * / and the given
    integers, and each of those at most as often as it is given.

    The expression is the last box, else the last <answer>, else the last line with one; what follows `=` is ignored.
    """
    expression = countdown_expression(completion)
    if expression is None:
        return Verdict("wrong", reason="no expression found")
    shown = expression[:MAX_EXPRESSION_CHARS]
    used: Counter[int] = Counter()
    try:
        value = _evaluate(expression, used)
    except _NotAllowed as error:
        return Verdict("wrong", shown, str(error))
    surplus = used - Counter(numbers)
    if surplus:
        return Verdict("wrong", shown, f"uses {', '.join(map(str, surplus))} more often than given")
    if value != target:
        return Verdict("wrong", shown, f"the value is {value}, the target {target}")
    return Verdict("right", shown, f"equals {target}")


_LATEX_OPERATORS = {
    "\\times": "*", "\\cdot": "*", "\\div": "/", "\\left": "", "\\right": "", "\u00d7": "*", "\u00b7": "*",
    "\u00f7": "/", "\u2212": "-", "$": "", "\\(": "", "\\)": "", "\\,": " ", "{": "(", "}": ")",
}  # fmt: skip
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ARITHMETIC = re.compile(r"(?:(?<![\w)])-)?[\d(][\d+\-*/() \t]*")
_HAS_OPERATION = re.compile(r"\d\s*\)*\s*[+\-*/]")


def countdown_expression(completion: str) -> str | None:
    """The expression a countdown completion offers, as far as possible in plain ASCII arithmetic; or None."""
    text = without_thinking(completion)
    found = extract(text)
    if found.source == "box" and found.text:
        return _plain(found.text)
    start = text.rfind("<answer>")
    if start >= 0:
        return _plain(text[start + len("<answer>") :].partition("</answer>")[0])
    for line in reversed(text[-10_000:].splitlines()):
        offered = [m.group().strip() for m in _ARITHMETIC.finditer(_plain(line, whole=True))]
        offered = [e for e in offered if _HAS_OPERATION.search(e)]
        if offered:
            return offered[-1]
    return None


def _plain(text: str, whole: bool = False) -> str:
    text = _FRACTION.sub(r"((\1)/(\2))", text[-10_000:])
    for written, meant in _LATEX_OPERATORS.items():
        text = text.replace(written, meant)
    return text.strip() if whole else text.partition("=")[0].strip()


class _NotAllowed(ValueError):
    pass


def _evaluate(expression: str, used: Counter[int]) -> Fraction:
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise _NotAllowed(f"an expression of more than {MAX_EXPRESSION_CHARS} characters")
    if not re.fullmatch(r"[0-9+\-*/() \t]+", expression):
        raise _NotAllowed("an expression may hold only integers, + - * / and parentheses")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nesting too deep for Python's parser
        raise _NotAllowed("not an arithmetic expression") from None
    return _value(tree.body, used)


def _value(node: ast.expr, used: Counter[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(value)) if value < 10**MAX_EXPRESSION_DIGITS:
            used[value] += 1
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, used)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as operation, right=right):
            first, second = _value(left, used), _value(right, used)
            if isinstance(operation, ast.Add):
                return first + second
            if isinstance(operation, ast.Sub):
                return first - second
            if isinstance(operation, ast.Mult):
                return first * second
            if second == 0:
                raise _NotAllowed("division by zero")
            return first / second
    raise _NotAllowed("an expression may hold only integers, + - * / and parentheses")
