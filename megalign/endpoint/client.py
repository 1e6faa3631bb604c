"""The client: one request's life (rate, deadline, retries, checks), and many requests at once."""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from megalign.endpoint.cache import Cache, key_of
from megalign.errors import ConfigError, DataError, EnvironmentProblem, MegalignError

Message = Mapping[str, str]

MAX_ANSWER_BYTES = 8 << 20
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_READ_BYTES = 1 << 16
_STOPPED = "the run was stopped"
_LOCAL = {"localhost", "127.0.0.1", "::1"}


class BadAnswer(Exception):
    """An answer that is not what was asked for; the question is asked again."""


class _Retry(Exception):
    """A failure that may pass. `after_seconds`: what the server asked to wait."""

    def __init__(self, reason: str, after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.after_seconds = after_seconds


@dataclass(frozen=True)
class Endpoint:
    """Where the model is.

    Attributes:
        base_url: up to and without /chat/completions, such as http://127.0.0.1:8000/v1.
        model: the model's name at the server.
        api_key_variable: the environment variable that holds the key; empty where none is needed.

    Raises:
        ConfigError: no http or https address, or a key that would travel unencrypted to another machine.
        EnvironmentProblem: the variable is not set.
    """

    base_url: str
    model: str
    api_key_variable: str = ""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self.base_url!r} is no address of an endpoint.", fix="Write https://HOST/v1.")
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                "The endpoint's address holds a user, a password or a query.",
                "Addresses are written into datasheets; a secret does not belong there.",
                "Name an environment variable that holds the key.",
            )
        if self.api_key_variable:
            if parts.scheme == "http" and parts.hostname not in _LOCAL:
                raise ConfigError(
                    f"{self.base_url} is not encrypted.", "The API key could be read on its way.", "Use https."
                )
            self.key()

    def key(self) -> str:
        """The API key; empty where none is needed."""
        if not self.api_key_variable:
            return ""
        value = os.environ.get(self.api_key_variable, "").strip()
        if not value:
            raise EnvironmentProblem(
                f"The environment variable {self.api_key_variable} is not set.", "It is to hold the endpoint's API key."
            )
        if any(character in value for character in "\r\n"):
            raise EnvironmentProblem(f"The value of {self.api_key_variable} has several lines.", "It is no API key.")
        return value


@dataclass(frozen=True)
class Question:
    """What is asked, and what makes an answer good.

    Attributes:
        messages: the chat, as {"role", "content"}.
        check: turns the text of the answer into the value wanted, or raises `BadAnswer`.
        name: for messages.
    """

    messages: Sequence[Message]
    check: Callable[[str], Any]
    name: str = ""


@dataclass(frozen=True)
class Failure:
    """A question without a good answer, after all attempts."""

    name: str
    reason: str
    attempts: int


