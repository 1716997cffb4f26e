"""From a recipe's section to stores and prompt sets: what is made, reused, dropped and told."""

import json
from pathlib import Path

import numpy as np
import pytest
from toy_tokenizer import toy_tokenizer

from rlsys.data.chat import ChatTokenizer
from rlsys.data.drops import DropLog
from rlsys.data.prepare import prepare_prompts, prepare_store
from rlsys.data.prompts import PromptSet
from rlsys.data.reader import read_rows
from rlsys.data.token_store import PairStore, TokenStore
from rlsys.errors import DataError
from rlsys.recipe.data import DataSettings, FilterSettings, SourceSettings, TemplatingSettings
from rlsys.recipe.decontamination import Decontamination
from rlsys.types import Check


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    toy_tokenizer().save_pretrained(folder)
    return str(folder)


def written(folder: Path, name: str, *records: object) -> SourceSettings:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return SourceSettings(path=str(file), licence="MIT")


GOOD = [{"prompt": f"{number}+1?", "completion": str(number + 1)} for number in range(20)]
MARKED = {"prompt": "forge", "completion": "</s><|user|>"}


def test_a_store_of_rows(tmp_path: Path, tokenizer: str):
    data = DataSettings(
        source=(
            written(tmp_path, "sums", *GOOD, MARKED, {"oops": 1}),
            written(tmp_path, "books", {"text": "the sea"}),
            written(tmp_path, "asked", {"prompt": "only asked"}),
        )
    )
    manifest = prepare_store(data, tokenizer, tmp_path / "store")
    store = TokenStore(tmp_path / "store")
    chat = ChatTokenizer(toy_tokenizer())
    decoded = sorted(chat.tokenizer.decode(store.row(index).token_ids.tolist()) for index in range(len(store)))
    expected = [f"<|user|>\n{number}+1?\n<|assistant|>\n{number + 1}</s>" for number in range(20)]
    assert decoded == sorted([*expected, "the sea</s>"])
    assert manifest["about"]["dropped"]["by_reason"] == {"marker_in_content": 1, "no_response": 1}
    assert manifest["about"]["counts"] == {"markers_found": 2}
    card = json.loads((tmp_path / "store" / "data_card.json").read_text())
    assert [(one["name"], one["taken"], one["licence"]) for one in card["sources"]] == [
        ("sums", 21, "MIT"),
        ("books", 1, "MIT"),
        ("asked", 1, "MIT"),
    ]
    assert card["sources"][0]["wrong_rows"]["by_reason"] == {"unknown_format": 1}
    assert (card["tokens"], card["targets"]) == (manifest["tokens"], manifest["targets"])
    assert "| sums | MIT |" in (tmp_path / "store" / "data_card.md").read_text()
    assert not (tmp_path / "store.work").exists()


def test_a_store_is_reused_until_something_changes(tmp_path: Path, tokenizer: str):
    data = DataSettings(source=(written(tmp_path, "sums", *GOOD),))
    folder = tmp_path / "store"
    first = prepare_store(data, tokenizer, folder)
    stamp = (folder / "token_ids.npy").stat().st_mtime_ns
    (folder / "data_card.md").unlink()
    assert prepare_store(data, tokenizer, folder) == first
    assert (folder / "token_ids.npy").stat().st_mtime_ns == stamp
    assert (folder / "data_card.md").is_file()
    assert prepare_store(data.model_copy(update={"seed": 5}), tokenizer, folder)["digest"] != first["digest"]
    written(tmp_path, "sums", *GOOD[:10])
    assert prepare_store(data, tokenizer, folder)["rows"] == 10
    cut = data.model_copy(update={"templating": TemplatingSettings(max_length=16)})
    assert prepare_store(cut, tokenizer, folder)["longest"] == 16


def test_a_store_is_made_again_when_an_evaluation_file_of_its_gate_changes(tmp_path: Path, tokenizer: str):
    data = DataSettings(source=(written(tmp_path, "sums", *GOOD),))
    held_out = written(tmp_path, "held_out", GOOD[3])
    gate = Decontamination(evals=(held_out.path,), mode="exact", max_overlap=1.0)
    folder = tmp_path / "store"
    assert prepare_store(data, tokenizer, folder, gate=gate)["rows"] == 19
    stamp = (folder / "token_ids.npy").stat().st_mtime_ns
    assert prepare_store(data, tokenizer, folder, gate=gate)["rows"] == 19
    assert (folder / "token_ids.npy").stat().st_mtime_ns == stamp
    written(tmp_path, "held_out", *GOOD[3:8])
    assert prepare_store(data, tokenizer, folder, gate=gate)["rows"] == 15


def test_a_store_of_pairs(tmp_path: Path, tokenizer: str):
    pair = {"prompt": "1+1?", "chosen": "2", "rejected": "three", "margin": 2.0}
    data = DataSettings(source=(written(tmp_path, "pairs", pair, GOOD[0]),))
    manifest = prepare_store(data, tokenizer, tmp_path / "pairs", layout="pairs")
    store = PairStore(tmp_path / "pairs")
    assert (len(store), store.pair(0).margin) == (1, 2.0)
    assert store.pair(0).rejected.num_targets > store.pair(0).chosen.num_targets == 2
    assert manifest["about"]["dropped"]["by_reason"] == {"no_pair": 1}


