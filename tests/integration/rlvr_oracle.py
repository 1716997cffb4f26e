"""One RLVR step as a straight line of float64 PyTorch, one response at a time: no rlsys maths, no packing, no ranks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlsys.types import Experience


@dataclass
class Oracle:
    """Inputs and, after `run`, results of the step."""

    policy: Any
    value: Any
    reference: Any
    experiences: list[Experience]
    seed: int
    beta = 0.05
    lam = 0.95
    clip = 0.2
    value_clip = 0.2
    value_coef = 0.1
    lag_upper = 2.0
    epochs = 2
    minibatches = 2
    lrs = (1e-2, 8e-3, 6e-3, 4e-3)
    eps = 1e-3
    max_norm = 1.0

    def run(self) -> None:
        kept = [e for e in self.experiences if not e.masked]
        with torch.no_grad():
            old_logprobs = [self.logprobs(self.policy, e) for e in kept]
            reference = [self.logprobs(self.reference, e) for e in kept]
            old_values = [self.values(e) for e in kept]
        self.raw_advantages, self.returns = [], []
        for e, old, ref, values in zip(kept, old_logprobs, reference, old_values, strict=True):
            rewards = -self.beta * (old - ref)
            rewards[-1] += e.reward
            advantage, following = 0.0, 0.0
            advantages = torch.zeros_like(rewards)
            for t in reversed(range(len(rewards))):
                advantage = rewards[t] + following - values[t] + self.lam * advantage
                following = values[t]
                advantages[t] = advantage
            self.raw_advantages.append(advantages)
            self.returns.append(advantages + values)
        everything = torch.cat(self.raw_advantages)
        scale = (everything.var(unbiased=True) + 1e-8).sqrt()
        self.advantages = [(a - everything.mean()) / scale for a in self.raw_advantages]
        sampled = [torch.from_numpy(e.rollout.logprobs).double() for e in kept]
        lag = [(old - mu).exp().clamp(max=self.lag_upper) for old, mu in zip(old_logprobs, sampled, strict=True)]
        policy_adam = torch.optim.AdamW(self.policy.parameters(), lr=0.0, eps=self.eps, weight_decay=0.0)
        value_adam = torch.optim.AdamW(self.value.parameters(), lr=0.0, eps=self.eps, weight_decay=0.0)
        steps = iter(self.lrs)
        self.policy_losses, self.value_losses = [], []
        for epoch in range(self.epochs):
            order = np.random.default_rng((self.seed, epoch)).permutation(len(kept))
            for members in np.array_split(order, self.minibatches):
                lr = next(steps)
                tokens = sum(len(kept[i].rollout.response_ids) for i in members)
                policy_loss, value_loss = torch.tensor(0.0).double(), torch.tensor(0.0).double()
                for i in members:
                    ratio = (self.logprobs(self.policy, kept[i]) - old_logprobs[i]).exp()
                    a = self.advantages[i]
                    surrogate = torch.maximum(-a * ratio, -a * ratio.clamp(1 - self.clip, 1 + self.clip))
                    policy_loss = policy_loss + (lag[i] * surrogate).sum() / tokens
                    values, old, target = self.values(kept[i]), old_values[i], self.returns[i]
                    bounded = old + (values - old).clamp(-self.value_clip, self.value_clip)
                    worse = torch.maximum((values - target) ** 2, (bounded - target) ** 2)
                    value_loss = value_loss + 0.5 * worse.sum() / tokens
                self.policy_losses.append(policy_loss.item())
                self.value_losses.append(value_loss.item())
                self.step(self.policy, policy_adam, policy_loss, lr)
                self.step(self.value, value_adam, self.value_coef * value_loss, lr)

    def flat(self, results: list[torch.Tensor], experiences: list[Experience]) -> np.ndarray:
        """Results of what was kept of the experiences, in their order."""
        by_ordinal = dict(zip((e.prompt.ordinal for e in self.experiences if not e.masked), results, strict=True))
        return torch.cat([by_ordinal[e.prompt.ordinal] for e in experiences if not e.masked]).numpy()

    def step(self, model: Any, adam: torch.optim.Optimizer, loss: torch.Tensor, lr: float) -> None:
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
        adam.param_groups[0]["lr"] = lr
        adam.step()

    def logprobs(self, model: Any, e: Experience) -> torch.Tensor:
        ids = torch.from_numpy(np.concatenate([e.prompt.token_ids, e.rollout.response_ids])).long()[None]
        start = len(e.prompt.token_ids)
        scores = torch.log_softmax(model(input_ids=ids).logits[0, start - 1 : -1], -1)
        return scores.gather(1, ids[0, start:, None])[:, 0]

    def values(self, e: Experience) -> torch.Tensor:
        ids = torch.from_numpy(np.concatenate([e.prompt.token_ids, e.rollout.response_ids])).long()[None]
        start = len(e.prompt.token_ids)
        return self.value.score(self.value.model(input_ids=ids).last_hidden_state)[0, start - 1 : -1, 0]
