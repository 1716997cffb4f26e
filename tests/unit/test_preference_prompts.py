"""Prompt selection, and pairs about instructions that really are verified, with the real IFEval verifier."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import pytest
from scripted_writer import ScriptedWriter

from rlsys.data.formats import rows_of
from rlsys.data.preference_constraints import VerifyAll, add_constraints, keep_verified, relax, relaxed_pairs
from rlsys.data.preference_prompts import select_prompts
from rlsys.data.preference_records import AddedConstraint, PreferencePair, PreferencePrompt, Response
from rlsys.data.preference_rewriting import relaxed_prompts
from rlsys.data.response_store import ResponseStore
from rlsys.data.row import Origin, Row
from rlsys.errors import VerifierError
from rlsys.recipe.preferences import PromptSelectionSettings
from rlsys.types import Check, Outcome
from rlsys.verifiers.ifeval import conflicts
from rlsys.verifiers.ifeval.table import IFEVAL
from rlsys.verifiers.registry import get_verifier

COMMA, LOWER, UPPER = "punctuation:no_comma", "change_case:english_lowercase", "change_case:english_capital"
TEXTS = {COMMA: "Use no commas.", LOWER: "Use lower case.", UPPER: "Use capitals."}


def _row(name: str, content: str, *, answer: str = "Yes.") -> Row:
    messages = ({"role": "user", "content": content}, {"role": "assistant", "content": answer})
    return Row(name, name.split("/")[0], Origin("f.jsonl", 1), messages)


def _verify(asked: Sequence[tuple[Check, str]]) -> list[Outcome]:
    return [get_verifier(check.verifier).judge(text, check.ground_truth, "reward").outcome for check, text in asked]


def _failing(outcome: Outcome) -> VerifyAll:
    return lambda asked: [outcome] * len(asked)


def _prompt(*ids: str, id: str = "p") -> PreferencePrompt:
    added = tuple(AddedConstraint(one, {}, TEXTS[one]) for one in ids)
    return PreferencePrompt(id, ({"role": "user", "content": "Name two fruits."},), "toy", "constrained", added)


SFT = [_row(f"sft/{index}", f"Question number {index}?") for index in range(30)]
OTHER = [_row(f"other/{index}", f"Another question {index}?") for index in range(10)]


def test_kinds_do_not_overlap_and_what_is_missing_is_counted():
    others = [*OTHER, _row("other/seen", "question  number 3"), _row("other/twice", "Another question 5")]
    settings = PromptSelectionSettings(reused=8, unused=50, constrained=5, seed=3, constraint_ids=(COMMA, LOWER))
    selection = select_prompts(SFT, others, settings)
    by_kind = {kind: [p for p in selection.prompts if p.kind == kind] for kind in ("reused", "unused", "constrained")}
    assert {kind: len(prompts) for kind, prompts in by_kind.items()} == {"reused": 8, "unused": 10, "constrained": 5}
    bases = {prompt.id.removesuffix("+constraints") for prompt in by_kind["constrained"]}
    assert bases.isdisjoint(prompt.id for prompt in by_kind["reused"])
    assert {prompt.id for prompt in by_kind["unused"]} == {f"other/{index}" for index in range(10)}
    assert selection.counts == {
        "reused": 8, "unused": 10, "constrained": 5, "short_of/reused": 0, "short_of/unused": 40,
        "short_of/constrained": 0, "in_sft": 1, "repeated": 1,
    }  # fmt: skip


def test_relaxed_and_persona_prompts_are_drawn_beside_the_others():
    personas = [_row(f"persona/{index}", f"Persona question {index}?") for index in range(4)]
    seen = _row("persona/seen", "Question number 1?")
    settings = PromptSelectionSettings(reused=30, relaxed=2, persona=3, constraint_ids=(COMMA,))
    selection = select_prompts(SFT, [], settings, persona_rows=[*personas, seen])
    assert selection.counts == {
        "reused": 30, "short_of/reused": 0, "relaxed": 0, "short_of/relaxed": 2, "persona": 3, "short_of/persona": 0,
        "answered": 1,
    }  # fmt: skip
    selection = select_prompts(SFT, [], settings.model_copy(update={"reused": 10, "constrained": 3}))
    kinds = Counter(prompt.kind for prompt in selection.prompts)
    assert kinds == {"reused": 10, "constrained": 3, "relaxed": 2}
    assert len({prompt.id.partition("+")[0] for prompt in selection.prompts}) == 15
    assert all(prompt.constraints for prompt in selection.prompts if prompt.kind != "reused")


def test_selection_is_a_draw_by_seed_that_ignores_the_order_of_rows():
    def ids(rows: list[Row], **changes) -> list[str]:
        settings = PromptSelectionSettings(**{"reused": 10, "seed": 0, **changes})
        return [prompt.id for prompt in select_prompts(rows, [], settings).prompts]

    assert ids(SFT) == ids(SFT[::-1])
    assert ids(SFT, reused=15)[:10] == ids(SFT)
    assert ids(SFT, seed=1) != ids(SFT)
    assert sorted(ids(SFT)) != [f"sft/{index}" for index in range(10)]


def test_the_prompt_is_what_precedes_the_last_answer():
    turns = [("user", "Hi."), ("assistant", "Hello."), ("user", "A fruit?"), ("assistant", "Plum.")]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    rows = [
        Row("a/0", "a", Origin("f", 1), messages),
        Row("a/1", "a", Origin("f", 2), text="plain"),
        Row("a/2", "a", Origin("f", 3), messages[:2], checks=(Check("gsm8k", "2"),)),
    ]
    selection = select_prompts(rows, [], PromptSelectionSettings(reused=5))
    by_id = {prompt.id: prompt for prompt in selection.prompts}
    assert [message["content"] for message in by_id["a/0"].messages] == ["Hi.", "Hello.", "A fruit?"]
    assert by_id["a/2"].checks == (Check("gsm8k", "2"),)
    assert selection.counts["no_user_turn"] == 1


def test_added_constraints_do_not_conflict_and_are_said_and_checked():
    base = PreferencePrompt("b", ({"role": "user", "content": "Name a fruit. "},), "toy", "reused")
    sizes, all_ids = set(), set()
    for seed in range(300):
        prompt = add_constraints(base, max_constraints=4, seed=seed)
        ids = [constraint.instruction_id for constraint in prompt.constraints]
        sizes.add(len(ids))
        all_ids.update(ids)
        assert not any(one in conflicts(other) for one, other in combinations(ids, 2))
        said = " ".join(constraint.text for constraint in prompt.constraints)
        assert prompt.messages == ({"role": "user", "content": f"Name a fruit. {said}"},)
        (check,) = prompt.checks
        get_verifier("ifeval").check_ground_truth(check.ground_truth)
        assert check.ground_truth["instruction_id_list"] == ids
    assert sizes == {1, 2, 3, 4}
    assert all_ids == {constraint.id for constraint in IFEVAL}
    assert add_constraints(base, max_constraints=2, seed=1) == add_constraints(base, max_constraints=2, seed=1)


def test_constraints_are_added_only_among_the_ids_given_and_as_far_as_they_agree():
    base = PreferencePrompt("b", ({"role": "user", "content": "Name a fruit."},), "toy", "reused")
    prompts = [add_constraints(base, max_constraints=3, seed=seed, among=(LOWER, UPPER, COMMA)) for seed in range(50)]
    found = {frozenset(constraint.instruction_id for constraint in prompt.constraints) for prompt in prompts}
    assert found == {frozenset(ids) for ids in ({LOWER}, {UPPER}, {COMMA}, {LOWER, COMMA}, {UPPER, COMMA})}
    with pytest.raises(VerifierError, match="unknown instruction id"):
        add_constraints(base, max_constraints=1, seed=0, among=("no:such",))


def test_relaxing_takes_one_constraint_away():
    prompt = _prompt(COMMA, LOWER)
    relaxed = {relax(prompt, seed=seed).messages[0]["content"] for seed in range(20)}
    assert relaxed == {"Name two fruits. Use no commas.", "Name two fruits. Use lower case."}
    assert relax(_prompt(COMMA), seed=0).messages == ({"role": "user", "content": "Name two fruits."},)
    assert relax(prompt, seed=0).id == "p+relaxed"
    with pytest.raises(ValueError, match="no constraint"):
        relax(_prompt(), seed=0)


def test_if_augmented_pairs_are_kept_only_where_the_chosen_one_is_verified():
    def pair(id: str, chosen: str, *ids: str) -> PreferencePair:
        sides = [Response(id, "m", sample, text) for sample, text in enumerate((chosen, "plum, pear"))]
        return PreferencePair(_prompt(*ids, id=id), sides[0], sides[1], 5.0, 1.0, "judge")

    pairs = [
        pair("right", "plum and pear", COMMA, LOWER),
        pair("half", "Plum and pear", COMMA, LOWER),
        pair("wrong", "plum, pear", COMMA),
        pair("free", "Plum, pear"),
        pair("hangs", "plum and pear", COMMA),
    ]

    kept, counts = keep_verified(pairs[:4], _verify)
    assert [one.prompt.id for one in kept] == ["right", "free"]
    assert counts == {"unconstrained": 1, "verified": 1, "broken": 2, "masked": 0}
    kept, counts = keep_verified(pairs[4:], _failing("timeout"))
    assert (kept, counts["masked"]) == ([], 1)


def test_persona_if_pairs_prefer_the_answer_to_the_whole_prompt():
    prompts = [
        _prompt(COMMA, id="good"),
        _prompt(COMMA, id="lucky"),
        _prompt(COMMA, id="unable"),
        _prompt(COMMA, id="x"),
    ]

    def answers(id: str, *texts: str) -> list[Response]:
        return [Response(id, "m", sample, text) for sample, text in enumerate(texts)]

    responses = {
        "good": answers("good", "Plum, pear.", "Plum and pear."),
        "lucky": answers("lucky", "Plum and pear."),
        "unable": answers("unable", "Plum, pear."),
    }
    relaxed = {
        "good": answers("good", "Apples and pears.", "Apples, pears."),
        "lucky": answers("lucky", "Apples and pears."),
        "unable": answers("unable", "Apples, pears."),
    }
    pairs, counts = relaxed_pairs(prompts, responses, relaxed, _verify, seed=0)
    assert [(p.prompt.id, p.chosen.text, p.rejected.text) for p in pairs] == [
        ("good", "Plum and pear.", "Apples, pears.")
    ]
    assert counts == {"pairs": 1, "unchecked": 0, "no_right": 2, "no_wrong": 1, "masked": 0}
    pairs, counts = relaxed_pairs(prompts[:1], responses, relaxed, _failing("error"), seed=0)
    assert (pairs, counts["masked"]) == ([], 4)


def test_free_text_prompts_are_held_to_the_check_of_their_source_if_they_have_one():
    asked = ({"role": "user", "content": "Name two fruits, and use no commas."},)
    truth = {"instruction_id_list": [COMMA], "kwargs": [{}]}
    checked = PreferencePrompt("c", asked, "personas", "persona", own_checks=(Check("ifeval", truth),))
    unchecked = PreferencePrompt("u", asked, "personas", "persona")
    answers = {id: [Response(id, "m", n, text) for n, text in enumerate(("a, b", "a and b"))] for id in ("c", "u")}
    relaxed = {id: [Response(id, "m", n, text) for n, text in enumerate(("c, d", "a, b"))] for id in ("c", "u")}
    found = [
        relaxed_pairs([checked, unchecked], answers, relaxed, _verify, seed=seed)[0] for seed in range(20)
    ]  # fmt: skip
    texts = {pair.prompt.id: set() for pair in found[0]}
    for pairs in found:
        for pair in pairs:
            texts[pair.prompt.id].add((pair.chosen.text, pair.rejected.text))
    assert texts["c"] == {("a and b", "c, d"), ("a and b", "a, b")}
    assert texts["u"] == {("a, b", "c, d"), ("a and b", "c, d")}, "an answer to both prompts says nothing"


def test_free_text_prompts_are_rewritten_once_and_what_cannot_be_read_is_counted(tmp_path):
    prompts = [
        PreferencePrompt(id, ({"role": "user", "content": f"Name {id}. Use no commas."},), "personas", "persona")
        for id in ("plums", "pears", "figs")
    ]
    said = {
        "plums": "Sure.\nRequest: Name plums. Use commas.",
        "pears": "Request: name pears.  Use no COMMAS.",
        "figs": "I would rather not.",
    }
    writer = ScriptedWriter(lambda question: said[question.key.removeprefix("rewrite/")])

    def relax_all() -> tuple[dict[str, PreferencePrompt], Counter[str]]:
        with ResponseStore(tmp_path / "rewritings.jsonl") as store:
            return asyncio.run(relaxed_prompts([*prompts, _prompt(COMMA)], writer, store, seed=0))

    relaxed, counts = relax_all()
    assert {id: prompt.messages[-1]["content"] for id, prompt in relaxed.items()} == {
        "plums": "Name plums. Use commas.",
        "p": "Name two fruits.",
    }
    assert relaxed["plums"].id == "plums+relaxed"
    assert (counts["rewritten"], counts["unchanged"], counts["unreadable"], counts["asked"]) == (1, 1, 1, 3)
    again, counts = relax_all()
    assert again == relaxed
    assert (counts["asked"], counts["kept"]) == (0, 3)


def test_a_written_pair_is_read_back_with_margin_and_checks():
    sides = [Response("p", model, 0, f"{model} says") for model in ("good", "bad")]
    pair = PreferencePair(_prompt(COMMA), sides[0], sides[1], 4.5, 2.0, "judge")
    (row,) = rows_of(pair.to_json(), source="s", ordinal=0, origin=Origin("pairs.jsonl", 1))
    assert (row.kind, row.margin) == ("pair", 2.5)
    assert row.messages == pair.prompt.messages
    assert (row.chosen[0]["content"], row.rejected[0]["content"]) == ("good says", "bad says")
    assert row.checks == pair.prompt.checks
