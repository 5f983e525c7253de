"""A judge on loopback: it speaks chat completions and batches, and misbehaves on request.

What it does with a question stands in the trajectory it is about: "task 17 do:hang" makes it
hang. Without "do:" it gives the task's number modulo 6 as the score, in the form that the
template asks for; without a task, 0. A model `always-4.5` gives that score, whatever it is asked
about; a model `always-hang` does that.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from typing import Any

from loopback import Handler, LoopbackServer

PROMPT_TOKENS = 700
COMPLETION_TOKENS = 50


class JudgeServer(LoopbackServer):
    """Answers at `base_url` after `latency_s`; `asked` counts the requests by task."""

    request_queue_size = 256

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.asked: Counter[int] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self.at_once = 0
        self.lock = threading.Lock()
        self.batches = Batches(self)
        super().__init__(_Handler)


class Batches:
    """The Batch API: files are kept, and a batch is what `status` says it is.

    A request "do:500" or "do:too-long" in it ends in the error file; "do:expired" in neither.
    """

    def __init__(self, server: JudgeServer) -> None:
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.status = "in_progress"
        self.refuses = False
        self._server = server

    def keep(self, content: bytes) -> dict[str, Any]:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return {"id": name, "object": "file", "bytes": len(content), "purpose": "batch"}

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        batch = {"id": f"batch-{len(self.created)}", "object": "batch", "created_at": 0, **body}
        self.created.append(batch)
        return batch | {"status": "validating"}

    def listed(self) -> list[dict[str, Any]]:
        """Every batch as it is now, the newest first."""
        for batch in self.created:
            batch.setdefault("status", self.status)
            if batch["status"] == "in_progress":
                batch["status"] = self.status
            if batch["status"] in ("completed", "expired") and "output_file_id" not in batch:
                self._answer(batch)
            if batch["status"] == "failed":
                error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
                batch["errors"] = {"object": "list", "data": [error]}
        return self.created[::-1]

    def _answer(self, batch: dict[str, Any]) -> None:
        output, errors = [], []
        for line in self.files[batch["input_file_id"]].splitlines():
            request = json.loads(line)
            question = "\n".join(m["content"] for m in request["body"]["messages"])
            found = re.search(r"task (\d+)(?: do:([\w-]+))?", question)
            assert found and request["url"] == batch["endpoint"]
            task, do = int(found[1]), found[2]
            self._server.asked[task] += 1
            answer: dict[str, Any] = {"id": "r", "custom_id": request["custom_id"], "error": None}
            if do == "expired":
                error = {"code": "batch_expired", "message": "not executed in time"}
                errors.append(answer | {"response": None, "error": error})
            elif do in ("500", "too-long"):
                status, code = (500, "oops") if do == "500" else (400, "context_length_exceeded")
                body = {"error": {"code": code, "message": "declined", "type": "error"}}
                response = {"status_code": status, "request_id": "r", "body": body}
                errors.append(answer | {"response": response})
            elif do != "left-out":
                text = "It deserves a 4." if do == "prose-once" else _evaluation(question, task)
                response = {"status_code": 200, "request_id": "r", "body": completion(text)}
                output.append(answer | {"response": response})
        for name, lines in (("output_file_id", output), ("error_file_id", errors)):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            batch[name] = self.keep(text.encode())["id"] if lines else None


def completion(
    content: str | None,
    *,
    refusal: str | None = None,
    finish_reason: str = "stop",
    usage: bool = True,
) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    reply: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": "judge-1",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }
    if usage:
        reply["usage"] = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": COMPLETION_TOKENS,
            "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
        }
    return reply


def _evaluation(question: str, task: int) -> str:
    """A reply in the form that a template asks for, with the task's number modulo 6 as score."""
    if "A, B or tie" in question:
        tasks = re.findall(r"task (\d+)", question)
        a, b = (int(n) % 6 for n in (tasks * 2 or "00")[:2])
        return f"{'tie' if a == b else 'A' if a > b else 'B'}\nTask {task} was done so."
    steps = re.search(r"from 1 to (\d+):", question)
    if steps:
        lines = [f"Step {n}: {n % 6} | Seen." for n in range(1, int(steps[1]) + 1)]
        return "\n".join([str(task % 6), "First error: 1", *lines])
    code = re.search(r"\[BEGIN OF JSON DICT FILE ([0-9a-f]{16})\]", question)
    return f"{task % 6}\nTask {task} was done so." + (f"\n{code[1]}" if code else "")


