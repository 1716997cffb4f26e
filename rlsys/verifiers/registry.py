"""The registry: a verifier is one function, and one decorator line gives it a name.

    @verifier("ends_politely")
    def ends_politely(response, ground_truth, mode):
        return response.rstrip().endswith(ground_truth)

Built-in verifiers are imported when they are first asked for, so that a process which verifies only GSM8K never
imports sympy.
"""

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any, TypeAlias, get_args

from rlsys.errors import VerifierError
from rlsys.types import Outcome
from rlsys.verifiers.judgement import Judgement, VerifyMode

VerifierFunction: TypeAlias = Callable[[str, Any, VerifyMode], Judgement | float | bool]
"""`(response, ground_truth, mode)`. A bool is right or wrong, a float is a score in [0, 1] of which only 1 is right."""

GroundTruthCheck: TypeAlias = Callable[[Any], None]
"""Raises VerifierError for a ground truth that the verifier cannot judge by; run when the data set loads."""


def accept_any_ground_truth(ground_truth: Any) -> None:
    """The check of a verifier that can judge by every ground truth."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """A named verifier function together with the check of its ground truths."""

    name: str
    function: VerifierFunction
    check_ground_truth: GroundTruthCheck

    def judge(self, response: str, ground_truth: Any, mode: VerifyMode) -> Judgement:
        """Runs the function on one response and brings a bool or float into the form of a Judgement.

        Raises:
            VerifierError: the function returned something that is no judgement.
        """
        returned = self.function(response, ground_truth, mode)
        score = returned.score if isinstance(returned, Judgement) else returned
        if not isinstance(score, Real) or not 0.0 <= score <= 1.0:  # as NaN is not
            raise VerifierError(
                f"verifier {self.name!r} must return a Judgement, a bool or a score from 0 to 1",
                value=returned,
                fix="change what the function returns",
            )
        if not isinstance(returned, Judgement):
            return Judgement("correct" if returned == 1 else "wrong", float(returned))
        if returned.outcome not in get_args(Outcome):
            raise VerifierError(
                f"verifier {self.name!r} returned an unknown outcome",
                value=returned.outcome,
                fix=f"use one of {', '.join(get_args(Outcome))}",
            )
        return returned


BUILT_IN = MappingProxyType(
    {
        "math": ("rlsys.verifiers.math", "verify_math", "check_math_ground_truth"),
        "gsm8k": ("rlsys.verifiers.gsm8k", "verify_gsm8k", "check_gsm8k_ground_truth"),
        "ifeval": ("rlsys.verifiers.ifeval", "verify_ifeval", "check_ifeval_ground_truth"),
        "tulu": ("rlsys.verifiers.tulu", "verify_tulu", "check_tulu_ground_truth"),
        "ifbench": ("rlsys.verifiers.ifbench", "verify_ifbench", "check_ifbench_ground_truth"),
        "r1": ("rlsys.verifiers.r1", "verify_r1", "check_r1_ground_truth"),
        "format": ("rlsys.verifiers.r1", "verify_format", "check_format_ground_truth"),
        "string": ("rlsys.verifiers.match", "verify_string", "check_string_ground_truth"),
        "multiple_choice": ("rlsys.verifiers.match", "verify_multiple_choice", "check_multiple_choice_ground_truth"),
        "max_length": ("rlsys.verifiers.length", "verify_max_length", "check_max_length_ground_truth"),
    }
)
"""Name -> (module, verifier function, ground truth check)."""

_registered: dict[str, Verifier] = {}


def verifier(
    name: str, *, check_ground_truth: GroundTruthCheck = accept_any_ground_truth
) -> Callable[[VerifierFunction], VerifierFunction]:
    """Registers the decorated function as verifier `name` and returns it unchanged.

    Raises:
        VerifierError: the name belongs to a built-in verifier or to another function.
    """

    def register(function: VerifierFunction) -> VerifierFunction:
        earlier = _registered.get(name)
        if name in BUILT_IN or (earlier is not None and not _same_function(earlier.function, function)):
            raise VerifierError("two verifiers share a name", value=name, fix="give yours a name of its own")
        _registered[name] = Verifier(name, function, check_ground_truth)
        return function

    return register


def _same_function(first: Callable, second: Callable) -> bool:
    """Whether both come from the same definition: a module that is imported again registers again."""
    return (first.__module__, first.__qualname__) == (second.__module__, second.__qualname__)


def get_verifier(name: str) -> Verifier:
    """The verifier of that name.

    Raises:
        VerifierError: there is none; the message names the nearest one.
    """
    if name not in _registered and name in BUILT_IN:
        module_name, function_name, check_name = BUILT_IN[name]
        module = importlib.import_module(module_name)
        _registered[name] = Verifier(name, getattr(module, function_name), getattr(module, check_name))
    if name not in _registered:
        raise VerifierError("there is no verifier of this name", value=name, fix=_suggestion(name))
    return _registered[name]


def verifier_names() -> list[str]:
    """Every name that `get_verifier` answers to, sorted."""
    return sorted({*BUILT_IN, *_registered})


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(str(name), verifier_names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(verifier_names())}"
    return f"{hint} A verifier of your own is found through `verifiers.modules` in the recipe"


def check_ground_truth(name: str, ground_truth: Any) -> None:
    """To be called for every row when a data set loads.

    Raises:
        VerifierError: the verifier is unknown, or cannot judge by this ground truth.
    """
    get_verifier(name).check_ground_truth(ground_truth)


def load_verifier_modules(modules: Sequence[str]) -> None:
    """Imports modules (dotted names) whose functions register themselves with `@verifier`.

    Raises:
        VerifierError: a module cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise VerifierError(
                f"a module of verifiers cannot be imported ({error})",
                value=module,
                fix="put its folder on PYTHONPATH, or correct `verifiers.modules`",
            ) from error
