"""The registry: built-in names, a user's verifier in one function and one line, and errors that help."""

from pathlib import Path

import numpy as np
import pytest

from rlsys.errors import VerifierError
from rlsys.verifiers.judgement import Judgement
from rlsys.verifiers.registry import (
    BUILT_IN,
    Verifier,
    accept_any_ground_truth,
    check_ground_truth,
    get_verifier,
    load_verifier_modules,
    verifier,
    verifier_names,
)


@verifier("test_ends_politely")
def ends_politely(response, ground_truth, mode):
    return response.rstrip().endswith(ground_truth)


def test_a_users_verifier_is_one_function_and_one_line():
    judge = get_verifier("test_ends_politely").judge
    assert judge("Here you are. Goodbye!", "Goodbye!", "reward") == Judgement("correct", 1.0)
    assert judge("Here you are.", "Goodbye!", "reward") == Judgement("wrong", 0.0)
    assert "test_ends_politely" in verifier_names()


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_verifier_can_be_had(name: str):
    assert get_verifier(name).name == name


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (True, Judgement("correct", 1.0)),
        (False, Judgement("wrong", 0.0)),
        (1, Judgement("correct", 1.0)),
        (0.25, Judgement("wrong", 0.25)),
        (np.float32(1.0), Judgement("correct", 1.0)),
        (Judgement("unparsable", 0.0, {"why": "x"}), Judgement("unparsable", 0.0, {"why": "x"})),
    ],
)
def test_bools_and_scores_become_judgements(returned: object, expected: Judgement):
    one = Verifier("one", lambda response, ground_truth, mode: returned, accept_any_ground_truth)  # pyright: ignore
    assert one.judge("", None, "eval") == expected


@pytest.mark.parametrize(
    "returned",
    [
        *(None, "yes", 1.5, -0.1, float("nan"), [1]),
        *(Judgement("wrong", score) for score in (float("nan"), float("inf"), 2.0, -0.5, "1")),  # pyright: ignore
    ],
)
def test_anything_else_a_verifier_returns_is_an_error(returned: object):
    one = Verifier("one", lambda response, ground_truth, mode: returned, accept_any_ground_truth)  # pyright: ignore
    with pytest.raises(VerifierError, match="must return a Judgement"):
        one.judge("", None, "eval")


def test_an_outcome_that_is_none_is_an_error():
    one = Verifier("one", lambda *_: Judgement("right", 1.0), accept_any_ground_truth)  # pyright: ignore
    with pytest.raises(VerifierError, match="unknown outcome; got 'right'; use one of correct, wrong, unparsable"):
        one.judge("", None, "eval")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(VerifierError, match="did you mean 'gsm8k'"):
        get_verifier("gsmk8")


def test_names_are_not_shared():
    with pytest.raises(VerifierError, match="share a name"):
        verifier("math")(lambda response, ground_truth, mode: True)
    with pytest.raises(VerifierError, match="share a name"):
        verifier("test_ends_politely")(lambda response, ground_truth, mode: True)
    assert verifier("test_ends_politely")(ends_politely) is ends_politely


def test_ground_truths_are_checked_by_name():
    check_ground_truth("gsm8k", "18")
    check_ground_truth("test_ends_politely", object())
    with pytest.raises(VerifierError, match="ground truth of gsm8k"):
        check_ground_truth("gsm8k", "many")


def test_a_users_module_is_loaded_by_its_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_verifiers.py").write_text(
        "from rlsys.verifiers.registry import verifier\n"
        "@verifier('test_echo')\n"
        "def echo(response, ground_truth, mode):\n"
        "    return response == ground_truth\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    load_verifier_modules(["my_verifiers"])
    assert get_verifier("test_echo").judge("a", "a", "eval").outcome == "correct"
    with pytest.raises(VerifierError, match="no_such_module"):
        load_verifier_modules(["no_such_module"])
