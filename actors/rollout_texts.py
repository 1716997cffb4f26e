"""Texts from rollout workers: what a local judge, or a local model of a preference pool, answers to questions."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions

from actors.roster import Roster
from rlsys.data.judge_backend import Answer, Question
from rlsys.data.preference_pairs import seeded_random
from rlsys.data.tokenizer import load_tokenizer
from rlsys.recipe.data import TemplatingSettings
from rlsys.recipe.rollout import SamplingSettings
from rlsys.types import Prompt, Rollout

if TYPE_CHECKING:
    from rlsys.data.chat import ChatTokenizer


class RolloutTexts:
    """A `TextGenerator` over rollout workers of one model; takes `Question`s. It may be sent to another actor.

    A question's text depends on (seed, the question's key and messages) and the weights, not on its batch.

    Args:
        workers: `RolloutWorker` actors that hold the model's weights.
        tokenizer_path: Hugging Face folder of its tokenizer.
        sampling: of every answer.
        seed: of the sampling.
        timeout_s: deadline of one batch.
    """

    def __init__(
        self, workers: Sequence[Any], tokenizer_path: str, *, sampling: SamplingSettings, seed: int, timeout_s: float
    ) -> None:
        self.workers = list(workers)
        """May be replaced between two batches."""
        self._tokenizer_path = tokenizer_path
        self._sampling, self._seed, self._timeout_s = sampling, seed, timeout_s

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_chat"}

    @cached_property
    def _chat(self) -> "ChatTokenizer":
        from rlsys.data.chat import ChatTokenizer

        # Judges read what other models wrote: markers in it are text, and no reason to stop.
        settings = TemplatingSettings(markers="escape")
        return ChatTokenizer(load_tokenizer(self._tokenizer_path), settings)

    def generate_text(self, prompts: Sequence[Question], /) -> list[Answer]:
        """One text a question, without its end token, in their order.

        Raises:
            RowRefused: a question that the chat template cannot take.
            ray.exceptions.RayError: a worker failed or was late.
        """
        asked = [self._prompt(question) for question in prompts]
        size = len(self.workers)
        references = [
            worker.generate.remote(
                asked[index::size], num_samples=1, sampling=self._sampling, seed=self._seed, tag="texts"
            )[1]
            for index, worker in enumerate(self.workers)
            if asked[index::size]
        ]
        try:
            answered = ray.get(references, timeout=self._timeout_s)
        except ray.exceptions.RayError:
            for index, worker in enumerate(self.workers):  # or the next batch would wait for what nobody waits for
                worker.abort.remote([prompt.ordinal for prompt in asked[index::size]], tag="texts")
            raise
        answers = [Answer(None)] * len(asked)
        for index, groups in enumerate(answered):
            answers[index::size] = [self._answer(group[0]) for group in groups]
        return answers

    def _prompt(self, question: Question) -> Prompt:
        ordinal = seeded_random(self._seed, question.key).randrange(2**31)
        token_ids = self._chat.encode_prompt(question.messages)
        return Prompt(ordinal, question.key, question.messages, token_ids)

    def _answer(self, rollout: Rollout) -> Answer:
        cut = rollout.finish_reason != "stop"
        ids = rollout.response_ids if cut else rollout.response_ids[:-1]
        text = self._chat.tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return Answer(text, cut=cut)


class RosterTexts:
    """A `TextGenerator` over workers that are replaced as they die: a batch that lost one of them is sampled again.

    Args:
        texts: says how; its workers are those of the roster that serve.
        roster: of workers that hold the model's weights.
        refill: returns when a member serves, at once where one does.
        timeout_s: in which a worker must answer a heartbeat to be kept after a failure.
    """

    def __init__(self, texts: RolloutTexts, roster: Roster, *, refill: Callable[[], None], timeout_s: float) -> None:
        self._texts, self._roster, self._refill, self._timeout_s = texts, roster, refill, timeout_s

    def generate_text(self, prompts: Sequence[Question], /) -> list[Answer]:
        """One text a question, in their order.

        Raises:
            RowRefused, ray.exceptions.RayError: see `RolloutTexts`; no worker's death is the reason.
            ActorError: no worker is left, and none can be started.
        """
        while True:
            self._roster.beat()
            self._refill()
            serving = self._roster.serving
            self._texts.workers = [member.handle for member in serving]
            try:
                return self._texts.generate_text(prompts)
            except ray.exceptions.RayError:
                if not self._roster.accuse([member.name for member in serving], timeout_s=self._timeout_s):
                    raise
