"""The recipe's decontamination section: which evaluation sets training data must not hold, and what happens if so."""

from collections.abc import Iterator
from typing import Literal, TypeAlias

from pydantic import Field

from rlsys.recipe.data import Names
from rlsys.recipe.section import Section

Mode: TypeAlias = Literal["ngram", "exact", "char-ngram"]
Policy: TypeAlias = Literal["drop-rows", "drop-set", "report", "refuse"]

DEFAULT_NGRAM: dict[str, int] = {"ngram": 8, "exact": 1, "char-ngram": 24}


class Decontamination(Section):
    """How training data is compared with evaluation sets; the defaults are Tülu 3's."""

    evals: Names = ()
    """Evaluation sets: files, folders, globs, or `hf:owner/name?subset=main&split=test`."""
    mode: Mode = "ngram"
    """`ngram` compares word n-grams, `char-ngram` character n-grams (near matches), `exact` whole prompts."""
    ngram: int | None = Field(default=None, ge=1)
    """Units in an n-gram: 8 words or 24 characters unless given; `exact` takes none."""
    threshold: float = Field(default=0.5, ge=0.0, lt=1.0)
    """An evaluation instance is contaminated when more than this fraction of its units match one training instance."""
    max_overlap: float = Field(default=0.02, ge=0.0, le=1.0)
    """A training set is contaminated when more than this fraction of any evaluation set's instances is."""
    policy: Policy = "drop-rows"
    """`drop-rows` drops every matching training row, `drop-set` the sets over `max_overlap`; `refuse` stops at
    such a set; `report` changes nothing."""

    def _faults(self) -> Iterator[str]:
        if self.mode == "exact" and self.ngram not in (None, 1):
            yield f"mode exact compares whole prompts and takes no ngram; got {self.ngram}; leave it out"

    @property
    def units(self) -> int:
        """The n-gram's length, the mode's default unless given."""
        return self.ngram if self.ngram is not None else DEFAULT_NGRAM[self.mode]
