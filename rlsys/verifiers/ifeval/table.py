"""Every constraint by its id: IFEval's, the training constraints of IFEvalG and IFBench's test constraints."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from rlsys.errors import VerifierError
from rlsys.verifiers.ifeval import casing, content, frame, keywords, language, layout, length
from rlsys.verifiers.ifeval.constraint import Constraint

IFEVAL = (
    *keywords.CONSTRAINTS,
    *language.CONSTRAINTS,
    *length.CONSTRAINTS,
    *content.CONSTRAINTS,
    *layout.CONSTRAINTS,
    *frame.CONSTRAINTS,
    *casing.CONSTRAINTS,
)
"""The 25 of IFEval (Zhou et al., arXiv 2311.07911)."""


@cache
def constraints() -> Mapping[str, Constraint]:
    """All constraints by id."""
    return MappingProxyType({constraint.id: constraint for constraint in IFEVAL})


def find_constraint(id: str) -> Constraint:
    """The constraint of an id.

    Raises:
        VerifierError: the id is unknown.
    """
    found = constraints().get(id)
    if found is None:
        raise VerifierError(
            "unknown instruction id", value=id, fix="use an id of rlsys.verifiers.ifeval.instruction_ids()"
        )
    return found
