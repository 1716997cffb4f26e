"""One row of a data set, whatever form it was written in."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rlsys.types import Check, Message

RowKind: TypeAlias = Literal["conversation", "prompt", "pair", "text"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row was read.

    >>> str(Origin("train.jsonl.gz", 17))
    'train.jsonl.gz:17'
    """

    file: str
    line: int
    """From 1: the line of a JSON file, the row of a parquet file or of a Hugging Face data set."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation, a prompt with checks, a preference pair or plain text, with its provenance.

    >>> row = Row("toy/0", "toy", Origin("toy.jsonl", 1), ({"role": "user", "content": "1 + 1?"},
    ...           {"role": "assistant", "content": "2"}), checks=(Check("gsm8k", "2"),))
    >>> row.kind, len(row.prompt), row.response
    ('conversation', 1, '2')
    """

    id: str
    """Unique in its source: `<source>/<ordinal>`, or `<source>/<ordinal>.<n>` where one record holds several rows."""
    source: str
    origin: Origin
    messages: tuple[Message, ...] = ()
    """The conversation. Of a pair: the prompt that both responses answer. Empty for plain text."""
    text: str | None = None
    """Plain text, every token of which is learned."""
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    """Of a pair: what follows the prompt; the last message of each is the assistant's."""
    margin: float | None = None
    """Of a pair: score of the chosen response minus score of the rejected one."""
    checks: tuple[Check, ...] = ()

    @property
    def kind(self) -> RowKind:
        """What this row is first of all; a conversation with checks also serves as a prompt."""
        if self.text is not None:
            return "text"
        if self.chosen:
            return "pair"
        return "conversation" if any(message["role"] == "assistant" for message in self.messages) else "prompt"

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last assistant turn; all of them where the conversation does not end with one."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            return self.messages[:-1]
        return self.messages

    @property
    def response(self) -> str | None:
        """The content of the last message, if the assistant said it."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            return self.messages[-1]["content"]
        return None


def row_to_json(row: Row) -> dict[str, Any]:
    """JSON object of a row: what mixtures write and what `formats.rows_of` reads back, ids and origin included."""
    value: dict[str, Any] = {
        "id": row.id,
        "source": row.source,
        "origin": {"file": row.origin.file, "line": row.origin.line},
    }
    if row.text is not None:
        return {**value, "text": row.text}
    value["messages"] = [dict(message) for message in row.messages]
    if row.chosen:
        value["chosen"] = [dict(message) for message in row.chosen]
        value["rejected"] = [dict(message) for message in row.rejected]
        if row.margin is not None:
            value["margin"] = row.margin
    if row.checks:
        value["checks"] = [
            {"verifier": check.verifier, "ground_truth": check.ground_truth, "weight": check.weight}
            for check in row.checks
        ]
    return value
