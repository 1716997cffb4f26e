"""Who did what when: spans of all actors, in Chrome's trace event format (chrome://tracing, ui.perfetto.dev)."""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlsys.telemetry.line_file import LineFile


@dataclass(frozen=True, slots=True)
class Span:
    """Something that an actor did.

    >>> Span("learner/0", "update", 10.0, 12.5).seconds
    2.5
    """

    actor: str
    name: str
    start_s: float
    """Unix time, as `end_s`: clocks of different machines are as far apart as NTP leaves them."""
    end_s: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s


class SpanRecorder:
    """Collects an actor's spans until somebody drains them.

    >>> recorder = SpanRecorder("learner/0")
    >>> with recorder.span("update"):
    ...     pass
    >>> [span.name for span in recorder.drain()], recorder.drain()
    (['update'], [])
    """

    def __init__(self, actor: str) -> None:
        self.actor = actor
        self._spans: list[Span] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Times the block, also when it raises."""
        start_s, start = time.time(), time.perf_counter()
        try:
            yield
        finally:
            self._spans.append(Span(self.actor, name, start_s, start_s + time.perf_counter() - start))

    def add(self, name: str, start_s: float, end_s: float) -> None:
        """A span timed elsewhere, in unix time."""
        self._spans.append(Span(self.actor, name, start_s, end_s))

    def drain(self) -> list[Span]:
        """The spans since the last call, in the order in which they ended."""
        spans, self._spans = self._spans, []
        return spans


class TraceFile:
    """trace.json, appended to as the run goes: the format allows the closing bracket to be missing."""

    def __init__(self, path: str | Path) -> None:
        self._file = LineFile(path)
        self._rows = {event["args"]["name"]: event["tid"] for event in _events(Path(path), "M")}
        if self._file.size() == 0:
            self._file.append("[\n")

    def append(self, spans: Iterable[Span]) -> None:
        """Writes spans, an actor on its own row."""
        lines = []
        for span in spans:
            if span.actor not in self._rows:
                self._rows[span.actor] = row = len(self._rows)
                lines.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": row, "args": {"name": span.actor}})
            event = {"name": span.name, "ph": "X", "pid": 0, "tid": self._rows[span.actor]}
            lines.append(event | {"ts": round(span.start_s * 1e6), "dur": round(span.seconds * 1e6)})
        if lines:
            self._file.append("".join(json.dumps(line) + ",\n" for line in lines))

    def close(self) -> None:
        """Everything to disk."""
        self._file.close()


def read_trace(path: str | Path) -> list[Span]:
    """The spans of a trace.json in the order written, to the microsecond; a torn last line is left out."""
    actors = {event["tid"]: event["args"]["name"] for event in _events(Path(path), "M")}
    return [
        Span(actors[event["tid"]], event["name"], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in _events(Path(path), "X")
    ]


def busy_seconds(trace: Iterable[Span], name: str) -> float:
    """Seconds in which at least one span of that name runs, on any actor."""
    return sum(end - start for start, end in _union(trace, name))


def overlap_seconds(trace: Iterable[Span], a: str, b: str) -> float:
    """Seconds in which a span named `a` and a span named `b` run at once, on any actors."""
    spans = list(trace)
    first, second = _union(spans, a), _union(spans, b)
    total, i, j = 0.0, 0, 0
    while i < len(first) and j < len(second):
        total += max(0.0, min(first[i][1], second[j][1]) - max(first[i][0], second[j][0]))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return total


def _union(trace: Iterable[Span], name: str) -> list[tuple[float, float]]:
    """Disjoint intervals, in order, that the spans of a name cover together."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted((span.start_s, span.end_s) for span in trace if span.name == name):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _events(path: Path, phase: str) -> Iterator[dict]:
    with path.open() as file:
        for line in file:
            if line.startswith("{") and line.endswith("},\n"):
                event = json.loads(line[:-2])
                if event["ph"] == phase:
                    yield event
