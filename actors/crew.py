"""Every actor of a run, started once and kept from stage to stage.

crew = Crew(recipe, plan, engine=EngineSettings(...), tokenizer=folder)
crew.start()                      in the background; the first use of a kind waits for it
crew.learner, crew.value, crew.reference, crew.reward_model, crew.workers, crew.verifiers

Workers are replaced one by one as they die (`actors.roster`). A group of ranks holds one model together: when one of
them dies the whole group is started again, empty, and the topology says what it must hold.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster import node_resources, reserve
from actors.groups import Placement, has_failed
from actors.learner import Learner
from actors.reference_model import ReferenceModel
from actors.reward_model import RewardModel
from actors.rollout_worker import RolloutWorker
from actors.roster import MAX_FAILED_STARTS, Restarts, Roster
from actors.value_model import ValueModel
from actors.verifier_worker import VerifierWorker
from rlsys.errors import ActorError
from rlsys.recipe.recipe import Recipe
from rlsys.recipe.stages import verifiers_of
from rlsys.recipe.verifiers import VerifierSettings
from rlsys.rollouts.sampling_engine_settings import EngineSettings
from rlsys.scaling.placement import PlacementPlan, check_fits

RankedModel: TypeAlias = Learner | ValueModel | ReferenceModel | RewardModel
RANKED: dict[str, type[RankedModel]] = {
    "learner": Learner,
    "value": ValueModel,
    "reference": ReferenceModel,
    "reward": RewardModel,
}
STARTED_FIRST = ("learner", "rollout", "verifier", "value", "reference", "reward")
"""The order in which a recipe needs them."""
MAX_CALLS = 10_000
"""Of a rollout worker at a time: most wait for their groups, and those that supervise must not wait behind them, as
they would with Ray's own bound of 1,000."""


