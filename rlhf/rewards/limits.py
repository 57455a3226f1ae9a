"""How large an answer may be, and the exceptions of reading one. Together the limits keep every call under a second."""

MAX_ANSWER_CHARS = 4000
"""An answer longer than this is not parsed."""
MAX_LITERAL_DIGITS = 4000
"""Digits of one number inside an expression (Python itself refuses to convert more than 4,300)."""
MAX_DEPTH = 60
"""Nesting of groups, fractions, powers and subscripts: far below Python's recursion limit, also in a thread."""
MAX_BITS = 32_768
"""Size of the numerator or denominator of an exact intermediate result (2004! has 19,053 bits)."""
MAX_FACTORIAL = 3000
"""Largest exact factorial (26,000 bits or so)."""
MAX_WORK = 2_000_000
"""Budget of one call: an operation on exact numbers costs its bits, one on floating-point numbers a constant."""
MAX_ALTERNATIVES = 16
r"""Largest number of values that the plus-minus signs of one expression may stand for."""


class ParseError(ValueError):
    """The text is not mathematics that this grader reads."""


class LimitExceeded(ValueError):
    """Reading or comparing the answer would exceed a size limit, so nothing is said about its value."""


class Undefined(ValueError):
    """The expression has no value: 0/0, infinity minus infinity, the logarithm of zero."""
