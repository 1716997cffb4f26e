"""IFEvalG's 29 training constraints by hand-worked responses."""

from rlsys.verifiers.ifeval.table import TRAINING

PHRASE = {"phrase": "the old dog sleeps", "small_n": 2}
REQUEST = {"prompt_to_repeat": "Name a fish."}
THRICE = "Cats nap.\n***\nDogs nap.\n***\nCows nap."

CASES = [
    # id, arguments, followed, not followed, followed to the reference's eyes alone
    (
        "copy:repeat_phrase",
        PHRASE,
        "the old cat sleeps, the big dog sleeps",
        "the old cat sleeps",
        "the old cat sleeps " * 2,
    ),
    ("copy:copy", REQUEST, " name a fish. ", "Name a fish. Cod.", None),
    ("copy:copying_simple", REQUEST, "Name a fish.", "Name a fish!", None),
    ("copy:copying_multiple", {**REQUEST, "N": 2}, "Name a fish.\n******\nName a fish.", "Name a fish.", None),
    ("new:copy_span_idx", {**REQUEST, "n_start": 5, "n_end": 11}, "a fish", "a fish.", None),
    ("new:copy_span_idx", {**REQUEST, "n_start": 0, "n_end": 4}, "name", "Name a", None),
    ("detectable_format:sentence_hyphens", {}, "We ran.-They hid.", "We ran. - They hid.", "We ran."),
    ("keywords:no_adjacent_consecutive", {}, "A cat ends", "A bat", "A (bat"),
    ("detectable_format:square_brackets", {}, "[so] [be] [it]", "[so] be [it]", "[] [it]"),
    ("keywords:word_once", {"keyword": "cat"}, "A cat.", "Cat, cat.", "A category."),
    (
        "keywords:word_count_different_numbers",
        {"keyword": "cat", "frequency": 2, "relation": "at least"},
        "Cat, cat.",
        "Cat.",
        "A cat in a category.",
    ),
    ("keywords:exclude_word_harder", {"keyword": "fish"}, "A cod.", "A fish swims.", "A Fish."),
    ("paragraphs:paragraphs", {}, "a *** b", "a\n\nb", "a *** -"),
    ("paragraphs:paragraphs2", {}, "a\n\nb", "a\n\nb\n\nc", "a\n\n-"),
    ("paragraphs:paragraphs2", {}, "\n\na\n\nb\n\n", "a\n\n\n\nb", "a\n\n***"),
    ("first_word:first_word_sent", {"first_word": "we"}, "We ran. We hid.", "We ran. They hid.", "We ran. We"),
    ("first_word:first_word_sent", {"first_word": ["we"]}, "We paid 3.50 there.", "We paid. 3 left.", "We go. We"),
    ("first_word:first_word_answer", {"first_word": "so"}, "So it is.", "Soon it is.", "so"),
    ("last_word:last_word_sent", {"last_word": "now"}, "Go now! Come now.", "Go now. Come.", "Go now. Now."),
    ("last_word:last_word_answer", {"last_word": "now"}, "Go. Come now!", "Now go.", "Now."),
    ("detectable_format:bigram_wrapping", {}, "<<I am>> <<at home>> <<now>>", "<<I am>> at home", "<< >> <<"),
    ("punctuation:punctuation_dot", {}, "Well, yes!", "Yes.", "Yes\u2026"),
    ("punctuation:punctuation_exclamation", {}, "Yes.", "Yes!", "Yes\uff01"),
    ("count:lowercase_counting", {"N": 2}, "One two THREE four", "one two three", "one two \u00e9t\u00e9 3"),
    ("letters:letter_counting", {"N": 3, "relation": "less than"}, "a b 123", "a b c", None),
    ("letters:letter_counting", {"N": 3, "relation": "at least"}, "a b c", "a b 123", None),
    (
        "letters:letter_counting2",
        {"letter": "a", "let_frequency": 2, "let_relation": "at least"},
        "A cat",
        "The cat",
        None,
    ),
    ("count:counting_composition", {"n_sent": 1, "n_words": 3}, THRICE, THRICE.replace("Dogs", "Big dogs"), None),
    ("count:count_unique", {}, "Every word is new.", "A word is a word.", "The word the Word"),
    (
        "count:count_increment_word",
        {"keyword1": "cat", "keyword2": "dog"},
        "Dog, cat, dog.",
        "Cat, dog.",
        "Catdog, dog.",
    ),
    ("keywords:palindrome", {}, "Row the kayak home", "Row the boats home", "I row home"),
    ("keywords:keyword_specific_position", {"keyword": "cat", "n": 2, "m": 3}, "Hi. A big cat.", "Hi. A cat.", None),
    ("keywords:start_end", {}, "Rain is only rain", "Rain is only rain.", "Rain rain"),
]  # fmt: skip


def test_every_constraint_has_a_case():
    assert {id for id, *_ in CASES} == {constraint.id for constraint in TRAINING}
    assert len(TRAINING) == 29
