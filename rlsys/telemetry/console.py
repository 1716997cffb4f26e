"""One line a step for who watches."""

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from rlsys.telemetry.tracker import Position

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("reward/mean", "reward", "{:.3f}"),
    ("loss/supervised", "loss", "{:.4f}"),
    ("loss/preference", "loss", "{:.4f}"),
    ("loss/reward", "loss", "{:.4f}"),
    ("preference/accuracy", "accuracy", "{:.3f}"),
    ("reward_model/accuracy", "accuracy", "{:.3f}"),
    ("loss/policy", "policy", "{:+.4f}"),
    ("loss/value", "value", "{:.4f}"),
    ("policy/reference_kl", "kl", "{:.4f}"),
    ("policy/clip_frac", "clip", "{:.3f}"),
    ("policy/entropy", "entropy", "{:.2f}"),
    ("value/explained_variance", "ev", "{:.2f}"),
    ("rollout/length/mean", "length", "{:.0f}"),
    ("staleness/mean_steps", "lag", "{:.1f}"),
    ("optim/grad_norm", "grad", "{:.2f}"),
    ("optim/lr", "lr", "{:.1e}"),
    ("perf/tokens_per_s", "tok/s", "{:,.0f}"),
    ("time/step_s", "s", "{:.2f}"),
)
"""Metric, label, format; shown where a step has the metric. Evaluations follow with their full names."""


class ConsoleTracker:
    """Prints a line a step, with what a person watches a run for; everything else is in metrics.jsonl."""

    def __init__(self, *, stage: str, total_steps: int = 0, console: Console | None = None) -> None:
        self._stage, self._total = stage, total_steps
        self._console = console or Console(highlight=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the step."""
        width = len(str(self._total))
        count = f"{step:>{width}}/{self._total}" if self._total else str(step)
        line = Text.assemble((self._stage, "bold"), " ", (count, "cyan"))
        shown = [(label, form.format(metrics[name])) for name, label, form in COLUMNS if name in metrics]
        shown += [(name, f"{value:.3f}") for name, value in metrics.items() if name.startswith("eval/")]
        for label, value in shown:
            line.append(f"  {label} ", "dim")
            line.append(value)
        skipped = sum(value for name, value in metrics.items() if name.startswith("skipped/"))
        if skipped:
            line.append(f"  skipped {skipped:.0f}", "bold red")
        self._console.print(line, soft_wrap=True)

    def position(self) -> Position:
        """A screen has none."""
        return {}

    def restore(self, position: Position) -> None:
        """What was printed stays."""

    def close(self) -> None:
        """Nothing to close."""
