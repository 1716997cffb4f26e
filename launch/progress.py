"""A bar for work that has no steps of its own: reading, loading, sampling offline."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def progress(label: str, total: int | None = None, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how much more is done. Only a terminal sees the bar.

    Args:
        label: what is being done.
        total: how much there is; without it only the time is shown.
        shown: of the recipe, `tracking.console`.
    """
    console = Console()
    columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
    if total is not None:
        columns[2:2] = [BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda amount: bar.advance(task, amount)