class _Handler(Handler):
    server: JudgeServer

    def do_GET(self) -> None:
        batches = self.server.batches
        if self.path == "/v1/models":
            if self.headers["Authorization"] == "Bearer refused":
                self._error(401, "invalid_api_key", "no such key")
            else:
                self._json({"object": "list", "data": [{"id": "judge", "object": "model"}]})
            return
        with self.server.lock:
            if self.path.startswith("/v1/batches"):
                self._json({"object": "list", "data": batches.listed(), "has_more": False})
            else:
                self._send(200, batches.files[self.path.split("/")[3]])

    def do_POST(self) -> None:
        server = self.server
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/files":
            boundary = re.search(r"boundary=(\S+)", self.headers["Content-Type"])
            assert boundary
            part = next(p for p in content.split(f"--{boundary[1]}".encode()) if b"filename=" in p)
            with server.lock:
                self._json(server.batches.keep(part.split(b"\r\n\r\n", 1)[1].rstrip(b"\r\n")))
            return
        body = json.loads(content)
        if self.path == "/v1/batches":
            with server.lock:
                if server.batches.refuses:
                    self._error(400, "invalid_request", "no batches here")
                else:
                    self._json(server.batches.create(body))
            return
        question = "\n".join(message["content"] for message in body["messages"])
        found = re.search(r"task (\d+)(?: do:([\w-]+))?", question)
        task, do = (int(found[1]), found[2] or "score") if found else (0, "score")
        always = re.fullmatch(r"always-(.+)", body["model"])
        if always and re.fullmatch(r"\d\.\d+", always[1]):
            task, do = float(always[1]), "score"
        elif always:
            do = always[1]
        with server.lock:
            server.asked[task] += 1
            server.bodies.append(body)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            is_first = server.asked[task] == 1
        try:
            server.closing.wait(server.latency_s)
            self._answer(body, question, task, do, is_first)
        finally:
            with server.lock:
                server.at_once -= 1

    def _answer(
        self, body: dict[str, Any], question: str, task: int, do: str, is_first: bool
    ) -> None:
        if do.endswith("-once"):
            do = do.removesuffix("-once") if is_first else "score"
        match do:
            case "score":
                self._reply(_evaluation(question, task))
            case "out-of-range" if "response_format" in body:
                self._reply(json.dumps({"score": 9, "explanation": "Great!"}))
            case "out-of-range":
                self._reply("9\nGreat!")
            case "prose":
                self._reply("It deserves a 4.")
            case "prose-but-json" if "response_format" in body:
                self._reply(json.dumps({"score": 2.5, "explanation": "By the schema."}))
            case "prose-no-json" if "response_format" in body:
                self._error(400, "unsupported_parameter", "Unsupported: 'response_format'")
            case "prose-but-json" | "prose-no-json":
                self._reply("It deserves a 4.")
            case "prose-then-500":
                if is_first:
                    self._reply("It deserves a 4.")
                else:
                    self._error(500, "server_error", "out of order")
            case "no-code":
                self._reply("5\nAs the trajectory told me.")
            case "first":
                self._reply("A\nIt comes first.")
            case "context-2000" if len(question) > 4 * 2000:
                why = "This model's maximum context length is 2000 tokens."
                self._error(400, "context_length_exceeded", why)
            case "context-2000":
                self._reply(_evaluation(question, task))
            case "empty":
                self._reply(None)
            case "refusal":
                self._reply(None, refusal="I will not rate this.")
            case "cut-short":
                self._reply("", finish_reason="length")
            case "filtered":
                self._reply("", finish_reason="content_filter")
            case "no-usage":
                self._reply("3\nGood.", usage=False)
            case "429":
                self._error(429, "rate_limit_exceeded", "slow down", {"Retry-After": "1"})
            case "no-quota":
                self._error(429, "insufficient_quota", "You exceeded your current quota")
            case "500":
                self._error(500, "server_error", "out of order")
            case "408":
                self._error(408, "timeout", "too slow")
            case "400":
                self._error(400, "invalid_request", "cannot be read")
            case "too-long":
                self._error(400, "context_length_exceeded", "the maximum context length is 8192")
            case "401":
                key = self.headers["Authorization"].removeprefix("Bearer ")
                self._error(401, "invalid_api_key", f"Incorrect API key provided: {key}")
            case "unsupported":
                self._error(400, "unsupported_parameter", "Unsupported parameter: 'max_tokens'")
            case "hang":
                self.server.closing.wait(30)
                self.close_connection = True
            case "no-json":
                self._send(200, b"<html>Bad gateway</html>")
            case "no-choices":
                self._send(200, b'{"object": "chat.completion", "choices": []}')
            case "cut":
                self._send(200, b'{"choices": [', missing_bytes=100)
            case _:
                raise AssertionError(do)

    def _reply(self, content: str | None, **further: Any) -> None:
        self._send(200, json.dumps(completion(content, **further)).encode())

    def _error(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        error = {"error": {"message": message, "type": "error", "param": None, "code": code}}
        self._send(status, json.dumps(error).encode(), headers)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        missing_bytes: int = 0,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) + missing_bytes))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if missing_bytes:
            self.close_connection = True

    def _json(self, value: dict[str, Any]) -> None:
        self._send(200, json.dumps(value).encode())
