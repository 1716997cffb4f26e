"""`rlsys data personas` and `rlsys data self-instruct`: synthetic prompts and tasks, from settings in a TOML file.

writer: an endpoint, or a rollout worker with a model folder --> answers.jsonl --> rows.jsonl, data_card.json
"""

import argparse
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlsys.errors import RecipeError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rlsys.data.judge_backend import TextBackend
    from rlsys.data.synthetic_rows import Synthetic
    from rlsys.recipe.synthesis import WriterSettings

S = TypeVar("S", bound="BaseModel")


def add_parsers(subparsers: Any) -> None:
    """Adds both commands to those of `rlsys data`."""
    for name, what in (
        ("personas", "write prompts in the voice of personas, with answers that the verifiers accept"),
        ("self-instruct", "grow new tasks from seed tasks, with answers"),
    ):
        parser = subparsers.add_parser(name, help=what, description=f"Will {what}. Run again, it goes on.")
        parser.add_argument("settings", type=Path, help="a TOML file; docs/data.md shows one")
        parser.add_argument("--write", type=Path, required=True, metavar="FOLDER", help="where rows and answers go")
        if name == "personas":
            parser.add_argument("--verifiers", type=int, default=2, metavar="N", help="scoring processes; default 2")


def run_personas(arguments: argparse.Namespace) -> int:
    """Exit status 0 when rows were written."""
    import asyncio

    from rlsys.data.personas import write_from_personas
    from rlsys.recipe.synthesis import PersonaSettings
    from rlsys.types import Check, Outcome
    from rlsys.verifiers.pool import VerifierPool, VerifyRequest

    settings = read_settings(arguments.settings, PersonaSettings)

    async def write() -> "Synthetic":
        with VerifierPool(arguments.verifiers) as pool:

            def verify(asked: Sequence[tuple[Check, str]]) -> list[Outcome]:
                requests = [VerifyRequest(check.verifier, check.ground_truth, text) for check, text in asked]
                return [verdict.outcome for verdict in pool.verify_many(requests)]

            async with open_writer(settings.writer, settings.seed) as writer:
                return await write_from_personas(settings, writer, verify, arguments.write)

    return _tell(asyncio.run(write()), arguments.write)


def run_self_instruct(arguments: argparse.Namespace) -> int:
    """Exit status 0 when rows were written."""
    import asyncio

    from rlsys.data.self_instruct import grow_tasks
    from rlsys.recipe.synthesis import SelfInstructSettings

    settings = read_settings(arguments.settings, SelfInstructSettings)

    async def grow() -> "Synthetic":
        async with open_writer(settings.writer, settings.seed) as writer:
            return await grow_tasks(settings, writer, arguments.write)

    return _tell(asyncio.run(grow()), arguments.write)


def read_settings(path: Path, kind: type[S]) -> S:
    """Settings from a TOML file.

    Raises:
        RecipeError: naming every fault.
    """
    import tomllib

    from pydantic import ValidationError

    try:
        return kind.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        raise RecipeError("no such file", value=str(path), fix="give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {error}", fix="mend the line it names") from None
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        listing = "\n".join(f"  - {fault}" for fault in faults)
        raise RecipeError(f"{path} has {len(faults)} fault(s):\n{listing}", problems=tuple(faults)) from None


@contextlib.asynccontextmanager
async def open_writer(settings: "WriterSettings", seed: int) -> "AsyncIterator[TextBackend]":
    """The model that writes: a connection to an endpoint, or a rollout worker that is started, and ended afterwards."""
    from rlsys.data.judge_endpoint import Endpoint

    if settings.endpoint is not None:
        async with Endpoint(settings.endpoint) as endpoint:
            yield endpoint
        return
    async with _local_writer(settings, seed) as backend:
        yield backend


@contextlib.asynccontextmanager
async def _local_writer(settings: "WriterSettings", seed: int) -> "AsyncIterator[TextBackend]":
    import ray

    from actors.cluster import attach
    from actors.rollout_texts import RolloutTexts
    from actors.rollout_worker import RolloutWorker
    from rlsys.data.chat import end_token_ids
    from rlsys.data.judge_backend import LocalBackend
    from rlsys.data.prepare import load_tokenizer
    from rlsys.recipe.cluster import ClusterSettings
    from rlsys.recipe.rollout import SamplingSettings
    from rlsys.rollouts.sampling_engine_settings import EngineSettings

    assert settings.local_model is not None
    cluster = ClusterSettings()
    started = attach(cluster)
    ends = end_token_ids(load_tokenizer(settings.local_model))
    use_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    options: Any = RolloutWorker.options(num_cpus=1, num_gpus=1 if use_gpu else 0)
    worker = options.remote(EngineSettings(settings.local_model, ends, load_format="safetensors"))
    try:
        ray.get(worker.ready.remote(), timeout=cluster.start_timeout_s)
        sampling = SamplingSettings(max_tokens=settings.max_tokens, temperature=settings.temperature)
        texts = RolloutTexts(
            [worker], settings.local_model, sampling=sampling, seed=seed, timeout_s=settings.deadline_s
        )
        yield LocalBackend(texts, name=settings.local_model, deadline_s=settings.deadline_s)
    finally:
        ray.kill(worker)
        if started:
            ray.shutdown()


def _tell(made: "Synthetic", folder: Path) -> int:
    for name, count in sorted(made.counts.items()):
        print(f"{name}: {count:,}")
    print(f"{len(made.rows):,} rows in {folder / 'rows.jsonl'}")
    return 0
