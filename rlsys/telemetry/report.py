"""report.html: what happened in a run, on one page without scripts, from metrics.jsonl and trace.json."""

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlsys.telemetry.names import describe
from rlsys.telemetry.trace import Span, read_trace
from rlsys.telemetry.tracker import read_metrics

Series = list[tuple[float, float]]
"""(step, value), steps ascending."""

_ORDER = ("reward", "eval", "loss", "policy", "value", "preference", "reward_model", "supervised", "rollout")
_WIDTH, _HEIGHT, _MARGIN = 320, 120, 8
_MAX_POINTS = 300
_TIMELINE_S = 60.0
_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#65a30d")
_STYLE = """
body{font:14px system-ui,sans-serif;margin:24px auto;max-width:1400px;padding:0 16px;color:#1f2937;background:#fff}
section{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:12px}
figure{margin:0;padding:8px;border:1px solid #d1d5db;border-radius:6px}figcaption b{font-family:monospace}
figcaption span{color:#6b7280;font-size:12px;display:block;min-height:1.2em}svg{width:100%;height:auto}
svg text{font:9px monospace;fill:#6b7280}table{border-collapse:collapse;font:12px monospace}
td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #e5e7eb}td:first-child,th:first-child{text-align:left}
@media(prefers-color-scheme:dark){body{color:#e5e7eb;background:#111827}figure,td,th{border-color:#374151}}
"""


def write_report(run_folder: str | Path, *, title: str = "") -> Path:
    """Writes report.html into the run folder from what lies there, and returns its path.

    Raises:
        FileNotFoundError: the folder has no metrics.jsonl.
    """
    folder = Path(run_folder)
    stages = _series_by_stage(read_metrics(folder / "metrics.jsonl"))
    title = html.escape(title or folder.name)
    parts = [f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"]
    for stage, series in stages.items():
        parts.append(f"<h2>{html.escape(stage or 'run')}</h2><section>")
        parts += [_figure(name, lines) for name, lines in _charts(series)]
        parts.append("</section>")
    trace = folder / "trace.json"
    if trace.exists() and (spans := read_trace(trace)):
        parts += ["<h2>Who did what</h2>", _timeline(spans), _busy_table(spans)]
    path = folder / "report.html"
    path.write_text("\n".join(parts) + "\n")
    return path


def _series_by_stage(lines: Iterable[dict]) -> dict[str, dict[str, Series]]:
    stages: dict[str, dict[str, Series]] = {}
    for line in lines:
        series = stages.setdefault(line["stage"], defaultdict(list))
        for name, value in line.items():
            if "/" in name and value is not None:
                series[name].append((line["step"], value))
    return stages


def _charts(series: dict[str, Series]) -> list[tuple[str, dict[str, Series]]]:
    """Charts in reading order; the stats of one metric, and the outcomes of one verifier, share a chart."""
    charts: dict[str, dict[str, Series]] = defaultdict(dict)
    for name in sorted(series):
        parts = name.split("/")
        chart, label = ("/".join(parts[:2]), parts[2]) if len(parts) == 3 else (name, "")
        charts[chart][label] = series[name]
    rank = {namespace: place for place, namespace in enumerate(_ORDER)}
    return sorted(charts.items(), key=lambda chart: (rank.get(chart[0].split("/")[0], len(_ORDER)), chart[0]))


def _figure(name: str, lines: dict[str, Series]) -> str:
    first = next(iter(lines))
    about = describe(f"{name}/{first}" if first else name)
    legend = "&ensp;".join(
        f'<b style="color:{_COLOURS[place % len(_COLOURS)]}">{html.escape(label)} {series[-1][1]:.4g}</b>'
        for place, (label, series) in enumerate(lines.items())
    )
    caption = f"<b>{html.escape(name)}</b> {legend}<span>{html.escape(about)}</span>"
    return f"<figure><figcaption>{caption}</figcaption>{_plot(lines)}</figure>"


def _plot(lines: dict[str, Series]) -> str:
    points = [point for series in lines.values() for point in series]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    x_scale = (_WIDTH - 2 * _MARGIN) / ((right - left) or 1)
    y_scale = (_HEIGHT - 4 * _MARGIN) / ((high - low) or 1)

    def place(x: float, y: float) -> str:
        return f"{_MARGIN + (x - left) * x_scale:.1f},{_HEIGHT - 2 * _MARGIN - (y - low) * y_scale:.1f}"

    shapes = []
    for number, (label, series) in enumerate(lines.items()):
        colour, thin = _COLOURS[number % len(_COLOURS)], _thinned(series)
        if len(thin) == 1:
            x, y = place(*thin[0]).split(",")
            shapes.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>')
        path = " ".join(place(x, y) for x, y in thin)
        tip = html.escape(f"{label} {series[-1][1]:.6g} at step {series[-1][0]:g}".strip())
        stroke = f'fill="none" stroke="{colour}" stroke-width="1.3"'
        shapes.append(f'<polyline points="{path}" {stroke}><title>{tip}</title></polyline>')
    texts = (
        f'<text x="{_MARGIN}" y="{_MARGIN + 2}">{high:.4g}</text>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - _MARGIN - 1}">{low:.4g}</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - _MARGIN - 1}" text-anchor="end">step {right:g}</text>'
    )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(shapes)}{texts}</svg>'


