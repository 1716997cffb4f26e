"""What is wrong with a recipe across its sections, or with what they name on this machine: each with its fix."""

import glob
import os
from collections.abc import Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from rlsys.errors import RecipeError
from rlsys.models.model_folder import check_folder
from rlsys.recipe import stages
from rlsys.recipe.model import ModelSettings
from rlsys.recipe.recipe import HUB, PRODUCES, SHARED_SECTIONS, STAGE_REFERENCE, Recipe
from rlsys.recipe.rollout import context_length
from rlsys.recipe.section import PREVIOUS
from rlsys.recipe.stages import AnyStage

READ_AS = {
    "policy": ("policy",),
    "pairs": ("pairs",),
    "value_from": ("reward model", "policy"),
    "reward_model.path": ("reward model",),
}
"""Keys that name what a stage made, to what that may be; the others name files."""
SOURCES = {"sft": ("data",), "preferences": ("prompts",), "rlvr": ("prompts",)}
"""What a kind of stage cannot be without."""


def recipe_faults(recipe: Recipe) -> list[str]:
    """Every fault of a recipe whose sections are good in themselves; none when it can run."""
    found: list[str] = []
    if recipe.cluster.device == "cpu" and recipe.rollout.weight_transfer in ("nccl", "ipc"):
        found.append(
            f"rollout.weight_transfer is {recipe.rollout.weight_transfer}, which is between GPUs, and cluster.device "
            'is cpu; set weight_transfer = "auto"'
        )
    found += model_faults(recipe.model)
    found += _verifier_faults(recipe)
    before: dict[str, str] = {}
    for stage in recipe.stage:
        if stage.label in Recipe.model_fields or stage.label in SHARED_SECTIONS:
            found.append(
                f"{stage.label}: a stage of this name hides the recipe's section {stage.label} from overrides; give it "
                "another name"
            )
        if stage.label in before:
            found.append(f"{stage.label}: two stages have this name; give one of them another name")
        found += input_faults(stage, before)
        found += _sequence_faults(recipe, stage)
        found += _length_faults(recipe, stage)
        if isinstance(stage, stages.RewardStage | stages.DpoStage) and not stage.data.source:
            found += _ungated_pairs(recipe, stage, before)
        if isinstance(stage, stages.JudgedPreferencesStage):
            found += _judged_faults(recipe, stage, before)
        samples = isinstance(stage, stages.PreferencesStage | stages.EvaluateStage)
        if samples and not recipe.trains_policy and recipe.model.path is None:
            found.append(f"{stage.label}: no stage trains a policy to sample from; set model.path to its folder")
        before[stage.label] = stage.kind
    return found


def check_model(path: str, trust_remote_code: bool) -> None:
    """Refuses a path that is no folder of a model on this machine.

    Raises:
        RecipeError: why it is none.
    """
    if not Path(path).exists():
        raise RecipeError(
            "no such folder", value=path, fix="give one with config.json and safetensors, or hf:owner/name"
        )
    check_folder(path, trust_remote_code)


def model_faults(model: ModelSettings) -> list[str]:
    """What is wrong with the folders that the section names."""
    found = []
    if model.path is not None and not model.path.startswith(HUB):
        try:
            check_model(model.path, model.trust_remote_code)
        except RecipeError as error:
            found.append(f"model.path: {error}")
    if model.tokenizer is not None and not Path(model.tokenizer).is_dir():
        found.append(
            f"model.tokenizer: no such folder; got '{model.tokenizer}'; give a folder of this machine with a tokenizer"
        )
    return found


def input_faults(stage: AnyStage, before: Mapping[str, str]) -> list[str]:
    """What the stage reads and nobody made.

    Args:
        stage: good in itself.
        before: label to kind, of the stages before it.
    """
    found = _missing_inputs(stage, before)
    for key, path in stages.paths_read(stage):
        found += _path_faults(stage.label, key, path, before)
    return found


