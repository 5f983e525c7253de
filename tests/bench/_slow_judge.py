"""A judge that takes its time: every chat completion comes after so many milliseconds.

    python tests/bench/_slow_judge.py 200

It prints its address. It does as little as a server can, so that what is measured is who asks.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

CONTENT = "4\nThe run did what was asked, by a short way, and said so."
REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "judge-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": CONTENT, "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 700, "completion_tokens": 50, "total_tokens": 750},
    }
).encode()
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(REPLY)
) + REPLY

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class SlowJudge(asyncio.Protocol):
    """One connection: a request, a wait, a reply, and again."""

    latency_s = 0.0

    def __init__(self) -> None:
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        found = _LENGTH.search(self._received, 0, head)
        if len(self._received) >= head + 4 + int(found[1] if found else 0):
            self._received.clear()
            asyncio.get_running_loop().call_later(self.latency_s, self._transport.write, RESPONSE)


async def main() -> None:
    SlowJudge.latency_s = int(sys.argv[1]) / 1000
    server = await asyncio.get_running_loop().create_server(SlowJudge, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
