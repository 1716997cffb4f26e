"""Which positions of a micro-batch a rank has, and which models ranks cannot share; Liger's decision beside it."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlsys.data.packing import MicroBatch, Row, micro_batches
from rlsys.errors import RecipeError
from rlsys.models.liger import add_kernels, use_liger
from rlsys.models.process_group import ProcessGroup
from rlsys.models.sequence_parallel import SequenceParallel

TINY = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def model(model_type: str = "llama", **changes):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **TINY | changes))


def batch_of(*lengths: int, row_length: int) -> MicroBatch:
    rows = [Row(np.arange(1, length + 1, dtype=np.int32), {"mask": np.ones(length, np.float32)}) for length in lengths]
    (batch,) = micro_batches([[row] for row in rows], tokens_per_micro_batch=100, row_length=row_length)
    return batch


def part_of(rank: int, size: int) -> SequenceParallel:
    """As on one of several ranks: what it does without the others."""
    return SequenceParallel(ProcessGroup(rank, size, torch.device("cpu")), model())


@pytest.fixture(autouse=True)
def own_attention(monkeypatch):
    """Given back after each test."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", ALL_ATTENTION_FUNCTIONS["sdpa"])


def test_ranks_take_neighbouring_columns_and_padding_counts_on():
    batch = batch_of(4, 3, 5, row_length=7)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 0, 0], [1, 2, 3, 4, 1, 2, 3]]
    first, second = (part_of(rank, 2).inputs(batch) for rank in (0, 1))
    assert first["input_ids"].tolist() == [[1, 2, 3, 4], [1, 2, 3, 4]]
    assert second["input_ids"].tolist() == [[5, 0, 0, 0], [1, 2, 3, 0]]
    assert first["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert second["position_ids"].tolist() == [[4, 0, 1, 2], [0, 1, 2, 3]]
    mask = second["attention_mask"]
    assert mask.shape == (2, 1, 8, 8) and torch.equal(mask, first["attention_mask"])
    assert mask[1, 0, 6].tolist() == [False, False, False, False, True, True, True, False]  # the second document alone


def test_every_position_is_on_one_rank():
    batch = batch_of(4, 3, 5, row_length=7)
    flat = np.array([0, 3, 4, 6, 7, 10, 11, 13])
    here, places = part_of(1, 2).local(flat, batch)
    assert here.tolist() == [False, False, True, True, False, False, True, True]
    assert places.tolist() == [0, 2, 4, 6]
    other, places = part_of(0, 2).local(flat, batch)
    assert other.tolist() == (~here).tolist()
    assert places.tolist() == [0, 3, 4, 7]


def test_rows_of_one_document_need_no_mask():
    inputs = part_of(0, 2).inputs(batch_of(4, 3, row_length=4))
    assert inputs["attention_mask"] is None
    assert inputs["position_ids"].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("name", ["flash_attention_2", "kernels-community/flash-attn2"])
def test_flash_attention_is_given_one_row_whose_positions_say_where_documents_begin(name: str):
    """The second is what transformers makes of the first where `kernels` is installed and flash-attn is not."""
    from transformers.modeling_flash_attention_utils import _is_packed_sequence, prepare_fa_kwargs_from_position_ids

    flash = model()
    flash.config._attn_implementation = name
    sequence = SequenceParallel(ProcessGroup(0, 1, torch.device("cpu")), flash)
    batch = batch_of(4, 3, 5, row_length=7)
    positions = sequence.inputs(batch)["position_ids"]
    assert positions.shape == (1, 14) and _is_packed_sequence(positions, 1)
    (bounds, _), _ = prepare_fa_kwargs_from_position_ids(positions)
    assert bounds.tolist() == [0, 5, 7, 11, 14]
    values = torch.arange(14.0)[None]
    assert sequence.whole(values, batch).tolist() == values.view(2, 7).tolist()


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mistral", {"sliding_window": 4}),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True}),
        ("mamba", {"state_size": 4}),
    ],
)
def test_models_that_mix_tokens_otherwise_are_refused(model_type: str, changes: dict):
    with pytest.raises(RecipeError, match=r"full attention alone.*set learner.sequence_parallel to 1"):
        SequenceParallel(ProcessGroup(0, 2, torch.device("cpu")), model(model_type, **changes))


@pytest.mark.parametrize("wanted", ["auto", True, False])
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("is_installed", [False, True])
def test_liger_kernels_are_used_where_they_can_be_and_never_silently_missed(wanted, on_gpu, is_installed):
    if wanted is True and not (on_gpu and is_installed):
        with pytest.raises(RecipeError, match=r"learner\.liger"):
            use_liger(wanted, on_gpu=on_gpu, is_installed=is_installed)
    else:
        used = use_liger(wanted, on_gpu=on_gpu, is_installed=is_installed)
        assert used == (wanted is not False and on_gpu and is_installed)


def test_on_cpu_auto_leaves_the_model_as_it_is_and_true_is_refused():
    ours = model()
    forward = ours.model.norm.forward
    add_kernels(ours, "auto", torch.device("cpu"))
    assert ours.model.norm.forward == forward
    with pytest.raises(RecipeError, match="Liger kernels run on GPUs alone"):
        add_kernels(ours, True, torch.device("cpu"))
