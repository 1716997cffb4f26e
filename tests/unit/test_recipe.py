"""Recipes: every shipped one loads, faults are told all at once, overrides are TOML."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.dry_run import describe
from rlsys.data.reader import read_rows
from rlsys.errors import RecipeError
from rlsys.recipe.load import build_recipe, load_recipe
from rlsys.recipe.reference import render
from rlsys.recipe.rollout import engine_keys
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
    assert "sft.learner.lr: wrong type; got 'x'; write a number" in problems
    assert "dpo.batch_size: must be greater than 0; got 0; raise it" in problems
    assert "an override is key=value" in problems


@pytest.mark.parametrize(
    ("recipe", "overrides", "told"),
    [
        (
            "quickstart",
            ["rlvr.batchs=3", "sft.data.source=[{path='/nowhere'}]", "dpo.policy='/gone'"],
            [
                "rlvr.batchs: unknown key; got 3; did you mean batches?",
                "sft.data.source.nowhere: no such file or folder; got '/nowhere'; mend the path, or download the data "
                "there",
                "dpo.policy: no such file or folder; got '/gone'; mend the path, or download the data there",
            ],
        ),
        (
            "quickstart-grpo",
            ["rlvr.samples=0"],
            ["rlvr.samples: must be greater than 0; got 0; raise it"],  # nothing of the 1 that stands in for it
        ),
        (
            "quickstart-grpo",
            ["sft.batch_size='x'", "rlvr.samples=0", "rlvr.algorithm.clip=2", "model.tokenizer='/nowhere'"],
            [
                "sft.batch_size: wrong type; got 'x'; write a whole number",
                "rlvr.algorithm: clip must be below 1; got 2.0",
                "rlvr.samples: must be greater than 0; got 0; raise it",
                "model.tokenizer: no such folder; got '/nowhere'; give a folder of this machine with a tokenizer",
            ],
        ),
        (
            "quickstart",
            ["rlvr.algorithm.dual_clip=3.0", "rlvr.algorithm.policy_loss='cispo'", "rlvr.algorithm.kl_beta=0"],
            [
                "rlvr.algorithm: kl_in = 'reward' with kl_beta = 0 does nothing; set kl_in to 'none'",
                "rlvr.algorithm: policy_loss = 'cispo' has no dual clip; remove dual_clip",
            ],
        ),
    ],
)
def test_one_fault_hides_no_other(recipe: str, overrides: list[str], told: list[str]):
    with pytest.raises(RecipeError) as error:
        load_recipe(f"configs/{recipe}.toml", overrides)
    assert list(error.value.problems) == told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("evaluation.temperatures=1.0", "sft.evaluation.temperatures: wrong type; got 1.0; write an array: [1.0]"),
        ("cluster.colocate='value'", """cluster.colocate: wrong type; got 'value'; write an array: ["value"]"""),
        ("seed=1.5", "seed: wrong type; got 1.5; write a whole number"),
        ("sft.learner.lr='x'", "sft.learner.lr: wrong type; got 'x'; write a number"),
        ("name=3", 'name: wrong type; got 3; write a string in quotes: "3"'),
        ("runs=[1]", "runs: wrong type; got [1]; write a string in quotes"),
        ("deterministic=1", "deterministic: wrong type; got 1; write true or false"),
        ("rlvr.learner=3", "rlvr.learner: wrong type; got 3; write a table"),
        ("rollout.vllm=3", "rollout.vllm: wrong type; got 3; write a table"),
        ("rollout.canary_tolerance='x'", "rollout.canary_tolerance: wrong type; got 'x'; write a number or 'auto'"),
        ("rollout.digest='x'", "rollout.digest: unknown value; got 'x'; write 'fold64' or 'sha256'"),
        ("sft.data.source=[{path='.', tke=1}]", "sft.data.source.0.tke: unknown key; got 1; did you mean take?"),
        (
            "stage=3",
            "an override names a stage; got 'stage=3'; begin its key with one of world, sft, preferences, reward, dpo, "
            "rlvr",
        ),
    ],
)
def test_a_wrong_type_is_told_with_what_to_write(override: str, told: str):
    with pytest.raises(RecipeError) as error:
        load_recipe("configs/quickstart.toml", [override])
    assert error.value.problems[0] == told


def test_an_override_beats_the_stage_and_reaches_every_stage():
    recipe = load_recipe("configs/quickstart.toml", ["learner.lr=3e-6", "rlvr.max_staleness=0", "name=mine"])
    lrs = {stage.label: stage.learner.lr for stage in recipe.stage if stage.kind in ("sft", "reward", "dpo", "rlvr")}
    assert lrs == dict.fromkeys(("sft", "reward", "dpo", "rlvr"), 3e-6)
    assert recipe.stage_named("rlvr").value.lr == 3e-6
    assert recipe.stage_named("rlvr").max_staleness == 0
    assert recipe.name == "mine"


def test_the_value_models_settings_are_the_policys_but_for_what_the_stage_says():
    rlvr = load_recipe("configs/quickstart.toml").stage_named("rlvr")
    assert (
        (rlvr.value_learner.betas, rlvr.value_learner.eps)
        == (rlvr.learner.betas, rlvr.learner.eps)
        == ((0.9, 0.98), 1e-5)
    )
    assert (rlvr.value_learner.packing, rlvr.value_learner.tokens_per_micro_batch) == ("bucketed", 8192)
    assert (rlvr.value_learner.lr, rlvr.learner.lr) == (1e-3, 3e-4), "what [stage.value] says itself wins"

    shared = {"lr": 2e-5, "weight_decay": 0.1, "schedule": {"kind": "cosine", "warmup_steps": 3}}
    tree = minimal(learner={"lr": 1e-6}, value={"weight_decay": 0.2, "schedule": {"kind": "constant"}})
    stage = build_recipe(tree | {"learner": shared}, ["learner.max_grad_norm=0.5"]).stage[0]
    assert (stage.learner.lr, stage.learner.weight_decay, stage.learner.max_grad_norm) == (1e-6, 0.1, 0.5)
    assert (stage.value.lr, stage.value.weight_decay, stage.value.max_grad_norm) == (1e-6, 0.2, 0.5)
    assert (stage.value.schedule.kind, stage.value.schedule.warmup_steps) == ("constant", 3)
    without = build_recipe(minimal(learner={"lr": 1e-6}) | {"learner": shared}).stage[0]
    assert without.value is None and without.value_learner == without.learner


def minimal(**stage) -> dict:
    return {
        "name": "t",
        "model": {"config": {"model_type": "llama"}, "tokenizer": "."},
        "stage": [
            {"kind": "rlvr", "batch_groups": 4, "batches": 2, "value_from": "policy", "learner": {}}
            | {"prompts": {"source": [{"path": f"{ROOT}/README.md"}]}}
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
        ({"reward_model": {"use": "instead"}}, "unknown value; got 'instead'; write 'added' or 'alone'"),
        ({"prompts": {"source": [{"path": "stage:world/p.jsonl"}]}}, "no earlier stage is called world"),
        ({"prompts": {"source": [{"path": "/nowhere/p.jsonl"}]}}, "no such file or folder"),
        ({"algorithm": {"advantage": "grpo"}}, "set samples to 2 or more"),
        ({"algorithm": {"minibatches": 5}}, "5 minibatches of 4 responses would be empty"),
        ({"kind": "ppo"}, "unknown kind; got 'ppo'"),
        ({"sampling": {"temperature": 0.0}}, "sampling.temperature is 0, by which the learner divides"),
        ({"sampling": {"top_p": 0.9}}, "sampling.top_p is 0.9, with which an engine's logprobs are over the tokens"),
        (
            {"sampling": {"max_tokens": 64}, "algorithm": {"overlong": {"buffer_tokens": 65}}},
            "algorithm.overlong.buffer_tokens is 65, of responses of at most 64 tokens; set it to sampling.max_tokens",
        ),
        (
            {"verifiers": {"modules": ["nope.mod", "rlsys.quickstart.exact_items", "rlsys.quickstart.nope"]}},
            "verifiers.modules: no such module; got 'nope.mod'; mend its name, or put its folder on PYTHONPATH\n"
            "  - verifiers.modules: no such module; got 'rlsys.quickstart.nope'; mend its name",
        ),
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


def refused(tree: dict) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as error:
        build_recipe(tree)
    return error.value.problems


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({}, "model: no model is named; set model.path, or [model.config] to start from random weights"),
        (
            {"path": "/nonexistent/model"},
            "model.path: no such folder; got '/nonexistent/model'; give one with config.json and safetensors, or "
            "hf:owner/name",
        ),
        (
            {"path": "configs"},
            "model.path: not a Hugging Face model folder; got 'configs'; give a folder with config.json",
        ),
        (
            {"path": "hf:a/b", "tokenizer": "/nowhere"},
            "model.tokenizer: no such folder; got '/nowhere'; give a folder of this machine with a tokenizer",
        ),
    ],
)
def test_a_model_that_is_not_there_is_refused_at_load(model: dict, told: str):
    assert refused(minimal() | {"model": model}) == (told,)
    assert build_recipe(minimal() | {"model": {"path": "hf:a/b"}}).model.path == "hf:a/b"


def test_modules_are_looked_for_and_not_imported(tmp_path: Path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "verifiers.py").write_text("raise RuntimeError('imported')")
    monkeypatch.chdir(tmp_path)
    recipe = build_recipe(minimal(verifiers={"modules": ["mine.verifiers"]}))
    assert recipe.stage[0].verifiers.modules == ("mine.verifiers",)


def test_engine_settings_are_vllms_own():
    tree = minimal() | {"rollout": {"vllm": {"max_model_length": 4096, "qqq": 1, "model": "m"}}}
    assert refused(tree) == (
        "rollout.vllm: vllm.model cannot be set: the stage's input decides it; leave it out",
        "rollout.vllm: vLLM has no engine setting max_model_length; did you mean max_model_len?",
        "rollout.vllm: vLLM has no engine setting qqq; leave it out",
    )
    assert {"max_model_len", "kv_cache_memory_bytes", "enable_prefix_caching"} < engine_keys()


def test_the_engines_have_room_for_prompts_and_responses():
    tree = minimal(sampling={"max_tokens": 64}, evaluation={"development": {"d": "README.md"}, "max_tokens": 96})
    vllm = {"rollout": {"vllm": {"max_model_len": 64}}}
    assert refused(tree | vllm) == (
        "rlvr.sampling.max_tokens is 64 and max_model_len of its engines 64, which leaves no room for a prompt; raise "
        "rollout.vllm.max_model_len or lower max_tokens",
        "rlvr.evaluation.max_tokens is 96 and max_model_len of its engines 64, which leaves no room for a prompt; "
        "raise rollout.vllm.max_model_len or lower max_tokens",
    )
    vllm["rollout"]["vllm"]["max_model_len"] = 128
    recipe = build_recipe(tree | vllm)
    prompts = recipe.fitted(recipe.stage[0].prompts, max_tokens=64)
    assert prompts.templating.max_prompt_length == 64, "a longer one would end the run"
    assert build_recipe(tree).fitted(recipe.stage[0].prompts, max_tokens=64) == recipe.stage[0].prompts
    tree["stage"][0]["evaluation"]["max_prompt_length"] = 33
    tree["stage"][0]["prompts"] |= {"templating": {"max_prompt_length": 64}}
    assert refused(tree | vllm) == (
        "rlvr.evaluation.max_prompt_length is 33; rlvr.evaluation.max_tokens is 96 and max_model_len of its engines "
        "128, which leaves 32 for a prompt; lower it, or raise rollout.vllm.max_model_len",
    )
    tree["stage"][0]["evaluation"] = {"max_tokens": 4096}  # no set is evaluated
    assert recipe.fitted(build_recipe(tree | vllm).stage[0].prompts, max_tokens=1).templating.max_prompt_length == 64


def test_verifier_settings_that_differ_between_stages_are_refused():
    overrides = ["rlvr.verifiers.workers=3", "rlvr.verifiers.modules=[]"]
    with pytest.raises(RecipeError) as error:
        load_recipe("configs/quickstart.toml", overrides)
    assert error.value.problems == (
        "rlvr.verifiers.workers is 3 but 1 at preferences, and one pool verifies for the whole run; set it in "
        "[verifiers], for all stages",
        "rlvr.verifiers.modules is () but ('rlsys.quickstart.exact_items',) at preferences, and one pool verifies for "
        "the whole run; set it in [verifiers], for all stages",
    )
    assert load_recipe("configs/quickstart.toml", ["verifiers.workers=3"]).stage_named("rlvr").verifiers.workers == 3


def test_a_path_in_the_home_folder_is_the_same_for_the_check_and_for_who_reads_it(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tree = minimal(prompts={"source": [{"path": "~/x.jsonl"}]}, evaluation={"development": {"d": "~/x.jsonl"}})
    assert refused(tree)[0].startswith(f"rlvr.prompts.source.x: no such file or folder; got '{tmp_path}/x.jsonl'")
    (tmp_path / "x.jsonl").write_text('{"text": "here"}\n')
    (stage,) = build_recipe(tree).stage
    assert stage.evaluation.development == {"d": f"{tmp_path}/x.jsonl"}
    assert [row.kind for row in read_rows(stage.prompts.source[0])] == ["text"]


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
            judged(DPO, judge={"local_model": "configs", "vllm": {"max_model_len": 1024}}),
            "judged_preferences.judge.sampling.max_tokens is 1024 and max_model_len of its engines 1024",
        ),
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
    with pytest.raises(
        RecipeError, match=r"the recipe \. cannot be read; got 'Is a directory'; give the path of a readab"
    ):
        load_recipe(".")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '[stage]\nkind = "sft"\n',
            "[stage] is one table, and stages are a list of tables; begin each one with [[stage]]",
        ),
        ("stage = 3\n", "stage is 3, and stages are a list of tables; begin each one with [[stage]]"),
        ("stage = [3]\n", "stage is [3], and stages are a list of tables; begin each one with [[stage]]"),
    ],
)
def test_stages_that_are_no_list_of_tables_are_one_sentence(tmp_path: Path, text: str, told: str):
    (tmp_path / "one.toml").write_text(text)
    (tmp_path / "on_it.toml").write_text('base = "one.toml"\n')
    for name in ("one", "on_it"):
        with pytest.raises(RecipeError) as error:
            load_recipe(tmp_path / f"{name}.toml", ["sft.batch_size=3"])
        assert str(error.value) == f"{tmp_path / 'one.toml'}: {told}"


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
    assert algorithm.lag_correction.name == "none", "the published loss has no weight for lag"
    assert stage.value_learner == learner
    assert (stage.sampling.max_tokens, stage.sampling.temperature, stage.sampling.top_p) == (2048, 1.0, 1.0)
    assert stage.prompts.templating.max_prompt_length == 2048
    assert (stage.verifiers.reward_scale, stage.verifiers.no_end_token_reward) == (10.0, -10.0)
    assert (stage.max_staleness, recipe.rollout.update) == (1, "drain")
    assert learner.schedule.kind == "linear"
    assert stage.evaluation.every and stage.evaluation.development.keys() == {"gsm8k", "ifeval"}


DRY_RUN = {
    "sft": ["  learner[0-63]  1 CPU, 1 GPU each", "= 2 on each of 64 rank(s)", "epochs 2"],
    "dpo": ["  learner[0-31]  2 CPU, 1 GPU each shared by learner + reference", "= 4 on each of 32 rank(s)"],
    "reward": ["  value[0-7]     1 CPU, 1 GPU each", "= 32 on each of 8 rank(s)"],
    "rlvr": [
        "  learner[0-6]   3 CPU, 1 GPU each shared by learner + value + reference",
        "  rollout[0]     1 CPU, 1 GPU",
        "  weights        from the learner to the engines over nccl",
        "rollout batch 224 prompts x 1 = 224 responses; 447 batches = 100128 episodes",
        "4 optimizer steps a batch, 1788 in all; a minibatch is 32 on each of 7 rank(s)",
        "max_staleness 1: at most 448 prompts in flight",
    ],
}


@pytest.mark.parametrize("name", DRY_RUN)
def test_tulu_3_8b_placement_and_batch_arithmetic(name: str):
    text = describe(load_recipe(f"configs/tulu3/8b/{name}.toml"))
    assert [part for part in DRY_RUN[name] if part not in text] == []


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
    page = render()
    assert (ROOT / "docs" / "recipe.md").read_text() == page
    for line in (
        "| `temperatures` | array of number | `[1.0, 0.0]` | Each is evaluated",
        "| `limit` | whole number | absent | At most so many prompts",
        "| `take` | whole number or number | `1.0` | An integer: so many rows",
        "| `test` | table of string | empty | Set name to prompt file",
        "| `deterministic` | `true` or `false` | `false` | Fixed assignment",
        "| `prompts_per_task` | whole number |",
    ):
        assert line in page
    assert "|  |" not in page, "a key without its meaning"


@pytest.mark.parametrize("page", ["README.md", "docs/data.md"])
def test_the_data_set_that_the_docs_add_is_read_beside_the_quickstarts_own(tmp_path: Path, monkeypatch, page: str):
    lines = iter((ROOT / page).read_text().splitlines())
    example = [next(line.strip() for line in lines if 'base = "quickstart.toml"' in line)]
    while len(example) < 2 or "prompts.source" not in example[-1]:
        example.append(next(lines).strip())
    for part in ("rlsys", "configs"):
        (tmp_path / part).symlink_to(ROOT / part)
    (tmp_path / "quickstart.toml").symlink_to(ROOT / "configs" / "quickstart.toml")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "capitals.jsonl").write_text("{}\n")
    (tmp_path / "capitals.toml").write_text("\n".join(example))
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(tmp_path / "capitals.toml")
    assert recipe.name == "capitals" and [stage.kind for stage in recipe.stage][-1] == "rlvr"
    world = "stage:world/"
    assert [source.path for source in recipe.stage_named("sft").data.source] == [
        f"{world}demonstrations.jsonl",
        "data/capitals.jsonl",
    ]
    assert [source.path for source in recipe.stage_named("rlvr").prompts.source] == [
        f"{world}prompts.jsonl",
        "data/capitals.jsonl",
    ]


def test_a_canary_in_float32_is_held_to_a_ten_thousandth_on_cpu_and_to_tf32_on_gpus():
    quickstart = load_recipe("configs/quickstart.toml")
    assert quickstart.canary_tolerance(use_gpus=False) == 1e-5
    assert quickstart.canary_tolerance(use_gpus=True) == 0.05
    assert load_recipe("configs/tulu3/8b/rlvr.toml").canary_tolerance(use_gpus=True) == 0.05
    mixed = load_recipe("configs/quickstart.toml", ['rlvr.learner.dtype="bfloat16"'])
    assert mixed.canary_tolerance(use_gpus=False) == 0.05
    float32 = [f'{label}.learner.dtype="float32"' for label in ("sft", "dpo", "rlvr")]
    float32_learner = load_recipe("configs/quickstart.toml", float32)
    assert float32_learner.canary_tolerance(use_gpus=True) == 0.05
    float32_throughout = load_recipe("configs/quickstart.toml", [*float32, 'rollout.vllm.dtype="float32"'])
    assert float32_throughout.canary_tolerance(use_gpus=True) == 5e-3
    assert float32_throughout.canary_tolerance(use_gpus=False) == 1e-5
    named = load_recipe("configs/quickstart.toml", ["rollout.canary_tolerance=0.3"])
    assert named.canary_tolerance(use_gpus=False) == 0.3


def test_a_ray_client_address_is_refused_at_load():
    with pytest.raises(RecipeError, match=r"ray://head:10001, and a driver of Ray Client .* use `rlsys submit`"):
        load_recipe("configs/quickstart.toml", ['cluster.address="ray://head:10001"'])


def quickstart_refused(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as error:
        load_recipe("configs/quickstart.toml", overrides)
    return error.value.problems


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rlvr.policy='policy'", "rlvr.policy: no such file or folder; got 'policy'"),
        ("rlvr.policy='stage:world'", "rlvr.policy: world makes no policy; got 'stage:world'"),
        ("rlvr.policy='configs'", "rlvr.policy: not a Hugging Face model folder; got 'configs'"),
        ("rlvr.policy='config*'", "rlvr.policy: no such file or folder; got 'config*'"),
        ("reward.pairs='stage:sft'", "reward.pairs: sft makes no pairs; got 'stage:sft'"),
        ("rlvr.value_from='stage:preferences'", "rlvr.value_from: preferences makes no reward model or policy;"),
        ("rlvr.prompts.source=[]", "rlvr.prompts: no source; add source = ["),
        ("sft.data.source=[]", "sft.data: no source; add source = ["),
        ("learner.deepspeed={zero_optimization=3}", "[learner.deepspeed] zero_optimization is 3; write it as a table"),
        ("verifiers.modules=['__main__']", "verifiers.modules: no such module; got '__main__'"),
        ("cluster.operation_timeout_s=inf", "cluster.operation_timeout_s: must be a finite number; got inf; write one"),
        ("rlvr.group_timeout_s=inf", "rlvr.group_timeout_s: must be a finite number; got inf; write one"),
        (
            "sft.name='a/b'",
            "a/b.name: must match ^([A-Za-z0-9][A-Za-z0-9_-]*)?$; got 'a/b'; leave out what it does not allow",
        ),
        (
            "evaluation.test={'my set'='stage:world/test.jsonl'}",
            "test calls a set 'my set', which names its folder and metrics; use letters, digits, _ . = -",
        ),
        ("rlvr.name='learner'", "learner: a stage of this name hides the recipe's section learner"),
    ],
)
def test_what_a_stage_cannot_begin_with_is_refused_at_load(override: str, told: str):
    assert any(told in problem for problem in quickstart_refused(override)), quickstart_refused(override)


def test_a_stage_is_made_of_what_its_inputs_name():
    overrides = ["rlvr.policy='stage:sft'", "reward.pairs='stage:preferences'", "rlvr.value_from='stage:sft/hf'"]
    assert load_recipe("configs/quickstart.toml", overrides).stage_named("rlvr").policy == "stage:sft"


def test_a_count_that_is_put_right_makes_no_faults_of_its_own():
    for override in ("rlvr.batch_groups=0", "rlvr.sampling.max_tokens=0"):
        assert len(quickstart_refused(override)) == 1
    assert len(quickstart_refused("cluster.learner_ranks=0", "cluster.value_ranks=2")) == 1


def test_a_table_that_is_overridden_for_all_stages_is_changed_for_one():
    recipe = load_recipe("configs/quickstart.toml", ["learner={lr=1e-6}", "rlvr.learner.lr=5e-4"])
    rates = {stage.label: stage.learner.lr for stage in recipe.stage if hasattr(stage, "learner")}
    assert rates == {"sft": 1e-6, "reward": 1e-6, "dpo": 1e-6, "rlvr": 5e-4}


def test_what_is_put_on_top_replaces_its_alternative(tmp_path: Path):
    """TOML cannot take a key away: a path the configuration below it, a fraction the number of steps."""
    folder = model_folder(tmp_path, '{"model_type": "llama"}')
    model = load_recipe("configs/quickstart.toml", [f"model.path='{folder}'"]).model
    assert (model.path, model.config, model.tokenizer) == (str(folder), None, None)
    (tmp_path / "child.toml").write_text(f"base = '{ROOT}/configs/quickstart.toml'\n[model]\npath = '{folder}'\n")
    assert load_recipe(tmp_path / "child.toml").model == model
    recipe = load_recipe("configs/quickstart.toml", ["learner.schedule.warmup_fraction=0.1"])
    for label in ("sft", "rlvr"):
        schedule = recipe.stage_named(label).learner.schedule
        assert (schedule.warmup_steps, schedule.warmup_fraction) == (None, 0.1)


def model_folder(folder: Path, config: str) -> Path:
    (folder / "hf").mkdir()
    (folder / "hf" / "model.safetensors").touch()
    (folder / "hf" / "config.json").write_text(config)
    return folder / "hf"


@pytest.mark.parametrize("config", ["", "{", "3", "[1]"])
def test_a_damaged_configuration_is_told(tmp_path: Path, config: str):
    (told,) = quickstart_refused(f"model.path='{model_folder(tmp_path, config)}'", "learner.sequence_parallel=1")
    assert told.startswith("model.path: a damaged config.json") and "copy the model's folder again" in told


def test_stages_of_one_name_are_no_one_stage(tmp_path: Path):
    stages = "[[stage]]\nkind = 'evaluate'\n" * 2
    (tmp_path / "child.toml").write_text(f"base = '{ROOT}/configs/quickstart.toml'\n{stages}")
    with pytest.raises(RecipeError, match="evaluate: two stages have this name; give one of them another name"):
        load_recipe(tmp_path / "child.toml")
    (tmp_path / "grandchild.toml").write_text("base = 'base.toml'\n")
    (tmp_path / "base.toml").write_text(stages)
    with pytest.raises(RecipeError, match="evaluate: two stages have this name; give one of them another name"):
        load_recipe(tmp_path / "grandchild.toml")


def test_a_file_is_read_whatever_its_editor_put_before_it(tmp_path: Path):
    path = tmp_path / "bom.toml"
    path.write_text(f"base = '{ROOT}/configs/quickstart.toml'\n", encoding="utf-8-sig")
    assert load_recipe(path).name == "quickstart"
    path.write_text("x = " + "[" * 5000)
    with pytest.raises(RecipeError, match="is not TOML"):
        load_recipe(path)
