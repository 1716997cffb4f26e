"""Recipes: every shipped one loads, faults are told all at once, overrides are TOML."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.dry_run import describe
from rlsys.errors import RecipeError
from rlsys.recipe.load import build_recipe, load_recipe
from rlsys.recipe.reference import render
from rlsys.scaling.placement import actors_needed

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").rglob("*.toml"))
NEEDS_SHARED_DATA = "gsm8k-ifeval-cpu.toml"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_shipped_recipe_loads_and_describes_itself(path: Path):
    if path.name == NEEDS_SHARED_DATA and not (ROOT.parent / "shared" / "data").is_dir():
        pytest.skip("../shared/data is not here")
    recipe = load_recipe(path)
    text = describe(recipe)
    assert all(f"{stage.label} ({stage.kind})" in text for stage in recipe.stage)


def test_all_faults_are_told_at_once_each_with_its_fix():
    overrides = ["rlvr.batchs=3", "lerner.lr=3", "sft.learner.lr='x'", "dpo.batch_size=0", "broken"]
    with pytest.raises(RecipeError) as error:
        load_recipe("configs/quickstart.toml", overrides)
    problems = "\n".join(error.value.problems)
    assert len(error.value.problems) == 5
    assert "unknown key lerner.lr; got '3'; did you mean learner?" in problems
    assert "rlvr.batchs: unknown key; got 3; did you mean batches?" in problems
    assert "sft.learner.lr: Input should be a valid number; got 'x'" in problems
    assert "dpo.batch_size: Input should be greater than 0; got 0" in problems
    assert "an override is key=value" in problems


def test_an_override_beats_the_stage_and_reaches_every_stage():
    recipe = load_recipe("configs/quickstart.toml", ["learner.lr=3e-6", "rlvr.max_staleness=0", "name=mine"])
    lrs = {stage.label: stage.learner.lr for stage in recipe.stage if stage.kind in ("sft", "reward", "dpo", "rlvr")}
    assert lrs == dict.fromkeys(("sft", "reward", "dpo", "rlvr"), 3e-6)
    assert recipe.stage_named("rlvr").max_staleness == 0
    assert recipe.name == "mine"


def minimal(**stage) -> dict:
    return {
        "name": "t",
        "model": {"config": {"model_type": "llama"}, "tokenizer": "."},
        "stage": [
            {"kind": "rlvr", "batch_groups": 4, "batches": 2, "value_from": "policy", "prompts": {}, "learner": {}}
            | stage
        ],
    }


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        ({"value_from": "previous"}, "no earlier stage makes a reward model"),
        ({"reward_model": {}}, "rlvr.reward_model.path: no earlier stage makes a reward model"),
        ({"reward_model": {"path": "/nowhere"}}, "rlvr.reward_model.path: no such file or folder"),
        ({"reward_model": {"path": "stage:rm"}}, "no earlier stage is called rm"),
        ({"reward_model": {"use": "instead"}}, "Input should be 'added' or 'alone'"),
        ({"prompts": {"source": [{"path": "stage:world/p.jsonl"}]}}, "no earlier stage is called world"),
        ({"prompts": {"source": [{"path": "/nowhere/p.jsonl"}]}}, "no such file or folder"),
        ({"algorithm": {"advantage": "grpo"}}, "set samples to 2 or more"),
        ({"algorithm": {"minibatches": 5}}, "5 minibatches of 4 responses would be empty"),
        ({"kind": "ppo"}, "unknown kind; got 'ppo'"),
    ],
)
def test_impossible_combinations_are_refused_at_load(stage, fault):
    with pytest.raises(RecipeError) as error:
        build_recipe(minimal(**stage))
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("size", "cluster", "model", "fault"),
    [
        (
            2,
            {"learner_ranks": 3, "reference_ranks": 2},
            {},
            "cluster.learner_ranks is 3; set learner_ranks to a multiple of 2",
        ),
        (2, {"learner_ranks": 2}, {}, "cluster.reference_ranks is 1; set reference_ranks to a multiple of 2"),
        (3, {"learner_ranks": 3, "reference_ranks": 3}, {}, "the model has 8 heads, 2 of keys"),
        (4, {"learner_ranks": 4, "reference_ranks": 4}, {"num_key_value_heads": 8}, None),
        (
            4,
            {"learner_ranks": 4, "reference_ranks": 4},
            {"num_key_value_heads": 3},
            "the model has 8 heads, 3 of keys",
        ),
        (4, {"learner_ranks": 8, "reference_ranks": 4}, {}, None),
        (
            2,
            {"learner_ranks": 2, "reference_ranks": 2, "attention": "eager"},
            {},
            "attention is eager; set model.attention",
        ),
    ],
)
def test_ranks_that_cannot_share_rows_are_refused_at_load(size: int, cluster: dict, model: dict, fault: str | None):
    tree = minimal(algorithm={"advantage": "rloo", "kl_beta": 0.1}, samples=2, learner={"sequence_parallel": size})
    tree["model"]["attention"] = cluster.pop("attention", "sdpa")
    tree["model"]["config"] |= {"num_attention_heads": 8, "num_key_value_heads": 2} | model
    tree["cluster"] = cluster
    if fault is None:
        assert build_recipe(tree).stage[0].learner.sequence_parallel == size
        return
    with pytest.raises(RecipeError) as error:
        build_recipe(tree)
    assert fault in str(error.value) and len(error.value.problems) == 1


ENDPOINT = {"model": "m"}
JUDGED = {
    "kind": "judged_preferences",
    "sft": {"source": [{"path": "README.md"}]},
    "selection": {"reused": 4},
    "pool": [{"name": "policy", "on_policy": True}, {"name": "other", "endpoint": ENDPOINT}],
    "judge": {"endpoint": ENDPOINT},
}
DPO = {"kind": "dpo", "batch_size": 2, "learner": {}}


def judged(*after: dict, **changes) -> dict:
    return {**minimal(), "stage": [JUDGED | changes, *after]}


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        (judged(), "give the on_policy model a local_model"),
        (judged(DPO, sft={}), "no earlier stage has SFT prompts; give sft.source"),
        (judged(DPO, selection={}), "no prompt is selected"),
        (judged(DPO, selection={"unused": 1}), "selection.unused needs prompts; give unused.source"),
        (judged(DPO, selection={"persona": 1}), "set rewriter to a model of the pool"),
        (judged(DPO, rewriter="nobody"), "rewriter is no model of the pool"),
        (judged(DPO, pool=[{"name": "a"}]), "needs an endpoint or a local_model"),
        (judged(DPO, pool=[{"name": "a", "local_model": "nowhere"}]), "pool.a.local_model: no such file or folder"),
        (judged(DPO, judge={"local_model": "configs", "vllm": {"model": "x"}}), "vllm.model cannot be set"),
        (
            judged(DPO, judge={"local_model": "configs", "vllm": {"tensor_parallel_size": 2}}),
            "raise rollout.vllm.tensor_parallel_size",
        ),
    ],
)
def test_judged_preferences_that_cannot_be_are_refused_at_load(tree, fault):
    with pytest.raises(RecipeError) as error:
        build_recipe(tree)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("pool", "judge", "needed"),
    [
        (JUDGED["pool"], {"endpoint": ENDPOINT}, {"learner", "reference", "rollout"}),
        ([{"name": "m", "endpoint": ENDPOINT}], {"local_model": "configs"}, {"learner", "reference", "rollout"}),
        ([{"name": "m", "endpoint": ENDPOINT}], {"endpoint": ENDPOINT}, {"learner", "reference"}),
    ],
)
def test_judged_preferences_need_engines_unless_everybody_is_at_an_endpoint(pool, judge, needed):
    recipe = build_recipe(judged(DPO, pool=pool, judge=judge))
    assert actors_needed(recipe) == needed
    assert "4 prompts to rate and 0 to relax; 16 responses" in describe(recipe)


def test_a_gate_before_dpo_is_required_of_whoever_made_the_pairs():
    for_all = load_recipe("configs/quickstart.toml", ["decontamination.evals=['stage:world/test.jsonl']"])
    gates = {stage.label: stage.decontamination for stage in for_all.stage if stage.kind not in ("world", "evaluate")}
    assert list(gates) == ["sft", "preferences", "reward", "dpo", "rlvr"]
    assert all(gate is not None and gate.evals == ("stage:world/test.jsonl",) for gate in gates.values())
    with pytest.raises(RecipeError, match=r"dpo\.decontamination: no gate like it is at preferences") as error:
        load_recipe("configs/quickstart.toml", ["dpo.decontamination.evals=['stage:world/test.jsonl']"])
    assert len(error.value.problems) == 1
    sources = ["dpo.decontamination.evals=['pyproject.toml']", "dpo.data.source=[{path='pyproject.toml'}]"]
    assert load_recipe("configs/quickstart.toml", sources).stage_named("dpo").decontamination is not None
    with pytest.raises(RecipeError, match="no gate like it is at configs, where"):
        load_recipe("configs/quickstart.toml", ["dpo.decontamination.evals=['pyproject.toml']", "dpo.pairs='configs'"])


def test_a_missing_recipe_and_broken_toml_are_one_sentence(tmp_path):
    with pytest.raises(RecipeError, match=r"no recipe at nowhere\.toml; give the path"):
        load_recipe("nowhere.toml")
    (tmp_path / "broken.toml").write_text("name = \n")
    with pytest.raises(RecipeError, match=r"is not TOML: .*line 1"):
        load_recipe(tmp_path / "broken.toml")


def test_a_recipe_says_only_where_it_differs_from_its_base(tmp_path: Path):
    base, grpo = load_recipe("configs/quickstart.toml"), load_recipe("configs/quickstart-grpo.toml")
    assert grpo.stage[:-1] == base.stage[:-1] and grpo.model == base.model
    assert (grpo.name, grpo.stage[-1].samples, grpo.stage[-1].algorithm.advantage) == ("quickstart-grpo", 8, "grpo")
    assert grpo.stage[-1].algorithm.epochs_per_batch == base.stage[-1].algorithm.epochs_per_batch == 2
    alone = load_recipe("configs/quickstart-reward-model.toml").stage[-1]
    assert alone.reward_model.is_alone
    assert alone.model_copy(update={"reward_model": None}) == base.stage[-1]
    added = load_recipe("configs/tulu3/8b/rlvr-verifiers-and-reward-model.toml")
    assert (added.cluster.learner_ranks, added.cluster.reward_ranks) == (7, 7)
    assert not added.stage[-1].reward_model.is_alone
    (tmp_path / "a.toml").write_text('base = "b.toml"')
    (tmp_path / "b.toml").write_text('base = "a.toml"')
    with pytest.raises(RecipeError, match="a recipe is its own base"):
        load_recipe(tmp_path / "a.toml")
    (tmp_path / "c.toml").write_text('base = "d.toml"')
    with pytest.raises(RecipeError, match=r"no recipe at .*d\.toml"):
        load_recipe(tmp_path / "c.toml")


TULU = {
    "sft": {"batch_size": 128, "epochs": 2, "lr": 5e-6, "warmup": 0.03, "length": 4096},
    "dpo": {"batch_size": 128, "epochs": 1, "lr": 5e-7, "warmup": 0.1, "length": 2048},
    "reward": {"batch_size": 256, "epochs": 1, "lr": 3e-6, "warmup": 0.0, "length": 2048},
}


@pytest.mark.parametrize("name", TULU)
def test_tulu_3_8b_supervised_values(name):
    """The table of arXiv 2411.15124, as in the published recipe."""
    (stage,) = load_recipe(f"configs/tulu3/8b/{name}.toml").stage
    assert {
        "batch_size": stage.batch_size,
        "epochs": stage.epochs,
        "lr": stage.learner.lr,
        "warmup": stage.learner.schedule.warmup_fraction,
        "length": stage.data.templating.max_length,
    } == TULU[name]
    assert (stage.learner.schedule.kind, stage.learner.schedule.final_fraction) == ("linear", 0.0)
    assert (stage.learner.weight_decay, stage.learner.zero_stage, stage.learner.dtype) == (0.0, 3, "bfloat16")
    if name == "dpo":
        assert (stage.loss.name, stage.loss.beta) == ("dpo_norm", 5.0)


def test_tulu_3_8b_rlvr_values():
    recipe = load_recipe("configs/tulu3/8b/rlvr.toml")
    (stage,) = recipe.stage
    algorithm, learner = stage.algorithm, stage.learner
    assert (recipe.cluster.learner_ranks, recipe.cluster.rollout_workers) == (7, 1)
    assert recipe.rollout.tensor_parallel_size == 1
    assert (stage.batch_groups * stage.samples, stage.batches) == (224, 447)
    assert 100_000 <= stage.batches * stage.batch_groups < 100_000 + 224
    assert (learner.lr, learner.schedule.warmup_fraction, learner.max_grad_norm) == (3e-7, 0.0, 1.0)
    assert (algorithm.epochs_per_batch, algorithm.minibatches) == (4, 1)
    assert (algorithm.gamma, algorithm.lam, algorithm.clip, algorithm.value_clip) == (1.0, 0.95, 0.2, 0.2)
    assert (algorithm.value_coef, algorithm.kl_beta, algorithm.kl_in) == (0.1, 0.05, "reward")
    assert (algorithm.policy_loss, algorithm.advantage) == ("ppo_clip", "gae")
    assert (stage.sampling.max_tokens, stage.sampling.temperature, stage.sampling.top_p) == (2048, 1.0, 1.0)
    assert stage.prompts.templating.max_prompt_length == 2048
    assert (stage.verifiers.reward_scale, stage.verifiers.no_end_token_reward) == (10.0, -10.0)
    assert (stage.max_staleness, recipe.rollout.update) == (1, "drain")
    assert learner.schedule.kind == "linear"
    assert stage.evaluation.every and stage.evaluation.development.keys() == {"gsm8k", "ifeval"}


def imported(statements: str) -> list[str]:
    """The heavy packages that a process has imported after these statements."""
    heavy = {"torch", "ray", "vllm", "transformers", "deepspeed", "datasets"}
    code = f"import sys; {statements}; print(*sorted({heavy} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert printed.returncode == 0, printed.stderr
    return printed.stdout.split()


def test_recipes_and_help_import_nothing_heavy():
    """`rlsys --help` must answer in half a second: importing torch alone takes longer."""
    assert imported("import launch.cli; launch.cli.build_parser(); import rlsys.recipe.load") == []


def test_a_driver_imports_ray_alone():
    """It trains and samples nothing itself, and every run waits for its imports before anything else can start."""
    assert imported("import launch.recipe") == ["ray"]


def test_the_reference_page_is_true():
    """Written by `python -m rlsys.recipe.reference > docs/recipe.md`."""
    assert (ROOT / "docs" / "recipe.md").read_text() == render()


def test_a_canary_in_float32_is_held_to_a_ten_thousandth():
    quickstart = load_recipe("configs/quickstart.toml")
    assert quickstart.canary_tolerance(use_gpus=False) == 1e-5
    assert quickstart.canary_tolerance(use_gpus=True) == 0.05
    assert load_recipe("configs/tulu3/8b/rlvr.toml").canary_tolerance(use_gpus=True) == 0.05
    mixed = load_recipe("configs/quickstart.toml", ['rlvr.learner.dtype="bfloat16"'])
    assert mixed.canary_tolerance(use_gpus=False) == 0.05
    named = load_recipe("configs/quickstart.toml", ["rollout.canary_tolerance=0.3"])
    assert named.canary_tolerance(use_gpus=False) == 0.3


def test_a_ray_client_address_is_refused_at_load():
    with pytest.raises(RecipeError, match=r"ray://head:10001, and a driver of Ray Client .* use `rlsys submit`"):
        load_recipe("configs/quickstart.toml", ['cluster.address="ray://head:10001"'])
