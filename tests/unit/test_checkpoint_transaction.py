"""A checkpoint is whole or it is not there; damage of any file is seen and the one before is used."""

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rlsys.checkpoint.checkpoint import Checkpoint
from rlsys.checkpoint.checkpoint_store import CheckpointStore, latest_intact
from rlsys.checkpoint.manifest import MANIFEST, MANIFEST_DIGEST, Manifest, write_manifest
from rlsys.checkpoint.retention import Retention
from rlsys.checkpoint.seal import FileDigest, seal
from rlsys.errors import CheckpointError

FILES = {
    "policy/rank_0/weights.bin": bytes(range(256)) * 20,
    "policy/rank_1/weights.bin": b"x",
    "value/weights.bin": b"value" * 100,
    "ledger.json": b'{"version": 3}',
    "state.pkl": pickle.dumps({"rng": [1, 2, 3]}),
}


def commit(store: CheckpointStore, step: int, **metadata) -> Path:
    transaction = store.begin(step)
    for name, content in FILES.items():
        path = transaction.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content + str(step).encode())
    transaction.commit(metadata=metadata)
    return transaction.destination


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", Retention(keep_last=3))


def test_a_commit_can_be_read_back_and_checked_with_standard_tools(store: CheckpointStore):
    path = commit(store, 100, score=0.5)
    assert path.name == "step_000100" and store.steps == [100]
    checkpoint = Checkpoint(path)
    assert checkpoint.step == 100 and checkpoint.manifest.metadata == {"score": 0.5}
    assert set(checkpoint.manifest.files) == set(FILES)
    with checkpoint.open("policy/rank_1/weights.bin") as stream:
        assert stream.read() == b"x100"
    subprocess.run(["sha256sum", "--check", "--quiet", MANIFEST_DIGEST], cwd=path, check=True)


