"""Eval mode against lm-eval's own checkers, over the 541 published prompts.

lm-eval would download Punkt's parameters: it gets NLTK's tokenizer with the same parameters from a package instead.
That tokenizer and ours share no code.
"""

import gzip
import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from rlsys.verifiers.ifeval import verify_ifeval

pytestmark = pytest.mark.real_data

DATA = Path(__file__).parents[3] / "shared/data/ifeval"
RESPONSES_PER_PROMPT = 4


def read(name: str) -> list[dict]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def lm_eval():
    """lm-eval's module of IFEval, without downloads and with langdetect's seed fixed."""
    nltk = pytest.importorskip("nltk")
    import langdetect
    import punkt
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    model = punkt.load_model("english")
    parameters = PunktParameters()
    parameters.abbrev_types = set(model.abbrev_types)
    parameters.collocations = set(model.collocations)
    parameters.sent_starters = set(model.sent_starters)
    parameters.ortho_context.update(model.ortho_context)
    sentences = PunktSentenceTokenizer(parameters)
    words = NLTKWordTokenizer()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "find", lambda *args, **kwargs: "found")
        module = pytest.importorskip("lm_eval.tasks.ifeval.utils")
        util = module.instructions_registry.instructions.instructions_util
        patch.setattr(util, "_get_sentence_tokenizer", lambda: sentences)
        patch.setattr(
            util.nltk,
            "word_tokenize",
            lambda text: [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)],
        )
        patch.setattr(langdetect.DetectorFactory, "seed", 0)
        yield module


def is_random_to_the_reference(id: str, arguments: dict) -> bool:
    # A letter that is none of the alphabet is replaced by a drawn one.
    return id == "keywords:letter_frequency" and not arguments["letter"].isalpha()


def test_strict_and_loose_verdicts_agree_on_real_responses(lm_eval):
    rng = Random(0)
    answers = [row["response"] for row in read("gpt4_verdicts_half.jsonl.gz")]
    own_answers = {row["key"]: row["response"] for row in read("gpt4_verdicts_half.jsonl.gz")}
    compared: Counter[str] = Counter()
    followed: Counter[str] = Counter()
    for row in read("input_data.jsonl.gz"):
        truth = {"instruction_id_list": row["instruction_id_list"], "kwargs": row["kwargs"]}
        responses = [row["prompt"], *rng.sample(answers, RESPONSES_PER_PROMPT - 1)]
        responses[-1] = own_answers.get(row["key"], responses[-1])
        for response in responses:
            ours = verify_ifeval(response, truth, "eval").detail
            example = lm_eval.InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
            strict = lm_eval.test_instruction_following_strict(example, response).follow_instruction_list
            loose = lm_eval.test_instruction_following_loose(example, response).follow_instruction_list
            for place, (id, arguments) in enumerate(zip(row["instruction_id_list"], row["kwargs"], strict=True)):
                if is_random_to_the_reference(id, arguments):
                    compared["random"] += 1
                    continue
                verdict = (ours["strict"][place], ours["loose"][place])
                assert verdict == (strict[place], loose[place]), (row["key"], id, response)
                compared[id] += 1
                followed[id] += strict[place]
    assert compared.pop("random") == 2 * RESPONSES_PER_PROMPT
    assert sum(compared.values()) == 832 * RESPONSES_PER_PROMPT
    assert len(compared) == 25
    assert all(0 < followed[id] < compared[id] for id in compared)


def test_conflicts_hold_every_one_that_upstream_names(lm_eval):
    from rlsys.verifiers.ifeval import conflicts

    registry = lm_eval.instructions_registry
    for id, others in registry.INSTRUCTION_CONFLICTS.items():
        assert conflicts(id) >= set(others), id
