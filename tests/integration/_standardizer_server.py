"""A model on loopback: an HTTP server that speaks chat completions and says what a test wants.

What it says to a conversation is the test's business: a function of the messages, which gives a
text, an HTTP status, or None to let the client wait.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from loopback import Handler, LoopbackServer

Messages = list[dict[str, str]]
PROMPT_TOKENS, COMPLETION_TOKENS = 1_000, 100


class StandardizerServer(LoopbackServer):
    """Answers at `base_url`; `asked` are the conversations that came, in order."""

    def __init__(self, say: Callable[[Messages], str | int | None]) -> None:
        self.say = say
        self.asked: list[Messages] = []
        self.lock = threading.Lock()
        super().__init__(_Handler)


class _Handler(Handler):
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
            self.send_json(said, {"error": error})
        else:
            message = {"role": "assistant", "content": said}
            usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
            self.send_json(
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
