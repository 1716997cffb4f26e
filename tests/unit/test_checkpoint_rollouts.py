"""Rollouts come back bit for bit; a pickle in their place is refused unopened."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlsys.checkpoint.arrays import load_arrays, save_arrays
from rlsys.checkpoint.saved_rollouts import load_rollouts, save_rollouts
from rlsys.errors import CheckpointError
from rlsys.rollouts.partial_group import PartialGroup, PartialResponse
from rlsys.types import Check, Experience, Prompt, Rollout, Verdict

RNG = np.random.default_rng(0)


def tokens(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = RNG.integers(0, 2**31 - 1, count, dtype=np.int32)
    return ids, RNG.normal(size=count).astype(np.float32), RNG.integers(0, 9, count, dtype=np.int32)


def prompt(ordinal: int) -> Prompt:
    messages = ({"role": "user", "content": "naïve 1 + 1?", "weight": 0.5}, {"role": "assistant", "content": ""})
    checks = (Check("gsm8k", "2", 0.25), Check("ifeval", {"instruction_id": ["a:b"], "kwargs": [{"n": None}]}))
    return Prompt(ordinal, f"gsm8k/{ordinal}", messages, np.array([5, 6, ordinal], np.int32), checks, "gsm8k")


def experience(ordinal: int, index: int, length: int, verdict: Verdict, reward: float) -> Experience:
    return Experience(prompt(ordinal), Rollout(ordinal, index, *tokens(length), "stop"), (verdict,), reward)


def assert_same(a, b) -> None:
    """Equal, with arrays compared by bytes and type and NaN equal to itself."""
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    elif isinstance(a, tuple):
        assert isinstance(b, tuple) and len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif isinstance(a, Experience | Rollout | Prompt | Check | Verdict | PartialGroup | PartialResponse):
        assert type(a) is type(b)
        for name in type(a).__slots__:
            assert_same(object.__getattribute__(a, name), object.__getattribute__(b, name))
    else:
        assert a == b or (math.isnan(a) and math.isnan(b))


def test_finished_and_partial_groups_come_back_bit_for_bit(tmp_path: Path):
    right = Verdict("gsm8k", "correct", 1.0, 0.002, {"found": "2", "steps": [1, None]})
    finished = (
        (experience(7, 0, 5, right, 10.0), experience(7, 1, 1, Verdict("gsm8k", "timeout", 0.0, 9.5), math.nan)),
        (replace(experience(3, 0, 2048, right, -0.1), reward_model_score=0.1),),
    )
    partial = (
        PartialGroup(
            prompt(9),
            (Rollout(9, 2, *tokens(4), "length"),),
            (PartialResponse(0, *tokens(3)), PartialResponse(1, *tokens(0))),
        ),
        PartialGroup(prompt(11), (), ()),
    )
    save_rollouts(tmp_path / "rollouts.safetensors", finished=finished, partial=partial)
    loaded = load_rollouts(tmp_path / "rollouts.safetensors")
    assert_same(finished, loaded.finished)
    assert_same(partial, loaded.partial)
    assert loaded.finished[0][1].masked and loaded.partial[0].unfinished[1].response_ids.shape == (0,)


def test_loaded_arrays_do_not_share_one_block(tmp_path: Path):
    group = (experience(1, 0, 3, Verdict("math", "wrong", 0.0, 0.1), 0.0),)
    save_rollouts(tmp_path / "r", finished=(group, group))
    first, second = (group[0].rollout.logprobs for group in load_rollouts(tmp_path / "r").finished)
    first[:] = 0
    assert_same(second, group[0].rollout.logprobs)


def test_nothing_in_flight_is_a_file_too(tmp_path: Path):
    save_rollouts(tmp_path / "r")
    loaded = load_rollouts(tmp_path / "r")
    assert loaded.finished == () and loaded.partial == ()


def test_arrays_of_every_kind_come_back(tmp_path: Path):
    arrays = {
        "f64": np.array([[1.5, -np.inf], [np.nan, 5e-324]]),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 3), np.int16),
        "scalar": np.array(7, np.uint8),
        "strided": np.arange(12, dtype=np.int64).reshape(3, 4).T,
    }
    save_arrays(tmp_path / "a", arrays, {"epoch": 2, "order": [1, None]})
    loaded, metadata = load_arrays(tmp_path / "a")
    assert metadata == {"epoch": 2, "order": [1, None]} and loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert_same(array, loaded[name])


def test_objects_are_not_stored(tmp_path: Path):
    with pytest.raises(ValueError, match=r"\['words'\]"):
        save_arrays(tmp_path / "a", {"words": np.array(["a", None], dtype=object)})


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("loader", [load_arrays, load_rollouts])
def test_a_pickle_is_refused_unopened(tmp_path: Path, loader, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bomb").write_bytes(pickle.dumps(Bomb()))
    np.save("bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    for name in ("bomb", "bomb.npy"):
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            loader(Path(name))
    assert not Path("exploded").exists()
    pickle.loads(Path("bomb").read_bytes())
    assert Path("exploded").exists()  # it would have gone off
