"""The groups of the learner, the value model and the reference model, as a topology calls them."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from learner_ranks import make_experience, plain_sgd, random_rows, tiny_model
from rlvr_oracle import Oracle
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from actors.groups import Placement
from actors.learner import Learner
from actors.reference_model import ReferenceModel
from actors.value_model import ValueModel
from rlsys.data.token_store import PairStore, TokenStore, write_pair_store, write_token_store
from rlsys.data.tokenized import TokenizedPair, TokenizedRow
from rlsys.errors import CheckpointError, RecipeError
from rlsys.models.row_order import PairSteps, rows_of_step
from rlsys.recipe.algorithm import AlgorithmSettings, PreferenceLossSettings, RewardLossSettings, SupervisedLossSettings
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.model import ModelSettings
from rlsys.rollouts.experience_buffer import balance

pytestmark = pytest.mark.integration

LEARNER = LearnerSettings(eps=Oracle.eps, tokens_per_micro_batch=128)


@pytest.fixture(scope="module")
def groups() -> Iterator[SimpleNamespace]:
    """Two ranks of learner and value model, one reference."""
    ray.init(
        address="local", include_dashboard=False, num_cpus=4, log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )  # fmt: skip
    timeouts = {"cpus": 0.01, "start_timeout_s": 900, "operation_timeout_s": 600}
    groups = SimpleNamespace(
        learner=Learner.start(Placement("learner", 2, **timeouts)),
        value=ValueModel.start(Placement("value", 2, **timeouts)),
        reference=ReferenceModel.start(Placement("reference", 1, **timeouts)),
    )
    yield groups
    ray.shutdown()


def exported(group, folder: Path) -> Path:
    group.export_hf(str(folder)).get()
    return folder


@pytest.mark.parametrize("sequence_parallel", [1, 2])
def test_one_rlvr_step_equals_a_straight_line_of_float64(groups, tmp_path, sequence_parallel: int):
    """Policy, value model and reference; four shards over two ranks, dealt as in a run; one verifier has failed."""
    learner = LEARNER.model_copy(update={"sequence_parallel": sequence_parallel})
    loads = [
        groups.learner.load(tiny_model(), learner),
        groups.value.load(tiny_model(tied=False), learner),
        groups.reference.load(tiny_model().model_copy(update={"init_seed": 7}), LEARNER),
    ]
    # Embedding 48 x 16; two layers of q, o 16 x 16, k, v 16 x 8, three 16 x 24 and two norms; the last norm.
    assert loads[0].get()["num_parameters"] == 768 + 2 * (2 * 256 + 2 * 128 + 3 * 384 + 32) + 16
    for load in loads:
        load.get()
    double = {"dtype": torch.float64}
    rng = np.random.default_rng(3)
    experiences = [make_experience(rng, ordinal) for ordinal in range(18)]
    oracle = Oracle(
        policy=AutoModelForCausalLM.from_pretrained(exported(groups.learner, tmp_path / "policy"), **double),
        value=AutoModelForSequenceClassification.from_pretrained(exported(groups.value, tmp_path / "value"), **double),
        reference=AutoModelForCausalLM.from_pretrained(exported(groups.reference, tmp_path / "ref"), **double),
        experiences=experiences,
        seed=11,
    )
    oracle.run()

    settings = AlgorithmSettings(epochs_per_batch=2, minibatches=2)
    parts = balance([len(e.rollout.response_ids) for e in experiences], 4)
    shards = [ray.put([[experiences[index]] for index in part]) for part in parts]
    pending = groups.learner.logprobs(shards), groups.value.values(shards), groups.reference.logprobs(shards)
    proximal, values, reference = (answer.get() for answer in pending)
    advantages, returns, metrics = groups.learner.advantages(
        shards, settings, proximal=proximal, reference=reference, values=values
    ).get()
    dealt = [experiences[index] for part in parts for index in part]
    assert [e.prompt.ordinal for e in dealt] != list(range(18))
    kept = np.concatenate([np.full(len(e.rollout.response_ids), not e.masked) for e in dealt])
    ours = np.concatenate(ray.get(advantages))
    np.testing.assert_allclose(ours[kept], oracle.flat(oracle.advantages, dealt), atol=1e-5)
    assert (ours[~kept] == 0).all() and not kept.all()
    np.testing.assert_allclose(
        np.concatenate(ray.get(returns))[kept], oracle.flat(oracle.returns, dealt), atol=1e-5, rtol=1e-6
    )
    assert metrics["policy/kl"] > 0.1, "the reference is another model"

    step = {"lrs": oracle.lrs, "seed": oracle.seed}
    policy_update = groups.learner.train_policy(
        shards, settings, advantages=advantages, proximal=proximal, reference=reference, max_response_length=14, **step
    )
    value_update = groups.value.train_value(shards, settings, returns=returns, old_values=values, **step)
    policy_reports, value_reports = policy_update.get(), value_update.get()
    assert [r.metrics["loss/policy"] for r in policy_reports] == pytest.approx(oracle.policy_losses, abs=1e-5)
    assert [r.metrics["loss/value"] for r in value_reports] == pytest.approx(oracle.value_losses, rel=1e-5)
    assert max(r.metrics["policy/clip_frac"] for r in policy_reports) > 0.05, "clipping was not exercised"
    assert policy_reports[0].metrics["policy/lag_touched_frac"] > 0.05, "truncation was not exercised"
    assert_weights_equal(oracle.policy, exported(groups.learner, tmp_path / "policy2"))
    assert_weights_equal(oracle.value, exported(groups.value, tmp_path / "value2"))


def assert_weights_equal(oracle: torch.nn.Module, folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name, _ in oracle.named_parameters()}
        for name, parameter in oracle.named_parameters():
            torch.testing.assert_close(
                file.get_tensor(name).double(), parameter.detach(), atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n} {m}"
            )


def test_an_exported_folder_is_the_model_tied_or_not(groups, tmp_path):
    rows = [row.token_ids for row in random_rows(5)]
    for tied in (True, False):
        groups.learner.load(tiny_model(tied), LEARNER).get()
        folder = exported(groups.learner, tmp_path / str(tied))
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == tied
        for ids in rows:
            canary = groups.learner.ranks.submit("canary_logprobs", token_ids=ids.tolist()).get()
            tokens = torch.from_numpy(ids).long()[None]
            expected = torch.log_softmax(model(input_ids=tokens).logits[0, :-1], -1).gather(1, tokens[0, 1:, None])
            for answer in canary:
                np.testing.assert_allclose(answer, expected[:, 0].detach().numpy(), atol=1e-5)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = tokenizer.apply_chat_template([{"role": "user", "content": "2 + 2?"}], tokenize=False)
        assert "2 + 2?" in text
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id


def test_a_scalar_model_starts_from_a_policy_or_from_another_one(groups, tmp_path):
    groups.learner.load(tiny_model(), LEARNER).get()
    policy = exported(groups.learner, tmp_path / "policy")
    groups.value.load(ModelSettings(path=str(policy)), LEARNER).get()
    first = exported(groups.value, tmp_path / "first")
    loaded = AutoModelForSequenceClassification.from_pretrained(first)
    backbone = AutoModelForCausalLM.from_pretrained(policy).model
    for (name, mine), (_, theirs) in zip(loaded.model.named_parameters(), backbone.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert loaded.score.weight.shape == (1, 16)
    groups.value.load(ModelSettings(path=str(first)), LEARNER).get()
    again = AutoModelForSequenceClassification.from_pretrained(exported(groups.value, tmp_path / "again"))
    assert torch.equal(again.score.weight, loaded.score.weight)

    experiences = [make_experience(np.random.default_rng(i), i) for i in range(3)]
    (values,) = ray.get(groups.value.values([[[e] for e in experiences]]).get())
    place = 0
    for e in experiences:
        ids = torch.from_numpy(np.concatenate([e.prompt.token_ids, e.rollout.response_ids])).long()[None]
        every = loaded.score(loaded.model(input_ids=ids).last_hidden_state)[0, :, 0].detach().numpy()
        num = len(e.rollout.response_ids)
        np.testing.assert_allclose(values[place : place + num], every[-num - 1 : -1], atol=1e-5)
        place += num


def make_rows(num: int, seed: int = 0) -> list[TokenizedRow]:
    return [TokenizedRow(row.token_ids, row.fields["mask"] * 0.5) for row in random_rows(num, seed)]


def test_supervised_steps_do_not_depend_on_how_they_are_called(groups, tmp_path):
    write_token_store(tmp_path / "store", make_rows(21))
    lrs, arguments = [1e-2, 5e-3, 2e-3], {"batch_size": 8, "seed": 5}

    def run(calls: list[tuple[int, list[float]]]) -> tuple[Path, list[float]]:
        groups.learner.load(tiny_model(), LEARNER).get()
        losses = []
        for first_step, part in calls:
            reports = groups.learner.train_supervised(
                str(tmp_path / "store"), SupervisedLossSettings(), first_step=first_step, lrs=part, **arguments
            ).get()
            losses += [report.metrics["loss/supervised"] for report in reports]
        return exported(groups.learner, tmp_path / str(len(calls))), losses

    groups.learner.load(tiny_model(), LEARNER).get()
    model = AutoModelForCausalLM.from_pretrained(exported(groups.learner, tmp_path / "start"), dtype=torch.float64)
    together, losses = run([(0, lrs)])
    apart, _ = run([(0, lrs[:1]), (1, lrs[1:])])
    assert (together / "model.safetensors").read_bytes() == (apart / "model.safetensors").read_bytes()
    store = TokenStore(tmp_path / "store")
    taken = [rows_of_step(21, batch_size=8, step=step, seed=5) for step in range(3)]
    assert sorted(np.concatenate(taken).tolist()) == list(range(21))
    adam = torch.optim.AdamW(model.parameters(), eps=Oracle.eps, weight_decay=0.0)
    for indices, lr, loss in zip(taken, lrs, losses, strict=True):
        total = weight = 0.0
        for index in indices:
            row = store.row(int(index))
            ids, weights = torch.from_numpy(row.token_ids).long()[None], torch.from_numpy(row.loss_weights)[1:].double()
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
            total, weight = total - (logprobs * weights).sum(), weight + weights.sum()
        assert loss == pytest.approx((total / weight).item(), abs=1e-5)
        adam.zero_grad()
        (total / weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.param_groups[0]["lr"] = lr
        adam.step()
    assert_weights_equal(model, together)


def test_the_loss_may_be_a_sum(groups, tmp_path):
    """Adam with a large eps: the first step lr g / (|g| + eps) shows the size of the gradient."""
    write_token_store(tmp_path / "store", make_rows(9, seed=8))
    groups.learner.load(tiny_model(), plain_sgd(tokens_per_micro_batch=64)).get()
    model = AutoModelForCausalLM.from_pretrained(exported(groups.learner, tmp_path / "start"), dtype=torch.float64)
    (report,) = groups.learner.train_supervised(
        str(tmp_path / "store"), SupervisedLossSettings(reduction="sum"), first_step=0, lrs=[0.1], batch_size=9, seed=0
    ).get()
    store = TokenStore(tmp_path / "store")
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for row in (store.row(index) for index in range(9)):
        ids, weights = torch.from_numpy(row.token_ids).long()[None], torch.from_numpy(row.loss_weights)[1:].double()
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        total, weight = total - (logprobs * weights).sum(), weight + weights.sum().item()
    assert report.metrics["loss/supervised"] == pytest.approx(total.item(), rel=1e-6)
    assert report.metrics["supervised/nll"] == pytest.approx(total.item() / weight, rel=1e-6)
    total.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad / (parameter.grad.abs() + 1.0)
    assert_weights_equal(model, exported(groups.learner, tmp_path / "after"))


def test_preferences_and_reward_modelling_equal_float64(groups, tmp_path):
    sides = make_rows(18, seed=4)
    pairs = [TokenizedPair(sides[i], sides[i + 1], margin=0.25 * i) for i in range(0, 18, 2)]
    write_pair_store(tmp_path / "pairs", pairs)
    folder, steps = str(tmp_path / "pairs"), PairSteps(first_step=0, lrs=(1e-2,), batch_size=6, seed=2)
    taken = rows_of_step(9, batch_size=6, step=0, seed=2)
    groups.learner.load(tiny_model(), LEARNER).get()
    groups.value.load(tiny_model(), LEARNER).get()
    policy = AutoModelForCausalLM.from_pretrained(exported(groups.learner, tmp_path / "p"), dtype=torch.float64)
    scalar = AutoModelForSequenceClassification.from_pretrained(
        exported(groups.value, tmp_path / "v"), dtype=torch.float64
    )
    reference_model = tiny_model().model_copy(update={"init_seed": 3})
    groups.reference.load(reference_model, LEARNER).get()
    other = AutoModelForCausalLM.from_pretrained(exported(groups.reference, tmp_path / "r"), dtype=torch.float64)

    def summed(model, row: TokenizedRow) -> torch.Tensor:
        ids, mask = torch.from_numpy(row.token_ids).long()[None], torch.from_numpy(row.loss_weights[1:] != 0)
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        return logprobs[mask].sum()

    def length(row: TokenizedRow) -> int:
        return int((row.loss_weights[1:] != 0).sum())

    reference = groups.reference.pair_logprobs(folder).get()
    expected = np.array([[summed(other, side).item() for side in pair[:2]] for pair in pairs])
    np.testing.assert_allclose(reference, expected, atol=1e-4)
    (report,) = groups.learner.train_preferences(
        folder, steps, PreferenceLossSettings(beta=2.0), reference=reference
    ).get()
    losses = []
    for i in taken:
        chosen, rejected = (
            2.0 * (summed(policy, side) - reference[i, k].item()) / length(side) for k, side in enumerate(pairs[i][:2])
        )
        losses.append(-torch.nn.functional.logsigmoid(chosen - rejected))
    assert report.metrics["loss/preference"] == pytest.approx((sum(losses) / 6).item(), abs=1e-5)
    one_adam_step(policy, sum(losses) / 6)
    assert_weights_equal(policy, exported(groups.learner, tmp_path / "p2"))

    def score(row: TokenizedRow) -> torch.Tensor:
        ids = torch.from_numpy(row.token_ids).long()[None]
        return scalar.score(scalar.model(input_ids=ids).last_hidden_state)[0, -1, 0]

    scores = groups.value.pair_scores(folder).get()
    np.testing.assert_allclose(scores, [[score(s).item() for s in pair[:2]] for pair in pairs], atol=1e-5)
    (report,) = groups.value.train_reward(folder, steps, RewardLossSettings(use_margins=True)).get()
    gaps = [score(pairs[i].chosen) - score(pairs[i].rejected) - pairs[i].margin for i in taken]
    loss = sum(-torch.nn.functional.logsigmoid(gap) for gap in gaps) / 6
    assert report.metrics["loss/reward"] == pytest.approx(loss.item(), abs=1e-5)
    one_adam_step(scalar, loss)
    assert_weights_equal(scalar, exported(groups.value, tmp_path / "v2"))
    assert len(PairStore(folder)) == 9


def one_adam_step(model: torch.nn.Module, loss: torch.Tensor) -> None:
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=Oracle.eps, weight_decay=0.0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()


def test_training_goes_on_bit_for_bit_after_a_restore(groups, tmp_path):
    write_token_store(tmp_path / "store", make_rows(30))
    store, arguments = str(tmp_path / "store"), {"batch_size": 10, "seed": 1}
    dropout = tiny_model(attention_dropout=0.2)
    groups.learner.load(dropout, LEARNER).get()
    groups.learner.train_supervised(store, SupervisedLossSettings(), first_step=0, lrs=[1e-2, 1e-2], **arguments).get()
    groups.learner.save(str(tmp_path / "state")).get()
    while not groups.learner.saved_files(str(tmp_path / "state")).get():
        time.sleep(0.05)
    groups.learner.train_supervised(store, SupervisedLossSettings(), first_step=2, lrs=[1e-2, 1e-2], **arguments).get()
    straight = exported(groups.learner, tmp_path / "straight")
    groups.learner.load(dropout.model_copy(update={"init_seed": 9}), LEARNER).get()
    groups.learner.restore(str(tmp_path / "state")).get()
    groups.learner.train_supervised(store, SupervisedLossSettings(), first_step=2, lrs=[1e-2, 1e-2], **arguments).get()
    resumed = exported(groups.learner, tmp_path / "resumed")
    assert (straight / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    (tmp_path / "state" / "generators_rank00001.pt").unlink()
    with pytest.raises(CheckpointError, match="no whole state of a learner: 2 optimizer shards of 1 ranks"):
        groups.learner.restore(str(tmp_path / "state")).get()


def test_pickled_weights_are_refused_on_the_rank(groups, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="no safetensors, and pickled weights are never loaded"):
        groups.reference.load(ModelSettings(path=str(tmp_path)), LEARNER).get()
