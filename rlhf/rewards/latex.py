"""One spelling of an answer for what LaTeX, Unicode and plain text write in many ways.

Every step is a single linear pass.
"""

import re

from rlhf.rewards.notations import rewritten

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣ", "0123456789+-()nx", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n", strict=True))
_SCRIPTS = re.compile(f"([{''.join(_SUPERSCRIPTS)}]+)|[{''.join(_SUBSCRIPTS)}]+")
_SCRIPT_TRANSLATION = str.maketrans(_SUPERSCRIPTS | _SUBSCRIPTS)
_VULGAR = {"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
           "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8)}  # fmt: skip
_GREEK_NAMES = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega
Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega
"""
_GREEK = dict(zip("αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΣΦΨΩ", _GREEK_NAMES.split(), strict=True))
_TRANSLATION = str.maketrans(
    {
        **{chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)},
        **{c: f"\\frac{{{a}}}{{{b}}}" for c, (a, b) in _VULGAR.items()},
        **{c: f"\\{name} " for c, name in _GREEK.items()},
        **dict.fromkeys("−–—﹣‐‑‒", "-"),
        **dict.fromkeys("×✕⋅·∙•", "*"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u200e\u200f", ""),
        **dict.fromkeys("\u2009\u202f\u2008\u2006", "\\,"),
        **dict.fromkeys("′’‘", "'"),
        **dict.fromkeys("£€¥¢", "\\$"),
        **dict.fromkeys("∅⌀", "\\emptyset "),
        "\u00a0": " ", "÷": "/", "⁄": "/", "∕": "/", "π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt ", "°": "^\\circ ",
        "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
        "±": "\\pm ", "∓": "\\mp ", "⟨": "\\langle ", "⟩": "\\rangle ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}",
        "…": "\\ldots ", "∶": ":",
    }
)  # fmt: skip
_GROUPED_LATEX = re.compile(r"(?<!\d)\d{1,3}(?:(?:\{,\}|,?\\[!,;: ]|\\!,|\{\\,\})\d{3})+(?!\d)")
_GROUPED_BLANK = re.compile(r"[-+]?\d{1,3}(?: \d{3})+")
_NOT_DIGITS = re.compile(r"[^\d]+")
_DOLLAR = re.compile(r"\\?\$|\\(?:textdollar|pounds|textsterling|yen|euro|texteuro|textcent)(?![A-Za-z])")
_DROPPED = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg|displaystyle|textstyle|limits|"
    r"boldsymbol|boxed|fbox|bf|rm|it|nolimits|mathstrut|strut|underline|checkmark|therefore|blacksquare|ensuremath|"
    r"small|large|Large|LARGE|huge|Huge|normalsize|hfill|ldotp)(?![A-Za-z])"
)
_EMPTY_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
_PHANTOM = re.compile(r"\\(?:phantom|hphantom|vphantom|color|textcolor|label|tag|vspace|hspace)\*? ?\{[^{}]*\}")
_ORDINAL = re.compile(
    r"(?<=\d) ?(?:\^ ?\{ ?(?:\\(?:text|textrm|mathrm) ?\{ ?(?:st|nd|rd|th) ?\}|(?:st|nd|rd|th)) ?\}"
    r"|\\(?:text|textrm|mathrm) ?\{ ?(?:st|nd|rd|th) ?\}|(?:st|nd|rd|th)(?![A-Za-z]))"
)
_SPACES = re.compile(r"\\[,;:! >]|~|\\(?:quad|qquad|thinspace|enspace|space)(?![A-Za-z])")
_TRAILING_TEXT = re.compile(r"\\text ?\{ ?[.,;]? ?\}$")
_REPEATING = re.compile(r"(\d{0,50})\.(\d{0,50})\\(?:overline|bar|dot) ?(?:\{(\d{1,50})\}|(\d))")


def clean(text: str) -> str:
    r"""One spelling of an answer: no dollars, sizes, spacing commands or final dot; LaTeX for Unicode signs.

    `10,\!080`, `1{,}450` and `12\,345` become plain digits.
    """
    if not text.isascii():
        text = _SCRIPTS.sub(_script, text).translate(_TRANSLATION)
    text = rewritten(text.strip())
    text = _GROUPED_LATEX.sub(lambda match: _NOT_DIGITS.sub("", match.group()), text)
    text = _DOLLAR.sub(" ", text)
    text = _EMPTY_DELIMITER.sub(" ", text)
    text = _DROPPED.sub(" ", text)
    text = _PHANTOM.sub(" ", text)
    text = _ORDINAL.sub("", text)
    text = text.replace("\\(", " ").replace("\\)", " ").replace("\\[", " ").replace("\\]", " ")
    # `\\` (a new row of a matrix) must not be taken for the start of a spacing command
    text = _SPACES.sub(" ", text.replace("\\\\", "\x01")).replace("\x01", " \\\\ ")
    text = _REPEATING.sub(_repeating_decimal, " ".join(text.split()))
    while (shorter := _TRAILING_TEXT.sub("", _without_final_dot(text))) != text:
        text = shorter
    if _GROUPED_BLANK.fullmatch(text):
        text = text.replace(" ", "")
    return text


def _script(match: re.Match[str]) -> str:
    """`^{12}` for a run of raised digits, `_{10}` for one of lowered digits."""
    return f"{'^' if match[1] else '_'}{{{match.group().translate(_SCRIPT_TRANSLATION)}}}"


def _without_final_dot(text: str) -> str:
    """Without the punctuation of the sentence around it; dots that say "and so on" stay."""
    return text.rstrip(" .,;\\") if not text.endswith("..") else text


def _repeating_decimal(match: re.Match[str]) -> str:
    """The exact fraction of 0.1\\overline{6}."""
    whole, fixed, period = match[1] or "0", match[2], match[3] or match[4]
    start = int(whole + fixed)
    numerator = start * 10 ** len(period) + int(period) - start
    return f"\\frac{{{numerator}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"
