"""What an agent acts in: functions, a service behind an OpenAPI file, games, questions of files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestration.agent.environment import MOST_CHARACTERS, InvalidCall
from orchestration.agent.functions import Functions, load_functions
from orchestration.agent.openapi import OpenApi, load_service
from orchestration.agent.tasks import environment_for_questions, game_tasks, read_questions
from orchestration.agent.textworld import TextWorld
from udfs.errors import ConfigError

TOOLS = '''
from dataclasses import dataclass
from typing import Literal

@dataclass
class Place:
    city: str
    country: str = "FR"

def distance(start: Place, end: Place, unit: Literal["km", "mi"] = "km") -> dict[str, object]:
    """How far it is between two places."""
    return {"from": start.city, "to": end.city, "unit": unit, "is_place": isinstance(end, Place)}

def shout(text: str, times: int = 1) -> str:
    """Say it loudly."""
    return text.upper() * times

def fail() -> None:
    """Never works."""
    raise LookupError("not there")

def _hidden() -> None: ...
'''


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "my_tools.py"
    path.write_text(TOOLS)
    return path


def test_functions_become_tools_by_signature_and_docstring(tools: Path) -> None:
    environment = Functions("How far?", load_functions([str(tools)]))
    assert environment.reset() == "How far?"
    assert [each["function"]["name"] for each in environment.tools] == ["distance", "shout", "fail"]
    distance = environment.tools[0]["function"]
    assert distance["description"] == "How far it is between two places."
    assert distance["parameters"]["required"] == ["start", "end"]
    assert distance["parameters"]["properties"]["unit"] == {
        "type": "string",
        "enum": ["km", "mi"],
        "default": "km",
    }
    assert json.loads(
        environment.step(
            "distance", {"start": {"city": "Lyon"}, "end": {"city": "Nice"}}
        ).observation
    ) == {"from": "Lyon", "to": "Nice", "unit": "km", "is_place": True}
    assert environment.step("shout", {"text": "é"}).observation == "É"
    assert environment.step("fail", {}).observation == "error: LookupError: not there"


def test_arguments_that_do_not_fit_are_no_call(tools: Path) -> None:
    environment = Functions("", load_functions([f"{tools}:shout"]))
    with pytest.raises(InvalidCall, match="text: Field required"):
        environment.step("shout", {})
    with pytest.raises(InvalidCall, match=r"times: .*valid integer"):
        environment.step("shout", {"text": "a", "times": "often"})
    with pytest.raises(InvalidCall, match="loud: Extra inputs"):
        environment.step("shout", {"text": "a", "loud": True})


def test_a_long_result_says_how_much_is_missing(tools: Path) -> None:
    environment = Functions("", load_functions([f"{tools}:shout"]))
    observation = environment.step("shout", {"text": "a", "times": 50_000}).observation
    assert observation == f"{'A' * MOST_CHARACTERS} … (30,000 more characters)"


@pytest.mark.parametrize(
    ("content", "spec", "problem"),
    [
        ("def f(x): ...", "", "The parameter x of the tool f has no type"),
        ("def f(*x: int): ...", "", "no type"),
        ("async def f(): ...", "", "is async"),
        ("def f(): ...", ":g", "There is no function g"),
        ("import os", "", "No function was given"),
        ("def f(:", "", "cannot be loaded"),
    ],
)
def test_functions_that_are_no_tools_are_refused(
    tmp_path: Path, content: str, spec: str, problem: str
) -> None:
    path = tmp_path / "broken_tools.py"
    path.write_text(content)
    with pytest.raises(ConfigError, match=problem):
        load_functions([f"{path}{spec}"])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_functions([str(tmp_path / "missing.py")])


# --- a service --------------------------------------------------------------------------------

SPEC = """
openapi: 3.1.0
servers: [{url: 'SERVER/base'}]
paths:
  /books/{title}:
    parameters:
      - {name: title, in: path, required: true, schema: {type: string}}
    get:
      operationId: get book
      summary: One book.
      parameters:
        - {$ref: '#/components/parameters/lines'}
        - {name: tag, in: query, schema: {type: array, items: {type: string}}}
    put:
      operationId: keep
      requestBody:
        required: true
        content: {application/json: {schema: {$ref: '#/components/schemas/Book'}}}
  /secret:
    get:
      operationId: secret
      parameters: [{name: X-Key, in: header, required: true, schema: {type: string}}]
  /old:
    get:
      operationId: old
      parameters:
        - {name: a, in: query, schema: {type: integer, minimum: 0, exclusiveMinimum: true}}
  /away: {get: {operationId: away}}
  /large: {get: {operationId: large}}
  /picture: {get: {operationId: picture}}