def _thinned(series: Series) -> Series:
    """At most `_MAX_POINTS`, each the mean of its neighbours, so that a long run's page stays small."""
    if len(series) <= _MAX_POINTS:
        return series
    size = math.ceil(len(series) / _MAX_POINTS)
    groups = [series[start : start + size] for start in range(0, len(series), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _timeline(spans: Sequence[Span]) -> str:
    """The last minute, an actor a row."""
    end = max(span.end_s for span in spans)
    start = max(end - _TIMELINE_S, min(span.start_s for span in spans))
    actors, names = sorted({span.actor for span in spans}), sorted({span.name for span in spans})
    width, row, label = 1200, 16, 140
    scale = (width - label) / ((end - start) or 1)
    shapes = [f'<text x="0" y="{row * place + 11}">{html.escape(name)}</text>' for place, name in enumerate(actors)]
    for span in spans:
        if span.end_s >= start:
            x = label + max(span.start_s - start, 0) * scale
            length = max((span.end_s - max(span.start_s, start)) * scale, 0.5)
            colour = _COLOURS[names.index(span.name) % len(_COLOURS)]
            tip = html.escape(f"{span.name} {span.seconds:.3f} s")
            shapes.append(
                f'<rect x="{x:.1f}" y="{row * actors.index(span.actor) + 2}" width="{length:.1f}" height="{row - 4}" '
                f'fill="{colour}"><title>{tip}</title></rect>'
            )
    height = row * (len(actors) + 1)
    shapes.append(f'<text x="{label}" y="{height - 4}">the last {end - start:.1f} s</text>')
    return f'<svg viewBox="0 0 {width} {height}">{"".join(shapes)}</svg>'


def _busy_table(spans: Sequence[Span]) -> str:
    wall = max(span.end_s for span in spans) - min(span.start_s for span in spans)
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    for span in spans:
        entry = sums[span.actor, span.name]
        entry[0] += 1
        entry[1] += span.seconds
    rows = "".join(
        f"<tr><td>{html.escape(actor)}</td><td>{html.escape(name)}</td><td>{number:.0f}</td><td>{seconds:.2f}</td>"
        f"<td>{100 * seconds / wall if wall else 0:.1f} %</td></tr>"
        for (actor, name), (number, seconds) in sorted(sums.items())
    )
    head = "<tr><th>actor</th><th>span</th><th>times</th><th>seconds</th><th>of the run</th></tr>"
    return f"<table>{head}{rows}</table>"
