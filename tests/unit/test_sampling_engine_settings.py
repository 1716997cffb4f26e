"""What vLLM is started with."""

import pytest

from rlsys.errors import RecipeError
from rlsys.rollouts.sampling_engine_settings import EngineSettings, engine_arguments


def arguments(**vllm: object) -> dict:
    return engine_arguments(EngineSettings("folder", end_token_ids=(1,), vllm=vllm), on_cpu=True)


def test_parts_of_an_engine_are_processes_of_its_actor():
    assert "distributed_executor_backend" not in arguments()
    assert arguments(tensor_parallel_size=2)["distributed_executor_backend"] == "mp"
    assert (
        arguments(tensor_parallel_size=2, distributed_executor_backend="uni")["distributed_executor_backend"] == "uni"
    )


def test_what_rlsys_sets_itself_and_what_ends_the_engine_is_refused():
    with pytest.raises(RecipeError, match=r"rollout\.vllm\.\w+ cannot be set"):
        arguments(model="other")
    with pytest.raises(RecipeError, match="chunked prefill"):
        arguments(enable_chunked_prefill=True)
