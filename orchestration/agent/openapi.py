"""The operations of an HTTP service as tools, from its OpenAPI file (3.x, JSON or YAML).

Each operation is a tool: its path and query parameters by their names, a JSON body as `body`.
Requests go to one server, the file's first or the one that the user names, and nowhere else:
redirects are not followed, and a value in a path is quoted, so it stays one segment of it.
Operations that need what a model cannot give here (headers, cookies, other bodies than JSON) are no
tools; `left_out` names them.

Source: the OpenAPI Specification 3.0 and 3.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx2
import jsonschema
import yaml

from orchestration.agent.environment import InvalidCall, Outcome, observed, tool
from udfs.errors import ConfigError

_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
_JSON = "application/json"
_SCHEMAS = "#/components/schemas/"

# OpenAI's limits on a function's name.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME = 64

# An answer is read so far; what the model is shown of it is less (`observed`).
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Operation:
    """One operation: how it is called, and its tool."""

    name: str
    method: str
    path: str
    in_path: tuple[str, ...]
    in_query: tuple[str, ...]
    has_body: bool
    schema: Mapping[str, Any]

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON Schema of the object of arguments."""
        parameters: Mapping[str, Any] = self.schema["function"]["parameters"]
        return parameters


@dataclass(frozen=True)
class Service:
    """A service: where it is, and what it can do.

    `left_out` has the operations that are no tools, each with the reason.
    """

    server: str
    operations: Mapping[str, Operation]
    left_out: Mapping[str, str]


class OpenApi:
    """A query, and a service to answer it with.

    Args:
        timeout_s: how long the service may take for an answer.
    """

    name = "openapi"
    instructions = "Answer the user. Use the tools where they help; each is a request to a service."
    takes_answers = True

    def __init__(self, query: str, service: Service, timeout_s: float) -> None:
        self._query = query
        self._service = service
        self._client = httpx2.Client(timeout=timeout_s, follow_redirects=False)
        self.tools: Sequence[Mapping[str, Any]] = [
            operation.schema for operation in service.operations.values()
        ]

    def reset(self) -> str:
        """The query."""
        return self._query

    def step(self, tool: str, arguments: Mapping[str, Any]) -> Outcome:
        """Send a request; an error's status and text are an answer as well.

        Raises:
            InvalidCall: the arguments do not fit the operation.
        """
        operation = self._service.operations[tool]
        validator = jsonschema.Draft202012Validator(operation.parameters)
        wrong = "; ".join(
            f"{'.'.join(map(str, error.absolute_path)) or 'arguments'}: {error.message}"
            for error in validator.iter_errors(dict(arguments))
        )
        if wrong:
            raise InvalidCall(f"The arguments of {tool} do not fit: {wrong[:2000]}.")
        url = _url(self._service.server, operation, arguments)
        body = {"json": arguments["body"]} if "body" in arguments and operation.has_body else {}
        try:
            with self._client.stream(operation.method.upper(), url, **body) as response:
                return Outcome(observed(_answer(response)))
        except httpx2.HTTPError as error:
            return Outcome(f"error: no answer ({type(error).__name__})")

    def close(self) -> None:
        """Close connections."""
        self._client.close()


def load_service(file: Path, server: str | None = None) -> Service:
    """Read an OpenAPI file.

    Args:
        server: where the service is; null: the first server that the file names.

    Raises:
        ConfigError: it is none, it names no server that can be asked, or none of its operations
            can be a tool.
    """
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The OpenAPI file {file} cannot be read: {error}") from error
    if not (isinstance(document, dict) and str(document.get("openapi", "")).startswith("3.")):
        raise ConfigError(
            f"{file} is no OpenAPI 3 file (`openapi: 3.…`). Convert an older one (Swagger 2)."
        )
    try:
        found = list(_operations(document, file))
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is not what OpenAPI 3 asks for: {type(error).__name__}: {error}"
        ) from error
    operations: dict[str, Operation] = {}
    left_out: dict[str, str] = {}
    for name, operation in found:
        if isinstance(operation, str):
            left_out[name] = operation
        elif name in operations:
            raise ConfigError(f"{file} has two operations called {name}. Give one another id.")
        else:
            operations[name] = operation
    if not operations:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise ConfigError(f"{file} has no operation that can be a tool. {reasons}")
    return Service(_server(document, file, server), operations, left_out)


def _server(document: Mapping[str, Any], file: Path, given: str | None) -> str:
    named = [each.get("url", "") for each in document.get("servers") or []]
    url = given or (named[0] if named else "")
    parts = httpx2.URL(url) if "{" not in url else httpx2.URL("")
    if parts.scheme not in ("http", "https") or not parts.host or parts.query or parts.fragment:
        raise ConfigError(
            f"{file} names the server {url!r}, which is no whole address. Give --server "
            "https://host/base."
        )
    return str(parts).rstrip("/")


def _operations(document: Mapping[str, Any], file: Path) -> Iterator[tuple[str, Operation | str]]:
    """Every operation with its name, or why it is no tool."""
    for path, item in (document.get("paths") or {}).items():
        item = _resolved(document, item, file)
        for method in _METHODS:
            if method in item:
                operation = item[method]
                name = operation.get("operationId") or f"{method}_{path}"
                name = _NOT_IN_NAMES.sub("_", name).strip("_")[:_LONGEST_NAME]
                shared = item.get("parameters") or []
                yield name, _operation(document, file, name, method, path, operation, shared)