@dataclass
class Client:
    """Asks an endpoint.

    Args:
        endpoint: where.
        max_answer_tokens: longest answer; None leaves it to the server.
        temperature: 0 asks for the most likely answer. An answer that is refused is asked for again at `retry_temperature`, as the
            same question would get the same answer.
        json_mode: ask for `response_format` json_object, which not every server knows.
        requests_per_minute: attempts included.
        num_parallel: requests under way at once.
        num_attempts: per question.
        timeout_seconds: per attempt, from connecting to the last byte.
        backoff_seconds: before the second attempt; doubled before each further one, up to a minute, and spread by up to half.
    """

    endpoint: Endpoint
    max_answer_tokens: int | None = None
    temperature: float = 0.0
    retry_temperature: float = 0.3
    json_mode: bool = False
    requests_per_minute: float = 600.0
    num_parallel: int = 8
    num_attempts: int = 5
    timeout_seconds: float = 120.0
    backoff_seconds: float = 1.0
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _next_at: float = field(default=0.0, init=False, repr=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "num_parallel", "num_attempts", "timeout_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}.", fix="Set a finite number above 0.")

    def ask_all(
        self,
        questions: Sequence[Question],
        cache: Cache,
        *,
        on_failure: Callable[[Failure], None] = lambda failure: None,
        on_answer: Callable[[int], None] = lambda place: None,
        max_failures: int | None = None,
        max_failures_in_a_row: int | None = None,
    ) -> list[Any]:
        """The checked answer of each question, None where it failed; equal questions are asked once, cached ones never.

        Args:
            questions: in any number; answers are cached as they come, so a stopped run continues.
            cache: of earlier answers. A question's key is the endpoint's model, the messages and the settings that change answers.
            on_failure: called for each question without a good answer. Failures are not cached.
            on_answer: called with a question's place as soon as its answer is there.
            max_failures: more of them end the run; None for any number.
            max_failures_in_a_row: so many without an answer between them end the run, as the endpoint is down or of no use; None for any
                number.

        Raises:
            DataError: the endpoint refuses what is sent, or too many questions failed.
            EnvironmentProblem: the key is refused.
        """
        places: dict[str, list[int]] = {}
        for place, question in enumerate(questions):
            places.setdefault(self._key(question), []).append(place)
        todo = [key for key in places if key not in cache]
        answers: list[Any] = [None] * len(questions)
        num_failures = in_a_row = 0
        self._stopped.clear()
        with ThreadPoolExecutor(self.num_parallel) as pool:
            running = {pool.submit(self._ask, questions[places[key][0]], cache, key): key for key in todo}
            try:
                for done in as_completed(running):
                    failure = done.result()
                    if failure is None:
                        in_a_row = 0
                        for place in places[running[done]]:
                            on_answer(place)
                        continue
                    if failure.reason == _STOPPED:
                        continue
                    num_failures, in_a_row = num_failures + 1, in_a_row + 1
                    on_failure(failure)
                    many = max_failures is not None and num_failures > max_failures
                    if many or (max_failures_in_a_row is not None and in_a_row >= max_failures_in_a_row):
                        raise DataError(
                            f"{num_failures} questions failed; the last ({failure.name}): {failure.reason}.",
                            "What was answered is cached.",
                            "Look at the endpoint, then start again to continue.",
                        )
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for key, wanted in places.items():
            for place in wanted:
                answers[place] = cache.get(key)
        return answers

    def _key(self, question: Question) -> str:
        settings = [self.max_answer_tokens, self.temperature, self.json_mode]
        return key_of(self.endpoint.model, list(map(dict, question.messages)), settings)

    def _ask(self, question: Question, cache: Cache, key: str) -> Failure | None:
        # Waits differ between questions, so that not all come back at the same moment.
        jitter = random.Random(key)
        reason, attempt = "", 0
        for attempt in range(1, self.num_attempts + 1):
            if self._stopped.is_set():
                return Failure(question.name, _STOPPED, attempt - 1)
            refused = attempt > 1 and reason.startswith("the answer")
            wait = min(60.0, self.backoff_seconds * 2 ** (attempt - 1)) * jitter.uniform(1, 1.5)
            try:
                text = self._request(question.messages, self.retry_temperature if refused else self.temperature)
                cache.put(key, question.check(text))
                return None
            except BadAnswer as error:
                reason, wait = str(error), 0.0
            except MegalignError:
                self._stopped.set()
                raise
            except _Retry as error:
                reason = str(error)
                if error.after_seconds is not None:
                    wait = max(wait, min(error.after_seconds, 300.0))
            if attempt < self.num_attempts:
                self._stopped.wait(wait)
        return Failure(question.name, reason, attempt)

    def _request(self, messages: Sequence[Message], temperature: float) -> str:
        body: dict[str, Any] = {"model": self.endpoint.model, "messages": list(messages), "temperature": temperature}
        if self.max_answer_tokens is not None:
            body["max_tokens"] = self.max_answer_tokens
        if self.json_mode:
            body["response_format"] = {"type": "json_object"}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := self.endpoint.key():
            headers["Authorization"] = f"Bearer {key}"
        url = self.endpoint.base_url.rstrip("/") + "/chat/completions"
        # The scheme was checked to be http or https when the endpoint was made.
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        self._wait_for_turn()
        deadline = time.monotonic() + self.timeout_seconds
        try:
            with _OPENER.open(request, timeout=self.timeout_seconds) as answer:
                return _content(_read(answer, deadline))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except TimeoutError:
            raise _Retry(f"no answer within {self.timeout_seconds:g} seconds") from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            cause = getattr(error, "reason", error)
            raise _Retry(f"the connection failed: {type(cause).__name__}: {cause}") from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP error means; the server's words are left out, as they may repeat the key."""
        if error.code in RETRIED:
            return _Retry(f"the server answered {error.code}", _seconds(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            variable = self.endpoint.api_key_variable
            return EnvironmentProblem(
                f"{self.endpoint.base_url} answered {error.code}.",
                "The API key is refused." if variable else "It asks for an API key.",
                f"Check the value of {variable}." if variable else "Name the environment variable that holds one.",
            )
        moved = " The address leads elsewhere, which is not followed." if 300 <= error.code < 400 else ""
        return DataError(
            f"{self.endpoint.base_url} answered {error.code} to a request for {self.endpoint.model}.{moved}",
            "The endpoint does not take the request; asking again would not help.",
            "Check the address, the model's name and the settings of the answer.",
        )

    def _wait_for_turn(self) -> None:
        """Requests start at even distances, whatever the number of threads."""
        with self._turn:
            start = max(self._next_at, time.monotonic())
            self._next_at = start + 60.0 / self.requests_per_minute
        self._stopped.wait(max(0.0, start - time.monotonic()))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _read(answer: Any, deadline: float) -> bytes:
    """The body, within size and time: a server may send a byte now and then for ever."""
    parts, size = [], 0
    while chunk := answer.read1(_READ_BYTES):
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise _Retry(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
        parts.append(chunk)
    wanted = answer.headers.get("Content-Length")
    if wanted is not None and wanted.isdigit() and size < int(wanted):
        raise _Retry(f"the answer ended after {size} of {wanted} bytes")
    return b"".join(parts)


def _content(body: bytes) -> str:
    """The text of a chat completion."""
    try:
        value = json.loads(body)
        choice = value["choices"][0]
        text = choice["message"]["content"]
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise _Retry("the server's answer is not JSON") from None
    except (KeyError, IndexError, TypeError):
        raise _Retry("the server's answer is no chat completion") from None
    if not isinstance(text, str):
        raise BadAnswer("the answer holds no text")
    if choice.get("finish_reason") == "length":
        raise BadAnswer("the answer was cut off at its longest length")
    return text


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None
