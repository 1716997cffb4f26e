"""One endpoint's behaviour towards a real server on loopback that answers as each test says."""

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rlsys.data.judge_backend import Answer, Question
from rlsys.data.judge_endpoint import Endpoint, EndpointError
from rlsys.recipe.preferences import EndpointSettings

QUESTIONS = [Question(f"key-{number}", ({"role": "user", "content": f"Question {number}?"},)) for number in range(8)]
Reply = tuple[int, str, dict[str, str]]


def _completion(text: Any, *, finish_reason: str = "stop", **fields: Any) -> str:
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps({**body, **fields})


@pytest.fixture
def serve():
    """`serve(reply)` starts a server that answers call number n, from 0, as `reply(n, headers, body)` says."""
    servers: list[ThreadingHTTPServer] = []
    closing = threading.Event()

    def start(reply: Callable[[int, Any, Any], Reply | None]) -> str:
        lock, calls = threading.Lock(), [0]

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number, calls[0] = calls[0], calls[0] + 1
                made = reply(number, self.headers, body)
                if made is None:
                    closing.wait(30)
                    self.close_connection = True
                    return
                status, text, headers = made
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                with suppress(
                    BrokenPipeError, ConnectionResetError
                ):  # the asker has given up, as some of these tests want
                    self.wfile.write(text.encode())

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/v1"

    yield start
    closing.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def _ask(url: str, questions=QUESTIONS[:1], **settings) -> tuple[list[tuple[Question, Answer]], Endpoint]:
    fixed = {"model": "m", "base_url": url, "backoff_s": 0.001, "max_backoff_s": 0.01, "deadline_s": 20.0}

    async def run():
        async with Endpoint(EndpointSettings.model_validate({**fixed, **settings})) as endpoint:
            return [pair async for pair in endpoint.answer_all(questions)], endpoint

    return asyncio.run(run())


def test_a_text_that_the_limit_of_tokens_ended_is_told_apart(serve):
    answers, _ = _ask(serve(lambda number, headers, body: (200, _completion("It is", finish_reason="length"), {})))
    assert answers == [(QUESTIONS[0], Answer("It is", None, True, 100, 20))]


def test_what_is_sent_and_what_it_costs(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    seen = []

    def reply(number, headers, body):
        seen.append((headers["Authorization"], headers["Idempotency-Key"], body))
        return 200, _completion("fine"), {}

    answers, endpoint = _ask(
        serve(reply), api_key_env="JUDGE_KEY", temperature=0.5, max_tokens=7, prompt_price=1.0, completion_price=10.0
    )
    assert answers == [(QUESTIONS[0], Answer("fine", None, False, 100, 20))]
    ((authorization, key, body),) = seen
    assert (authorization, key) == ("Bearer secret", "key-0")
    assert body["messages"] == [{"role": "user", "content": "Question 0?"}]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.5, 7)
    assert endpoint.counts.to_json() == {
        "calls": 1, "answered": 1, "failures": {}, "given_up": 0, "prompt_tokens": 100, "completion_tokens": 20,
        "cost_usd": pytest.approx((100 * 1.0 + 20 * 10.0) / 1e6),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ((500, "{}", {}), "server_error"),
        ((503, "not json", {"Content-Type": "text/plain"}), "server_error"),
        ((408, "{}", {}), "server_error"),
        ((409, "{}", {}), "server_error"),
        ((429, "{}", {"Retry-After": "0"}), "rate_limit"),
        ((429, "{}", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), "rate_limit"),
        ((200, "not json", {}), "bad_answer"),
        ((200, "<html>proxy</html>", {"Content-Type": "text/html"}), "bad_answer"),
        ((200, "[]", {}), "bad_answer"),
        ((200, "null", {}), "bad_answer"),
        ((200, '{"choices": []}', {}), "bad_answer"),
        ((200, '{"choices": "none"}', {}), "bad_answer"),
        ((200, '{"choices": [{"message": null}]}', {}), "bad_answer"),
        ((200, _completion(None), {}), "bad_answer"),
        ((200, _completion(""), {}), "bad_answer"),
        ((200, _completion(3), {}), "bad_answer"),
    ],
)
def test_what_passes_is_tried_again_and_counted(serve, reply, kind):
    answers, endpoint = _ask(serve(lambda number, headers, body: reply if number < 2 else (200, _completion("ok"), {})))
    assert [answer.text for _, answer in answers] == ["ok"]
    assert endpoint.counts.failures == {kind: 2}
    assert (endpoint.counts.calls, endpoint.counts.answered, endpoint.counts.given_up) == (3, 1, 0)


