"""Mixtures: exact counts, the same bytes for the same seed whoever reads and however often it was killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from rlsys.data import spool as spool_module
from rlsys.data.card import card_markdown
from rlsys.data.mixture import mix, write_mixture
from rlsys.data.reader import read_rows
from rlsys.data.sampling import draw, num_taken, shuffled
from rlsys.errors import DataError
from rlsys.recipe.data import DataSettings, FilterSettings, NearDuplicateSettings, SourceSettings


def write_source(folder: Path, name: str, count: int) -> Path:
    file = folder / f"{name}.jsonl"
    with file.open("w") as stream:
        for number in range(count):
            stream.write(json.dumps({"prompt": f"{name} question {number}", "completion": f"answer {number}"}) + "\n")
    return file


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_source(folder, "large", 9000)
    write_source(folder, "small", 30)
    with (folder / "large.jsonl").open("a") as stream:
        stream.write('{"oops"\n' + json.dumps({"prompt": "large question 7", "completion": "answer 7"}) + "\n")
    return folder


def settings(folder: Path, seed: int = 1, **changes: object) -> DataSettings:
    large = SourceSettings(path=str(folder / "large.jsonl"), take=0.25, licence="MIT")
    small = SourceSettings(path=str(folder / "small.jsonl"), take=100, synthetic=True)
    filters = FilterSettings(keywords=("answer 13",), exact_duplicates="row")
    return DataSettings(source=(large, small), seed=seed, filters=filters, **changes)  # pyright: ignore[reportArgumentType]


def content(folder: Path) -> bytes:
    return (folder / "mixture.jsonl").read_bytes()


def test_counts_are_exact_and_the_card_tells_them(sources: Path, tmp_path: Path):
    card = write_mixture(settings(sources), tmp_path / "out")
    large, small = card["sources"]
    eligible = 9000 - 1  # one row says "answer 13"
    assert (large["records"], large["eligible"], large["taken"]) == (9002, eligible, 2250)  # half of 8999 / 4 rounds up
    assert large["wrong_rows"]["by_reason"] == {"invalid_json": 1}
    assert large["wrong_rows"]["examples"]["invalid_json"][0]["where"].endswith("large.jsonl:9001")
    assert (large["filtered"], large["duplicates"]) == ({"keywords": 1}, {"exact_duplicate": 1})
    assert (small["records"], small["eligible"], small["taken"], small["distinct"]) == (30, 29, 100, 29)
    assert large["marks"] == ["filtered", "down-sampled"]
    assert small["marks"] == ["synthetic", "filtered", "up-sampled"]
    assert (large["licence"], small["licence"]) == ("MIT", "unknown")
    assert large["files"][0]["sha256"] == hashlib.sha256((sources / "large.jsonl").read_bytes()).hexdigest()
    assert (card["rows"], card["seed"]) == (2350, 1)
    assert card["sha256"] == hashlib.sha256(content(tmp_path / "out")).hexdigest()
    assert json.loads((tmp_path / "out" / "data_card.json").read_text()) == card
    assert "| large | MIT | filtered, down-sampled | 9,002 |" in card_markdown(card)


def test_upsampling_repeats_and_then_draws(sources: Path, tmp_path: Path):
    write_mixture(settings(sources), tmp_path / "out")
    rows = list(read_rows(tmp_path / "out" / "mixture.jsonl"))
    assert len({row.id for row in rows}) == len(rows) == 2350
    times = Counter(row.origin.line for row in rows if row.source == "small")
    assert set(times) == set(range(1, 31)) - {14}
    assert Counter(times.values()) == {3: 16, 4: 13}  # 100 = 3 x 29 + 13
    assert {row.id for row in rows if row.origin.line == 5 and row.source == "small"} >= {
        "small/4",
        "small/4#1",
        "small/4#2",
    }


def test_one_and_four_readers_give_the_same_bytes(sources: Path, tmp_path: Path):
    card = write_mixture(settings(sources), tmp_path / "one")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert write_mixture(settings(sources), tmp_path / "four", num_readers=4, run=pool.map) == card
    write_mixture(settings(sources), tmp_path / "seven", num_readers=7)
    assert content(tmp_path / "one") == content(tmp_path / "four") == content(tmp_path / "seven")
    assert write_mixture(settings(sources, seed=2), tmp_path / "other")["order_sha256"] != card["order_sha256"]


KILLED = """
import os, signal, sys
from pathlib import Path
from rlsys.data.mixture import write_mixture
from rlsys.recipe.data import DataSettings

def run(function, tasks):
    for number, task in enumerate(tasks):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield function(task)

