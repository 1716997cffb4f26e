"""IFBench's constraints by hand-worked responses: one that follows, one that does not, one that says nothing."""

from constraint_verdicts import follows

from rlsys.verifiers.ifbench.table import CONSTRAINTS, REFUSED
from rlsys.verifiers.ifbench.tasks import CAPITALS

REQUEST = {"prompt_to_repeat": "Name a big fish."}
SPAN = {**REQUEST, "n_start": 1, "n_end": 2}
PLACE = {"keyword": "cat", "n": 2, "m": 3}
KEYWORDS = {"keyword1": "ant", "keyword2": "bee", "keyword3": "cow", "keyword4": "dog", "keyword5": "elk"}
COUNTED = " ".join(["ant", *["bee"] * 2, *["cow"] * 3, *["dog"] * 5, *["elk"] * 7])
PALINDROMES = "civic kayak level madam radar refer rotor sagas solos stats"
QUESTION = "\nA. a\nB. b\nC. c\nD. d\nE. e\n"
QUESTIONS = "".join(f"Question {number}: Who{' else' * number}?{QUESTION}" for number in range(1, 5))
COUNTRIES = "\n".join(["Zimbabwe", *[f"Land {letter}{letter}" for letter in "zyxwvutsrqponmlkjihgfedcba"], *[
    f"Country {letter}" for letter in "zyxwvutsrqponmlkjihgfedcba"
]])  # fmt: skip
ALPHABET = " ".join(f"{chr(65 + place)}nd so on it went." for place in range(26))
CITIES = "ID,Country,City,Year,Count\n" + "\n".join(f"{row},France,Paris,{1990 + row},{row}" for row in range(7))
PRODUCTS = "ProductID,Category,Brand,Price,Stock\n" + "\n".join(f"{row},Toys,Acme,5,{row}" for row in range(14))
SPECIAL = PRODUCTS.replace("3,Toys,Acme", '3,Toys,"Ac&me"')
STUDENTS = "\n".join(
    "\t".join(f'"{field}"' for field in row)
    for row in (
        ("StudentID", "Subject", "Grade", "Semester", "Score"),
        *[(n, "Art", "A", "Fall", 90) for n in (1, 2, 3)],
    )
)
NESTED = "(a [b {c (d [e])}])"
STAIRS = "one\n two\n  three"

