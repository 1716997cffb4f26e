"""From the ground truths that data sets publish to checks of this project's verifiers."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from rlsys.data.drops import RowRefused
from rlsys.data.records import is_missing
from rlsys.data.tulu_constraints import ifeval_of_tulu
from rlsys.types import Check
from rlsys.verifiers.boxes import find_boxes
from rlsys.verifiers.tulu import FUNCTIONS as TULU_FUNCTIONS

_GSM8K_MARK = re.compile(r"^####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)

_IFBENCH_GROUPS = frozenset({"ratio", "words", "sentence", "format", "custom", "repeat"})
_IFBENCH_COUNTS = frozenset(
    {
        "conjunctions",
        "keywords_multiple",
        "numbers",
        "person_names",
        "pronouns",
        "punctuation",
        "unique_word_count",
        "word_count_range",
        "words_japanese",
    }
)
"""IFEvalG's training constraints have a group `count` too."""

_VERIFIER_OF_DATASET = {"gsm8k": "gsm8k", "ifeval": "ifeval", "ifbench": "ifbench", "math": "math"}


def gsm8k_answer(answer: str) -> str | None:
    """The number after the last `####`, thousands separators removed; None where there is no such line.

    >>> gsm8k_answer("9 * 100 = <<9*100=900>>900\\n#### 1,800")
    '1800'
    """
    marks = _GSM8K_MARK.findall(answer)
    return marks[-1].replace(",", "") if marks else None


def boxed_answer(solution: str) -> str | None:
    r"""The content of the last balanced box of a solution, or None.

    >>> boxed_answer(r"so it is $\boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    """
    boxes = find_boxes(solution)
    return boxes[-1].content.strip() if boxes else None


def ifeval_check(instruction_ids: object, arguments: object) -> Check:
    """A check by IFEval's, IFEvalG's or IFBench's constraints; arguments that are null count as not given.

    Raises:
        RowRefused: ids and arguments are not two lists of one length.
    """
    if not _is_list(instruction_ids) or not _is_list(arguments) or len(instruction_ids) != len(arguments):
        raise RowRefused("bad_ground_truth", "instruction_id_list and kwargs must be lists of the same length")
    ids = [identifier for identifier in instruction_ids if isinstance(identifier, str)]
    given = [_given(kwargs) for kwargs in arguments]
    if not ids or len(ids) != len(given):
        raise RowRefused("bad_ground_truth", f"instruction_id_list holds something else than ids: {instruction_ids!r}")
    names = {_verifier_of_instruction(identifier) for identifier in ids}
    if len(names) > 1:
        raise RowRefused("bad_ground_truth", f"constraints of IFEval and of IFBench in one row: {ids}")
    return Check(names.pop(), {"instruction_id_list": ids, "kwargs": given})


def check_of_dataset(name: str, truth: object) -> Check:
    """The check for a data set's name (or ability) and its ground truth: gsm8k, math, ifeval or ifbench.

    Raises:
        RowRefused: `unknown_verifier`, `no_ground_truth` or `bad_ground_truth`.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    verifier = next((verifier for word, verifier in _VERIFIER_OF_DATASET.items() if word in words), None)
    if verifier is None:
        raise RowRefused(
            "unknown_verifier",
            f"no verifier is known for the data set {name!r}",
            fix='name it in the row: "checks": [{"verifier": …, "ground_truth": …}]',
        )
    if is_missing(truth):
        raise RowRefused("no_ground_truth", "the ground truth is null")
    if verifier in ("ifeval", "ifbench"):
        return _constraints(truth)
    if not isinstance(truth, str | int | float) or isinstance(truth, bool):
        raise RowRefused("bad_ground_truth", f"a {verifier} ground truth is a number or text, not {truth!r}")
    if verifier == "gsm8k" and isinstance(truth, str):
        return Check("gsm8k", gsm8k_answer(truth) or truth.strip().replace(",", ""))
    return Check(verifier, str(truth))


def published_check(record: Mapping[str, Any]) -> tuple[Check, ...]:
    """The check of a row in Tülu 3's RLVR form, `{ground_truth, dataset}`, or with `verifier` in place of `dataset`.

    Raises:
        RowRefused: a ground truth is there, but no verifier for it.
    """
    truth = record.get("ground_truth")
    if is_missing(truth):
        return ()
    verifier = record.get("verifier")
    if isinstance(verifier, str):
        return (_constraints(truth) if verifier in ("ifeval", "ifbench") else Check(verifier, truth),)
    dataset = record.get("dataset", record.get("data_source"))
    names = dataset if _is_list(dataset) else [dataset]
    truths = truth if _is_list(dataset) and _is_list(truth) else [truth] * len(names)
    if len(names) != len(truths):
        raise RowRefused("bad_ground_truth", "dataset and ground_truth are lists of different lengths")
    return tuple(check_of_dataset(str(name), value) for name, value in zip(names, truths, strict=True))


def _constraints(truth: object) -> Check:
    if isinstance(truth, str):
        try:
            truth = json.loads(truth)
        except ValueError as error:
            raise RowRefused("bad_ground_truth", f"the ground truth is not JSON: {error}") from None
    if _is_list(truth) and len(truth) == 1:
        truth = truth[0]
    if not isinstance(truth, Mapping):
        raise RowRefused("bad_ground_truth", f"constraints are an object, not {str(truth)[:100]}")
    if str(truth.get("func_name")) in TULU_FUNCTIONS:
        return Check("tulu", _given(truth))
    if "func_name" in truth:
        return ifeval_check(*ifeval_of_tulu(truth))
    return ifeval_check(truth.get("instruction_id_list", truth.get("instruction_id")), truth.get("kwargs"))


def _given(kwargs: object) -> dict[str, Any]:
    if is_missing(kwargs):
        return {}
    if not isinstance(kwargs, Mapping):
        raise RowRefused("bad_ground_truth", f"arguments of a constraint are an object, not {str(kwargs)[:100]}")
    return {str(key): value for key, value in kwargs.items() if not is_missing(value)}


def _verifier_of_instruction(identifier: str) -> str:
    group, _, name = identifier.partition(":")
    return "ifbench" if group in _IFBENCH_GROUPS or (group == "count" and name in _IFBENCH_COUNTS) else "ifeval"


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)