components:
  parameters:
    lines: {name: lines, in: query, description: How many., schema: {type: integer, minimum: 1}}
  schemas:
    Book:
      type: object
      required: [name]
      properties: {name: {type: string}, next: {$ref: '#/components/schemas/Book'}}
"""


class _Library(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/base/away":
            self._send(302, b"", "text/plain", Location="/base/books/x")
        elif self.path == "/base/large":
            self._send(200, b"x" * 3_000_000, "text/plain")
        elif self.path == "/base/picture":
            self._send(200, b"\x89PNG", "image/png")
        elif "missing" in self.path:
            self._send(404, b'{"error": "no such book"}', "application/json")
        else:
            self._send(200, json.dumps(self.path).encode(), "application/json")

    def do_PUT(self) -> None:
        self._send(200, self.rfile.read(int(self.headers["Content-Length"])), "application/json")

    def _send(self, status: int, content: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(ConnectionError):  # who asked has read enough
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def library() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Library)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def service(library: str, tmp_path: Path) -> Iterator[OpenApi]:
    path = tmp_path / "library.yaml"
    path.write_text(SPEC.replace("SERVER", library))
    environment = OpenApi("Which book?", load_service(path), timeout_s=5.0)
    yield environment
    environment.close()


def test_operations_become_tools(service: OpenApi, tmp_path: Path, library: str) -> None:
    functions = {each["function"]["name"]: each["function"] for each in service.tools}
    assert list(functions) == ["get_book", "keep", "away", "large", "picture"]
    assert functions["get_book"]["description"] == "One book."
    parameters = functions["get_book"]["parameters"]
    assert parameters["required"] == ["title"]
    assert parameters["properties"]["lines"] == {
        "type": "integer",
        "minimum": 1,
        "description": "How many.",
    }
    body = functions["keep"]["parameters"]
    assert body["properties"]["body"] == {"$ref": "#/$defs/Book"} and "Book" in body["$defs"]
    assert load_service(tmp_path / "library.yaml").left_out == {
        "secret": "it needs the header X-Key",
        "old": "its schema is not JSON Schema 2020-12: True is not of type 'number'",
    }


def test_arguments_go_where_the_file_says_and_nowhere_else(service: OpenApi) -> None:
    def said(tool: str, **arguments: Any) -> Any:
        return json.loads(service.step(tool, arguments).observation)

    assert said("get_book", title="Ship of Fools") == "/base/books/Ship%20of%20Fools"
    assert said("get_book", title="../../etc?x=1#y") == "/base/books/..%2F..%2Fetc%3Fx%3D1%23y"
    assert said("get_book", title="a", lines=3, tag=["x", "y&z"]) == (
        "/base/books/a?lines=3&tag=x&tag=y%26z"
    )
    assert said("keep", title="a", body={"name": "b", "next": {"name": "c"}}) == {
        "name": "b",
        "next": {"name": "c"},
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {"title": ".."},
        {"title": ""},
        {},
        {"title": "a", "lines": 0},
        {"title": "a", "other": 1},
    ],
)
def test_arguments_that_do_not_fit_send_nothing(
    service: OpenApi, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidCall):
        service.step("get_book", arguments)
    with pytest.raises(InvalidCall, match=r"body\.next: 'name' is a required property"):
        service.step("keep", {"title": "a", "body": {"name": "b", "next": {}}})


def test_errors_redirects_pictures_and_large_answers_are_told(service: OpenApi) -> None:
    def said(tool: str, **arguments: Any) -> str:
        return service.step(tool, arguments).observation

    assert said("get_book", title="missing") == 'HTTP 404: {"error": "no such book"}'
    assert said("away") == "HTTP 302: it points elsewhere, and that is not followed."
    assert said("picture") == "(4 bytes of image/png)"
    large = said("large")
    assert large.startswith("x" * MOST_CHARACTERS + " … (") and large.endswith("more characters)")


@pytest.mark.parametrize(
    ("content", "server", "problem"),
    [
        ("swagger: '2.0'", None, "is no OpenAPI 3 file"),
        ("openapi: 3.0.0\npaths: {/a: {get: {}}}", None, "no whole address"),
        ("openapi: 3.0.0\npaths: {/a: {get: {}}}", "file:///etc", "no whole address"),
        ("openapi: 3.0.0\npaths: {}", "http://a", "no operation that can be a tool"),
        ("openapi: 3.0.0\npaths: {/a: {$ref: 'b.yaml'}}", "http://a", "other files are not read"),
        ("{", None, "cannot be read"),
    ],
)
def test_files_that_describe_no_service_are_refused(
    tmp_path: Path, content: str, server: str | None, problem: str
) -> None:
    path = tmp_path / "service.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=problem):
        load_service(path, server)


# --- games ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A small game, and the commands that win it."""
    textworld = pytest.importorskip("textworld", reason="the extra textworld is not installed")
    options = textworld.GameOptions()
    options.seeds = 7
    options.nb_rooms, options.nb_objects, options.quest_length = 2, 3, 2
    options.path = str(tmp_path_factory.mktemp("games") / "small.z8")
    made = textworld.make(options)
    return Path(made[0]), list(made[1].metadata["walkthrough"])