def _missing_inputs(stage: AnyStage, before: Mapping[str, str]) -> list[str]:
    made = {PRODUCES[kind] for kind in before.values() if kind in PRODUCES}
    wanted = []
    if isinstance(stage, stages.RewardStage | stages.DpoStage) and not stage.data.source:
        wanted.append(("pairs", stage.pairs, "pairs"))
    if isinstance(stage, stages.RlvrStage) and stage.algorithm.needs_values:
        wanted.append(("value_from", stage.value_from, "reward model"))
    if isinstance(stage, stages.RlvrStage) and stage.reward_model is not None:
        wanted.append(("reward_model.path", stage.reward_model.path, "reward model"))
    found = [
        f"{stage.label}.{key}: no earlier stage makes a {product}; add such a stage, or give a folder"
        for key, reference, product in wanted
        if reference == PREVIOUS and product not in made
    ]
    for key in SOURCES.get(stage.kind, ()):
        if not getattr(stage, key).source:
            found.append(f'{stage.label}.{key}: no source; add source = [{{ path = "FILE.jsonl" }}]')
    return found


def _path_faults(label: str, key: str, path: str, before: Mapping[str, str]) -> list[str]:
    place, products = f"{label}.{key}", READ_AS.get(key)
    if path.startswith(STAGE_REFERENCE):
        maker, _, file = path.removeprefix(STAGE_REFERENCE).partition("/")
        known = ", ".join(before) or "none"
        if maker not in before:
            return [f"{place}: no earlier stage is called {maker}; got '{path}'; stages before it: {known}"]
        if products and not file and PRODUCES.get(before[maker]) not in products:
            return [f"{place}: {maker} makes no {' or '.join(products)}; got '{path}'; stages before it: {known}"]
    elif path.startswith(HUB):
        return []
    elif not os.path.exists(path) and (products or not glob.glob(path)):
        return [f"{place}: no such file or folder; got '{path}'; mend the path, or download the data there"]
    elif products and products != ("pairs",):
        try:  # whether it may bring code of its own is asked where it is loaded
            check_folder(path, trust_remote_code=True)
        except RecipeError as error:
            return [f"{place}: {error}"]
    return []


def _verifier_faults(recipe: Recipe) -> list[str]:
    """One pool verifies for the whole run; and where modules of verifiers are not found."""
    sections = {
        stage.label: verifiers for stage in recipe.stage if (verifiers := stages.verifiers_of(stage)) is not None
    }
    found = []
    for label, verifiers in sections.items():
        first, settings = next(iter(sections.items()))
        found += [
            f"{label}.verifiers.{key} is {value!r} but {getattr(settings, key)!r} at {first}, and one pool verifies "
            "for the whole run; set it in [verifiers], for all stages"
            for key, value in verifiers
            if value != getattr(settings, key)
        ]
    modules = dict.fromkeys(module for verifiers in sections.values() for module in verifiers.modules)
    found += [
        f"verifiers.modules: no such module; got '{module}'; mend its name, or put its folder on PYTHONPATH"
        for module in modules
        if not _is_module(module)
    ]
    return found


def _is_module(name: str) -> bool:
    """Whether a dotted name can be found, without importing anything of it."""
    top, *rest = name.split(".")
    if top == "__main__":  # a worker's is another one
        return False
    try:
        spec = find_spec(top)
    except ValueError:  # something put it into sys.modules without a spec
        return False
    spec = spec or PathFinder.find_spec(top, [os.getcwd()])  # Ray's workers look there too
    for depth in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return False
        spec = PathFinder.find_spec(".".join([top, *rest[: depth + 1]]), spec.submodule_search_locations)
    return spec is not None


