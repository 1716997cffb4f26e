"""The verifier worker: rollouts in, experiences with verdicts and rewards out.

consumes: prompts and their groups of rollouts, by reference
produces: one GroupSummary a group for the driver; one list of experiences a group, by reference
waits for: its pool of scoring processes, each verdict under its own limits
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from rlsys.algorithms.shaping import overlong_penalty
from rlsys.data.tokenizer import load_tokenizer
from rlsys.recipe.verifiers import VerifierSettings
from rlsys.rollouts.staleness import version_range
from rlsys.types import Experience, GroupSummary, Prompt, Rollout, Verdict
from rlsys.verifiers.judgement import VerifyMode
from rlsys.verifiers.pool import VerifierPool, VerifyRequest
from rlsys.verifiers.reward import response_reward


class Verifying:
    """Decodes responses, verifies them in a pool of its own, and rewards them.

    Args:
        settings: the recipe's `[verifiers]` section.
        tokenizer_path: Hugging Face folder of the policy's tokenizer.
    """

    def __init__(self, settings: VerifierSettings, tokenizer_path: str) -> None:
        self._settings = settings
        self._tokenizer = load_tokenizer(tokenizer_path)
        self._pool = VerifierPool(
            settings.workers,
            wall_limit_s=settings.wall_limit_s,
            cpu_limit_s=settings.cpu_limit_s,
            memory_limit_mib=settings.memory_limit_mib,
            modules=settings.modules,
        )
        self._verifying_since: float | None = None

    def verify(
        self,
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Rollout]],
        *,
        reward_model_scores: Sequence[Sequence[float]] | None = None,
        reward_model_weight: float = 1.0,
        mode: VerifyMode | None = None,
        overlong: Mapping[str, Any] | None = None,
    ) -> tuple[list[GroupSummary], list[list[Experience]]]:
        """Runs all checks of each prompt on each of its samples.

        Args:
            prompts: one per group.
            groups: `[prompt][sample]`.
            reward_model_scores: `[prompt][sample]`, times the weight added to the verified reward; the reward itself
                for prompts without checks.
            reward_model_weight: reward of one unit of the score.
            mode: in place of the settings' own, for evaluation.
            overlong: arguments of `overlong_penalty`, which is added to each reward; None adds nothing.

        Raises:
            ValueError: prompts, groups and scores do not belong together.
        """
        self._verifying_since = time.monotonic()
        try:
            requests = [
                VerifyRequest(check.verifier, check.ground_truth, response, mode or self._settings.mode)
                for prompt, group in zip(prompts, groups, strict=True)
                for response in map(self.response_text, group)
                for check in prompt.checks
            ]
            verdicts = iter(self._pool.verify_many(requests))
        finally:
            self._verifying_since = None
        experiences: list[list[Experience]] = []
        for number, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
            scores = reward_model_scores[number] if reward_model_scores is not None else [None] * len(group)
            experiences.append([])
            for rollout, score in zip(group, scores, strict=True):
                judged = tuple(next(verdicts) for _ in prompt.checks)
                experiences[-1].append(self._experience(prompt, rollout, judged, score, reward_model_weight))
        summaries = [summarize(group) for group in experiences]
        if overlong is not None:
            experiences = [[_shaped(experience, overlong) for experience in group] for group in experiences]
            summaries = [
                dataclasses.replace(summarize(group), scores=before.rewards)
                for group, before in zip(experiences, summaries, strict=True)
            ]
        return summaries, experiences

    def response_text(self, rollout: Rollout) -> str:
        """The text of a response: what precedes its end token, without special tokens."""
        stopped = rollout.finish_reason == "stop"
        ids = rollout.response_ids[:-1] if stopped else rollout.response_ids
        text = self._tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "one response, not a batch"
        return text

    def stuck_s(self) -> float:
        """Seconds for which `verify` has waited for a verdict beyond what its pool needs to mend itself; 0 at rest.

        Any thread may ask.
        """
        since = self._verifying_since
        if since is None:
            return 0.0
        waited_s = time.monotonic() - max(since, self._pool.last_sign_of_life)
        return max(0.0, waited_s - self._pool.stall_limit_s)

    def close(self) -> None:
        """Ends the pool's processes."""
        self._pool.close()

    def _experience(
        self, prompt: Prompt, rollout: Rollout, verdicts: tuple[Verdict, ...], score: float | None, weight: float
    ) -> Experience:
        reward = response_reward(
            verdicts,
            prompt.checks,
            rollout.finish_reason,
            self._settings,
            reward_model_score=None if score is None else weight * score,
        )
        return Experience(prompt, rollout, verdicts, reward, score)


def _shaped(experience: Experience, overlong: Mapping[str, Any]) -> Experience:
    penalty = overlong_penalty(len(experience.rollout.response_ids), **overlong)
    return dataclasses.replace(experience, reward=experience.reward + penalty)


def summarize(group: Sequence[Experience]) -> GroupSummary:
    """What the driver may know of a verified group.

    Raises:
        ValueError: the group is empty.
    """
    if not group:
        raise ValueError("a group of no samples has no summary: sample each prompt at least once")
    rollouts = [experience.rollout for experience in group]
    oldest_version, newest_version = version_range(rollouts)
    return GroupSummary(
        ordinal=group[0].prompt.ordinal,
        lengths=tuple(len(rollout.response_ids) for rollout in rollouts),
        prompt_length=len(group[0].prompt.token_ids),
        oldest_version=oldest_version,
        newest_version=newest_version,
        finish_reasons=tuple(rollout.finish_reason for rollout in rollouts),
        rewards=tuple(math.nan if experience.masked else experience.reward for experience in group),
        verdicts=tuple(
            tuple(dataclasses.replace(verdict, detail={}) for verdict in experience.verdicts) for experience in group
        ),
        reward_model_scores=tuple(
            experience.reward_model_score for experience in group if experience.reward_model_score is not None
        ),
    )


# In order, a heartbeat and the rollouts that are there would wait for those that are still sampled.
@ray.remote(  # pyright: ignore[reportCallIssue, reportArgumentType]
    concurrency_groups={"health": 1}, allow_out_of_order_execution=True
)
class VerifierWorker:
    """A `Verifying` as an actor. See there for arguments and errors. One call at a time is verified."""

    def __init__(self, settings: VerifierSettings, tokenizer_path: str) -> None:
        self._verifying = Verifying(settings, tokenizer_path)

    @ray.method(num_returns=2)
    def verify(
        self,
        prompts: list[Prompt],
        groups: list[list[Rollout]],
        **options: Any,
    ) -> tuple[list[GroupSummary], list[list[Experience]]]:
        """Two returns, so that the driver fetches the summaries and passes the experiences on by reference.

        `options` are those of `Verifying.verify`.
        """
        return self._verifying.verify(prompts, groups, **options)

    @ray.method(concurrency_group="health")
    def health(self) -> float:
        """As `Verifying.stuck_s`; does not wait for verdicts under way."""
        return self._verifying.stuck_s()

    def close(self) -> None:
        """Ends the pool's processes; the actor verifies nothing afterwards."""
        self._verifying.close()
