"""Which bundles of CPUs and GPUs a recipe needs, and whether a cluster's nodes can hold them. Pure: no Ray."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlsys.errors import PlacementError, RecipeError
from rlsys.recipe.recipe import Recipe
from rlsys.recipe.rollout import WeightTransfer
from rlsys.recipe.stages import (
    DpoStage,
    EvaluateStage,
    JudgedPreferencesStage,
    PreferencesStage,
    RlvrStage,
    SftStage,
    learners_of,
)

OVERSUBSCRIBED_CPUS = 0.01
"""What an actor reserves where actors share cores: Ray refuses bundles of nothing."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Resources on one node that are reserved together.

    >>> Bundle("learner[0]", ("learner", "value"), cpus=2.0, gpus=1.0).resources
    {'CPU': 2.0, 'GPU': 1.0}
    """

    name: str
    actors: tuple[str, ...]
    """The kinds of actors that share it, one of each."""
    cpus: float
    gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """As Ray writes them."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


@dataclass(frozen=True, slots=True)
class PlacementPlan:
    """Every bundle of a recipe, by kind of actor that names it."""

    training: tuple[Bundle, ...]
    """Learner ranks first, in order; then value, reference and reward model ranks with bundles of their own."""
    rollout: tuple[Bundle, ...]
    verifier: tuple[Bundle, ...]
    use_gpus: bool
    shares_gpu: bool = False
    """Whether the learner and the engine have the cluster's only GPU together."""

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """All of them."""
        return self.training + self.rollout + self.verifier

    def bundle_index(self, kind: str, rank: int) -> int:
        """Where in `training` the rank of a kind (`learner`, `value`, `reference`, `reward`) lives."""
        holders = [index for index, bundle in enumerate(self.training) if kind in bundle.actors]
        return holders[rank]

    def gpus_per_actor(self, kind: str) -> float:
        """GPUs of one rank of a kind: a share, where it shares them."""
        bundle = next(bundle for bundle in self.training if kind in bundle.actors)
        return bundle.gpus / len(bundle.actors)


def actors_needed(recipe: Recipe) -> set[str]:
    """The kinds of actors that any of the recipe's stages uses."""
    needed: set[str] = set()
    for stage in recipe.stage:
        needed |= learners_of(stage).keys()
        evaluates = isinstance(stage, SftStage | DpoStage) and bool(stage.evaluation.test)
        if evaluates or isinstance(stage, PreferencesStage | RlvrStage | EvaluateStage):
            needed |= {"rollout", "verifier"}
        if isinstance(stage, JudgedPreferencesStage) and (stage.uses_policy or stage.local_models):
            needed.add("rollout")
    return needed


def placement_plan(recipe: Recipe, *, use_gpus: bool, one_gpu: bool = False) -> PlacementPlan:
    """The bundles of a recipe. Groups that share the learner's GPUs are in its bundles, rank by rank.

    Args:
        recipe: counts, and who shares.
        use_gpus: whether the actors need any.
        one_gpu: whether the cluster has just one: a recipe of one learner rank and one engine then has both on it.
    """
    cluster = recipe.cluster
    needed = actors_needed(recipe)
    ranks = cluster.ranks
    shares_gpu = use_gpus and one_gpu and _fits_one_gpu(recipe, needed)
    share = 0.5 if shares_gpu else 1.0
    shared = [kind for kind in ranks if "learner" in needed and kind in cluster.colocate]
    training: list[Bundle] = []
    for kind in ranks:
        if kind not in needed or kind in shared:
            continue
        for rank in range(ranks[kind]):
            guests = [guest for guest in shared if guest in needed and rank < ranks[guest]] if kind == "learner" else []
            kinds = (kind, *guests)
            cpus = OVERSUBSCRIBED_CPUS if cluster.oversubscribe_cpus else cluster.cpus_per_rank
            training.append(Bundle(f"{kind}[{rank}]", kinds, cpus * len(kinds), share * use_gpus))
    return PlacementPlan(
        training=tuple(training),
        rollout=_workers(recipe, "rollout", needed, share * recipe.rollout.tensor_parallel_size * use_gpus),
        verifier=_workers(recipe, "verifier", needed, 0.0),
        use_gpus=use_gpus,
        shares_gpu=shares_gpu,
    )


