"""A model on loopback: an HTTP server that speaks chat completions and says what a test wants.

What it says to a conversation is the test's business: a function of the messages, which gives a
text, an HTTP status, or None to let the client wait.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Messages = list[dict[str, str]]
PROMPT_TOKENS, COMPLETION_TOKENS = 1_000, 100


class StandardizerServer(ThreadingHTTPServer):
    """Answers at `base_url`; `asked` are the conversations that came, in order."""

    daemon_threads = True

    def __init__(self, say: Callable[[Messages], str | int | None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say = say
        self.asked: list[Messages] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed or lost patience is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandardizerServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body["messages"])
            said = self.server.say(body["messages"])
        if said is None:
            self.server.closing.wait(30)
            self.close_connection = True
        elif isinstance(said, int):
            why = "the maximum context length is 8192" if said == 413 else "no"
            error = {"message": why, "type": "error", "param": None, "code": None}
            self._send(said, {"error": error})
        else:
            message = {"role": "assistant", "content": said}
            usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
            self._send(
                200,
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion",
                    "created": int(time.time()),
                    "model": body["model"],
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": usage | {"total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS},
                },
            )

    def _send(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: pytest's output is for results."""
