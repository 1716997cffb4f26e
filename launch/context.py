"""What the topologies of a run share: the recipe, the actors, the run folder, and what earlier stages left."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.exceptions

from actors.crew import Crew
from actors.data_tasks import ModelFolder
from actors.deaths import told
from actors.groups import ModelGroup, Pending
from actors.pump import RolloutPump
from actors.roster_publisher import RosterPublisher
from launch.progress import progress
from rlsys.checkpoint.checkpoint_store import CheckpointStore
from rlsys.checkpoint.durable_file import write_durably
from rlsys.checkpoint.retention import Retention
from rlsys.errors import ActorError, DataError, RecipeError, RlsysError
from rlsys.recipe.data import DataSettings
from rlsys.recipe.decontamination import Decontamination
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.model import ModelSettings
from rlsys.recipe.recipe import HUB, STAGE_REFERENCE, Recipe
from rlsys.recipe.section import PREVIOUS
from rlsys.recipe.stages import AnyStage, CheckpointSettings, DpoStage, RlvrStage, SftStage
from rlsys.rollouts.sampling_engine_settings import EngineSettings
from rlsys.telemetry.trace import Span, SpanRecorder, TraceFile
from rlsys.telemetry.tracker import Tracker
from rlsys.types import PolicyVersion
from rlsys.weights.publisher import PublicationReport, PublicationSettings

BEGINNING = "beginning.json"
SPANS_WAIT_S = 1.0
"""For rollout workers to tell what they did: a trace is not worth the learner's time."""


@dataclass(slots=True)
class StageContext:
    """One stage of a run."""

    stage: AnyStage
    seed: int
    """Of the stage's random choices: another one for each stage, so that two that read the same prompts neither ask
    them in the same order nor get the same answers."""
    folder: Path
    tracker: Tracker
    checkpoints: CheckpointStore
    beginning: dict[str, Any]
    """The tracker's position before the stage's first step, of whichever process made it."""