write_mixture(DataSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]), num_readers=3, run=run)
"""


def test_a_killed_mixture_goes_on(sources: Path, tmp_path: Path):
    """Killed after two of three readers read their share; the next run reads the rest with other readers."""
    recipe = settings(sources)
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, recipe.model_dump_json(), str(out)]
    finished = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, check=False)
    assert finished.returncode == -signal.SIGKILL
    assert not out.exists()
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.work").rglob("*.json")}
    assert sorted(path.stem for path in left) == ["00000000", "00000001", "00000003", "00000004"]
    read: list[int] = []
    original = spool_module.rows_of

    def counted(record, **place):
        read.append(place["ordinal"])
        return original(record, **place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "rows_of", counted)
        write_mixture(recipe, out, num_readers=2)
    unit = spool_module.UNIT_RECORDS
    assert {ordinal // unit for ordinal in read if ordinal > 100} == {2}
    write_mixture(recipe, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")
    assert not (tmp_path / "out.work").exists()


def test_a_changed_source_or_filter_is_read_again(sources: Path, tmp_path: Path):
    file = write_source(tmp_path, "changing", 10)
    recipe = DataSettings(source=(SourceSettings(path=str(file)),))
    assert len(mix(recipe, tmp_path / "work")) == 10
    write_source(tmp_path, "changing", 12)
    assert len(mix(recipe, tmp_path / "work")) == 12
    filters = FilterSettings(keywords=("answer 3",))
    assert len(mix(recipe.model_copy(update={"filters": filters}), tmp_path / "work")) == 11


def test_what_is_drawn_hardly_depends_on_the_rest():
    """Adding a row adds or replaces at most one row of a draw: no reshuffling of everything."""
    ids = [f"x/{number}" for number in range(1000)]
    before = {index for index, _ in draw(ids, 300, seed=5)}
    after = {index for index, _ in draw([*ids, "x/1000"], 300, seed=5)}
    assert len(before) == len(after) == 300
    assert len(before - after) <= 1
    assert before != {index for index, _ in draw(ids, 300, seed=6)}


@pytest.mark.parametrize(
    ("rows", "take", "expected"),
    [
        (10, 4, 4),
        (10, 25, 25),
        (10, 0.5, 5),
        (10, 0.25, 3),
        (10, 0.24, 2),
        (10, 2.0, 20),
        (3, 1.5, 5),
        (0, 4, 0),
        (10, 0.1, 1),
    ],
)
def test_numbers_taken(rows: int, take: float, expected: int):
    assert num_taken(rows, take) == expected
    drawn = draw([str(number) for number in range(rows)], take, seed=0)
    assert len(drawn) == len(set(drawn)) == expected
    times = Counter(index for index, _ in drawn)
    assert not rows or set(times.values()) <= {expected // rows, expected // rows + 1}


def test_draws_and_orders_are_fixed_for_ever():
    """Written down: a change of library, platform or hash seed that changes a mixture must not go unnoticed."""
    ids = [f"s/{number}" for number in range(8)]
    assert [index for index, _ in draw(ids, 3, seed=0)] == [0, 2, 5]
    assert shuffled(ids, seed=0).tolist() == [5, 4, 2, 6, 0, 7, 3, 1]


def test_draws_are_even():
    """Over many seeds each of 20 rows is drawn half of the time: 2,000 draws, six standard deviations."""
    ids = [str(number) for number in range(20)]
    times = Counter(index for seed in range(2000) for index, _ in draw(ids, 10, seed=seed))
    assert all(abs(count - 1000) < 6 * (2000 * 0.25) ** 0.5 for count in times.values())


def test_sources_that_give_nothing_are_errors(tmp_path: Path):
    file = write_source(tmp_path, "x", 3)
    with pytest.raises(DataError, match="at least one source"):
        mix(DataSettings(), tmp_path / "work")
    strict = FilterSettings(min_characters=1000)
    with pytest.raises(DataError, match="no row of x is left"):
        mix(DataSettings(source=(SourceSettings(path=str(file)),), filters=strict), tmp_path / "work")
    file.write_text("{oops\n")
    refusing = DataSettings(source=(SourceSettings(path=str(file)),), wrong_rows="refuse")
    with pytest.raises(DataError, match=r"x\.jsonl:1: not JSON"):
        mix(refusing, tmp_path / "work")


def test_duplicates_are_found_across_sources(tmp_path: Path):
    words = [f"word{number}" for number in range(60)]
    texts = {
        "a": [" ".join(words), "Something else altogether, said only once."],
        "b": [" ".join([*words[:59], "changed"]), "something ELSE  altogether, said only once.", "A third thing."],
    }
    for name, rows in texts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    recipe = DataSettings(
        source=tuple(SourceSettings(path=str(tmp_path / f"{name}.jsonl")) for name in texts),
        filters=FilterSettings(exact_duplicates="row", near_duplicates=NearDuplicateSettings(threshold=0.7)),
    )
    mixture = mix(recipe, tmp_path / "work")
    assert sorted(row.id for row in mixture.read()) == ["a/0", "a/1", "b/2"]
    assert mixture.card["sources"][1]["duplicates"] == {"exact_duplicate": 1, "near_duplicate": 1}
    alone = recipe.model_copy(update={"source": recipe.source[1:]})
    assert len(mix(alone, tmp_path / "work")) == 3
