"""What the engine's end between GPUs leaves behind, as far as a machine without one can tell."""

import weakref
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import torch


def test_the_learners_last_bucket_is_let_go_of_when_an_update_is_finished():
    """In a process of its own: an import of vLLM changes torch for the tests beside it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(held_after_finishing).result() == [True, False]


def held_after_finishing() -> list[bool]:
    """Whether the memory of a bucket is mapped before and after `finish_weight_update`, which runs twice."""
    from rlsys.weights.gpu_receivers import IpcReceiver

    model_config = SimpleNamespace(hf_text_config=SimpleNamespace(tie_word_embeddings=False))
    vllm_config = SimpleNamespace(parallel_config=None, model_config=model_config)
    receiver = IpcReceiver(
        SimpleNamespace(backend="rlsys-ipc"),  # pyright: ignore[reportArgumentType]
        vllm_config,  # pyright: ignore[reportArgumentType]
        torch.device("cpu"),
        torch.nn.Module(),
    )
    bucket = torch.zeros(4)
    mapped = weakref.ref(bucket)
    receiver._upstream._packed_importer._entry = ((), bucket)
    del bucket
    held = [mapped() is not None]
    receiver.finish_weight_update()
    held.append(mapped() is not None)
    receiver.finish_weight_update()  # with none
    return held
