"""Every constraint by its id: IFEval's, the training constraints of IFEvalG and IFBench's test constraints."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from rlsys.errors import VerifierError
from rlsys.verifiers.ifeval import (
    casing,
    content,
    copies,
    edges,
    frame,
    keywords,
    language,
    layout,
    length,
    patterns,
    tallies,
)
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

TRAINING = (*copies.CONSTRAINTS, *edges.CONSTRAINTS, *tallies.CONSTRAINTS, *patterns.CONSTRAINTS)
"""The 29 that IFEvalG adds for training (Pyatkin et al., arXiv 2507.02833)."""


@cache
def constraints() -> Mapping[str, Constraint]:
    """All constraints by id."""
    # Here and not above: IFBench's package checks its instruction lists through this table.
    from rlsys.verifiers.ifbench.table import CONSTRAINTS as IFBENCH

    return MappingProxyType({constraint.id: constraint for constraint in (*IFEVAL, *TRAINING, *IFBENCH)})


def refused_ids() -> Mapping[str, str]:
    """Ids that upstream has but that are not checked, each with the reason."""
    from rlsys.verifiers.ifbench.table import REFUSED

    return REFUSED


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