@dataclass
class RunContext:
    """A run that is under way. Topologies take it and a `StageContext`, and leave what they make in its folder."""

    recipe: Recipe
    folder: Path
    """`runs/<name>`."""
    crew: Crew
    model: ModelFolder
    trace: TraceFile
    spans: SpanRecorder = field(default_factory=lambda: SpanRecorder("driver"))
    outputs: dict[str, Path] = field(default_factory=dict)
    """Stage label to its folder, for the stages that are done."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Stage label to its kind, in the order of the recipe, for the stages that are done."""
    learner_holds: Path | None = None
    """The exported folder whose weights the learner has in memory."""
    value_holds: Path | None = None
    engines_hold: Path | None = None
    """The exported folder whose weights the engines have."""
    _late_spans: list[Any] = field(default_factory=list)
    _canary_gap: float = math.nan
    _publisher: RosterPublisher | None = None
    _published: tuple[PolicyVersion, list[int]] = (0, [])

    def done(self, stage: AnyStage, folder: Path) -> None:
        """Lets later stages find what this one left."""
        self.outputs[stage.label], self.kinds[stage.label] = folder, stage.kind

    # --- what earlier stages left --------------------------------------------------------------------------------

    def newest(self, *kinds: str) -> Path | None:
        """The folder of the newest stage of these kinds that is done."""
        found = [self.outputs[label] for label, kind in self.kinds.items() if kind in kinds]
        return found[-1] if found else None

    def policy_folder(self, reference: str) -> Path | None:
        """The Hugging Face folder that a stage starts from; None: the recipe's own model."""
        if reference == PREVIOUS:
            stage = self.newest("sft", "dpo", "rlvr")
            return stage / "hf" if stage else None
        return self.resolve(reference, "hf")

    def reward_folder(self, reference: str) -> Path | None:
        """The Hugging Face folder of the reward model that a stage names."""
        if reference == PREVIOUS:
            stage = self.newest("reward")
            return stage / "hf" if stage else None
        return self.resolve(reference, "hf")

    def policy_settings(self, folder: Path | None) -> ModelSettings:
        """How the learner loads a policy folder, or the recipe's own model."""
        if folder is None:
            return self.model.settings
        return self.model.settings.model_copy(
            update={"path": str(folder), "config": None, "init_std": None, "tokenizer": str(folder)}
        )

    def resolve(self, reference: str, default: str = "") -> Path:
        """A path of the recipe: `stage:NAME/FILE` is inside a stage's folder; `stage:NAME` is its `default`."""
        if reference.startswith(HUB):
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(reference.removeprefix(HUB)))
        if not reference.startswith(STAGE_REFERENCE):
            return Path(reference)
        label, _, rest = reference.removeprefix(STAGE_REFERENCE).partition("/")
        return self.outputs[label] / (rest or default)

    def resolve_data(self, data: DataSettings) -> DataSettings:
        """The settings with `stage:` references as paths, and with the run's seed in their own."""
        sources = tuple(
            source.model_copy(update={"path": str(self.resolve(source.path))})
            if source.path.startswith(STAGE_REFERENCE)
            else source
            for source in data.source
        )
        return data.model_copy(update={"source": sources, "seed": data.seed + self.recipe.seed})

    def resolve_gate(self, gate: Decontamination | None) -> Decontamination | None:
        """The gate with `stage:` references as paths."""
        if gate is None:
            return None
        paths = [str(self.resolve(path)) if path.startswith(STAGE_REFERENCE) else path for path in gate.evals]
        return gate.model_copy(update={"evals": tuple(paths)})

    # --- models in memory ----------------------------------------------------------------------------------------

    def load_policy(self, folder: Path | None, learner: LearnerSettings) -> None:
        """Has the learner hold the policy with a fresh optimizer; weights that it has in memory are kept."""
        with self.loading_policy(folder, learner):
            pass

    @contextmanager
    def loading_policy(self, folder: Path | None, learner: LearnerSettings) -> Iterator[None]:
        """`load_policy` while the block does something else."""
        held, self.learner_holds = self.learner_holds, None
        loading = self.keep_or_load(self.crew.learner, folder, held=held, learner=learner)
        yield
        if loading is not None:
            self.await_load(loading, "the policy")
        self.learner_holds = folder

    def await_load(self, loading: Pending[Any], what: str) -> None:
        """Waits for a group's model; a terminal sees a bar meanwhile."""
        with self.spans.span("load"), progress(f"loading {what}", shown=self.recipe.tracking.console):
            loading.get(self.recipe.cluster.start_timeout_s)

    def keep_or_load(
        self, group: ModelGroup, folder: Path | None, *, held: Path | None, learner: LearnerSettings
    ) -> Pending[Any] | None:
        """Has a group's model ready for a stage: with the weights that it holds, or else read from the folder.

        Args:
            folder: None for the recipe's own model.
            held: the folder whose weights the group has in memory.

        Returns:
            What is under way; None where the weights were kept.
        """
        if folder is not None and folder == held:
            try:
                group.begin_stage(learner).get()
                return None
            except RlsysError as error:  # another DeepSpeed engine is needed: it is built from the exported folder
                print(f"{folder} is loaded again: {error}", flush=True)
        return group.load(self.policy_settings(folder), learner)

    def publish(
        self, version: PolicyVersion, canary_ids: list[int], meanwhile: Callable[[], None] = lambda: None
    ) -> PublicationReport:
        """Brings the learner's weights to every engine; `meanwhile` is called while engines drain.

        Raises:
            WeightTransferError: they did not arrive, or not right; no version was flipped.
        """
        with self.spans.span("publish"):
            report = self.publisher.publish(version, canary_ids=canary_ids, meanwhile=meanwhile)
        self.engines_hold, self._published = None, (version, canary_ids)
        self._canary_gap = float(np.fmax(self._canary_gap, report.canary_gap))
        return report

    def take_canary_gap(self) -> float:
        """The largest of the publications since the last call: those at a start and to newcomers are among them."""
        gap, self._canary_gap = self._canary_gap, math.nan
        return gap

    def reinforce(self, pump: RolloutPump | None = None) -> None:
        """Brings what was published last to new engines, where work cannot go on without them.

        That is when no engine with weights is left - then another is waited for - or when `pump` keeps a call for the
        worker in one place, which was replaced. Only while the learner still holds just what was published.

        Raises:
            ActorError: no rollout worker is left, and none can be started.
        """
        if not self.crew.engines_await_weights:
            self.crew.workers.wait_for_one()
        elif not self.crew.workers.serving or (pump is not None and pump.needs_weights):
            hold = self.engines_hold
            if hold is not None and hold != self.learner_holds:  # it has trained something else since
                self.load_policy(hold, self._any_learner_settings())
            self.publish(*self._published)
            self.engines_hold = hold

    def forget_models(self) -> None:
        """After groups of ranks were started again: nothing is known of what they hold, and their handles are new."""
        self.learner_holds = self.value_holds = self.engines_hold = self._publisher = None

    def swap_engines(self, engine: EngineSettings) -> None:
        """Has the rollout workers' places taken by engines of another model, or of the run's own, without weights."""
        self.crew.swap_engines(engine)
        self.engines_hold = self._publisher = None

    @property
    def publisher(self) -> RosterPublisher:
        """From the learner to the engines, made when both are there."""
        if self._publisher is None:
            rollout = self.recipe.rollout
            settings = PublicationSettings(
                mode=rollout.update,
                transport=self.crew.engine.weight_transfer,
                digest=rollout.digest,
                cap_bytes=rollout.bucket_mib << 20,
                update_timeout_s=rollout.update_timeout_s,
                drain_timeout_s=rollout.drain_timeout_s,
                canary_tolerance=self.recipe.canary_tolerance(use_gpus=self.crew.use_gpus),
            )
            self._publisher = RosterPublisher(
                self.crew.learner.ranks,
                self.crew.workers,
                settings=settings,
                tensor_parallel_size=rollout.tensor_parallel_size,
            )
        return self._publisher

    def bring_policy(self, folder: Path | None) -> None:
        """Has every engine hold the policy in `folder` (None: the recipe's own): published from the learner's memory.

        Where there is no learner, engines load it themselves.
        """
        if folder is not None and folder == self.engines_hold:
            return
        if not self.recipe.trains_policy:
            if folder is not None:
                self.swap_engines(dataclasses.replace(self.crew.engine, model=str(folder)))
                self.engines_hold = folder
            elif self.engines_hold is not None:
                self.swap_engines(self.crew.engine)
            return
        if folder is None or folder != self.learner_holds:
            self.load_policy(folder, self._any_learner_settings())
        self.publish(0, self.model.canary_ids[: self.recipe.rollout.canary_tokens])
        self.engines_hold = folder

    def worker_spans(self) -> list[Span]:
        """What the rollout workers did since the last call; what one is slow to tell comes with a later call."""
        refs = self._late_spans + [worker.drain_spans.remote() for worker in self.crew.workers]
        ready, self._late_spans = ray.wait(refs, num_returns=len(refs), timeout=SPANS_WAIT_S) if refs else ([], [])
        spans: list[Span] = []
        for ref in ready:
            try:
                spans += ray.get(ref)
            except ray.exceptions.RayError:  # it died with its spans; whoever samples next notices
                continue
        return spans

    def _any_learner_settings(self) -> LearnerSettings:
        """Of the first stage that trains a policy: weights that are only published need no others."""
        return next(stage.learner for stage in self.recipe.stage if isinstance(stage, SftStage | DpoStage | RlvrStage))

    # --- offline work ----------------------------------------------------------------------------------------------

    def result(self, task: Any, *, what: str) -> Any:
        """As `get`, within `cluster.operation_timeout_s`; a terminal sees a bar meanwhile."""
        with self.spans.span("offline"), progress(what, shown=self.recipe.tracking.console):
            return get(task, timeout_s=self.recipe.cluster.operation_timeout_s, what=what)

    # --- what is written -----------------------------------------------------------------------------------------

    @contextmanager
    def timed(self, name: str, seconds: dict[str, float]) -> Iterator[None]:
        """Times a block for the trace, and adds it to `seconds` under `time/<name>_s`."""
        started = time.perf_counter()
        with self.spans.span(name):
            yield
        key = f"time/{name}_s"
        seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - started

    def flush_trace(self, spans: list[Span] | None = None) -> None:
        """Writes the driver's spans, and those given, to trace.json."""
        self.trace.append([*self.spans.drain(), *(spans or [])])


