"""What the tasks that read models and data refuse."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file
from toy_tokenizer import toy_tokenizer

from actors.data_tasks import prepare_model
from rlsys.errors import RecipeError
from rlsys.recipe.data import DataSettings
from rlsys.recipe.model import ModelSettings

prepare = prepare_model._function  # pyright: ignore[reportAttributeAccessIssue]


def test_a_model_that_needs_its_own_code_is_refused_before_transformers_reads_it(tmp_path: Path):
    folder = tmp_path / "model"
    toy_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}))
    save_file({}, folder / "model.safetensors")
    with pytest.raises(RecipeError, match=r"needs Python files of its own; got .*set trust_remote_code"):
        prepare(ModelSettings(path=str(folder)), DataSettings(), str(tmp_path / "prepared"))
    assert not (tmp_path / "prepared").exists()
