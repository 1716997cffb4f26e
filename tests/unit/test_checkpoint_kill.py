"""kill -9 at every point of a commit, and disks that are full: the checkpoint before is whole, always."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from killable_child import die_at_event, run_child

from rlsys.checkpoint.chain_file import ChainFile
from rlsys.checkpoint.checkpoint_store import CheckpointStore
from rlsys.checkpoint.retention import Retention
from rlsys.checkpoint.seal import seal
from rlsys.errors import CheckpointError

PARTS = ("policy/rank_0.bin", "policy/rank_1.bin", "value.bin", "rollouts/buffered.bin")


def content_of(step: int, name: str) -> bytes:
    return f"{name} of step {step} ".encode() * 3000


def write_checkpoint(folder: Path, step: int, *, between: Callable[[], object] = lambda: None) -> None:
    """One step of a run: ends to the chain file, components' files in pieces, commit, retention."""
    store = CheckpointStore(folder / "checkpoints", Retention(keep_last=2))
    transaction = store.begin(step)
    position = ChainFile(folder / "ends.jsonl").append([[step, i] for i in range(5)])
    for name in PARTS:
        path = transaction.folder / name
        path.parent.mkdir(exist_ok=True)
        content = content_of(step, name)
        with open(path, "wb", buffering=0) as stream:
            for start in range(0, len(content), 20_000):
                stream.write(content[start : start + 20_000])
                between()
    transaction.commit(metadata={"ends": position}, sealed=seal(transaction.folder, under="policy"))
    store.remove_old()


def check_recovery(folder: Path) -> int:
    """Resumes as a run would, and requires everything to be that of one step."""
    store = CheckpointStore(folder / "checkpoints", Retention(keep_last=2))
    found = store.recover()
    assert found.checkpoint is not None and found.passed_over == ()
    step = found.checkpoint.step
    assert {name: found.checkpoint.open(name).read() for name in PARTS} == {n: content_of(step, n) for n in PARTS}
    chain = ChainFile(folder / "ends.jsonl")
    chain.rewind(found.checkpoint.manifest.metadata["ends"])
    assert list(chain.records()) == [[s, i] for s in range(1, step + 1) for i in range(5)]
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".")]
    return step


def killed_at(point: int, folder: Path) -> None:
    """Writes step 3 and is killed at the `point`-th event or written piece."""
    write_checkpoint(folder, 3, between=die_at_event(point))


def test_kill_9_at_every_point_of_a_commit_leaves_a_whole_checkpoint(tmp_path: Path):
    begun = tmp_path / "begun"
    begun.mkdir()
    for step in (1, 2):
        write_checkpoint(begun, step)
    outcomes: list[int] = []
    for point in range(1, 2000):
        folder = shutil.copytree(begun, tmp_path / "run")
        exit_code = run_child(killed_at, point, folder)
        assert exit_code in (0, -signal.SIGKILL)
        outcomes.append(check_recovery(folder))
        if point % 10 == 0:
            write_checkpoint(folder, outcomes[-1] + 1)  # and the run goes on
            assert check_recovery(folder) == outcomes[-1] + 1
        shutil.rmtree(folder)
        if exit_code == 0:
            break
    else:
        pytest.fail("the writer never came to its end")
    assert len(outcomes) > 60, "too few points for the hook to have worked"
    assert outcomes == sorted(outcomes) and set(outcomes) == {2, 3}  # one rename decides


def fill(folder: Path, limit: int) -> None:
    """Goes on in a process in which no file may grow beyond the limit, which a manifest with this much in it does."""
    store = CheckpointStore(folder / "checkpoints")
    transaction = store.begin(2)
    (transaction.folder / "part.bin").write_bytes(b"small")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(CheckpointError, match="step_000002 cannot be committed"):
        transaction.commit(metadata={"long": "x" * 40_000})
    assert not transaction.folder.exists()
    with pytest.raises(CheckpointError, match=r"ends\.jsonl cannot be written"):
        ChainFile(folder / "ends.jsonl").append(["y" * 40_000])


@pytest.mark.parametrize("limit", [0, 10, 30_000])
def test_a_full_disk_stops_the_commit_with_a_clear_error_and_keeps_the_one_before(tmp_path: Path, limit: int):
    write_checkpoint(tmp_path, 1)
    chain_before = (tmp_path / "ends.jsonl").read_bytes()
    assert run_child(fill, tmp_path, limit) == 0
    assert (tmp_path / "ends.jsonl").read_bytes() == chain_before
    assert check_recovery(tmp_path) == 1


FILL_A_SMALL_DISK = """
import json, sys
from pathlib import Path
from rlsys.checkpoint.checkpoint_store import CheckpointStore
from rlsys.errors import CheckpointError
store, told = CheckpointStore(Path(sys.argv[1])), []
for step in range(1, 9):
    try:
        transaction = store.begin(step)
        (transaction.folder / "w").write_bytes(bytes(60_000))
        transaction.commit(metadata={"long": "x" * 20_000})
    except (CheckpointError, OSError) as error:
        transaction.cancel()
        told.append([type(error).__name__, str(error)])
print(json.dumps([store.steps, store.recover().checkpoint.step, told]))
"""


def test_a_really_full_disk_keeps_every_checkpoint_that_was_committed(tmp_path: Path):
    script = f'mount -t tmpfs -o size=256k tmpfs "$1" && exec {sys.executable} -c "$2" "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), FILL_A_SMALL_DISK],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    steps, recovered, told = json.loads(done.stdout)
    assert steps == [1, 2, 3] and recovered == 3
    assert len(told) == 5 and all("No space left" in message for _, message in told)
