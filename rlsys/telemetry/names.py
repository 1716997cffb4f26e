"""The names of metrics: `namespace/name[/stat]`, the same in metrics.jsonl, wandb and Prometheus."""

import difflib
import re
from functools import lru_cache

METRICS: dict[str, str] = {
    "reward/{mean,std,max,min}": "score of a response, over responses that no failed verifier masks",
    "reward/reward_model/{mean,std}": "score of the reward model, before its weight",
    "reward/<verifier>/mean": "score by one verifier, 0 to 1, over the responses that it could judge",
    "verifier/<verifier>/{correct,wrong,unparsable,timeout,error}_frac": "share of verdicts with that outcome",
    "verifier/alarm": "1 where too many of some verifier's verdicts are time-outs or errors",
    "verifier/latency_s/{p50,p99}": "seconds for one verdict",
    "rollout/length/{mean,max}": "response tokens, the end token included",
    "rollout/{truncated,informative_groups}_frac": "responses cut at the longest length; groups whose rewards differ",
    "loss/{policy,value,supervised,preference,reward}": "the loss of the whole optimizer step",
    "supervised/nll": "negative log-likelihood of a target token, nats",
    "preference/{accuracy,margin,chosen_reward,rejected_reward}": "implicit rewards of pairs",
    "preference/{prompts,responses,ratings,pairs,tied,unsettled}": "how many, of a stage of judged preferences",
    "reward_model/{accuracy,margin,chosen_reward,rejected_reward}": "scores of pairs",
    "policy/{entropy,clip_frac}": "nats a token; share of tokens that a clip holds",
    "policy/{approx_kl,reference_kl}": "KL a token between old and new policy, and from policy to reference, nats",
    "policy/{kl,kl_per_response}": "KL to the reference by k1 before the update, a token and a response, nats",
    "policy/{ratio,advantage}/{mean,std}": "importance ratio of the update; advantage as trained on",
    "policy/{mismatch_kl,mismatch_abs}": "engine against learner at the same weights, a token",
    "policy/canary_gap": "largest logprob difference (beyond 1 nat, as a share) of the canary, engines against learner",
    "policy/lag_kl": "KL from the policy that sampled stale tokens to the learner's, a token",
    "policy/lag_touched_frac": "tokens whose lag weight was truncated or masked",
    "policy/lag_weight/{mean,std}": "weight of a token from the lag correction",
    "value/explained_variance": "1 - Var(returns - values) / Var(returns)",
    "value/clip_frac": "tokens whose value loss is the clipped one",
    "value/{return,residual}/{mean,std}": "targets of the value model, and targets minus values",
    "staleness/{mean,max}_steps": "learner's version minus that of a group's oldest token, at consumption",
    "staleness/dropped": "groups dropped for their age, since the start of the stage",
    "optim/{lr,grad_norm}": "of the step",
    "optim/value_{lr,grad_norm}": "of the value model",
    "optim/{skipped,value_skipped}": "share of the optimizer steps that were not applied",
    "skipped/<reason>": "steps not applied to the weights, since the start of the stage",
    "perf/{tokens_per_s,samples_per_s}": "trained response tokens and responses per second of wall time",
    "perf/restarts/<kind>": "actors of the kind that were started again, since the start of the process",
    "perf/driver_rss_gib": "memory of the driver's process, GiB",
    "perf/driver_open_files": "file descriptors of the driver's process",
    "perf/driver_objects": "Ray objects that the driver's process refers to",
    "perf/rollout_workers": "rollout workers that were given work at the end of the step",
    "perf/rollbacks": "returns of the stage to its last checkpoint, since the start of the process",
    "rollout/lost/<reason>": "groups lost for one reason, since the start of the process",
    "rollout/lost_groups": "groups lost with their worker or verifier, or late, since the start of the stage",
    "rollout/unwritten": "rollout files that could not be written, since the start of the process",
    "rollout/continued": "responses taken over from groups under way at a checkpoint, since the start of the process",
    "perf/{mfu,peak_mem_gib}": "model FLOP utilisation of what is trained; peak memory of its busiest rank, GiB",
    "perf/value_{mfu,peak_mem_gib}": "the same of the value model beside a policy",
    "time/<part>_s": "seconds: step, wait_rollouts, proximal, reference, values, update, publish, evaluate, checkpoint",
    "eval/<set>/<metric>": "held-out evaluation",
}
"""Every metric that rlsys writes; `<x>` stands for a name of the recipe, `{a,b}` for alternatives."""

_FORM = re.compile(r"[a-z][a-z0-9_]*/[A-Za-z0-9_.@=-]+(/[A-Za-z0-9_.@=-]+)?")
NAMESPACES = frozenset(pattern.split("/")[0] for pattern in METRICS)


def _to_regex(pattern: str) -> re.Pattern[str]:
    pattern = re.sub(r"<\w+>", "[A-Za-z0-9_.@=-]+", pattern)
    return re.compile(re.sub(r"\{([^}]*)\}", lambda found: f"(?:{found[1].replace(',', '|')})", pattern))


@lru_cache(maxsize=4096)
def check_name(name: str) -> str:
    """Returns the name, if it has the form `namespace/name[/stat]` and a known namespace.

    Raises:
        ValueError: naming the nearest namespace.

    >>> check_name("reward/mean")
    'reward/mean'
    """
    if not _FORM.fullmatch(name):
        raise ValueError(f"a metric is called namespace/name[/stat] in letters, digits and _.@=-; got {name!r}")
    namespace = name.split("/")[0]
    if namespace not in NAMESPACES:
        near = difflib.get_close_matches(namespace, NAMESPACES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(sorted(NAMESPACES))}"
        raise ValueError(f"unknown namespace of metric {name!r}; {hint}")
    return name


@lru_cache(maxsize=4096)
def describe(name: str) -> str:
    """What a metric is, from `METRICS`; empty for one that only a recipe knows.

    >>> describe("verifier/latency_s/p99")
    'seconds for one verdict'
    """
    return next((text for pattern, text in METRICS.items() if _to_regex(pattern).fullmatch(name)), "")


def name_part(text: str) -> str:
    """What a data set or a user calls something, as a part of a metric's name.

    >>> name_part("ai2-adapt-dev/tulu 3"), name_part("code:py")
    ('ai2-adapt-dev_tulu_3', 'code_py')
    """
    return re.sub(r"[^A-Za-z0-9_.=-]", "_", text) or "_"


def prometheus_name(name: str) -> str:
    """The name in Prometheus' alphabet, for a gauge.

    >>> prometheus_name("time/step_s"), prometheus_name("reward/if-eval/mean")
    ('rlsys_time_step_s', 'rlsys_reward_if_eval_mean')
    """
    return "rlsys_" + re.sub(r"[^a-zA-Z0-9_]", "_", check_name(name))