class Crew:
    """Starts actors and gives them to the topologies.

    Args:
        recipe: counts, deadlines, verifier settings.
        plan: where they go.
        engine: of every rollout worker.
        tokenizer: folder of the tokenizer, for the verifiers.
    """

    def __init__(self, recipe: Recipe, plan: PlacementPlan, *, engine: EngineSettings, tokenizer: str) -> None:
        if recipe.deterministic:
            # What a cache holds depends on what was asked before: with it, bits would differ after a resume.
            engine = dataclasses.replace(engine, vllm={"enable_prefix_caching": False, **engine.vllm})
        self._recipe, self._plan, self._tokenizer = recipe, plan, tokenizer
        self.engine = engine
        """The run's own: what rollout workers build unless other engines have their places."""
        self._engine_now = engine
        self._training: PlacementGroup | None = None
        self._rollout: dict[int, PlacementGroup] = {}
        """By place."""
        # Most of a start is imports on one core: as many kinds at once as there are cores keep this machine busy and
        # leave the first kind a core of its own. On a cluster each has other machines to start on.
        at_once = len(os.sched_getaffinity(0)) if recipe.cluster.address == "local" else len(STARTED_FIRST)
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="crew")
        self._started: dict[str, Future[Any]] = {}
        self._pings: dict[str, list[Any]] = {}
        self._pinged_at = 0.0
        self.restarts = Restarts(recipe.cluster.max_restarts)

    def start(self) -> None:
        """Reserves the bundles, then starts what the plan has.

        Raises:
            PlacementError: there is no room.
        """
        self._training, rollout = reserve(self._plan, timeout_s=self._recipe.cluster.start_timeout_s)
        self._rollout = dict(enumerate(rollout))
        start: dict[str, Callable[[], Any]] = {
            **{kind: lambda kind=kind: self._start_ranks(kind) for kind in RANKED},
            "rollout": self._start_workers,
            "verifier": self._start_verifiers,
        }
        present = {kind for bundle in self._plan.bundles for kind in bundle.actors}
        if self._plan.shares_gpu:
            self._start_engines()
        for kind in STARTED_FIRST:
            if kind in present and kind not in self._started:
                self._started[kind] = self._pool.submit(start[kind])

    @property
    def engines_await_weights(self) -> bool:
        """Whether the engines that are there now sample only after a publication."""
        return self._engine_now.awaits_weights

    @property
    def use_gpus(self) -> bool:
        """Whether the run's models are on GPUs."""
        return self._plan.use_gpus

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
    def reward_model(self) -> RewardModel:
        """The frozen reward model's ranks."""
        return self._wait("reward")

    @property
    def workers(self) -> Roster:
        """`RolloutWorker` actors."""
        return self._wait("rollout")

    @property
    def verifiers(self) -> Roster:
        """`VerifierWorker` actors."""
        return self._wait("verifier")

    def scale(self, *, rollout: int | None, verifier: int | None) -> None:
        """Has so many workers from now on: new ones start in the background, the last ones leave after their work.

        Raises:
            PlacementError: the cluster cannot hold them; nothing is changed.
        """
        wanted = {"rollout": rollout or self.workers.size, "verifier": verifier or self.verifiers.size}
        first = {"rollout": self._plan.rollout[0], "verifier": self._plan.verifier[0]}
        bundles = [
            dataclasses.replace(first[kind], name=f"{kind}[{slot}]") for kind in wanted for slot in range(wanted[kind])
        ]
        check_fits([*self._plan.training, *bundles], node_resources())
        self.workers.resize(wanted["rollout"])
        self.verifiers.resize(wanted["verifier"])

    def swap_engines(self, engine: EngineSettings) -> None:
        """Ends the rollout workers, and starts others in their places in the background: of another model, or `engine`,
        the run's own, which then have no weights."""
        size = self.workers.size
        self.workers.close()
        self._engine_now = engine
        self._start_engines(size)

    # --- groups of ranks that die -------------------------------------------------------------------------------

    def dead_groups(self) -> list[str]:
        """Groups with a dead rank, as of the last heartbeats; asks for new ones when they are due, and never waits."""
        now = time.monotonic()
        if now - self._pinged_at < self._recipe.cluster.heartbeat_s:
            return []
        self._pinged_at = now
        dead = []
        for kind in self._ranked_kinds():
            refs = self._pings.get(kind, [])
            answered, waiting = ray.wait(refs, num_returns=len(refs), timeout=0) if refs else ([], [])
            if any(has_failed(ref) for ref in answered):
                dead.append(kind)
            elif not waiting:
                self._pings[kind] = self._ping(kind)
        return dead

    def fallen(self, kinds: Collection[str] = tuple(RANKED)) -> list[str]:
        """Groups with a rank that is dead; where none is, those with one that is held in something.

        That is one that answers no ping, which it does beside its work; or one that is still in a call that failed on
        another rank or passed its deadline. Both have `cluster.hang_timeout_s` to answer.
        """
        groups = {kind: self._wait(kind).ranks for kind in self._ranked_kinds() if kind in kinds}
        pings = {ref: kind for kind in groups for ref in self._ping(kind)}
        calls = {ref: kind for kind, ranks in groups.items() for ref in ranks.unanswered}
        waiting = [*pings, *calls]
        deadline = time.monotonic() + self._recipe.cluster.hang_timeout_s
        dead: set[str] = set()
        while waiting and not dead and time.monotonic() < deadline:
            answered, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1.0, fetch_local=False)
            dead = {pings[ref] for ref in answered if ref in pings and has_failed(ref)}
        return sorted(dead or {(pings | calls)[ref] for ref in waiting})

    def restart(self, kind: str) -> bool:
        """Starts a group of ranks again, with nothing loaded; False when `cluster.max_restarts` are spent.

        Raises:
            ActorError: it does not start (`_start_ranks`).
        """
        self._wait(kind).shutdown()
        self._pings.pop(kind, None)
        if not self.restarts.spend(kind):
            return False
        self._started[kind] = self._pool.submit(self._start_ranks, kind)
        self._wait(kind)
        return True

    def _ranked_kinds(self) -> list[str]:
        """Of the groups that are up."""
        return [
            kind
            for kind, started in self._started.items()
            if kind in RANKED and started.done() and started.exception() is None
        ]

    def _ping(self, kind: str) -> list[Any]:
        return [handle.ping.remote() for handle in self._wait(kind).ranks.handles]

    def close(self) -> None:
        """Ends every actor and gives its resources back."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for future in self._started.values():
            if future.cancelled() or future.exception() is not None:
                continue
            actors = future.result()
            if isinstance(actors, Roster):
                actors.close()
            else:
                actors.shutdown()
        self._started.clear()
        for group in filter(None, (self._training, *self._rollout.values())):
            remove_placement_group(group)

    def _wait(self, kind: str) -> Any:
        timeout_s = self._recipe.cluster.start_timeout_s
        try:
            return self._started[kind].result(timeout=timeout_s)
        except TimeoutError:
            raise ActorError(
                f"the {kind} actors did not start", value=f"{timeout_s:g} s", fix="raise cluster.start_timeout_s"
            ) from None

    def _placement(self, kind: str, *, start_timeout_s: float) -> Placement:
        cluster, plan = self._recipe.cluster, self._plan
        indices = tuple(plan.bundle_index(kind, rank) for rank in range(cluster.ranks[kind]))
        bundle = plan.training[indices[0]]
        return Placement(
            name=kind,
            num_ranks=len(indices),
            cpus=bundle.cpus / len(bundle.actors),
            gpus=plan.gpus_per_actor(kind),
            placement_group=self._training,
            bundle_indices=indices,
            start_timeout_s=start_timeout_s,
            operation_timeout_s=cluster.operation_timeout_s,
        )

    def _start_ranks(self, kind: str) -> RankedModel:
        """Starts a group of ranks, within `cluster.start_timeout_s` in all.

        A rank that dies meanwhile, or that finds its port taken, costs one restart more.

        Raises:
            ActorError: it does not start, `MAX_FAILED_STARTS` times in a row.
        """
        deadline = time.monotonic() + self._recipe.cluster.start_timeout_s
        for attempt in range(1, MAX_FAILED_STARTS + 1):
            placement = self._placement(kind, start_timeout_s=deadline - time.monotonic())
            try:
                return RANKED[kind].start(placement, use_gpu=self._plan.use_gpus)
            except ActorError as error:
                late = time.monotonic() > deadline
                if late or attempt == MAX_FAILED_STARTS or not self.restarts.spend(kind):
                    raise
                print(f"{kind} is started once more: {error}", flush=True)
        raise AssertionError("the last start returns or raises")

    def _start_engines(self, size: int | None = None) -> None:
        self._started["rollout"] = self._pool.submit(self._start_workers, size)
        if self._plan.shares_gpu:
            # An engine measures what is free to decide what it takes: nobody may load anything meanwhile.
            self._wait("rollout")

    def _start_workers(self, size: int | None = None) -> Roster:
        return self._roster(
            "rollout",
            self._create_worker,
            size=size or len(self._plan.rollout),
            join=self._engine_now.awaits_weights,
            free=self._free_worker,
        )

    def _create_worker(self, slot: int) -> tuple[Any, Any]:
        bundle = self._plan.rollout[0]  # all are alike
        if slot not in self._rollout:
            self._rollout[slot] = placement_group([bundle.resources])  # the actor is pending until there is room
        strategy = PlacementGroupSchedulingStrategy(placement_group=self._rollout[slot], placement_group_bundle_index=0)
        options = {"num_cpus": bundle.cpus, "num_gpus": bundle.gpus, "scheduling_strategy": strategy}
        options["max_concurrency"] = MAX_CALLS
        worker: Any = RolloutWorker.options(**options).remote(self._engine_now, name=f"rollout-{slot}")
        # One that has weights of its own samples under version 0; the others wait for a publication.
        ready = worker.ready.remote() if self._engine_now.awaits_weights else worker.commit_version.remote(0)
        return worker, ready

    def _free_worker(self, slot: int) -> None:
        remove_placement_group(self._rollout.pop(slot))

    def _start_verifiers(self) -> Roster:
        return self._roster("verifier", self._create_verifier, size=len(self._plan.verifier), join=False)

    def _create_verifier(self, slot: int) -> tuple[Any, Any]:
        cpus = self._plan.verifier[0].cpus
        create: Any = VerifierWorker.options(num_cpus=cpus)  # pyright: ignore[reportAttributeAccessIssue]
        verifier = create.remote(verifier_settings(self._recipe), self._tokenizer)
        return verifier, verifier.health.remote()

    def _roster(self, kind: str, create: Callable[[int], tuple[Any, Any]], *, size: int, **options: Any) -> Roster:
        roster = Roster(
            kind,
            create=create,
            ask=lambda handle: handle.health.remote(),
            size=size,
            cluster=self._recipe.cluster,
            restarts=self.restarts,
            **options,
        )
        roster.wait_for_all()
        return roster


def verifier_settings(recipe: Recipe) -> VerifierSettings:
    """The pool settings of the run: those of its last stage that verifies; evaluation asks for its own mode."""
    found = [settings for stage in recipe.stage if (settings := verifiers_of(stage)) is not None]
    return found[-1] if found else VerifierSettings()
