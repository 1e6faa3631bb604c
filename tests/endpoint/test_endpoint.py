"""The client against a real HTTP server: retries, rate, checks, cache, and a key that nobody sees."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Reply, chat_server

from megalign.endpoint import BadAnswer, Cache, Client, Endpoint, Failure, Question, json_object
from megalign.errors import ConfigError, DataError, EnvironmentProblem

SECRET = "sk-very-secret-key-0123456789"


def client(url: str, **settings: Any) -> Client:
    return Client(
        Endpoint(url, "model"),
        **{"backoff_seconds": 0.01, "timeout_seconds": 60.0, "requests_per_minute": 1e6} | settings,
    )


def question(text: str = "?", check: Callable[[str], Any] = str, name: str = "q") -> Question:
    return Question([{"role": "user", "content": text}], check, name)


def test_answers_come_back_in_order_and_equal_questions_are_asked_once(tmp_path: Path) -> None:
    with chat_server(lambda body, _: Reply(body["messages"][0]["content"].upper(), delay_seconds=0.5)) as server:
        texts = ["a", "b", "a", "c"]
        answers = client(server.url, num_parallel=3).ask_all([question(text) for text in texts], Cache(tmp_path / "c"))
    assert answers == ["A", "B", "A", "C"]
    assert len(server.requests) == 3
    assert 1 < server.most_running <= 3
    assert {(one["path"], one["model"], one["temperature"]) for one in server.requests} == {
        ("/v1/chat/completions", "model", 0.0)
    }


@pytest.mark.parametrize(
    "bad",
    [
        Reply(status=500),
        Reply(status=503, headers={"Retry-After": "0.01"}),
        Reply(status=429, headers={"Retry-After": "soon"}),
        Reply(body=b"<html>busy</html>"),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"choices": [{"message": {"content": null}}]}'),
        Reply(text="half an ans", finish_reason="length"),
        Reply(text="good", missing_bytes=5),
        Reply(text="late", delay_seconds=8.0),
        Reply(text="drip" * 200, drip_seconds=0.04),
    ],
    ids=lambda reply: f"{reply.status} {reply.body!r:.20} {reply.finish_reason} {reply.delay_seconds}",
)
def test_a_failure_that_passes_is_tried_again(bad: Reply, tmp_path: Path) -> None:
    # Long enough for a good answer on a busy machine, too short for a slow one.
    patience_seconds = 5.0 if bad.delay_seconds or bad.drip_seconds else 60.0
    with chat_server(lambda _, before: bad if before == 0 else Reply("good")) as server:
        answers = client(server.url, timeout_seconds=patience_seconds).ask_all([question()], Cache(tmp_path / "c"))
    assert answers == ["good"]
    assert len(server.requests) == 2


def test_retry_after_is_waited_for(tmp_path: Path) -> None:
    with chat_server(
        lambda _, before: Reply(status=429, headers={"Retry-After": "0.5"}) if before == 0 else Reply("good")
    ) as server:
        client(server.url).ask_all([question()], Cache(tmp_path / "c"))
    assert server.times[1] - server.times[0] >= 0.5


def test_a_lie_is_asked_again_warmer_and_then_given_up(tmp_path: Path) -> None:
    def check(text: str) -> dict[str, Any]:
        return json_object(text, ["word"])

    replies = ['{"word": "casa"', "[1]", '{"wrd": "casa"}', '```json\n{"word": "casa"}\n```']
    with chat_server(lambda _, before: Reply(replies[before])) as server:
        failures: list[Failure] = []
        answers = client(server.url, num_attempts=4).ask_all(
            [question(check=check)], Cache(tmp_path / "c"), on_failure=failures.append
        )
    assert answers == [{"word": "casa"}]
    assert not failures
    assert [one["temperature"] for one in server.requests] == [0.0, 0.3, 0.3, 0.3]

    with chat_server(lambda *_: Reply("no")) as server:
        cache = Cache(tmp_path / "d")
        answers = client(server.url, num_attempts=2).ask_all(
            [question(check=check, name="row 7")], cache, on_failure=failures.append
        )
    assert answers == [None]
    assert failures == [Failure("row 7", "the answer is not JSON (Expecting value at character 0)", 2)]
    assert len(cache) == 0


def test_a_dead_server_is_a_counted_failure(tmp_path: Path) -> None:
    with chat_server(lambda *_: Reply("x")) as server:
        url = server.url
    failures: list[Failure] = []
    dead = client(url, num_attempts=2)
    assert dead.ask_all([question()], Cache(tmp_path / "c"), on_failure=failures.append) == [None]
    assert failures[0].reason.startswith("the connection failed")
    with pytest.raises(DataError, match=r"2 questions failed; the last \(.\): the connection failed"):
        dead.ask_all([question(text, name=text) for text in "abc"], Cache(tmp_path / "c"), max_failures=1)


@pytest.mark.parametrize(
    ("status", "kind"), [(400, DataError), (404, DataError), (401, EnvironmentProblem), (302, DataError)]
)
def test_a_refusal_ends_the_run(status: int, kind: type[Exception], tmp_path: Path) -> None:
    reply = Reply(status=status, headers={"Location": "http://127.0.0.1:9/"} if status == 302 else {})
    with chat_server(lambda *_: reply) as server, pytest.raises(kind, match=f"answered {status}"):
        client(server.url, num_parallel=1).ask_all([question(text) for text in "abcdef"], Cache(tmp_path / "c"))
    assert len(server.requests) <= 2


def test_requests_keep_their_distance(tmp_path: Path) -> None:
    with chat_server(lambda *_: Reply("x")) as server:
        client(server.url, requests_per_minute=1200, num_parallel=4).ask_all(
            [question(str(number)) for number in range(6)], Cache(tmp_path / "c")
        )
    times = sorted(server.times)
    assert times[-1] - times[0] >= 5 * 0.05 * 0.8


def test_a_stopped_run_continues_from_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "c.jsonl"
    texts = [str(number) for number in range(8)]
    with chat_server(
        lambda body, _: Reply(status=400) if body["messages"][0]["content"] == "5" else Reply("ok")
    ) as server:
        with pytest.raises(DataError, match="answered 400"):
            client(server.url, num_parallel=1).ask_all([question(text) for text in texts], Cache(path))
        first = len(server.requests)
    with path.open("ab") as stream:
        stream.write(b'{"key": "torn')
    assert len(Cache(path)) == 5
    with chat_server(lambda *_: Reply("later")) as server:
        cache = Cache(path)
        assert client(server.url).ask_all([question(text) for text in texts], cache) == ["ok"] * 5 + ["later"] * 3
        assert client(server.url).ask_all([question(text) for text in texts], cache) == ["ok"] * 5 + ["later"] * 3
    assert (first, len(server.requests)) == (6, 3)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_other_settings_are_other_answers(tmp_path: Path) -> None:
    with chat_server(lambda *_: Reply("x")) as server:
        cache = Cache(tmp_path / "c")
        for settings in ({}, {}, {"temperature": 0.5}, {"max_answer_tokens": 9}, {"json_mode": True}):
            client(server.url, **settings).ask_all([question()], cache)
    assert len(server.requests) == len(cache) == 4
    assert server.requests[-2]["max_tokens"] == 9
    assert server.requests[-1]["response_format"] == {"type": "json_object"}


def test_a_damaged_cache_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c").write_text('{"key": "a", "value": 1}\nnonsense\n')
    with pytest.raises(DataError, match="c:2 is no entry of a cache"):
        Cache(tmp_path / "c")


def test_the_key_is_sent_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    failures: list[Failure] = []
    with chat_server(
        lambda _, before: Reply("x") if before == 0 else Reply(status=401, body=SECRET.encode())
    ) as server:
        endpoint = Endpoint(server.url, "model", "SOME_KEY")
        asked = Client(endpoint, backoff_seconds=0.01)
        asked.ask_all([question("a")], Cache(tmp_path / "c"), on_failure=failures.append)
        with pytest.raises(EnvironmentProblem) as error:
            asked.ask_all([question("a")], Cache(tmp_path / "d"), on_failure=failures.append)
    assert [one["Authorization"] for one in server.headers] == [f"Bearer {SECRET}"] * 2
    shown = repr(asked) + repr(endpoint) + str(error.value) + repr(failures) + "".join(capsys.readouterr())
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file()).decode()
    assert SECRET not in shown + written
    assert "Check the value of SOME_KEY" in str(error.value)


def test_addresses_and_keys_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ConfigError, match="is no address of an endpoint"):
        Endpoint("file:///etc/passwd", "m")
    with pytest.raises(ConfigError, match="is not encrypted"):
        Endpoint("http://example.org/v1", "m", "SOME_KEY")
    with pytest.raises(ConfigError, match="holds a user, a password or a query"):
        Endpoint("https://user:word@example.org/v1", "m")
    with pytest.raises(EnvironmentProblem, match="NO_KEY is not set"):
        Endpoint("https://example.org/v1", "m", "NO_KEY")
    with pytest.raises(ConfigError, match="num_attempts is 0"):
        Client(Endpoint("https://example.org/v1", "m"), num_attempts=0)
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match=f"requests_per_minute is {value}"):
            Client(Endpoint("https://example.org/v1", "m"), requests_per_minute=value)
    assert Endpoint("https://example.org/v1", "m", "SOME_KEY").key() == SECRET


@pytest.mark.parametrize(
    ("text", "message"), [("no", "not JSON"), ("[]", "a list, not an object"), ('{"b": 1}', "has the keys b")]
)
def test_objects_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadAnswer, match=message):
        json_object(text, ["a"])


def test_a_slow_server_does_not_hold_the_run(tmp_path: Path) -> None:
    begun = time.monotonic()
    with chat_server(lambda *_: Reply("x" * 400, drip_seconds=0.05)) as server:
        failures: list[Failure] = []
        client(server.url, timeout_seconds=0.3, num_attempts=2).ask_all(
            [question()], Cache(tmp_path / "c"), on_failure=failures.append
        )
        assert time.monotonic() - begun < 15, "the whole answer takes 20"
    assert failures[0].reason == "no answer within 0.3 seconds"


def test_many_failures_in_a_row_end_the_run(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _: int) -> Reply:
        return Reply("yes" if int(body["messages"][0]["content"]) % 4 == 3 else "no")

    def checked(text: str) -> str:
        if text != "yes":
            raise BadAnswer("the answer is no")
        return text

    with chat_server(answer) as server:
        asked = client(server.url, num_attempts=1, num_parallel=1)
        questions = [question(str(number), checked, str(number)) for number in range(12)]
        answers = asked.ask_all(questions, Cache(tmp_path / "a"), max_failures_in_a_row=4)
        assert [place for place, one in enumerate(answers) if one] == [3, 7, 11]
        with pytest.raises(DataError, match=r"3 questions failed; the last \(2\): the answer is no"):
            asked.ask_all(questions, Cache(tmp_path / "b"), max_failures_in_a_row=3)
