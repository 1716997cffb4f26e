"""Publication to whoever is there: the members of a roster that are built, new ones included, dead ones replaced."""

from collections.abc import Callable, Collection, Sequence

from actors.groups import RankGroup
from actors.publication import RayEngine, RayLearner
from actors.roster import Member, Roster
from rlsys.errors import RlsysError
from rlsys.types import PolicyVersion
from rlsys.weights.publisher import PublicationError, PublicationReport, PublicationSettings, WeightPublisher

MAX_PUBLICATIONS = 4
"""Tries to bring one version to the engines before the run gives up."""
ANSWER_S = 15.0
"""For an engine that is said to have failed a publication to show that it lives."""


class RosterPublisher:
    """A `WeightPublisher` whose engines come and go.

    Args:
        learner: the policy's ranks.
        workers: rollout workers.
        settings: of every publication.
        tensor_parallel_size: of the workers' engines.
    """

    def __init__(
        self,
        learner: RankGroup,
        workers: Roster,
        *,
        settings: PublicationSettings,
        tensor_parallel_size: int = 1,
    ) -> None:
        self._ranks, self._settings = learner, settings
        self._learner = RayLearner(learner.handles, settings)
        self._publisher: WeightPublisher | None = None
        self._workers, self._num_ranks = workers, tensor_parallel_size
        self._members: list[Member] = []

    def publish(
        self,
        version: PolicyVersion,
        *,
        canary_ids: Sequence[int] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> PublicationReport:
        """Brings the learner's weights to every member that is built, and lets it serve.

        A member that died meanwhile is replaced, and one that fails twice; the others are published to again. One
        that is still starting is not waited for, unless there is no other. `meanwhile` is called while engines drain.

        Raises:
            PublicationError: the learner failed, or the engines did too often.
            ActorError: no engine is left.
            RlsysError: of `meanwhile`, as it is.
        """
        failed: set[str] = set()
        for attempt in range(1, MAX_PUBLICATIONS + 1):
            self._workers.wait_for_one()
            members = self._workers.built
            try:
                with self._workers.held():
                    report = self._publisher_to(members).publish(version, canary_ids=canary_ids, meanwhile=meanwhile)
            except PublicationError as error:
                last = not error.engines or attempt == MAX_PUBLICATIONS
                gone = [] if last else self._workers.accuse(error.engines, timeout_s=ANSWER_S)
                held = not gone and error.with_learner and not self._learner_rests()
                if last or held:  # all engines live: they have waited for the learner
                    raise
                print(f"publication of version {version} is tried again: {error.problem}", flush=True)
                if not gone:  # else the others failed because of it
                    self._replace(failed & set(error.engines))
                failed |= set(error.engines)
            else:
                self._workers.serve(members)
                return report
        raise AssertionError("the last attempt returns or raises")

    def _publisher_to(self, members: list[Member]) -> WeightPublisher:
        if self._publisher is None or members != self._members:
            engines = [RayEngine(m.handle, name=m.name, num_ranks=self._num_ranks) for m in members]
            if self._publisher is None:
                self._publisher = WeightPublisher(self._learner, engines, self._settings)
            else:
                self._publisher.set_engines(engines)
            self._members = members
        return self._publisher

    def _learner_rests(self) -> bool:
        """Whether no rank is held in the publication that failed; whoever asks which groups have fallen hears of it."""
        try:
            self._ranks.submit("rest").get(ANSWER_S)
        except RlsysError:
            return False
        return True

    def _replace(self, engines: Collection[str]) -> None:
        for member in [member for member in self._workers.built if member.name in engines]:
            self._workers.lost(member, "failed two publications")
