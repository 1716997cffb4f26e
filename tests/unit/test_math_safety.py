"""Whatever a model writes is judged in bounded time, never executed, and never raises."""

import builtins
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlsys.verifiers.gsm8k import verify_gsm8k
from rlsys.verifiers.math import verify_math

CPU_LIMIT_S = 2.0
TOKENS = [
    *(r"\frac", "{", "}", "(", ")", "[", "]", r"\{", r"\}", "1", "2", "9", "10", "99999", "x", "y", "e", "i", r"\pi"),
    *("+", "-", "*", "/", "^", "_", "!", "%", r"\sqrt", r"\sin", r"\log", r"\tan^{-1}", r"\binom", "|", ",", ";", "="),
    *("<", r"\le", r"\ne", r"\in", r"\cup", r"\setminus", r"\mathbb{R}", r"\infty", r"\pm", r"\text{or}", r"\text{cm}"),
    *(r"\begin{pmatrix}", r"\end{pmatrix}", "&", r"\\", r"\left", r"^\circ", ".", "0.5", r"\overline{3}", "$", r"\("),
    *(r"\boxed{", "<think>", "</think>", " or ", r"\lfloor", "gcd(", r"\sec", r"\dots", r"\,", "{,}", "'", "e9"),
]
GOLDS = ["4", r"\frac12", "(1,2)", r"\{1,2\}", "x^2-1", "[0,1)", r"\text{B}", "y=2x+3", r"1\pm\sqrt2", "204_5", r"18\%"]

COSTLY = [
    r"9999999!",
    r"((((3!)!)!)!)!",
    r"3!!!!!!!",
    r"2^{2^{2^{8192}}}",
    r"9^{9^{9^9}}",
    r"10^{10^{10}} - 10^{10^{10}}",
    r"7^{10^{8}} \bmod 10",
    r"\sqrt[1000000007]{2^{1000000007}+1}",
    r"(x+1)^{1000000}",
    r"\sin(10^{10000})",
    r"\binom{10^9}{5\cdot 10^8}",
    r"\sum_{n=1}^{10^{12}} \frac{1}{n}",
    r"\int_{0}^{\infty} \frac{\sin(x^{17})\ln(x)}{x^{x}+e^{x^x}} dx",
    r"\{1,2,\ldots,10^{9}\}",
    "(" * 5000 + "2" + ")" * 5000,
    r"\sqrt{" * 300 + "2" + "}" * 300,
    r"\frac{1}{" * 39 + "2" + "}" * 39,
    "1+" * 1999 + "1",
    "/".join("1" * 1500),
    "!" * 3000,
    "4" + "!" * 3000,
    ",".join(rf"\sin^{{{n}}} x" for n in range(99)),
    ",".join(f"x+{n}" for n in range(99)),
    r"\tan^{-1}" * 400 + "1",
    "=".join("4" * 900),
    r"\gcd(" + ",".join(["10^{40}"] * 200) + ")",
    "1" * 4000,
    "0." + "1" * 3000,
    r"0.\overline{" + "1" * 3000 + "}",
    "\\" * 3999,
    "x" * 3999,
    "{" * 3999,
    r"\begin{pmatrix}" + r"1 & " * 900 + r"1\end{pmatrix}",
]


def cpu_seconds_of(response: str, gold: str, mode: str) -> float:
    started = time.process_time()
    judgement = verify_math(response, gold, mode)  # pyright: ignore[reportArgumentType]
    assert judgement.outcome in ("wrong", "unparsable") and judgement.score == 0.0, judgement
    return time.process_time() - started


@pytest.mark.parametrize("answer", COSTLY, ids=lambda answer: answer[:25])
@pytest.mark.parametrize("gold", ["720000007", "x-5", "1, 2, 3"])
def test_a_costly_answer_is_cheap_to_judge(answer: str, gold: str):
    assert cpu_seconds_of(rf"It is $\boxed{{{answer}}}$.", gold, "eval") < CPU_LIMIT_S


@pytest.mark.parametrize(
    "response",
    [
        "{" * 200_000 + r"\boxed{5}",
        r"\boxed{" * 50_000,
        r"\boxed{" * 20_000 + "4" + "}" * 20_000,
        "\\" * 500_000,
        "the answer is " * 60_000,
        "final answer is " * 50_000,
        "1," * 400_000,
        "-" * 900_000,
        " " * 900_000 + "x",
        "$" * 900_000,
        "$$ x " * 200_000,
        r"\( " * 300_000,
        "<think>" * 100_000 + "</think>" * 100_000,
        "answer: " + "9" * 900_000,
        r"\boxed " * 100_000,
        "#### " * 150_000,
        "." * 900_000 + "I hope it is correct",
    ],
    ids=lambda response: response[:12],
)
def test_a_long_response_is_read_in_linear_time(response: str):
    for mode in ("eval", "reward"):
        assert cpu_seconds_of(response, "4", mode) < CPU_LIMIT_S
        started = time.process_time()
        assert verify_gsm8k(response, "4", mode).score == 0.0  # pyright: ignore[reportArgumentType]
        assert time.process_time() - started < CPU_LIMIT_S


def test_an_overlong_response_is_unparsable():
    assert verify_math("x" * 1_000_001 + r"\boxed{4}", "4", "reward").outcome == "unparsable"


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('touch {sentinel}')",
        r"\operatorname{{__import__('os').system('touch {sentinel}')}}",
        "().__class__.__bases__[0].__subclasses__()",
        "lambda: 4",
        r"\input{{{sentinel}}}",
        r"\immediate\write18{{touch {sentinel}}}",
        "os.kill(os.getpid(), 9)",
        "{{7*7}}",
        "%(gold)s",
        "open('{sentinel}','w')",
        "exec('open(1)')",
    ],
)
def test_model_text_is_never_executed(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither eval nor exec nor a shell is as much as reached, and nothing is written."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("model text reached the interpreter")

    for module, name in ((builtins, "eval"), (builtins, "exec"), (os, "system"), (os, "kill")):
        monkeypatch.setattr(module, name, forbidden)
    sentinel = tmp_path / "pwned"
    judgement = verify_math(rf"\boxed{{{answer.format(sentinel=sentinel)}}}", "4", "eval")
    assert judgement.score == 0.0
    assert not sentinel.exists()


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    tokens=st.lists(st.sampled_from(TOKENS), min_size=1, max_size=150),
    frame=st.sampled_from([r"\boxed{%s}", "%s", "$%s$", "Final answer is %s. I hope it is correct."]),
    gold=st.sampled_from(GOLDS),
    mode=st.sampled_from(["eval", "reward"]),
)
def test_any_soup_of_latex_is_judged(tokens: list[str], frame: str, gold: str, mode: str):
    started = time.process_time()
    judgement = verify_math(frame.replace("%s", "".join(tokens)), gold, mode)  # pyright: ignore[reportArgumentType]
    assert judgement.outcome in ("correct", "wrong", "unparsable")
    assert time.process_time() - started < CPU_LIMIT_S


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=300))
def test_any_text_is_judged(text: str):
    for response in (text, rf"\boxed{{{text}}}", f"#### {text}"):
        assert verify_math(response, "4", "eval").outcome in ("correct", "wrong", "unparsable")
        assert verify_gsm8k(response, "4", "eval").outcome in ("correct", "wrong", "unparsable")