def damages(path: Path) -> dict[str, Callable[[], object]]:
    content = path.read_bytes()

    def flip(place: int) -> None:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])

    return {
        "cut by a byte": lambda: path.write_bytes(content[:-1]),
        "emptied": lambda: path.write_bytes(b""),
        "grown": lambda: path.write_bytes(content + b"\0"),
        "first byte": lambda: flip(0),
        "middle byte": lambda: flip(len(content) // 2),
        "last byte": lambda: flip(len(content) - 1),
        "removed": path.unlink,
    }


@pytest.mark.parametrize("name", [*FILES, MANIFEST, MANIFEST_DIGEST])
def test_any_damage_of_any_file_is_seen_and_the_checkpoint_before_is_used(store: CheckpointStore, name: str):
    commit(store, 1)
    path = commit(store, 2) / name
    content, tried = path.read_bytes(), 0
    for damage in damages(path).values():
        damage()
        found = latest_intact(store.folder)
        assert found.checkpoint is not None and found.checkpoint.step == 1
        assert len(found.passed_over) == 1 and found.passed_over[0].startswith("step_000002: ")
        assert name in found.passed_over[0]
        path.write_bytes(content)
        whole = latest_intact(store.folder)
        assert whole.checkpoint is not None and whole.checkpoint.step == 2 and whole.passed_over == ()
        tried += 1
    assert tried == 7


def test_only_damaged_checkpoints_are_an_error_and_none_is_a_fresh_start(store: CheckpointStore):
    assert latest_intact(store.folder).checkpoint is None
    for step in (1, 2):
        (commit(store, step) / "ledger.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint") as caught:
        store.recover()
    assert "step_000001" in str(caught.value) and "step_000002" in str(caught.value)
    assert store.steps == [1, 2]  # nothing is removed


def test_a_checkpoint_under_another_name_is_not_taken_for_that_step(store: CheckpointStore):
    commit(store, 1).rename(store.folder / "step_000009")
    with pytest.raises(CheckpointError, match="step 1 under another name"):
        Checkpoint(store.folder / "step_000009")


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_after_it(store: CheckpointStore, monkeypatch):
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(descriptor: int) -> None:
        events.append(("sync", os.path.realpath(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def spy_rename(source, target) -> None:
        events.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    transaction = store.begin(7)
    folder = transaction.folder
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "weights.bin").write_bytes(b"w")
    transaction.commit()
    published = events.index(("rename", str(transaction.destination)))
    before = {path for kind, path in events[:published] if kind == "sync"}
    assert {str(folder / part) for part in ("", "a", "a/b", "a/b/weights.bin")} <= before
    # The manifest and its digest are synced under their scratch names, then renamed; their folder is synced last.
    for name in (MANIFEST, MANIFEST_DIGEST):
        renamed = events.index(("rename", str(folder / name)))
        assert f".{name}." in events[renamed - 1][1] and renamed < published
    assert events[published - 1] == ("sync", str(folder))
    assert events[published + 1 :] == [("sync", str(store.folder))]


def test_an_unfinished_folder_is_never_loaded_and_is_cleaned(store: CheckpointStore):
    commit(store, 1)
    transaction = store.begin(2)
    shutil.copytree(store.folder / "step_000001", transaction.folder, dirs_exist_ok=True)  # whole, but not committed
    assert store.steps == [1]
    found = store.recover()
    assert found.checkpoint is not None and found.checkpoint.step == 1
    assert not transaction.folder.exists() and store.clean() == []


def test_sealed_files_are_trusted_by_size_and_found_out_when_read(store: CheckpointStore):
    transaction = store.begin(1)
    (transaction.folder / "policy").mkdir()
    (transaction.folder / "policy" / "w").write_bytes(b"weights")
    (transaction.folder / "other").write_bytes(b"o")
    sealed = seal(transaction.folder, under="policy")
    sha256 = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"  # echo -n weights | sha256sum
    assert sealed == {"policy/w": FileDigest(7, sha256)}
    assert transaction.commit(sealed=sealed).files["policy/w"] == sealed["policy/w"]
    lying = store.begin(2)
    (lying.folder / "w").write_bytes(b"weights")
    lying.commit(sealed={"w": FileDigest(7, "0" * 64)})
    found = latest_intact(store.folder)
    assert found.checkpoint is not None and found.checkpoint.step == 1
    assert found.passed_over == ("step_000002: w has another SHA-256",)


@pytest.mark.parametrize(
    "sealed, message", [({"w": FileDigest(8, "0" * 64)}, "changed"), ({"gone": FileDigest(1, "0" * 64)}, "not there")]
)
def test_sealed_files_that_changed_or_are_missing_stop_the_commit(store: CheckpointStore, sealed, message: str):
    transaction = store.begin(1)
    (transaction.folder / "w").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=message):
        transaction.commit(sealed=sealed)
    assert store.steps == [] and not transaction.folder.exists()


def test_links_and_reserved_names_are_refused(store: CheckpointStore):
    linked, reserved = store.begin(1), store.begin(2)
    (linked.folder / "w").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="plain files"):
        linked.commit()
    (reserved.folder / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="reserved"):
        reserved.commit()
    assert store.steps == []


def test_a_step_is_committed_once_and_the_loser_of_a_race_leaves_nothing(store: CheckpointStore):
    first, second = store.begin(1), store.begin(1)
    assert first.folder != second.folder
    for transaction, content in ((first, b"1"), (second, b"2")):
        (transaction.folder / "w").write_bytes(content)
    first.commit()
    with pytest.raises(CheckpointError, match="cannot be committed"):
        second.commit()
    with pytest.raises(CheckpointError, match="committed already"):
        store.begin(1)
    assert (store.folder / "step_000001" / "w").read_bytes() == b"1"
    assert [path.name for path in store.folder.iterdir()] == ["step_000001"]


def test_metadata_that_is_no_json_leaves_nothing(store: CheckpointStore):
    transaction = store.begin(1)
    with pytest.raises(TypeError):
        transaction.commit(metadata={"tensor": object()})
    assert not transaction.folder.exists() and store.steps == []


def test_a_cancelled_transaction_is_gone_and_cannot_be_committed(store: CheckpointStore):
    transaction = store.begin(1)
    transaction.cancel()
    assert not transaction.folder.exists()
    with pytest.raises(CheckpointError):
        transaction.commit()
    kept = store.begin(1)
    kept.commit()
    assert not kept.give_up()  # too late
    kept.cancel()
    assert store.steps == [1]


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_file_that_the_manifest_does_not_list_makes_a_checkpoint_damaged(store: CheckpointStore):
    """DeepSpeed unpickles what it finds by name: a file that somebody put there must not be found."""
    path = commit(store, 1)
    (path / ".scratch").write_bytes(b"of a resume that was killed")
    assert Checkpoint(path).step == 1
    (path / "policy").mkdir(exist_ok=True)
    (path / "policy" / "stray.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"policy/stray\.pt is not in the manifest"):
        Checkpoint(path)


def test_a_file_is_opened_only_if_ours_and_unchanged(store: CheckpointStore):
    checkpoint = Checkpoint(commit(store, 1))
    with checkpoint.open("state.pkl") as stream:
        assert pickle.load(stream) == {"rng": [1, 2, 3]}
    (checkpoint.path / "state.pkl").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.open("state.pkl")
    for name in ("stray.pkl", "../step_000001/state.pkl", str(checkpoint.path / "state.pkl")):
        with pytest.raises(CheckpointError, match="no such file"):
            checkpoint.open(name)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_a_manifest_cannot_name_files_outside(tmp_path: Path, name: str):
    folder = tmp_path / "step_000001"
    folder.mkdir()
    write_manifest(folder, Manifest(1, {name: FileDigest(1, "0" * 64)}))
    with pytest.raises(CheckpointError, match="outside"):
        Checkpoint(folder)


def test_a_manifest_of_another_format_is_refused(tmp_path: Path):
    folder = tmp_path / "step_000001"
    folder.mkdir()
    write_manifest(folder, Manifest(1, {}))
    assert Checkpoint(folder).step == 1
    tree = json.loads((folder / MANIFEST).read_bytes()) | {"format": 99}
    (folder / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="does not match"):
        Checkpoint(folder)
