"""A model on loopback that says what a test tells it to, by chat completions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# A message of the assistant; a status with an error's code; or seconds to say nothing for.
Said = dict[str, Any] | tuple[int, str] | float


class ScriptedModel(ThreadingHTTPServer):
    """Answers at `base_url` by `say(body)`; `bodies` has what was asked."""

    daemon_threads = True

    def __init__(self, say: Callable[[dict[str, Any]], Said]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say = say
        self.bodies: list[dict[str, Any]] = []
        self.closing = threading.Event()
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


def text(content: str, *, is_cut: bool = False) -> dict[str, Any]:
    """A reply in words."""
    return {"role": "assistant", "content": content, "is_cut": is_cut}


def calls(*given: tuple[str, str]) -> dict[str, Any]:
    """A reply that calls: (name, arguments as the model writes them), …"""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for number, (name, arguments) in enumerate(given, start=1)
        ],
    }


def in_turn(*replies: Said) -> Callable[[dict[str, Any]], Said]:
    """Says one after another, by how often the model has spoken in the conversation."""

    def say(body: dict[str, Any]) -> Said:
        return replies[sum(message["role"] == "assistant" for message in body["messages"])]

    return say


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedModel

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        said = self.server.say(body)
        if isinstance(said, float):
            self.server.closing.wait(said)
            self.close_connection = True
        elif isinstance(said, tuple):
            status, code = said
            key = self.headers["Authorization"].removeprefix("Bearer ")
            self._send(status, {"error": {"message": f"no: {key}", "code": code, "type": "error"}})
        else:
            message = dict(said)
            reason = "length" if message.pop("is_cut", False) else "stop"
            choice = {"index": 0, "message": message, "finish_reason": reason}
            reply = {"id": "r", "object": "chat.completion", "created": 0, "model": body["model"]}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            self._send(200, reply | {"choices": [choice], "usage": usage})

    def _send(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: pytest's output is for results."""
