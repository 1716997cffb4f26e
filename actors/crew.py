"""Every actor of a run, started once and kept from stage to stage.

crew = Crew(recipe, plan, engine=EngineSettings(...), tokenizer=folder)
crew.start()                      in the background, one kind after another; the first use of a kind waits for it
crew.learner, crew.value, crew.reference, crew.workers, crew.verifiers
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import ray
import ray.exceptions
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster import reserve
from actors.groups import Placement
from actors.learner import Learner
from actors.reference_model import ReferenceModel
from actors.rollout_worker import RolloutWorker
from actors.value_model import ValueModel
from actors.verifier_worker import VerifierWorker
from rlsys.errors import ActorError
from rlsys.recipe.recipe import Recipe
from rlsys.recipe.stages import verifiers_of
from rlsys.recipe.verifiers import VerifierSettings
from rlsys.rollouts.sampling_engine_settings import EngineSettings
from rlsys.scaling.placement import PlacementPlan

T = TypeVar("T")
STARTED_FIRST = ("learner", "rollout", "verifier", "value", "reference")
"""The order in which a recipe needs them; starting one by one keeps a small machine's cores for the first."""


class Crew:
    """Starts actors and gives them to the topologies.

    Args:
        recipe: counts, deadlines, verifier settings.
        plan: where they go.
        engine: of every rollout worker.
        tokenizer: folder of the tokenizer, for the verifiers.
    """

    def __init__(self, recipe: Recipe, plan: PlacementPlan, *, engine: EngineSettings, tokenizer: str) -> None:
        self._recipe, self._plan, self._engine, self._tokenizer = recipe, plan, engine, tokenizer
        self._training: PlacementGroup | None = None
        self._rollout: list[PlacementGroup] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="crew")
        self._started: dict[str, Future[Any]] = {}

    def start(self) -> None:
        """Reserves the bundles, then starts what the plan has.

        Raises:
            PlacementError: there is no room.
        """
        self._training, self._rollout = reserve(self._plan, timeout_s=self._recipe.cluster.start_timeout_s)
        start: dict[str, Callable[[], Any]] = {
            "learner": lambda: Learner.start(self._placement("learner"), use_gpu=self._plan.use_gpus),
            "rollout": self._start_workers,
            "verifier": self._start_verifiers,
            "value": lambda: ValueModel.start(self._placement("value"), use_gpu=self._plan.use_gpus),
            "reference": lambda: ReferenceModel.start(self._placement("reference"), use_gpu=self._plan.use_gpus),
        }
        present = {kind for bundle in self._plan.bundles for kind in bundle.actors}
        for kind in STARTED_FIRST:
            if kind in present:
                self._started[kind] = self._pool.submit(start[kind])

    @property
    def learner(self) -> Learner:
        """The policy's ranks."""
        return self._wait("learner")

    @property
    def value(self) -> ValueModel:
        """The reward or value model's ranks."""
        return self._wait("value")

    @property
    def reference(self) -> ReferenceModel:
        """The reference model's ranks."""
        return self._wait("reference")

    @property
    def workers(self) -> list[Any]:
        """`RolloutWorker` actors whose engines are built."""
        return self._wait("rollout")

    @property
    def verifiers(self) -> list[Any]:
        """`VerifierWorker` actors."""
        return self._wait("verifier")

    def close(self) -> None:
        """Ends every actor and gives its resources back."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for kind, future in self._started.items():
            if future.cancelled() or future.exception() is not None:
                continue
            if kind in ("rollout", "verifier"):
                for handle in future.result():
                    ray.kill(handle)
            else:
                future.result().ranks.shutdown()
        self._started.clear()
        for group in filter(None, (self._training, *self._rollout)):
            remove_placement_group(group)

    def _wait(self, kind: str) -> Any:
        timeout_s = self._recipe.cluster.start_timeout_s
        try:
            return self._started[kind].result(timeout=timeout_s)
        except TimeoutError:
            raise ActorError(
                f"the {kind} actors did not start", value=f"{timeout_s:g} s", fix="raise cluster.start_timeout_s"
            ) from None

    def _placement(self, kind: str) -> Placement:
        cluster, plan = self._recipe.cluster, self._plan
        ranks = {"learner": cluster.learner_ranks, "value": cluster.value_ranks, "reference": cluster.reference_ranks}[
            kind
        ]
        indices = tuple(plan.bundle_index(kind, rank) for rank in range(ranks))
        bundle = plan.training[indices[0]]
        return Placement(
            name=kind,
            num_ranks=ranks,
            cpus=bundle.cpus / len(bundle.actors),
            gpus=plan.gpus_per_actor(kind),
            placement_group=self._training,
            bundle_indices=indices,
            start_timeout_s=cluster.start_timeout_s,
            operation_timeout_s=cluster.operation_timeout_s,
        )

    def _start_workers(self) -> list[Any]:
        workers = []
        for index, (bundle, group) in enumerate(zip(self._plan.rollout, self._rollout, strict=True)):
            strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)
            options = {"num_cpus": bundle.cpus, "num_gpus": bundle.gpus, "scheduling_strategy": strategy}
            workers.append(RolloutWorker.options(**options).remote(self._engine, name=f"rollout-{index}"))
        self._until_ready([worker.ready.remote() for worker in workers], "rollout workers")
        return workers

    def _start_verifiers(self) -> list[Any]:
        settings = verifier_settings(self._recipe)
        verifiers = [
            VerifierWorker.options(num_cpus=bundle.cpus).remote(settings, self._tokenizer)
            for bundle in self._plan.verifier
        ]
        checks: list[Any] = [verifier.stats.remote() for verifier in verifiers]  # pyright: ignore
        self._until_ready(checks, "verifier workers")
        return verifiers

    def _until_ready(self, refs: list[Any], what: str) -> None:
        try:
            ray.get(refs, timeout=self._recipe.cluster.start_timeout_s)
        except ray.exceptions.GetTimeoutError:
            limit = self._recipe.cluster.start_timeout_s
            raise ActorError(f"the {what} did not start", value=f"{limit:g} s", fix="see their logs") from None
        except ray.exceptions.RayError as error:
            raise ActorError(f"the {what} could not start: {error}", fix="see their logs") from error


def verifier_settings(recipe: Recipe) -> VerifierSettings:
    """The pool settings of the run: those of its last stage that verifies; evaluation asks for its own mode."""
    found = [settings for stage in recipe.stage if (settings := verifiers_of(stage)) is not None]
    return found[-1] if found else VerifierSettings()