def test_a_hanging_call_ends_at_its_deadline_and_is_tried_again(serve):
    url = serve(lambda number, headers, body: None if number == 0 else (200, _completion("ok"), {}))
    answers, endpoint = _ask(url, deadline_s=1.0)
    assert [answer.text for _, answer in answers] == ["ok"]
    assert endpoint.counts.failures == {"timeout": 1}


def test_nobody_at_the_address_is_a_counted_failure_after_every_attempt():
    answers, endpoint = _ask("http://127.0.0.1:9/v1", max_attempts=3)
    assert answers == [(QUESTIONS[0], Answer(None, "connection"))]
    assert (endpoint.counts.failures, endpoint.counts.given_up) == ({"connection": 3}, 1)


def test_a_request_that_is_refused_is_given_up_at_once_and_the_others_go_on(serve):
    def reply(number, headers, body):
        refused = headers["Idempotency-Key"] == "key-1"
        return (400, '{"error": {"message": "too long"}}', {}) if refused else (200, _completion("ok"), {})

    answers, endpoint = _ask(serve(reply), QUESTIONS[:3])
    assert {question.key: answer.failure for question, answer in answers} == {
        "key-0": None, "key-1": "refused", "key-2": None,
    }  # fmt: skip
    assert (endpoint.counts.calls, endpoint.counts.failures) == (3, {"refused": 1})


@pytest.mark.parametrize(
    ("status", "body"), [(401, "{}"), (403, "{}"), (404, "{}"), (429, '{"error": {"code": "insufficient_quota"}}')]
)
def test_where_no_call_can_succeed_it_stops_and_says_what_to_check(serve, status, body):
    url = serve(lambda number, headers, sent: (status, body, {}))
    with pytest.raises(EndpointError, match=f"refuses every call for model m with status {status}.*OPENAI_API_KEY"):
        _ask(url, QUESTIONS)


def test_the_budget_stops_further_calls(serve):
    url = serve(lambda number, headers, body: (200, _completion("ok"), {}))
    with pytest.raises(EndpointError, match=r"budget for m is spent; got '\$0.30 of \$0.25'"):
        _ask(url, QUESTIONS, max_cost=0.25, prompt_price=1000.0, max_concurrent=1)


def test_openai_without_a_key_is_refused_before_any_call(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EndpointError, match="needs a key"):
        _ask(EndpointSettings(model="m").base_url)


def test_never_more_calls_in_flight_than_allowed(serve):
    lock, running, most = threading.Lock(), [0], [0]
    together = threading.Barrier(3)

    def reply(number, headers, body):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        if number < 3:
            together.wait(20)  # three at once, or this fails
        with lock:
            running[0] -= 1
        return 200, _completion("ok"), {}

    answers, _ = _ask(serve(reply), QUESTIONS, max_concurrent=3)
    assert sorted(question.key for question, _ in answers) == [question.key for question in QUESTIONS]
    assert most[0] == 3


def test_tokens_are_estimated_where_a_server_does_not_tell(serve):
    url = serve(lambda number, headers, body: (200, _completion("x" * 35, usage=None), {}))
    ((_, answer),), endpoint = _ask(url, completion_price=1.0)
    assert (answer.prompt_tokens, answer.completion_tokens) == (4, 10)  # 11 and 35 characters at 3.5 a token
    assert endpoint.counts.cost == pytest.approx(10 / 1e6)


def test_calls_keep_the_pace_that_was_set(serve):
    loop_times = []

    def reply(number, headers, body):
        loop_times.append(number)
        return 200, _completion("ok"), {}

    async def run() -> float:
        settings = EndpointSettings(model="m", base_url=serve(reply), requests_per_minute=1200)
        async with Endpoint(settings) as endpoint:
            started = asyncio.get_running_loop().time()
            async for _ in endpoint.answer_all(QUESTIONS):
                pass
            return asyncio.get_running_loop().time() - started

    assert asyncio.run(run()) >= 7 * 0.05
    assert len(loop_times) == 8
