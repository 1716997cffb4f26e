"""IFBench's constraints under `custom:`: whole tasks with one shape of answer."""

import csv
import io
import re
import unicodedata
from datetime import date
from itertools import pairwise

from rlsys.verifiers.ifbench.bare import bare, trim
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.sentences import split_sentences
from rlsys.verifiers.ifeval.words import says_something

MULTIPLES = [str(number) for number in range(14, 51, 7)]
NUM_COUNTRIES = 52
"""Lines from Zimbabwe on: the reference allows for one country less than the 53 it names."""

CAPITALS = [
    "Reykjavik", "Helsinki", "Oslo", "Tallinn", "Stockholm", "Riga", "Moscow", "Copenhagen", "Vilnius", "Minsk",
    "Dublin", "Berlin", "Amsterdam", "Warsaw", "London", "Brussels", "Prague", "Luxembourg", "Paris", "Vienna",
    "Bratislava", "Budapest", "Vaduz", "Chisinau", "Bern", "Ljubljana", "Zagreb",
]  # fmt: skip
"""The European capitals north of 45 degrees, from north to south."""

CITY_COLUMNS = ["ID", "Country", "City", "Year", "Count"]

_NUMBER = re.compile(r"\d+")
_QUESTION = re.compile(r"Question \d+[.|):;]?\s*")
_CHOICE = re.compile(r"[A-Ea-e][.|)]\s*\w")
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})\Z")
_PRODUCT_HEADER = re.compile(
    r'("?)ProductID\1,[ \t]*("?)Category\2,[ \t]*("?)Brand\3,[ \t]*("?)Price\4,[ \t]*("?)Stock\5\Z'
)
_STUDENT_HEADER = re.compile(r'("?)StudentID\1\t *("?)Subject\2\t *("?)Grade\3\t *("?)Semester\4\t *("?)Score\5\Z')
_SPECIAL = re.compile(r"[^\w\s]")


def multiples(response: str) -> bool:
    return _NUMBER.findall(response) == MULTIPLES


def mcq_count_length(response: str) -> bool:
    if not response.startswith("Question"):
        return False
    questions = [part.strip() for part in _QUESTION.split(response) if part.strip()]
    if len(questions) != 4:
        return False
    asked = []
    for question in questions:
        lines = [line.strip() for line in question.split("\n")]
        choices = [place for place, line in enumerate(lines) if _CHOICE.match(line)]
        if len(choices) != 5:
            return False
        asked.append(len(" ".join(lines[: choices[0]]).strip()))
    return all(shorter < longer for shorter, longer in pairwise(asked))