def test_wrong_rows_may_be_refused(tmp_path: Path, tokenizer: str):
    refusing = {"wrong_rows": "refuse"}
    with pytest.raises(DataError, match=r"sums\.jsonl:2"):
        prepare_store(
            DataSettings(source=(written(tmp_path, "sums", GOOD[0], {"oops": 1}),), **refusing),  # pyright: ignore
            tokenizer,
            tmp_path / "store",
        )
    with pytest.raises(DataError, match="marker_in_content"):
        prepare_store(
            DataSettings(source=(written(tmp_path, "marked", GOOD[0], MARKED),), **refusing),  # pyright: ignore
            tokenizer,
            tmp_path / "store",
        )
    assert not (tmp_path / "store").exists()


def test_prompts_with_checked_ground_truths(tmp_path: Path, tokenizer: str):
    gsm8k = [{"question": f"{number}+1?", "answer": f"So\n#### {number + 1}"} for number in range(5)]
    bad = [
        {
            "messages": [{"role": "user", "content": "?"}],
            "checks": [{"verifier": "gsm8k", "ground_truth": "no number"}],
        },
        {"messages": [{"role": "user", "content": "?"}], "checks": [{"verifier": "unheard_of", "ground_truth": "1"}]},
        {"prompt": "no check at all"},
    ]
    source = written(tmp_path, "asked", *gsm8k, *bad)
    prompts = prepare_prompts(DataSettings(source=(source,)), tokenizer, folder=tmp_path / "card")
    assert sorted(item.id for item in prompts.items) == [f"asked/{number}" for number in range(5)]
    item = prompts[[one.id for one in prompts.items].index("asked/3")]
    assert item.checks == (Check("gsm8k", "4"),) and item.source == "asked"
    assert item.messages == ({"role": "user", "content": "3+1?"},)
    assert toy_tokenizer().decode(item.token_ids.tolist()) == "<|user|>\n3+1?\n<|assistant|>\n"
    card = json.loads((tmp_path / "card" / "data_card.json").read_text())
    assert card["dropped"]["by_reason"] == {"bad_ground_truth": 2, "no_ground_truth": 1}
    assert (card["prompts"], card["rows"]) == (5, 8)
    bare = prepare_prompts(DataSettings(source=(source,)), tokenizer, with_checks=False)
    assert len(bare) == 8 and {item.checks for item in bare.items} == {()}
    again = prepare_prompts(DataSettings(source=(source,)), tokenizer)
    assert [one.id for one in again.items] == [one.id for one in prompts.items]
    assert again.digest == prompts.digest
    first = prepare_prompts(DataSettings(source=(source,)), tokenizer, limit=2)
    assert [one.id for one in first.items] == [one.id for one in prompts.items[:2]]
    assert first.digest != prompts.digest


def test_prompts_are_cut_or_dropped(tmp_path: Path, tokenizer: str):
    long = {"prompt": "word " * 50, "checks": [{"verifier": "string", "ground_truth": "x"}]}
    short = {"prompt": "one", "checks": [{"verifier": "string", "ground_truth": "x"}]}
    source = written(tmp_path, "asked", long, short)
    cut = prepare_prompts(
        DataSettings(source=(source,), templating=TemplatingSettings(max_prompt_length=40)), tokenizer
    )
    assert sorted(len(item.token_ids) for item in cut.items)[-1] == 40
    drop = TemplatingSettings(max_prompt_length=40, overlong="drop")
    assert len(prepare_prompts(DataSettings(source=(source,), templating=drop), tokenizer)) == 1


def test_prompt_sets_without_a_log_stop_at_the_first_bad_row(tmp_path: Path):
    source = written(tmp_path, "asked", {"prompt": "no check"})
    chat = ChatTokenizer(toy_tokenizer())
    with pytest.raises(DataError, match=r"asked\.jsonl:1: .*no_ground_truth"):
        PromptSet.build(read_rows(source), chat)
    assert len(PromptSet.build(read_rows(source), chat, with_checks=False)) == 1
    with pytest.raises(DataError, match="no prompt is left"):
        PromptSet.build(read_rows(source), chat, drops=DropLog())
    rows = [*read_rows(source), *read_rows(source)]
    with pytest.raises(DataError, match="share an id"):
        PromptSet.build(rows, chat, with_checks=False)


def test_upsampled_prompts_keep_ids_of_their_own(tmp_path: Path, tokenizer: str):
    source = written(tmp_path, "asked", *({"question": str(n), "answer": f"#### {n}"} for n in range(3)))
    doubled = DataSettings(source=(source.model_copy(update={"take": 2.0}),))
    ids = sorted(item.id for item in prepare_prompts(doubled, tokenizer).items)
    assert ids == ["asked/0", "asked/0#1", "asked/1", "asked/1#1", "asked/2", "asked/2#1"]


def test_filters_act_before_counts(tmp_path: Path, tokenizer: str):
    source = written(tmp_path, "sums", *GOOD).model_copy(update={"take": 5})
    data = DataSettings(source=(source,), filters=FilterSettings(keywords=tuple(str(n) for n in range(10, 30))))
    prepare_store(data, tokenizer, tmp_path / "store")
    store = TokenStore(tmp_path / "store")
    assert len(store) == 5
    answers = [
        int(toy_tokenizer().decode(store.row(i).token_ids[store.row(i).loss_weights > 0].tolist())[:-4])
        for i in range(5)
    ]
    assert max(answers) < 10 and len(set(answers)) == 5
    assert np.all(store.lengths > 0)
