"""A group that was under way: what it tells, whether it fits a request, and how an open group goes on from it."""

from dataclasses import replace

import numpy as np
import pytest

from rlsys.recipe.rollout import SamplingSettings
from rlsys.rollouts.open_group import OpenGroup, OpenSample
from rlsys.rollouts.partial_group import PartialGroup, PartialResponse
from rlsys.types import Prompt, Rollout

PROMPT = Prompt(4, "p", (), np.array([5, 6], np.int32))


def arrays(versions: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.arange(10, 10 + len(versions), dtype=np.int32)
    return ids, np.float32(-1) / ids.astype(np.float32), np.array(versions, np.int32)


DONE = Rollout(4, 1, *arrays([2, 3]), "stop")
BEGUN = PartialResponse(0, *arrays([3, 3, 4]))
EMPTY = PartialResponse(2, *arrays([]))
GROUP = PartialGroup.of(PROMPT, (EMPTY, DONE, BEGUN))


def test_responses_are_sorted_and_counted():
    assert (GROUP.finished, GROUP.unfinished) == ((DONE,), (EMPTY, BEGUN))
    assert GROUP.responses == (BEGUN, DONE, EMPTY)
    assert (GROUP.num_begun, GROUP.oldest_version) == (2, 2)


def test_nothing_sampled_has_no_version():
    nothing = PartialGroup(PROMPT, (), (EMPTY,))
    assert nothing.num_begun == 0
    with pytest.raises(ValueError):
        _ = nothing.oldest_version


@pytest.mark.parametrize(
    ("prompt_ids", "num_samples", "max_tokens", "fits"),
    [
        ([5, 6], 3, 3, True),
        ([5, 6], 3, 2, False),
        ([5, 6], 2, 9, False),
        ([5, 6], 4, 9, False),
        ([5, 7], 3, 9, False),
        ([5, 6, 7], 3, 9, False),
    ],
)
def test_a_changed_recipe_is_another_request(prompt_ids: list[int], num_samples: int, max_tokens: int, fits: bool):
    prompt = replace(PROMPT, token_ids=np.array(prompt_ids, np.int32))
    assert GROUP.fits(prompt, num_samples=num_samples, max_tokens=max_tokens) is fits


def open_group() -> OpenGroup:
    group = OpenGroup(0, 4, [5, 6], SamplingSettings(max_tokens=4))
    group.samples += [OpenSample(group, index, seed=0) for index in range(3)]
    return group


def test_an_open_group_goes_on_and_keeps_every_bit():
    group = open_group()
    for response in GROUP.responses:
        group.samples[response.sample_index].go_on_from(response, room=4)
    assert [sample.finish_reason for sample in group.samples] == [None, "stop", None] and not group.done
    for before, after in zip(GROUP.responses, group.responses(), strict=True):
        assert type(before) is type(after)
        for name in ("response_ids", "logprobs", "versions"):
            old, new = object.__getattribute__(before, name), object.__getattribute__(after, name)
            assert old.dtype == new.dtype and old.tobytes() == new.tobytes()
    group.samples[0].extend([90, 91], [-0.5, -0.25], 7)
    assert group.responses()[0].versions.tolist() == [3, 3, 4, 7, 7]
    assert group.responses()[0].logprobs[3:].tolist() == [-0.5, -0.25]


def test_a_response_without_room_is_cut_where_it_is():
    group = open_group()
    for index in range(3):
        group.samples[index].go_on_from(replace(BEGUN, sample_index=index), room=3)
    assert group.done
    finished = group.finished()
    assert [rollout.finish_reason for rollout in finished.rollouts] == ["length"] * 3
    assert [rollout.sample_index for rollout in finished.rollouts] == [0, 1, 2]
    assert finished.rollouts[2].versions.tolist() == [3, 3, 4]
