"""Words behind values: which are units (and so may be dropped or added), which turn an answer into something else."""

_UNIT_SPELLINGS = {
    "millimeter": "mm millimeters millimetre millimetres",
    "centimeter": "cm centimeters centimetre centimetres",
    "meter": "m meters metre metres",
    "kilometer": "km kilometers kilometre kilometres kms",
    "inch": "inches",
    "foot": "ft feet",
    "yard": "yd yards yds",
    "mile": "mi miles",
    "milligram": "mg milligrams",
    "gram": "g grams",
    "kilogram": "kg kilograms kgs",
    "ounce": "oz ounces",
    "pound": "lb lbs pounds",
    "ton": "tons",
    "second": "s sec secs seconds",
    "minute": "min mins minutes",
    "hour": "h hr hrs hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "yr yrs years",
    "milliliter": "ml milliliters millilitre millilitres",
    "liter": "liters litre litres",
    "gallon": "gal gallons",
    "quart": "qt quarts",
    "cent": "cents",
    "dollar": "dollars usd",
    "degree": "degrees deg",
    "radian": "radians rad rads",
    "percent": "percents",
    "am": "",
    "pm": "",
    "mph": "",
    "kph": "",
}
CANONICAL_UNIT = {
    spelling: name for name, spellings in _UNIT_SPELLINGS.items() for spelling in (name, *spellings.split())
}
"""Every spelling of a unit, to the one name by which two units are compared."""

SHORT_UNITS = frozenset(spelling for spelling in CANONICAL_UNIT if len(spelling) <= 3) | {"sq", "cu"}
"""Abbreviations that may stand right behind a number (`5cm`) although they look like products of variables."""
SINGLE_LETTER_UNITS = frozenset("msghLlJNWVAKCF") | {"\\Omega"}
"""Letters that may be a unit behind a number where the gold answer has no variable."""

_SHORT_WORDS = """
no on or if is in of to at up us we me he am pm so be by go it my an as do not nor for any how now most boy box bit ant
city cent
"""
SHORT_WORDS = frozenset(_SHORT_WORDS.split())
"""Words of two letters or with letters in alphabetical order that are not products of variables."""

_CHANGES_THE_MEANING = """
or and not nor any other others another either neither both maybe perhaps possibly unknown none if unless except but
about around approximately roughly than less more least most over under between to from through up down plus minus
times divided squared cubed factorial below halves thirds fourths fifths sixths sevenths eighths ninths tenths
hundredths thousandths is are was equals equal correct incorrect wrong answer true false yes no infinite infinity
undefined
"""
_NOT_UNITS = frozenset(_CHANGES_THE_MEANING.split())
MAX_UNIT_WORDS = 4
ARTICLES = frozenset({"the", "a", "an"})


def unit_of(words: list[str]) -> str | None:
    """The canonical unit that trailing `words` stand for, or None if they change the meaning and may not be dropped."""
    words = [w for w in ("thousand" if word == "k" else word.lower() for word in words) if w not in ARTICLES]
    if len(words) > MAX_UNIT_WORDS or any(w in _NOT_UNITS for w in words):
        return None
    return " ".join(CANONICAL_UNIT.get(w, w) for w in words)


_SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip


def scaled(unit: str) -> tuple[int, str]:
    """The factor that the first word of a unit stands for (1 without one), and the rest: 2 million people."""
    head, _, rest = unit.partition(" ")
    factor = _SCALES.get(head.removesuffix("s"), 1)
    return (factor, rest) if factor > 1 else (1, unit)


_SPEEDS = {"mph": ["mile", "hour"], "kph": ["kilometer", "hour"]}
_BETWEEN_UNITS = frozenset({"per", "square", "cubic", "sq", "cu", "/", "*", "cdot"})


def conflicting(unit: str, other: str) -> bool:
    """True if both are made of as many known units and differ: 6 hours are not 6 minutes, 6 km/h not 6 m/s."""
    one, two = known_parts(unit), known_parts(other)
    return one is not None and two is not None and len(one) == len(two) and one != two


def known_parts(unit: str) -> list[str] | None:
    """The units that a unit is made of, `square` and exponents left out; None if there is an unknown word."""
    words = _SPEEDS.get(unit) or [word for word in unit.split() if word not in _BETWEEN_UNITS]
    return words if all(word in CANONICAL_UNIT for word in words) else None
