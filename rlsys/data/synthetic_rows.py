"""What ends every making of synthetic data: decontamination, the file of rows and its data card."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.checkpoint.durable_file import write_durably
from rlsys.data.card import CARD_FILE
from rlsys.data.decontamination_gate import decontaminated_rows
from rlsys.data.row import Row, row_to_json
from rlsys.data.spool import file_sha256
from rlsys.errors import DataError
from rlsys.recipe.decontamination import Decontamination

ROWS_FILE = "rows.jsonl"


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Synthetic rows and how they came about."""

    rows: tuple[Row, ...]
    counts: dict[str, int]
    """What was asked, kept, refused and verified."""


def finish_rows(
    rows: Sequence[Row], counts: Counter[str], folder: Path, *, writer: str, gate: Decontamination | None, seed: int
) -> Synthetic:
    """Drops rows that hold evaluation prompts, writes the rest and the data card.

    Raises:
        DataError: nothing is left, or the gate refuses.
    """
    if rows and gate is not None:
        gated = decontaminated_rows(lambda: rows, gate)
        clean = tuple(gated.read())
        counts["contaminated"] += len(rows) - len(clean)
        write_durably(folder / "decontamination.json", (json.dumps(gated.json, indent=1) + "\n").encode())
        rows = clean
    if not rows:
        raise DataError("no synthetic row is left", value=dict(counts), fix="see the counts for where they were lost")
    lines = (json.dumps(row_to_json(row), ensure_ascii=False) + "\n" for row in rows)
    write_durably(folder / ROWS_FILE, "".join(lines).encode())
    counts["rows"] = len(rows)
    card: dict[str, Any] = {
        "rows": len(rows),
        "sha256": file_sha256(folder / ROWS_FILE),
        "marks": ["synthetic"],
        "written_by": writer,
        "seed": seed,
        "sources": dict(sorted(Counter(row.source for row in rows).items())),
        "counts": dict(sorted(counts.items())),
    }
    write_durably(folder / CARD_FILE, (json.dumps(card, indent=1) + "\n").encode())
    return Synthetic(tuple(rows), dict(counts))