CASES = [
    # id, arguments, followed, not followed, followed to the reference's eyes alone
    ("count:word_count_range", {"min_words": 2, "max_words": 3}, "one two", "one two three four", "one _"),
    ("count:unique_word_count", {"N": 2}, "the dog", "The the.", "dog -"),
    ("count:conjunctions", {"small_n": 2}, "He and I, but not she.", "You and I and he.", "And you and, I"),
    ("count:person_names", {"N": 2}, "Emma saw Leo.", "Emma saw emma.", None),
    ("count:numbers", {"N": 2}, "From 1,000 to 2.5", "From 1 to 2 and 3", None),
    ("count:punctuation", {}, "A, b; c: d. E? F! What?!", "A, b; c: d. What?!", None),
    ("count:words_japanese", {"N": 2}, "a \u732b b \u72ac", "a \u732b b dog", "one"),
    ("count:words_japanese", {"N": 2}, "a \u30cd\u30b3", "a cat", "a 5 b \u732b"),
    ("count:pronouns", {"N": 3}, "She gave it to him/her.", "Ann gave it to Bob.", None),
    ("count:keywords_multiple", KEYWORDS, COUNTED, COUNTED + " elk", COUNTED.replace("ant", "plant")),
    ("ratio:stop_words", {"percentage": 50}, "the cat", "the cat and the dog", None),
    ("ratio:sentence_type", {}, "I ran. I hid. Why?", "I ran. Why?", "I ran!"),
    ("ratio:sentence_balance", {}, "I ran. Why? Oh!", "I ran. Why?", "- So it goes -"),
    ("ratio:overlap", {"reference_text": "abcdef", "percentage": 50}, "abcdxy", "abcdef", None),
    ("ratio:sentence_words", {}, "I ran. We go. He so.", "I ran. You be.", "I ran. I ran. I ran."),
    ("words:alphabet", {}, "Yes, zebras act boldly", "Yes, zebras boldly act", "Yes"),
    ("words:vowel", {}, "the open stone", "a big open house", "hmm pst"),
    ("words:vowel", {}, "the open stone", "the open\nstone", "open"),
    ("words:consonants", {}, "brown cats sing", "a brown cat", None),
    ("words:palindrome", {}, PALINDROMES, PALINDROMES[:-6], "level " * 10),
    ("words:prime_lengths", {}, "we are three", "we walk", None),
    ("words:repeats", {"small_n": 2}, "so, So it is", "so so so", None),
    ("words:odd_even_syllables", {}, "cat paper dog", "cat dog", "cat"),
    ("words:last_first", {}, "I saw rain. Rain fell.", "I saw rain. It fell.", "I saw rain."),
    ("words:paragraph_last_first", {}, "Rain is rain.\n\nSun is sun!", "Rain falls.", "Rain."),
    ("words:no_consecutive", {}, "big cats run", "big bad cats", "big"),
    ("words:keywords_specific_position", PLACE, "Hi. A, big Cat.", "Hi. A big red cat.", None),
    ("words:words_position", {"keyword": "cat"}, "A cat is a cat indeed.", "A cat is a cat.", None),
    ("words:words_position", {"keyword": "cat"}, "A cat is a cat indeed", "A dog is a dog too", None),
    ("sentence:alliteration_increment", {}, "Big dogs ran. Big bad dogs. Big bad bold.", "Big bad. A b.", "Big bad."),
    ("sentence:keyword", {"word": "cat", "N": 2}, "Hi. A Cat.", "A cat. Hi.", None),
    ("sentence:increment", {"small_n": 1}, "I ran. They ran off.", "I ran. They ran.", "I ran."),
    ("repeat:repeat_change", REQUEST, "Call a big fish.", "Call a fish.", "Name a  big fish."),
    (
        "repeat:repeat_simple",
        {},
        "only output this sentence here, ignore all other requests.",
        "Only output this.",
        None,
    ),
    ("format:parentheses", {}, NESTED, "(a [b {c (d) }])", "((((( a )"),
    ("format:quotes", {}, "\"a 'b \"c\" b' a\"", "\"a 'b' a\"", "\"it's \"so\" don't\""),
    ("format:options", {"options": "yes/no/maybe"}, "No.", "No way.", None),
    ("format:options", {"options": "a), b), c), d)"}, "b)", "B)", None),
    ("format:options", {"options": "I know or I don't know"}, "I don't know", "I do know", None),
    ("format:newline", {}, "one\n\ntwo,\nthree", "one two\nthree", "one"),
    ("format:emoji", {}, "I ran. \U0001f600 They hid \U0001f600", "I ran. They hid \U0001f600", None),
    ("format:line_indent", {}, STAIRS, "one\n two\n three", "one"),
    ("format:quote_unquote", {}, 'He said "so be it" and left', 'He said "so be it".', "He left"),
    ("format:list", {"sep": "!?!?"}, "!?!? one\n!?!? two", "!?!? one", "one !?!?!?!?"),
    ("format:thesis", {}, "<i>So it is.</i> Because.", "<i></i> Because.", "<em></em> Because."),
    ("format:thesis", {}, "<em>So it is.</em> Because.", "<em>So it is.", "<em>So it is.</em>"),
    ("format:sub-bullets", {}, "* a\n - b\n* c\n - d", "* a\n - b\n* c", "no list"),
    ("format:no_bullets_bullets", {}, "I ran. I hid.\n* a\n* b", "I ran.\n* a\n* b", "I ran! I hid!\n* a\n* b"),
    ("format:title_case", {}, "The Cat And I", "The cat", None),
    (
        "format:output_template",
        {},
        "My Answer: a My Conclusion: b Future Outlook: c",
        "My Answer: a My Conclusion: b",
        "My Conclusion: My Answer: Future Outlook: a",
    ),
    ("format:no_whitespace", {}, "Soitis.", "So it is.", None),
    ("custom:multiples", {}, "14, 21, 28, 35, 42, 49", "7, 14, 21, 28, 35, 42, 49", None),
    ("custom:mcq_count_length", {}, QUESTIONS, QUESTIONS.replace("E. e", ""), None),
    ("custom:reverse_newline", {}, COUNTRIES, COUNTRIES.replace("Land aa", "Zambia"), COUNTRIES + "\nCountry a"),
    ("custom:word_reverse", {}, "eagle bald the is It", "It is the bald eagle", "eagle bald eagle bald"),
    ("custom:character_reverse", {}, ".elgae dlab ehT", "The bald eagle", "elgae dlab bald eagle"),
    ("custom:sentence_alphabet", {}, ALPHABET, ALPHABET + " Then.", None),
    ("custom:european_capitals_sort", {}, ", ".join(CAPITALS), ", ".join(sorted(CAPITALS)), None),
    ("custom:csv_city", {}, CITIES, CITIES.replace("5,France,", "5,"), CITIES.replace("5,France", "5, ")),
    ("custom:csv_special_character", {}, SPECIAL, PRODUCTS, SPECIAL.replace("9,Toys,Acme,5,9", "9")),
    ("custom:csv_quotes", {}, STUDENTS, STUDENTS.replace('"2"', "2"), STUDENTS.replace('"90"', '""')),
    ("custom:date_format_list", {}, "1796-04-12, 1805-12-02", "1796-4-12", "1796-00-00"),
]  # fmt: skip


def test_every_constraint_has_a_case():
    assert {id for id, *_ in CASES} | {"repeat:repeat_span"} == {constraint.id for constraint in CONSTRAINTS}
    assert len(CONSTRAINTS) + len(REFUSED) == 58


def test_a_span_is_of_characters_to_the_reference_and_of_words_to_its_prompts():
    assert follows("repeat:repeat_span", SPAN, "am", mode="eval")
    assert not follows("repeat:repeat_span", SPAN, "am", mode="reward")
    assert follows("repeat:repeat_span", SPAN, "a big", mode="reward")
    assert not follows("repeat:repeat_span", SPAN, "a big", mode="eval")
