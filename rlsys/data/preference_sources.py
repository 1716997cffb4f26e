"""From data sections to the prompts of preference data: mixed, decontaminated, selected, written down."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from rlsys.checkpoint.durable_file import write_durably
from rlsys.data.decontamination_gate import decontaminated_rows
from rlsys.data.mixture import mix
from rlsys.data.preference_prompts import PromptSelection, select_prompts, write_prompts
from rlsys.data.row import Row
from rlsys.errors import DataError
from rlsys.recipe.data import DataSettings
from rlsys.recipe.decontamination import Decontamination
from rlsys.recipe.preferences import PromptSelectionSettings

PROMPTS_FILE = "prompts.jsonl"


def prepare_preference_prompts(
    sources: Mapping[str, DataSettings],
    settings: PromptSelectionSettings,
    folder: Path,
    *,
    gate: Decontamination | None = None,
) -> PromptSelection:
    """Selects prompts from `sources["sft"]`, `["unused"]` and `["personas"]`, each of which may name nothing.

    Args:
        sources: what is read.
        settings: how many of each kind.
        folder: gets prompts.jsonl, and the gate's reports.
        gate: evaluation sets whose prompts nobody is asked.

    Raises:
        DataError: a source cannot be used, or no prompt is left.
    """
    with tempfile.TemporaryDirectory() as work:
        rows = {
            name: _rows(data, Path(work) / name, gate, folder / f"decontamination-{name}.json")
            for name, data in sources.items()
        }
        selection = select_prompts(rows["sft"], rows["unused"], settings, persona_rows=rows["personas"])
    if not selection.prompts:
        raise DataError("no prompt is left", value=dict(selection.counts), fix="see what was dropped and why")
    write_prompts(folder / PROMPTS_FILE, selection.prompts)
    return selection


def _rows(data: DataSettings, work: Path, gate: Decontamination | None, report: Path) -> Iterator[Row]:
    if not data.source:
        return iter(())
    mixture = mix(data, work)
    if gate is None:
        return mixture.read()
    gated = decontaminated_rows(mixture.read, gate)
    write_durably(report, (json.dumps(gated.json, indent=1) + "\n").encode())
    return gated.read()
