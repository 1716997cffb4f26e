"""A plain tokenizer folder is opened without the Auto class, and gives the very same tokenizer."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlsys.data.tokenizer import load_tokenizer

FOLDER = Path(__file__).parents[2] / "rlsys" / "quickstart" / "tokenizer"
TEXT = "12 + 30 = \\boxed{42}\n  naïve 東京 <|user|>"
CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def test_it_is_what_the_auto_class_loads():
    ours, auto = load_tokenizer(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    assert type(ours) is type(auto)
    ids = ours(TEXT)["input_ids"]
    assert ids == auto(TEXT)["input_ids"] and len(ids) > 10
    assert ours.decode(ids, skip_special_tokens=True) == auto.decode(ids, skip_special_tokens=True)
    assert ours.apply_chat_template(CHAT, tokenize=False) == auto.apply_chat_template(CHAT, tokenize=False)
    assert ours.all_special_ids == auto.all_special_ids and ours.get_vocab() == auto.get_vocab()


def test_the_auto_class_is_not_imported_for_it():
    code = f"from rlsys.data.tokenizer import load_tokenizer as load; load({str(FOLDER)!r}); import sys; " + (
        "sys.exit('transformers.models.auto.auto_factory' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_folder_with_a_class_of_its_own_goes_to_the_auto_class(tmp_path: Path):
    folder = tmp_path / "gpt2"
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
    assert type(load_tokenizer(folder)).__name__.startswith("GPT2Tokenizer")


def test_a_folder_without_one_is_an_error(tmp_path: Path):
    with pytest.raises((OSError, ValueError)):
        load_tokenizer(tmp_path)
