"""Which answers are right: gold, boxed answer, and whether they are the same, by hand."""

import pytest

from rlsys.verifiers.math import verify_math

SAME = [
    # numbers
    (r"\frac12", "0.5"),
    (r"\frac12", "1/2"),
    (r"\frac12", ".5"),
    (r"\frac12", r"\frac{2}{4}"),
    ("0.5", r"\frac{1}{2}"),
    ("1{,}000", "1000"),
    ("1000", "1,000"),
    ("1000", "1{,}000.0"),
    ("1000", r"1\,000"),
    ("1000", "1\u202f000"),
    ("10000", "10 000"),
    (r"15,\!625", "15625"),
    ("4", "4.0"),
    ("3", "03"),
    ("7", "+7"),
    ("7", "7."),
    ("7", r"\text{7}"),
    ("7", r"\mathbf{7}"),
    ("7", "{7}"),
    ("-7", "\u22127"),
    ("4", "2\u00b2"),
    (r"0.\overline{3}", r"\frac13"),
    (r"1.5\times10^{-3}", "0.0015"),
    ("300000000", r"3\times 10^8"),
    ("1024", "2^{10}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2004!}"),
    (r"3^{2007}", r"3^{2006}\cdot 3"),
    # mixed numbers, units, percentages, degrees, bases, ratios
    (r"\frac72", r"3\frac12"),
    (r"3\frac12", r"\frac{7}{2}"),
    ("3.5", "3 1/2"),
    ("-3.5", r"-3\frac{1}{2}"),
    (r"5\text{ cm}", "5"),
    ("5", r"5\text{ cm}^2"),
    (r"5\text{ hours}", r"5\text{ hrs}"),
    ("5.25", r"\$5.25"),
    (r"0.06 \text{ yuan}", "0.06"),
    (r"18\%", "18"),
    (r"18\%", "0.18"),
    ("18", r"18\%"),
    ("0.5", r"50\%"),
    (r"28\%", "28 percent"),
    ("1", r"100\%"),
    ("90", r"90^{\circ}"),
    (r"90^\circ", r"90\text{ degrees}"),
    (r"\cos 60^\circ", r"\frac12"),
    ("204_5", "204_{5}"),
    ("204_5", "204"),
    ("1:4", "1:4"),
    ("5:6", r"\frac56"),
    (r"3:30\text{ p.m.}", "3:30 PM"),
    # surds, constants, complex numbers, functions
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\pi", "3.14159"),
    (r"\frac{\pi}{4}", "0.7853981634"),
    ("3+4i", "4i+3"),
    ("-1", r"e^{i\pi}"),
    (r"\log_2 8", "3"),
    (r"\ln 4", r"2\ln 2"),
    (r"\binom{10}{5}", "252"),
    (r"\infty", r"+\infty"),
    # expressions with variables
    ("x^2+2x+1", "(x+1)^2"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    (r"\sqrt{x^2}", "|x|"),
    (r"\tan^2(y)+1", r"\sec^2(y)"),
    (r"2\sin x\cos x", r"\sin 2x"),
    ("e^{x+y}", "e^xe^y"),
    (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}"),
    ("xy", "yx"),
    (r"2\pi r", r"2r\pi"),
    # sets, lists, tuples, intervals, inequalities
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\{1,2\}", r"\{1,1,2\}"),
    ("1,2", r"1 \text{ and } 2"),
    (r"-12 \text{ or } -30", "-30, -12"),
    ("1, 1, -2", "-2, 1, 1"),
    (r"1\pm\sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1-\sqrt5, 1+\sqrt5\}"),
    (r"\emptyset", r"\{\}"),
    ("(1,2)", r"\left( 1,\ 2 \right)"),
    ("(1,2,3)", "[1,2,3]"),
    ("(2,1),(1,2)", "(1,2), (2,1)"),
    ("(0,1]", r"0<x\le 1"),
    (r"[1,2]", r"x\in[1,2]"),
    (r"x\ge 0", r"[0,\infty)"),
    (r"x \leq 5", r"5 \geq x"),
    (r"[1,2]\cup[3,4]", r"[3,4]\cup[1,2]"),
    (r"(-\infty,0)\cup(0,\infty)", r"x\ne 0"),
    (r"(-\infty,0)\cup(0,\infty)", r"\mathbb{R}\setminus\{0\}"),
    (r"1\leq|z|\leq \frac{3}{2}", r"z \in \left[-\frac{3}{2}, -1\right] \cup \left[1, \frac{3}{2}\right]"),
    # matrices
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"\begin{pmatrix}1/2\\1\end{pmatrix}", r"\frac12\begin{pmatrix}1\\2\end{pmatrix}"),
    ("3", r"\begin{vmatrix} 2 & 1 \\ 1 & 2 \end{vmatrix} = 3"),
    # equations and assignments
    ("x=3", "3"),
    ("3", "x=3"),
    ("(p,q)=(3,2)", "(3,2)"),
    ("x=-5, p=1", "-5, 1"),
    ("y=2x+3", "2x-y+3=0"),
    ("x^2+y^2=25", "y^2+x^2=25"),
    ("4", "2+2=4"),
    (r"\frac13", r"\frac13 \approx 0.333"),
    (r"f(2) < f(1) < f(4)", "f(4) > f(1) > f(2)"),
    # words
    (r"\text{(B)}", "B"),
    ("B", r"\text{(B)}"),
    (r"\text{Evelyn}", "evelyn"),
    (r"\text{A, B}", "B, A"),
    (r"\text{no solution}", "no solution"),
    # math-verify reads the gold
    (r"\sum_{k=1}^{4} k", "10"),
    (r"\int_0^1 x\,dx", r"\frac12"),
]

