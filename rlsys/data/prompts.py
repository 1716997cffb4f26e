"""Prompts for reinforcement learning and evaluation: templated once, with checks that the verifiers accept."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlsys.data.drops import DropLog, RowRefused
from rlsys.data.row import Row
from rlsys.errors import DataError, VerifierError
from rlsys.types import Check, Message

if TYPE_CHECKING:
    from rlsys.data.chat import ChatTokenizer  # with transformers, and a driver reads prompts too

_BATCH = 512


class PromptItem(NamedTuple):
    """One prompt of a set, without a place in any stream."""

    id: str
    messages: tuple[Message, ...]
    token_ids: np.ndarray
    """`[P]` int32, with the generation prompt."""
    checks: tuple[Check, ...]
    source: str


@dataclass(frozen=True, slots=True)
class PromptSet:
    """A finite set of prompts, in order.

    >>> prompts = PromptSet.build(rows, chat, drops=drops)  # doctest: +SKIP
    >>> len(prompts), prompts[0].id  # doctest: +SKIP
    (7473, 'gsm8k/0')
    """

    items: tuple[PromptItem, ...]

    @classmethod
    def build(
        cls,
        rows: Iterable[Row],
        chat: "ChatTokenizer",
        *,
        drops: DropLog | None = None,
        with_checks: bool = True,
        limit: int | None = None,
    ) -> "PromptSet":
        """Templates the prompts of rows and has every ground truth checked by its verifier.

        Args:
            rows: of which the messages before the last assistant turn are the prompt.
            chat: encodes them.
            drops: counts unusable rows by reason and leaves them out; without it the first one is an error.
            with_checks: each row must have some; otherwise prompts have none, whatever the rows say.
            limit: the most prompts: the first usable ones.

        Raises:
            DataError: no prompt is left, two share an id, or (without `drops`) a row is unusable.
        """
        usable = _items(rows, chat, drops=drops, with_checks=with_checks)
        items = tuple(islice(usable, limit))
        if not items:
            reasons = {} if drops is None else dict(drops.by_reason)
            raise DataError("no prompt is left", value=reasons, fix="see which rows were dropped and why")
        seen: set[str] = set()
        for item in items:
            if item.id in seen:
                raise DataError("two prompts share an id", value=item.id, fix="give the sources names of their own")
            seen.add(item.id)
        return cls(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> PromptItem:
        return self.items[index]

    @property
    def digest(self) -> str:
        """SHA-256 of ids, token ids and checks in order: what a resumed run compares its prompts with."""
        digest = hashlib.sha256()
        for item in self.items:
            checks = [[check.verifier, check.ground_truth, check.weight] for check in item.checks]
            digest.update(json.dumps([item.id, len(item.token_ids), checks], sort_keys=True).encode())
            digest.update(item.token_ids.tobytes())
        return digest.hexdigest()


def _items(
    rows: Iterable[Row], chat: "ChatTokenizer", *, drops: DropLog | None, with_checks: bool
) -> Iterator[PromptItem]:
    remaining = iter(rows)
    while batch := list(islice(remaining, _BATCH)):
        for row, token_ids in zip(batch, chat.encode_prompts([row.prompt for row in batch]), strict=True):
            try:
                if isinstance(token_ids, RowRefused):
                    raise token_ids
                if with_checks:
                    _require_good_checks(row.checks)
                checks = row.checks if with_checks else ()
                yield PromptItem(row.id, row.prompt, token_ids, checks, row.source)
            except RowRefused as refused:
                if drops is None:
                    raise DataError(f"{row.origin}: {refused.problem} ({refused.reason})", fix=refused.fix) from refused
                drops.add(refused.reason, str(row.origin), refused.problem)


def _require_good_checks(checks: Sequence[Check]) -> None:
    from rlsys.verifiers.registry import check_ground_truth

    if not checks:
        raise RowRefused("no_ground_truth", "the row has no check that could verify a response")
    for check in checks:
        try:
            check_ground_truth(check.verifier, check.ground_truth)
        except VerifierError as error:
            raise RowRefused("bad_ground_truth", f"{check.verifier}: {error}") from None
