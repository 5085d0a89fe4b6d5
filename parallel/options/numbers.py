"""Numbers as people type them: which are read, and what to type for those that are written in another way."""

import math
import re
import unicodedata
from fractions import Fraction

_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|nan)")
_THOUSANDS = re.compile(r"([0-9]{1,3})((?:([_,' .\u00a0\u202f])[0-9]{3})(?:\3[0-9]{3})*)")
_TIMES = {"k": Fraction(10**3), "m": Fraction(10**6), "b": Fraction(10**9), "g": Fraction(10**9), "%": Fraction(1, 100)}


def whole_of(text: str) -> int | None:
    """Return a whole number in decimal digits, None for any other text."""
    return int(text) if _WHOLE.fullmatch(text.strip()) else None


def number_of(text: str) -> float | None:
    """Return a number in decimal digits, with a point and an exponent or without; None for any other text."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def meant(text: str, *, whole: bool = False) -> str:
    """Return ` (did you mean 1000?)` for text that is not read here and is a number elsewhere, or an empty string.

    Such are 1e3, 1_000, 1,000, 1k and 0x3e8 for a whole number, 0,5, 1/2 and 50% for any.
    """
    known = whole_of(text) if whole else number_of(text)
    value = _value(text.strip().lower(), whole=whole) if known is None else None
    if value is None or (whole and value.denominator != 1):
        return ""
    return f" (did you mean {int(value) if value.denominator == 1 else f'{float(value):g}'}?)"


def _value(text: str, *, whole: bool) -> Fraction | None:
    if not 0 < len(text) <= 40:
        return None
    if len(text) == 1 and not text.isascii() and unicodedata.numeric(text, None) is not None:
        return Fraction(unicodedata.numeric(text)).limit_denominator(1000)
    if text[-1] in _TIMES and text[:-1].rstrip()[-1:].isdigit():
        number = _value(text[:-1].rstrip(), whole=False)
        return None if number is None else number * _TIMES[text[-1]]
    if thousands := _THOUSANDS.fullmatch(text):
        if whole or thousands[3] in "_' \u00a0\u202f" or len(thousands[2]) > 4:
            return Fraction(re.sub(r"[^0-9]", "", text))
    if re.fullmatch(r"0x[0-9a-f]+|0b[01]+|0o[0-7]+", text):
        return Fraction(int(text, 0))
    if re.fullmatch(r"[0-9]+/[1-9][0-9]*|[+-]?[0-9]+,[0-9]+", text):
        return Fraction(text.replace(",", "."))
    read = number_of(text)
    return Fraction(read) if read is not None and math.isfinite(read) and abs(read) < 1e15 else None
