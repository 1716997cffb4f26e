"""Units after a value. They are not converted; two that are known and differ make two answers differ."""

import re

_KNOWN = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gm gms",
    "kg": "kilogram",
    "lb": "pound lbs",
    "oz": "ounce",
    "s": "second sec",
    "min": "minute mins",
    "h": "hour hr hrs",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr yrs",
    "$": "dollar usd",
    "cent": "",
    "percent": "",
    "degree": "deg",
    "am": "a.m",
    "pm": "p.m",
}
_CANONICAL = {alias: name for name, aliases in _KNOWN.items() for alias in (name, *aliases.split())}


def units_conflict(first: str, second: str) -> bool:
    """Whether both units are known and are not the same.

    >>> units_conflict("cm", "meters"), units_conflict("cm ^ 2", "square centimeters"), units_conflict("", "cm")
    (True, False, False)
    """
    one, other = _canonical(first), _canonical(second)
    return one is not None and other is not None and one != other


def _canonical(unit: str) -> str | None:
    word = re.sub(r"\b(?:square|cubic|sq|cu)\b|\^ ?[0-9]|[23²³]", "", unit.casefold()).strip(" .")
    return _CANONICAL.get(word) or _CANONICAL.get(word.removesuffix("s"))