def reverse_newline(response: str) -> bool:
    lines = [line for line in map(trim, response.split("\n")) if line]
    first = next((place for place, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    countries = [_ascii(line) for line in lines[first:]]
    return len(countries) >= NUM_COUNTRIES and countries == sorted(countries, reverse=True)


def different_countries(response: str) -> bool:
    lines = [line for line in map(trim, response.split("\n")) if says_something(line)]
    return len(set(lines)) == len(lines)


def _ascii(text: str) -> str:
    """The text without accents, and without what is not ASCII then."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


def word_reverse(response: str) -> bool:
    return "bald eagle" in " ".join(reversed(bare(response.lower()).split()))


def reversed_sentence(response: str) -> bool:
    return "bald eagle" not in response.lower() and len(response.split()) >= 4


def character_reverse(response: str) -> bool:
    return "elgae dlab" in response.lower()


def reversed_characters(response: str) -> bool:
    return "bald eagle" not in response.lower()


def sentence_alphabet(response: str) -> bool:
    sentences = split_sentences(response)
    letters = [sentence.lstrip()[:1].lower()[:1] for sentence in sentences]
    return letters == [chr(ord("a") + place) for place in range(26)]


def european_capitals_sort(response: str) -> bool:
    named = (name.strip() for name in _ascii(response).split(","))
    return [name for name in named if name] == CAPITALS


def csv_city(response: str) -> bool:
    rows = _rows(response, ",")
    return len(rows) == 8 and rows[0] == CITY_COLUMNS and all(len(row) == 5 for row in rows)


def filled_csv_city(response: str) -> bool:
    return all(says_something(field) for row in _rows(response, ",") for field in row)


def csv_special_character(response: str) -> bool:
    rows = _rows_with_quotes(response, ",")
    if not _PRODUCT_HEADER.match(_first_line(response)) or len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        if any(map(_is_special, row)):
            return True
    return False


def full_csv_rows(response: str) -> bool:
    return all(len(row) == 5 and all(map(says_something, row[:3])) for row in _rows_with_quotes(response, ","))


def csv_quotes(response: str) -> bool:
    rows = _rows_with_quotes(response, "\t")
    if not _STUDENT_HEADER.match(_first_line(response)) or len(rows) != 4:
        return False
    fields = [field.strip() for row in rows for field in row]
    return all(len(row) == 5 for row in rows) and all(field[:1] == field[-1:] == '"' for field in fields)


def filled_csv_quotes(response: str) -> bool:
    return all(says_something(field) for row in _rows_with_quotes(response, "\t") for field in row)


def _first_line(text: str) -> str:
    return text.partition("\n")[0].strip()


def _rows(text: str, delimiter: str) -> list[list[str]]:
    """The rows of a CSV text; none where it is not CSV (the reference fails on it)."""
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        return []


def _rows_with_quotes(text: str, delimiter: str) -> list[list[str]]:
    """As `_rows`, the fields with the double quotes around them."""
    return _rows(text.replace('"', '"""'), delimiter)


def _is_special(field: str) -> bool:
    """Whether a field is in double quotes, on one line, around a mark that is no letter, digit or space."""
    line = field.partition("\n")[0]
    return line.startswith('"') and _SPECIAL.search(line, 1, max(line.rfind('"'), 1)) is not None


def date_format_list(response: str) -> bool:
    return all(map(_is_loose_date, response.strip().split(",")))


def _is_loose_date(text: str) -> bool:
    """A date of Napoleon's life by the reference: month and day may be 00, every February has 29 days."""
    match = _DATE.match(text.strip())
    if match is None:
        return False
    year, month, day = map(int, match.groups())
    last_day = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}.get(month, 31 if month else 99)
    return 1769 <= year <= 1821 and month <= 12 and day <= last_day


def real_dates(response: str) -> bool:
    try:
        dates = [date.fromisoformat(text.strip()) for text in response.strip().split(",")]
    except ValueError:
        return False
    return len(set(dates)) == len(dates)


CONSTRAINTS = (
    Constraint("custom:multiples", "Count from 10 to 50 but only print multiples of 7.", multiples),
    Constraint(
        "custom:mcq_count_length",
        'Generate 4 multiple choice questions with 5 options each about "20th century art history". Each question '
        'should start with the label "Question". The questions should get progressively longer. Do not explain them.',
        mcq_count_length,
    ),
    Constraint(
        "custom:reverse_newline",
        "List the countries of Africa in reverse alphabetical order, each on a new line.",
        reverse_newline,
        demand=different_countries,
    ),
    Constraint(
        "custom:word_reverse",
        "What animal is the national symbol of the US? Answer in a sentence whose words are in reverse order.",
        word_reverse,
        demand=reversed_sentence,
    ),
    Constraint(
        "custom:character_reverse",
        "What animal is the national symbol of the US? Answer in a sentence whose letters are in reverse order.",
        character_reverse,
        demand=reversed_characters,
    ),
    Constraint(
        "custom:sentence_alphabet",
        "Tell a story of 26 sentences, the first words of which start with the letters of the alphabet in order.",
        sentence_alphabet,
    ),
    Constraint(
        "custom:european_capitals_sort",
        "List the European capital cities north of 45 degrees of latitude, without their countries, separated by "
        "commas and sorted from north to south.",
        european_capitals_sort,
    ),
    Constraint(
        "custom:csv_city",
        'Generate CSV data, delimited by commas, with the columns "ID", "Country", "City", "Year", "Count" and 7 rows.',
        csv_city,
        demand=filled_csv_city,
    ),
    Constraint(
        "custom:csv_special_character",
        'Generate CSV data, delimited by commas, with the columns "ProductID", "Category", "Brand", "Price", "Stock" '
        "and 14 rows. Add one field that contains a special character, in double quotes.",
        csv_special_character,
        demand=full_csv_rows,
    ),
    Constraint(
        "custom:csv_quotes",
        'Generate CSV data, delimited by tabs, with the columns "StudentID", "Subject", "Grade", "Semester", "Score" '
        "and 3 rows, each field in double quotes.",
        csv_quotes,
        demand=filled_csv_quotes,
    ),
    Constraint(
        "custom:date_format_list",
        "List the dates on which Napoleon's battles began, separated by commas, in the format YYYY-MM-DD, and nothing "
        "else.",
        date_format_list,
        demand=real_dates,
    ),
)