DIFFERENT = [
    ("1000000", "1000001"),
    ("1000000", "1000000.5"),
    ("4", "3.9999999"),
    ("0", "10^{-9}"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("1/3", "0.333"),
    (r"\sqrt{2}", "1.41"),
    (r"\pi", r"\frac{22}{7}"),
    ("262537412640768744", r"e^{\pi\sqrt{163}}"),
    (r"\frac{3}{2}", r"3\frac12"),
    ("0.5", r"5\%"),
    (r"50\%", r"5\%"),
    (r"5\text{ cm}", r"5\text{ m}"),
    (r"3:30\text{ p.m.}", r"3:30\text{ a.m.}"),
    (r"\frac{\pi}{2}", r"90^\circ"),
    ("204_5", "204_6"),
    ("204_5", "54"),
    ("12:00", "1:00"),
    ("12", "1,2"),
    ("(1,0)", "1,000"),
    ("1000", "1.000"),
    ("i", "-i"),
    ("x^2-1", "(x-1)^2"),
    (r"\sqrt{x^2}", "x"),
    ("f(x)", "f(y)"),
    ("1,2", "1"),
    ("1", "1,2"),
    ("4", r"\{3,4\}"),
    ("1,1,-2", "1,-2"),
    (r"\pm 3", "3"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    (r"(-\infty,3)", r"x\le 3"),
    ("x>5", "x<5"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
    ("x=3", "y=3"),
    ("x=3", "x=x"),
    ("y=2x+3", "0=0"),
    ("x^2+y^2=25", "25"),
    (r"\text{even}", "odd"),
    ("A", "A, B, C, D"),
    (r"\infty", r"-\infty"),
    ("0", r"\infty-\infty"),
    ("0", r"\frac{0}{0}"),
    ("0", "False"),
]


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_a_right_answer_is_correct_in_both_modes(gold: str, answer: str):
    for mode in ("eval", "reward"):
        judgement = verify_math(rf"So it is $\boxed{{{answer}}}$.", gold, mode)
        assert (judgement.outcome, judgement.score) == ("correct", 1.0), judgement


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_a_wrong_answer_scores_nothing_in_both_modes(gold: str, answer: str):
    for mode in ("eval", "reward"):
        judgement = verify_math(rf"So it is $\boxed{{{answer}}}$.", gold, mode)
        assert judgement.outcome in ("wrong", "unparsable") and judgement.score == 0.0, judgement


@pytest.mark.parametrize("answer", ["74+46", r"12\cdot 10", "5!", "240/2", r"(1+119)"])
def test_arithmetic_left_undone_is_paid_in_evaluation_only(answer: str):
    """A policy asked for 74 + 46 would learn to box the question."""
    assert verify_math(rf"\boxed{{{answer}}}", "120", "eval").outcome == "correct"
    assert verify_math(rf"\boxed{{{answer}}}", "120", "reward").outcome == "wrong"


def test_evaluation_accepts_a_decimal_rounded_to_five_digits_of_an_exact_gold():
    assert verify_math(r"\boxed{2.6667}", r"\frac83", "eval").outcome == "correct"
    assert verify_math(r"\boxed{2.6667}", r"\frac83", "reward").outcome == "wrong"
    assert verify_math(r"\boxed{2.667}", r"\frac83", "eval").outcome == "wrong"
    assert verify_math(r"\boxed{2.6666}", r"\frac83", "eval").outcome == "wrong"


def test_a_decimal_comma_is_read_where_the_gold_is_a_decimal():
    assert verify_math(r"\boxed{2,74}", "2.74", "eval").outcome == "correct"
    assert verify_math(r"\boxed{1,2}", "12", "eval").outcome == "wrong"