def _length_faults(recipe: Recipe, stage: AnyStage) -> list[str]:
    """Where the engines have no room for a prompt beside a response."""
    found = []
    for asked in stages.engine_requests(stage):
        length = context_length({**recipe.rollout.vllm, **asked.vllm})
        if length is None:
            continue
        responses = f"{stage.label}.{asked.section}.max_tokens is {asked.max_tokens}"
        if asked.max_tokens >= length:
            found.append(
                f"{responses} and max_model_len of its engines {length}, which leaves no room for a prompt; raise "
                "rollout.vllm.max_model_len or lower max_tokens"
            )
        elif (asked.max_prompt_length or 0) + asked.max_tokens > length:
            found.append(
                f"{stage.label}.{asked.prompt_key} is {asked.max_prompt_length}; {responses} and max_model_len of its "
                f"engines {length}, which leaves {length - asked.max_tokens} for a prompt; lower it, or raise "
                "rollout.vllm.max_model_len"
            )
    return found


def _sequence_faults(recipe: Recipe, stage: AnyStage) -> list[str]:
    """Why ranks cannot share rows."""
    found = []
    groups = stages.learners_of(stage)
    for group, learner in groups.items():
        size, ranks = learner.sequence_parallel, recipe.cluster.ranks[group]
        if ranks % size:
            found.append(
                f"{stage.label}: sequence_parallel is {size} but cluster.{group}_ranks is {ranks}; "
                f"set {group}_ranks to a multiple of {size}"
            )
    for size in {learner.sequence_parallel for learner in groups.values()} - {1}:
        heads = recipe.model.configuration.get("num_attention_heads") or 0
        kv_heads = recipe.model.configuration.get("num_key_value_heads") or heads
        if not isinstance(heads, int) or not isinstance(kv_heads, int):
            found.append(f"{stage.label}: the model has {heads!r} heads, {kv_heads!r} of keys; write whole numbers")
        elif heads % size or (kv_heads % size and size % kv_heads):
            found.append(
                f"{stage.label}: sequence_parallel is {size} but the model has {heads} heads, {kv_heads} of keys; "
                "choose a divisor of the heads that divides those of keys, or is a multiple of them"
            )
        if recipe.model.attention == "eager":
            found.append(
                f"{stage.label}: sequence_parallel is {size} but attention is eager; set model.attention to sdpa"
            )
    return found


def _ungated_pairs(recipe: Recipe, stage: stages.RewardStage | stages.DpoStage, before: Mapping[str, str]) -> list[str]:
    """Pairs are token ids, which no gate can read: the stage that made them must have had it."""
    if stage.decontamination is None:
        return []
    makers = [label for label, kind in before.items() if PRODUCES.get(kind) == "pairs"]
    if stage.pairs != PREVIOUS:
        named = stage.pairs.removeprefix(STAGE_REFERENCE).split("/")[0]
        makers = [label for label in makers if label == named]
    if makers:
        maker = recipe.stage_named(makers[-1])
        assert isinstance(maker, stages.PreferencesStage | stages.JudgedPreferencesStage)
        if maker.decontamination == stage.decontamination:
            return []
    return [
        f"{stage.label}.decontamination: no gate like it is at {makers[-1] if makers else stage.pairs}, where the "
        "pairs are from; set [decontamination] for every stage, or name sources in data"
    ]


def _judged_faults(recipe: Recipe, stage: stages.JudgedPreferencesStage, before: Mapping[str, str]) -> list[str]:
    found = []
    if stage.selection.of_sft_prompts and not stage.sft.source and "sft" not in before.values():
        found.append(f"{stage.label}.selection: no earlier stage has SFT prompts; give sft.source")
    if stage.uses_policy and not recipe.trains_policy:
        found.append(f"{stage.label}.pool: no stage trains a policy; give the on_policy model a local_model")
    for model in stage.local_models:
        size = model.vllm.get("tensor_parallel_size", 1)
        if size > recipe.rollout.tensor_parallel_size:
            found.append(
                f"{stage.label}: {model.local_model} wants tensor_parallel_size {size}, and a rollout worker has "
                f"{recipe.rollout.tensor_parallel_size}; raise rollout.vllm.tensor_parallel_size"
            )
    return found
