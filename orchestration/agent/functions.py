"""Python functions that the user gives, as tools.

A tool's schema comes from the function's signature, its description from the docstring. Arguments
that a model writes are checked against the signature before the function is called.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_json

from orchestration.agent.environment import InvalidCall, Outcome, observed, tool
from udfs.errors import ConfigError

_UNNAMED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class _Untitled(GenerateJsonSchema):
    """Schemas without a title for every field, which only repeats its name."""

    def field_title_should_be_set(self, schema: object) -> bool:
        """Never."""
        return False


class Functions:
    """A query, and functions to answer it with."""

    name = "tools"
    instructions = "Answer the user. Use the tools where they help."
    takes_answers = True

    def __init__(self, query: str, functions: Sequence[FunctionTool]) -> None:
        self._query = query
        self._functions = {each.name: each for each in functions}
        self.tools: Sequence[Mapping[str, Any]] = [each.schema for each in functions]

    def reset(self) -> str:
        """The query."""
        return self._query

    def step(self, tool: str, arguments: Mapping[str, Any]) -> Outcome:
        """Call a function; what it raises is what the model is told.

        Raises:
            InvalidCall: the arguments do not fit its signature.
        """
        return Outcome(observed(self._functions[tool](arguments)))

    def close(self) -> None:
        """Nothing is held."""


class FunctionTool:
    """A function with its schema.

    Raises:
        ConfigError: its parameters cannot be told to a model.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self._function = function
        self._arguments = self._model()
        schema = self._arguments.model_json_schema(schema_generator=_Untitled)
        schema.pop("title", None)
        self.schema = tool(self.name, inspect.getdoc(function) or "", schema)

    def _model(self) -> type[BaseModel]:
        function = self._function
        if inspect.iscoroutinefunction(function):
            raise ConfigError(f"The tool {self.name} is async. Give a function that waits itself.")
        try:
            hints = get_type_hints(function, include_extras=True)
            fields: dict[str, Any] = {}
            for name, parameter in inspect.signature(function).parameters.items():
                if parameter.kind in _UNNAMED or name not in hints:
                    raise ConfigError(
                        f"The parameter {name} of the tool {self.name} has no type. Write one, as "
                        f"in `{name}: str`; *args and **kwargs cannot be told to a model."
                    )
                is_needed = parameter.default is inspect.Parameter.empty
                fields[name] = (hints[name], ... if is_needed else parameter.default)
            config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
            return create_model(self.name, __config__=config, **fields)
        except (NameError, PydanticUserError, ValueError) as error:
            raise ConfigError(
                f"The signature of the tool {self.name} cannot be told to a model: {error}. Use "
                "types that JSON has."
            ) from error

    def __call__(self, arguments: Mapping[str, Any]) -> str:
        """What the function gives, as text: a text as it is, anything else as JSON.

        Raises:
            InvalidCall: the arguments do not fit.
        """
        try:
            checked = self._arguments.model_validate(dict(arguments))
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
            )
            raise InvalidCall(f"The arguments of {self.name} do not fit: {wrong}.") from None
        try:
            # By the model's own attributes: nested models stay what the signature says.
            given = {name: getattr(checked, name) for name in type(checked).model_fields}
            result = self._function(**given)
            return result if isinstance(result, str) else to_json(result, fallback=str).decode()
        except Exception as error:
            return f"error: {type(error).__name__}: {error}"


def load_functions(specs: Sequence[str]) -> list[FunctionTool]:
    """The functions that `--tools` names.

    Args:
        specs: each `module:function[,function…]` or `file.py[:function,…]`; without names, all
            functions that are written in it and do not begin with an underscore.

    Raises:
        ConfigError: there is no such module or function, or two have one name.
    """
    found: dict[str, FunctionTool] = {}
    for spec in specs:
        place, _, names = spec.partition(":")
        module = _module(place)
        wanted = [name.strip() for name in names.split(",") if name.strip()] or [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
        for name in wanted:
            function = getattr(module, name, None)
            if not inspect.isfunction(function):
                raise ConfigError(
                    f"There is no function {name} in {place}. Give --tools as "
                    "module:function,function or file.py:function."
                )
            if function.__name__ in found:
                raise ConfigError(f"Two tools are called {function.__name__}. Give one of them.")
            found[function.__name__] = FunctionTool(function)
    if not found:
        raise ConfigError(
            "No function was given to be a tool. Give --tools file.py, or module:function."
        )
    return list(found.values())


def _module(place: str) -> ModuleType:
    path = Path(place)
    try:
        if path.suffix != ".py":
            return import_module(place)
        spec = spec_from_file_location(f"trajlake_tools_{path.stem}", path.resolve())
        if spec is None or spec.loader is None:
            raise ImportError("it cannot be loaded")
        module = module_from_spec(spec)
        sys.modules[spec.name] = module  # types written in it are looked up there
        spec.loader.exec_module(module)
        return module
    except (ImportError, OSError, SyntaxError) as error:
        raise ConfigError(
            f"The tools at {place} cannot be loaded: {error}. Give --tools a file that ends in "
            ".py, or a module that Python finds."
        ) from error
