"""The data card: what a mixture is made of, so that it can be judged and made again."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlsys.checkpoint.durable_file import write_durably
from rlsys.data.reader import source_files
from rlsys.data.spool import SourceTally, SpooledRow, file_sha256
from rlsys.recipe.data import DataSettings, SourceSettings

CARD_FILE = "data_card.json"


class SourceCard(NamedTuple):
    """What became of one source."""

    source: SourceSettings
    tally: SourceTally
    duplicates: Counter[str]
    eligible: int
    """Rows left after filters and duplicates."""
    taken: int
    """Rows in the mixture, repetitions included."""
    distinct: int
    """Different rows among them."""

    @property
    def marks(self) -> list[str]:
        """How the source was changed: original, synthetic, filtered, down-sampled, up-sampled."""
        marks = [
            ("synthetic", self.source.synthetic),
            ("filtered", bool(self.tally.filtered or self.duplicates or self.tally.drops.total)),
            ("down-sampled", self.taken < self.eligible),
            ("up-sampled", self.taken > self.eligible),
        ]
        changed = [mark for mark, holds in marks if holds]
        return changed if any(mark != "synthetic" for mark in changed) else ["original", *changed]


def data_card(
    settings: DataSettings, cards: Sequence[SourceCard], rows: Sequence[tuple[SpooledRow, int]]
) -> dict[str, Any]:
    """The card of a mixture as a JSON object: counts, marks, licences and hashes of each source, seed and order."""
    order = hashlib.sha256()
    for row, repetition in rows:
        order.update(f"{row.id}#{repetition}\n".encode())
    sources = [_source(card, len(rows)) for card in cards]
    return {"rows": len(rows), "seed": settings.seed, "order_sha256": order.hexdigest(), "sources": sources}


def _source(card: SourceCard, total: int) -> dict[str, Any]:
    source = card.source
    return {
        "name": source.label,
        "path": source.path,
        **{key: value for key, value in (("subset", source.subset), ("revision", source.revision)) if value},
        "licence": source.licence or "unknown",
        "marks": card.marks,
        "files": [
            {"name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}
            for file in source_files(source)
        ],
        "records": card.tally.records,
        "wrong_rows": card.tally.drops.as_manifest(),
        "filtered": dict(sorted(card.tally.filtered.items())),
        "duplicates": dict(sorted(card.duplicates.items())),
        "eligible": card.eligible,
        "eligible_sha256": card.tally.digest,
        "take": source.take,
        "taken": card.taken,
        "distinct": card.distinct,
        "share": round(card.taken / total, 6),
    }


def write_card(folder: Path, card: dict[str, Any], **more: Any) -> None:
    """Writes data_card.json and data_card.md into a folder; `more` is added to the former."""
    content = json.dumps({**card, **more}, indent=1, ensure_ascii=False) + "\n"
    write_durably(folder / CARD_FILE, content.encode())
    write_durably(folder / CARD_FILE.replace(".json", ".md"), card_markdown(card).encode())


def card_markdown(card: dict[str, Any]) -> str:
    """The card as a page to read."""
    lines = [
        "# Data card",
        "",
        f"{card['rows']:,} rows, seed {card['seed']}, order SHA-256 `{card['order_sha256'][:16]}…`",
        "",
        "| source | licence | marks | records | wrong | filtered | duplicates | eligible | taken | share |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for source in card["sources"]:
        cells = [
            source["name"],
            source["licence"],
            ", ".join(source["marks"]),
            f"{source['records']:,}",
            _counts(source["wrong_rows"]["by_reason"]),
            _counts(source["filtered"]),
            _counts(source["duplicates"]),
            f"{source['eligible']:,}",
            f"{source['taken']:,} ({source['distinct']:,} distinct)",
            f"{source['share']:.2%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| file | bytes | SHA-256 |", "|---|---|---|"]
    for source in card["sources"]:
        lines += [f"| {file['name']} | {file['bytes']:,} | `{file['sha256']}` |" for file in source["files"]]
    return "\n".join(lines) + "\n"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "0"