def stage_beginning(folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Where a stage's metrics begin in the tracker's files; kept in the stage's folder for later processes."""
    path = folder / BEGINNING
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, json.dumps(tracker.position()).encode())
    return json.loads(path.read_bytes())


def checkpoint_store(folder: Path, settings: CheckpointSettings) -> CheckpointStore:
    """A stage's checkpoints."""
    return CheckpointStore(folder / "checkpoints", Retention(keep_last=settings.keep, keep_every=settings.keep_every))


def get(ref: Any, *, timeout_s: float, what: str, setting: str = "cluster.operation_timeout_s") -> Any:
    """The result of a task, with a deadline, which `setting` is.

    Raises:
        ActorError: it died or was too slow.
        RlsysError: raised by the task on purpose.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise ActorError(f"{what} did not end", value=f"{timeout_s:g} s", fix=f"raise {setting}") from None
    except ray.exceptions.RayTaskError as error:
        raise told(error, what) from error
    except ray.exceptions.RayError as error:  # work, unlike an actor, does not die
        raise ActorError(f"{what} failed: {error}") from error


def pairs_folder(context: RunContext, reference: str) -> Path:
    """The pair store that a stage reads.

    Raises:
        DataError: there is none.
    """
    stage = context.newest("preferences", "judged_preferences") if reference == PREVIOUS else context.resolve(reference)
    if stage is None:
        raise DataError("no pairs", fix="add a stage of preferences, or name a folder")
    folder = stage / "pairs" if (stage / "pairs").is_dir() else stage
    if not folder.is_dir():
        raise RecipeError("no pairs are there", value=str(folder), fix="give the folder of such a stage")
    return folder
