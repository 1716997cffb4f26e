"""The ground truth of instruction following: parsed at every verdict, and refused with all its faults at load."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rlsys.errors import VerifierError
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.table import constraints, refused_ids

Scoring: TypeAlias = Literal["binary", "fractional"]
"""`binary`: 1 when every instruction is followed, else 0. `fractional`: the share of instructions followed."""

KEYS = {"instruction_id_list", "instruction_id", "kwargs", "scoring"}


@dataclass(frozen=True, slots=True)
class Instruction:
    """A constraint with its arguments, parsed: a fresh value each time, so that no sample can consume another's."""

    constraint: Constraint
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What a response has to follow, and how it is scored."""

    instructions: tuple[Instruction, ...]
    scoring: Scoring


def parse_ground_truth(ground_truth: Any) -> GroundTruth:
    """Read a ground truth.

    Args:
        ground_truth: `{"instruction_id_list": [...], "kwargs": [...]}`, optionally with `"scoring"`; also as JSON text,
            in a list of one, or with `instruction_id` for the list's name, as the Tülu 3 and IFBench training sets
            have it. Arguments that are null count as absent.

    Raises:
        VerifierError: naming every fault.
    """
    faults: list[str] = []
    parsed = _parse(_as_mapping(ground_truth), faults)
    _refuse(faults)
    return parsed


def check_ifeval_ground_truth(ground_truth: Any) -> None:
    """Refuse a ground truth that cannot be verified, or that no response can satisfy.

    Raises:
        VerifierError: naming every fault.

    >>> check_ifeval_ground_truth({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})
    """
    faults: list[str] = []
    parsed = _parse(_as_mapping(ground_truth), faults)
    for instruction in parsed.instructions:
        reason = instruction.constraint.impossible(**instruction.arguments)
        if reason is not None:
            faults.append(f"{instruction.constraint.id}: {reason}")
    _refuse(faults)


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise VerifierError("the instruction-following ground truth is invalid: " + "; ".join(faults))


def _as_mapping(ground_truth: Any) -> Mapping[str, Any]:
    value = ground_truth
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise VerifierError("the instruction-following ground truth is not JSON", value=ground_truth) from error
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Mapping):
        raise VerifierError(
            "the instruction-following ground truth is not an object",
            value=ground_truth,
            fix='give {"instruction_id_list": [...], "kwargs": [...]}',
        )
    return value


def _parse(ground_truth: Mapping[str, Any], faults: list[str]) -> GroundTruth:
    unknown = sorted(str(key) for key in ground_truth if key not in KEYS)
    if unknown:
        faults.append(f"unknown keys {unknown}, known are {sorted(KEYS)}")
    scoring = ground_truth.get("scoring", "binary")
    if scoring not in ("binary", "fractional"):
        faults.append(f"scoring must be 'binary' or 'fractional', got {scoring!r}")
    ids = ground_truth.get("instruction_id_list", ground_truth.get("instruction_id"))
    kwargs = ground_truth.get("kwargs")
    if not isinstance(ids, list | tuple) or not ids:
        faults.append(f"instruction_id_list must be a list of at least one id, got {ids!r}")
        return GroundTruth((), scoring)
    if not isinstance(kwargs, list | tuple) or len(kwargs) != len(ids):
        faults.append(f"kwargs must be a list of {len(ids)} objects, one for each id, got {kwargs!r}")
        return GroundTruth((), scoring)
    instructions = (_parse_instruction(id, given, faults) for id, given in zip(ids, kwargs, strict=True))
    return GroundTruth(tuple(item for item in instructions if item is not None), scoring)


def _parse_instruction(id: Any, given: Any, faults: list[str]) -> Instruction | None:
    constraint = constraints().get(id) if isinstance(id, str) else None
    if constraint is None:
        reason = refused_ids().get(id) if isinstance(id, str) else None
        faults.append(f"unknown instruction id {id!r}" if reason is None else f"{id} is not verified: {reason}")
        return None
    if given is not None and not isinstance(given, Mapping):
        faults.append(f"{id}: its arguments must be an object, got {given!r}")
        return None
    present = {name: value for name, value in (given or {}).items() if value is not None}
    num_before = len(faults)
    faults += [f"{id}: unknown argument {name!r}" for name in present if name not in constraint.arguments]
    arguments: dict[str, Any] = {}
    for name, argument in constraint.arguments.items():
        if name not in present:
            faults.append(f"{id}: missing argument {name!r}, {argument.expected}")
            continue
        try:
            arguments[name] = argument.parse(present[name])
        except ValueError:
            faults.append(f"{id}: {name} must be {argument.expected}, got {present[name]!r}")
    return Instruction(constraint, arguments) if len(faults) == num_before else None
