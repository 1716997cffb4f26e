"""The table at the end of a run: stage, held-out accuracy per task, seconds."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlsys.recipe.recipe import Recipe


def print_table(
    recipe: Recipe, results: dict[str, dict[str, Any]], *, start_up_s: float, total_s: float, folder: Path
) -> None:
    """Prints it; every number in it is in the stages' done.json."""
    names = list(dict.fromkeys(name for result in results.values() for name in result.get("evaluation", {})))
    table = Table(title=f"{recipe.name}: held-out accuracy in % and seconds (evaluation apart)")
    table.add_column("stage")
    for name in names:
        table.add_column(name.removeprefix("eval/").replace("/", " "), justify="right")
    table.add_column("stage s", justify="right")
    table.add_column("evaluation s", justify="right")
    for label, result in results.items():
        evaluation = result.get("evaluation", {})
        cells = [f"{100 * evaluation[name]:.1f}" if name in evaluation else "" for name in names]
        table.add_row(label, *cells, f"{result['seconds']:.0f}", f"{result['evaluation_seconds']:.0f}")
    console = Console(highlight=False)
    # A log file has no width of its own: nothing is cut there.
    (console if console.is_terminal else Console(highlight=False, width=160)).print(table)
    print(f"start-up {start_up_s:.0f} s, in all {total_s:.0f} s; everything is in {folder}, begin with report.html")
