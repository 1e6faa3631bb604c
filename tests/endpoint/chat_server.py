"""A real HTTP server that speaks the chat protocol, and fails in all the ways servers do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends: a chat answer, or another status, body, header or delay."""

    text: str = ""
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    drip_seconds: float = 0.0
    finish_reason: str = "stop"
    missing_bytes: int = 0


@dataclass
class ChatServer:
    """`answer` gets the request's body and the number of earlier requests with the same messages."""

    answer: Callable[[dict[str, Any], int], Reply]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self.lock:
            key = json.dumps(body["messages"])
            before = sum(json.dumps(one["messages"]) == key for one in self.requests)
            self.requests.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
        return self.answer(body, before)


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.running += 1
                server.most_running = max(server.most_running, server.running)
            try:
                self.send(server.reply({**body, "path": self.path}, dict(self.headers)))
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                with server.lock:
                    server.running -= 1

        def send(self, reply: Reply) -> None:
            time.sleep(reply.delay_seconds)
            content = reply.body
            if content is None:
                choice = {"message": {"role": "assistant", "content": reply.text}, "finish_reason": reply.finish_reason}
                content = json.dumps({"choices": [choice]}).encode()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) + reply.missing_bytes))
            self.end_headers()
            if reply.drip_seconds:
                for place in range(len(content)):
                    self.wfile.write(content[place : place + 1])
                    time.sleep(reply.drip_seconds)
            else:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def chat_server(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[ChatServer]:
    """A server on a free port of this machine."""
    state = ChatServer(answer)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