def _fits_one_gpu(recipe: Recipe, needed: set[str]) -> bool:
    cluster = recipe.cluster
    alone = {"learner", "rollout", "verifier", *cluster.colocate}
    sizes = (cluster.learner_ranks, cluster.rollout_workers, recipe.rollout.tensor_parallel_size)
    return {"learner", "rollout"} <= needed <= alone and sizes == (1, 1, 1)


def _workers(recipe: Recipe, kind: str, needed: set[str], gpus: float) -> tuple[Bundle, ...]:
    cluster = recipe.cluster
    if kind not in needed:
        return ()
    count, cpus = {
        "rollout": (cluster.rollout_workers, cluster.cpus_per_rollout_worker),
        "verifier": (cluster.verifier_workers, cluster.cpus_per_verifier_worker),
    }[kind]
    cpus = OVERSUBSCRIBED_CPUS if cluster.oversubscribe_cpus else cpus
    return tuple(Bundle(f"{kind}[{index}]", (kind,), cpus, gpus) for index in range(count))


def weight_transfer(recipe: Recipe, plan: PlacementPlan) -> WeightTransfer:
    """What carries weights from the learner to the engines of this plan.

    Raises:
        RecipeError: the recipe names one that cannot.
    """
    fits: WeightTransfer = "gloo"
    if plan.use_gpus:
        fits = "ipc" if plan.shares_gpu else "nccl"
    named = recipe.rollout.weight_transfer
    if named not in ("auto", "gloo", fits):
        where = "share one GPU" if plan.shares_gpu else "have GPUs of their own" if plan.use_gpus else "are on CPU"
        raise RecipeError(f"learner and engines {where}", value=named, fix=f'set rollout.weight_transfer = "{fits}"')
    return fits if named == "auto" else named


def check_fits(bundles: Sequence[Bundle], nodes: Sequence[Mapping[str, float]]) -> None:
    """Whether the nodes hold all bundles: largest first, each into the node that it fills best.

    Raises:
        PlacementError: naming the first bundle that finds no room, what there is, and what would fit.
    """
    free = [{"CPU": node.get("CPU", 0.0), "GPU": node.get("GPU", 0.0)} for node in nodes]
    placed: Counter[str] = Counter()
    homeless: list[Bundle] = []
    for bundle in sorted(bundles, key=lambda bundle: (-bundle.gpus, -bundle.cpus, bundle.name)):
        rooms = [node for node in free if node["GPU"] >= bundle.gpus and node["CPU"] >= bundle.cpus - 1e-9]
        if not rooms:
            homeless.append(bundle)
            continue
        best = min(rooms, key=lambda node: (node["GPU"] - bundle.gpus, node["CPU"] - bundle.cpus))
        best["GPU"] -= bundle.gpus
        best["CPU"] -= bundle.cpus
        placed[bundle.actors[0]] += 1
    if homeless:
        raise _no_room(homeless[0], bundles, nodes, placed)


def _no_room(
    bundle: Bundle, bundles: Sequence[Bundle], nodes: Sequence[Mapping[str, float]], placed: Mapping[str, int]
) -> PlacementError:
    have = {key: sum(node.get(key, 0.0) for node in nodes) for key in ("CPU", "GPU")}
    want = {"CPU": sum(b.cpus for b in bundles), "GPU": sum(b.gpus for b in bundles)}
    short = [key for key in ("GPU", "CPU") if have[key] < want[key] - 1e-9]
    if short == ["CPU"]:
        fix = "add CPUs, lower cluster.cpus_per_*, or set cluster.oversubscribe_cpus=true to share cores"
    elif short:
        fix = "add GPUs, or lower cluster.learner_ranks, cluster.rollout_workers or rollout.vllm.tensor_parallel_size"
    else:
        fix = "the total would do, but no single node has room for it: use larger nodes or smaller bundles"
    wanted = Counter(each.actors[0] for each in bundles)
    fits = ", ".join(f"{placed.get(kind, 0)} of {count} {kind}" for kind, count in wanted.items())
    return PlacementError(
        f"no room for {bundle.name} ({', '.join(bundle.actors)}), which needs {bundle.cpus:g} CPUs and "
        f"{bundle.gpus:g} GPUs on one node; the recipe needs {want['CPU']:g} CPUs and {want['GPU']:g} GPUs "
        f"in {len(bundles)} bundles, and {len(nodes)} node(s) have {have['CPU']:g} CPUs and {have['GPU']:g} GPUs in all"
        f"; what would fit: {fits}",
        fix=fix,
    )