def _operation(
    document: Mapping[str, Any],
    file: Path,
    name: str,
    method: str,
    path: str,
    operation: Mapping[str, Any],
    shared: Sequence[Any],
) -> Operation | str:
    parameters = {}
    for each in [*shared, *(operation.get("parameters") or [])]:
        each = _resolved(document, each, file)
        parameters[each["name"], each["in"]] = each
    properties: dict[str, Any] = {}
    needed: list[str] = []
    places: dict[str, list[str]] = {"path": [], "query": []}
    for (parameter, place), each in parameters.items():
        if place not in places:
            if each.get("required"):
                return f"it needs the {place} {parameter}"
            continue
        if "schema" not in each:
            return f"the parameter {parameter} has no schema"
        if parameter in properties or parameter == "body":
            return f"it has two parameters called {parameter}"
        described = {"description": each["description"]} if each.get("description") else {}
        properties[parameter] = {**_schema(document, each["schema"], file), **described}
        places[place].append(parameter)
        if each.get("required") or place == "path":
            needed.append(parameter)
    if set(re.findall(r"{([^{}]+)}", path)) != set(places["path"]):
        return f"the parameters of its path {path} are not all declared"
    body = _resolved(document, operation.get("requestBody") or {}, file)
    content = (body.get("content") or {}).get(_JSON)
    if content:
        properties["body"] = _schema(document, content.get("schema") or {}, file)
        if body.get("required"):
            needed.append("body")
    elif body.get("required"):
        return f"its body is not {_JSON}"
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": needed,
        "additionalProperties": False,
    }
    if definitions := _definitions(document, schema, file):
        schema["$defs"] = definitions
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        return f"its schema is not JSON Schema 2020-12: {error.message:.200}"
    description = operation.get("description") or operation.get("summary") or f"{method} {path}"
    return Operation(
        name,
        method,
        path,
        tuple(places["path"]),
        tuple(places["query"]),
        bool(content),
        tool(name, description, schema),
    )


def _resolved(document: Mapping[str, Any], node: Any, file: Path) -> Any:
    """What a reference leads to; anything else as it is."""
    for _ in range(10):
        if not (isinstance(node, dict) and "$ref" in node):
            return node
        place = node["$ref"]
        if not place.startswith("#/"):
            raise ConfigError(f"{file} refers to {place}. References to other files are not read.")
        node = document
        for key in place[2:].split("/"):
            node = node[key.replace("~1", "/").replace("~0", "~")]
    raise ConfigError(f"{file}: references in a circle")


def _schema(document: Mapping[str, Any], node: Any, file: Path) -> Any:
    """A schema whose references lead to `$defs`."""
    if isinstance(node, list):
        return [_schema(document, each, file) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node and isinstance(node["$ref"], str):
        place = node["$ref"]
        if not place.startswith(_SCHEMAS):
            raise ConfigError(f"{file}: a schema refers to {place}. Only {_SCHEMAS}… is read.")
        return {"$ref": f"#/$defs/{place.removeprefix(_SCHEMAS)}"}
    return {key: _schema(document, value, file) for key, value in node.items()}


def _definitions(document: Mapping[str, Any], schema: Any, file: Path) -> dict[str, Any]:
    """The schemas that a schema leads to, over however many references."""
    found: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        text = json.dumps(waiting.pop(), default=str)
        for name in re.findall(r'"\$ref": "#/\$defs/([^"]+)"', text):
            if name not in found:
                found[name] = _schema(document, document["components"]["schemas"][name], file)
                waiting.append(found[name])
    return found


def _url(server: str, operation: Operation, arguments: Mapping[str, Any]) -> str:
    """The address of a call.

    Raises:
        InvalidCall: a value would be no segment of the path.
    """
    path = operation.path
    for name in operation.in_path:
        value = _text(arguments[name])
        if value in ("", ".", ".."):
            raise InvalidCall(f"{name} is {value!r}, which is no name of anything in a path.")
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    query = [
        (name, _text(each))
        for name in operation.in_query
        if name in arguments
        for each in (arguments[name] if isinstance(arguments[name], list) else [arguments[name]])
    ]
    return f"{server}/{path.lstrip('/')}" + (f"?{urlencode(query)}" if query else "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _answer(response: httpx2.Response) -> str:
    """Status and text of an answer; what is no text is only told of."""
    if response.is_redirect:
        return f"HTTP {response.status_code}: it points elsewhere, and that is not followed."
    content = bytearray()
    for part in response.iter_bytes():
        content += part
        if len(content) > _MOST_BYTES:
            break
    kind = response.headers.get("content-type", "").partition(";")[0]
    is_text = kind.startswith("text/") or kind.endswith(("json", "xml", "yaml"))
    if not is_text and content:
        text = f"({len(content):,} bytes of {kind or 'unknown kind'})"
    else:
        text = content[:_MOST_BYTES].decode(response.encoding or "utf-8", errors="replace")
    if len(content) > _MOST_BYTES:
        text += f" … (the answer is longer than {_MOST_BYTES:,} bytes)"
    return text if response.is_success and text else f"HTTP {response.status_code}: {text}"