def test_a_game_is_won_by_its_walkthrough(game: tuple[Path, list[str]]) -> None:
    path, walkthrough = game
    [task] = game_tasks([path.parent])
    assert task.task_id == "small"
    environment = task.open()
    first_object = walkthrough[0].split()[1]
    assert first_object in environment.reset()
    for bad in ({}, {"command": "a\nb"}, {"command": " "}, {"command": 3}):
        with pytest.raises(InvalidCall):
            environment.step("act", bad)
    outcomes = [environment.step("act", {"command": command}) for command in walkthrough]
    assert [outcome.is_done for outcome in outcomes] == [False] * (len(outcomes) - 1) + [True]
    assert outcomes[-1].reward == 1.0
    environment.close()


def test_what_is_no_game_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no game"):
        game_tasks([tmp_path])
    broken = tmp_path / "broken.z8"
    broken.write_bytes(b"no game")
    with pytest.raises(ConfigError, match=r"cannot be played|TextWorld is not installed"):
        TextWorld(broken)


# --- questions --------------------------------------------------------------------------------


def test_questions_are_read_from_lists_lines_and_text(tmp_path: Path) -> None:
    rows = [{"_id": "a", "question": "Who?", "answer": "I"}, {"query": "Why?"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "q.json").write_text(json.dumps(rows))
    (tmp_path / "q.txt").write_text("Who?\n\nWhy?\n")
    from_lines = read_questions(tmp_path / "q.jsonl")
    assert from_lines == read_questions(tmp_path / "q.json")
    assert [(q.text, q.row.get("answer")) for q in from_lines] == [("Who?", "I"), ("Why?", None)]
    assert from_lines[0].question_id == "a"
    assert from_lines[1].question_id == read_questions(tmp_path / "q.txt")[1].question_id
    (tmp_path / "q.jsonl").write_text('{"answer": "I"}')
    with pytest.raises(ConfigError, match="row 1 has no text"):
        read_questions(tmp_path / "q.jsonl")
    (tmp_path / "q.txt").write_text("\n")
    with pytest.raises(ConfigError, match="There is no question"):
        read_questions(tmp_path / "q.txt")


def test_what_an_environment_needs_is_said() -> None:
    def opened(env: Any, **given: Any) -> Any:
        needs = {"tools": [], "spec": None, "server": None, "step_s": 1.0}
        return environment_for_questions(env, **(needs | given))

    assert opened("chat")("Hello?").reset() == "Hello?"
    with pytest.raises(ConfigError, match="--env tools needs --tools"):
        opened("tools")
    with pytest.raises(ConfigError, match="--env chat has no use for --spec"):
        opened("chat", spec=Path("a"))
    with pytest.raises(ConfigError, match="--env chat has no use for --server"):
        opened("chat", server="http://a")
