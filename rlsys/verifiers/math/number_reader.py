r"""Reading numbers: 1,000.5, 1{,}000, 1 000, .5, 0.\overline{3}, 1e-9, and mixed numbers such as 3 1/2."""

import re
from fractions import Fraction

from rlsys.verifiers.math.cleaning import THOUSANDS
from rlsys.verifiers.math.expression import Num
from rlsys.verifiers.math.scanner import NotReadError, Scanner

MAX_NUMBER_DIGITS = 1_000
MAX_SCIENTIFIC_EXPONENT = 400

_NUMBER = re.compile(
    rf"(?:[0-9]{{1,3}}(?:{THOUSANDS}[0-9]{{3}})+|[1-9][0-9]{{0,2}}(?: [0-9]{{3}})+(?![0-9])|[0-9]+)"
    r"(?:\.(?P<decimals>[0-9]*))?|\.(?P<only_decimals>[0-9]+)"
)
_COMMA_THOUSANDS = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.(?P<decimals>[0-9]+))?(?P<only_decimals>)")
_GROUP_MARKS = re.compile(f"[ ,{THOUSANDS}]")
_REPEATING = re.compile(r"(?P<whole>[0-9]*)\.(?P<fixed>[0-9]*)\\(?:overline|bar|dot)\s*\{(?P<period>[0-9]+)\}")
_SCIENTIFIC = re.compile(r"[eE](?P<exponent>[+-]?[0-9]{1,3})(?![0-9.])")
_MIXED = re.compile(
    r" (?P<above>[0-9]{1,9}) ?/ ?(?P<below>[0-9]{1,9})(?![0-9.])"
    r"| ?\\frac ?(?:\{ ?(?P<group_above>[0-9]{1,9}) ?\}|(?P<digit_above>[0-9]))"
    r" ?(?:\{ ?(?P<group_below>[0-9]{1,9}) ?\}|(?P<digit_below>[0-9]))"
)


class NumberReader(Scanner):
    """Reads the numbers of an expression."""

    comma_separates = False
    """Within brackets a comma always separates items; elsewhere 1,000 is a thousand."""

    def number(self) -> Num:
        """Reads a number; a whole one before a fraction of whole numbers is a mixed number.

        Raises:
            NotReadError: there is none, or one with too many digits.
        """
        repeating = self.match(_REPEATING)
        if repeating:
            return Num(_repeating_decimal(repeating))
        found = None if self.comma_separates else self.match(_COMMA_THOUSANDS)
        found = found or self.match(_NUMBER)
        if found is None or len(found[0]) > MAX_NUMBER_DIGITS:
            raise NotReadError("not a number, or too long a one")
        value = Fraction(_GROUP_MARKS.sub("", found[0]).rstrip("."))
        decimals = found["decimals"] or found["only_decimals"]
        scientific = _SCIENTIFIC.match(self.text, self.position)
        if scientific and abs(int(scientific["exponent"])) <= MAX_SCIENTIFIC_EXPONENT:
            self.position = scientific.end()
            return Num(value * Fraction(10) ** int(scientific["exponent"]), len(decimals or ""))
        return Num(value, len(decimals)) if decimals else Num(value + self._fraction_of_mixed_number())

    def _fraction_of_mixed_number(self) -> Fraction:
        mixed = _MIXED.match(self.text, self.position)
        if mixed is None:
            return Fraction(0)
        above = int(mixed["above"] or mixed["group_above"] or mixed["digit_above"])
        below = int(mixed["below"] or mixed["group_below"] or mixed["digit_below"])
        if not above or not below:
            return Fraction(0)
        self.position = mixed.end()
        return Fraction(above, below)


def _repeating_decimal(match: re.Match[str]) -> Fraction:
    if len(match[0]) > MAX_NUMBER_DIGITS:
        raise NotReadError("too long a number")
    whole, fixed, period = match["whole"] or "0", match["fixed"], match["period"]
    shift = 10 ** len(fixed)
    return Fraction(int(whole + fixed), shift) + Fraction(int(period), shift * (10 ** len(period) - 1))
