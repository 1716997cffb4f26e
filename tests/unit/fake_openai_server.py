"""A server on loopback that speaks the OpenAI chat protocol badly: slow, often failing, sometimes unreadable.

What it does to a call is a pure function of the question and of how often it was asked; everything is tallied.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rlsys.data.judge_prompt import ASPECT_TEXTS

FAILURES = ("server_error", "rate_limit", "connection", "bad_answer", "timeout")
_UNREADABLE = ("I would rather not say.", "Rating: 7", "Rating: 3 or 4", "Rating: great", "8/10")


def uniform(*parts: object) -> float:
    """In [0, 1), from the parts alone."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def true_rating(response: str, aspect: str) -> int | None:
    """What the judge behind the server thinks of a response; None is not applicable, for honesty alone."""
    if aspect == "honesty" and uniform("na", response) < 0.2:
        return None
    return 1 + int(5 * uniform("rating", response, aspect))


class FakeOpenAI(ThreadingHTTPServer):
    """Start with `with FakeOpenAI() as server`; `server.base_url` is its address.

    Args:
        failing: the fraction of calls that fail.
        unreadable: the fraction of ratings that cannot be read.
        delay_s: how long an answer takes.
        say: what a model, by its name, answers to a prompt that asks for no rating.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        *,
        failing: float = 0.2,
        unreadable: float = 0.1,
        delay_s: float = 0.005,
        say: Callable[[str, str], str] = lambda model, prompt: f"{model} says this.",
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.failing, self.unreadable, self.delay_s, self.say = failing, unreadable, delay_s, say
        self.base_url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.calls: Counter[str] = Counter()
        """By question."""
        self.delivered: Counter[str] = Counter()
        """Answers sent whole, by question."""
        self.failures: Counter[str] = Counter()
        self.num_unreadable = 0
        self.in_flight = self.most_in_flight = 0
        self.reached = threading.Condition(self.lock)

    def __enter__(self) -> "FakeOpenAI":
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, which is what the tests do to it."""

    def wait_for_deliveries(self, number: int, *, timeout_s: float) -> bool:
        """Whether so many answers were delivered in time."""
        with self.reached:
            return self.reached.wait_for(lambda: sum(self.delivered.values()) >= number, timeout_s)


class _Handler(BaseHTTPRequestHandler):
    server: FakeOpenAI  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        with server.lock:
            call = server.calls[key]
            server.calls[key] += 1
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            server.closing.wait(server.delay_s)
            self._answer(key, call, body)
        finally:
            with server.lock:
                server.in_flight -= 1

    def _answer(self, key: str, call: int, body: dict[str, Any]) -> None:
        server = self.server
        if uniform("fails", key, call) < server.failing:
            kind = FAILURES[min(int(4.4 * uniform("kind", key, call)), 4)]  # hanging is rare: it costs a deadline
            with server.lock:
                server.failures[kind] += 1
            self._fail(kind)
            return
        prompt = body["messages"][-1]["content"]
        said = self._rating(prompt, key) if "Rating: <number>" in prompt else server.say(body["model"], prompt)
        text = f"[{key}] {said}"
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "usage": usage}
        with server.reached:
            server.delivered[key] += 1
            server.reached.notify_all()
        self._send(200, json.dumps({**answer, "choices": [choice]}))

    def _rating(self, prompt: str, key: str) -> str:
        if uniform("unreadable", key) < self.server.unreadable:
            with self.server.lock:
                self.server.num_unreadable += 1
            return _UNREADABLE[int(len(_UNREADABLE) * uniform("which", key))]
        aspect = next(name for name, about in ASPECT_TEXTS.items() if about.question in prompt)
        rating = true_rating(response_in(prompt), aspect)
        return f"It has strengths and 2 weaknesses.\n**Rating:** {'N/A' if rating is None else rating}"

    def _fail(self, kind: str) -> None:
        if kind == "server_error":
            self._send(503, '{"error": {"message": "overloaded"}}')
        elif kind == "rate_limit":
            self._send(429, '{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}', retry_after="0.01")
        elif kind == "bad_answer":
            self._send(200, '{"id": "x", "object": "chat.completion", "choices": [')
        elif kind == "timeout":
            self.server.closing.wait(60)  # longer than any deadline
            self.close_connection = True
        else:
            self.close_connection = True  # without a word

    def _send(self, status: int, body: str, *, retry_after: str | None = None) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data)


def response_in(prompt: str) -> str:
    """The response that a judge's prompt holds."""
    match = re.search(r"<(\w+)-response>\n(.*)\n</\1-response>", prompt, re.DOTALL)
    assert match is not None
    return match[2]
