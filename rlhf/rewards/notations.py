r"""Notations that are rewritten as text before an answer is read: other countries' intervals, 8C3, units as fractions.

Every pattern is bounded, so that each is one linear pass.
"""

import re

from rlhf.rewards.words import NUMBER_WORDS

_FRACTION_OF_UNITS = re.compile(
    r"\\[dt]?frac\s?\{\s?(\\(?:text|textrm|mathrm|mbox) ?\{[^{}]{1,40}\}(?:\^\{?\d\}?)?)\s?\}"
    r"\s?\{\s?(\\(?:text|textrm|mathrm|mbox) ?\{[^{}]{1,40}\}(?:\^\{?\d\}?)?)\s?\}"
)
_CHOICES = re.compile(
    r"(?<![\w)\]^_])(?:\{\s?\}\s?)?[\^_]\s?(?:\{(\d{1,4})\}|(\d))\s?(?:\\(?:mathrm|text|textrm)\s?\{([CP])\}|([CP]))"
    r"\s?_\s?(?:\{(\d{1,4})\}|(\d{1,4}))"
)
_INDEXED_CHOICES = re.compile(
    r"(?<![A-Za-z\\])(?:C|\\(?:mathrm|text|textrm|mathbf)\s?\{C\})\s?"
    r"(?:_\s?\{?(\d{1,4})\}?\s?\^\s?\{?(\d{1,4})\}?|\^\s?\{?(\d{1,4})\}?\s?_\s?\{?(\d{1,4})\}?)(?!\d)"
)
_RAISED_FRACTION = re.compile(r"(?<![\w)\]}])\^\s?\{?(\d{1,9})\}?\s?/\s?_\s?\{?(\d{1,9})\}?")
_ROW_SPACING = re.compile(r"(\\\\)\s?\[\s?-?[\d.]{1,6}\s?(?:pt|ex|em|mm|cm|in)\s?\]")
_SYSTEM_START = re.compile(r"\\left\s?\\\{\s?\\begin\s?\{(?:array|aligned|matrix|gathered)\}(?:\s?\{[lcr| ]{0,10}\})?")
_SYSTEM_END = re.compile(r"\\end\s?\{(?:array|aligned|matrix|gathered)\}\s?\\right\s?\.")
_ALIGNED = re.compile(r"\\(begin|end)\s?\{(?:aligned|align\*?|gathered|split)\}")
_OUTWARD_INTERVAL = re.compile(
    r"(?P<before>^|\\cup|\\in(?![A-Za-z])|=|∪|∈)\s?(?P<open>[\[\]])(?P<ends>[^\[\]()]{1,80}[,;][^\[\]()]{1,80})"
    r"(?P<close>[\[\]])(?=\s?(?:$|\\cup|∪))"
)
_DECIMAL_POINT = re.compile(r"(?<=\d)\{\.\}(?=\d)")
_NEXT_EQUATION = re.compile(r"(?<=[\w)}]) ?,? ?\\q?quad ?(?=[A-Za-z](?:_\{?\w{1,3}\}?)? ?=)")
_SIGN_BEFORE_NUMBER = re.compile(
    r"^(?:\\?#\s?(?=\d)|(?:\\(?:text|mathrm) ?\{ ?)?(?:US|USD|Rs\.?|EUR|GBP|CAD|AUD)(?: ?\})?\s?(?=\d|\\?\$))"
)
_BASE_WORDS = re.compile(
    r"(?<=[0-9A-F])\s?(?:\\text\s?\{\s?)?\(?(?:in )?base[ -]?(?:\}\s?|\\text\s?\{)?([a-z]{3,9}|\d{1,2})\)?\s?\}?$"
)


def rewritten(text: str) -> str:
    r"""`text` with these notations in the one that is read: `]1,2]` as `(1,2]`, `_8C_3` as `\binom{8}{3}`."""
    if "frac" in text:
        text = _FRACTION_OF_UNITS.sub(r"\1/\2", text)
    if "^" in text or "_" in text:
        text = _CHOICES.sub(_choice, text)
        if "C" in text:
            text = _INDEXED_CHOICES.sub(_indexed_choice, text)
        text = _RAISED_FRACTION.sub(r"\\frac{\1}{\2}", text)
    if "\\begin" in text:
        text = _ROW_SPACING.sub(r"\1", text)
        text = _SYSTEM_START.sub(r"\\begin{cases}", text)
        text = _SYSTEM_END.sub(r"\\end{cases}", text)
        if _ALIGNED.search(text):
            text = _ALIGNED.sub(r"\\\1{cases}", text).replace("&", "")
    if "base" in text:
        text = _BASE_WORDS.sub(lambda match: f"_{{{base_digits(match[1])}}}", text)
    if "[" in text or "]" in text:
        text = _OUTWARD_INTERVAL.sub(_inward, text)
    if ":" in text:
        text = text.replace("{:}", ":")
    if "{.}" in text:
        text = _DECIMAL_POINT.sub(".", text)
    if "quad" in text:
        text = _NEXT_EQUATION.sub(", ", text)
    return _SIGN_BEFORE_NUMBER.sub("", text)


def _choice(match: re.Match[str]) -> str:
    n, letter, k = match[1] or match[2], match[3] or match[4], match[5] or match[6]
    return f"\\binom{{{n}}}{{{k}}}" if letter == "C" else f"\\frac{{{n}!}}{{({n}-{k})!}}"


def _indexed_choice(match: re.Match[str]) -> str:
    """C with n below and k above; a C that is the k-th power of the n-th constant, where n < k, stays."""
    n, k = match[1] or match[4], match[2] or match[3]
    return f"\\binom{{{n}}}{{{k}}}" if int(n) >= int(k) else match.group()


def _inward(match: re.Match[str]) -> str:
    """Brackets that look outward exclude their end."""
    opening = "[" if match["open"] == "[" else "("
    closing = "]" if match["close"] == "]" else ")"
    return f"{match['before']} {opening}{match['ends']}{closing}"


def base_digits(subscript: str) -> str:
    """The number base that a subscript names: `2`, `(2)`, `two` and `base 2` are the same."""
    name = subscript.strip("() ").removeprefix("base").strip()
    return NUMBER_WORDS.get(name, name)
