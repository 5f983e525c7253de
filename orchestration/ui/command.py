"""`trajlake ui`: the options, the address, the token, and the server until it is stopped.

trajlake ui
trajlake ui --open
trajlake ui --host 0.0.0.0 --port 8200        others may come, with the token
"""

from __future__ import annotations

import errno
import getpass
import os
import secrets
import socket
import webbrowser
from typing import Annotated

import typer
import uvicorn
from rich.console import Console

from orchestration.ui.app import build_app
from orchestration.ui.guard import SIGN_IN, Access, is_loopback
from orchestration.ui.tables import Tables
from udfs import lake
from udfs.errors import ConfigError, LakeError
from udfs.settings import lake_root

TOKEN_VARIABLE = "TRAJLAKE_UI_TOKEN"

_PORT = 8177
_SHORTEST_TOKEN = 16


def ui_command(
    port: Annotated[
        int, typer.Option(help="The port; 0 takes any that is free.", min=0, max=65535)
    ] = _PORT,
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond this machine, a token is needed.")
    ] = "127.0.0.1",
    name: Annotated[
        str | None, typer.Option("--as", help="Who labels; the user's name, if nothing is said.")
    ] = None,
    opens: Annotated[
        bool, typer.Option("--open", help="Open a web browser, too; not where a token is needed.")
    ] = False,
) -> None:
    """Look at trajectories in a web browser: find, read, compare, label. A build may run."""
    if "trajectories" not in lake.table_names():
        raise LakeError(
            f"The lake at {lake_root()} has not been built yet. Run `make build`, or `dbt build` "
            "in an active environment."
        )
    bound = _bound(host, port)
    access = Access(host, bound.getsockname()[1], _token(host))
    console = Console(highlight=False, soft_wrap=True)
    try:
        with console.status("reading the lake"):
            app = build_app(Tables(), access, name or _user())
        address = _address(access)
        console.print(f"The lake at {lake_root()}: {address}", markup=False)
        console.print("Ctrl-C ends it.", style="dim")
        if opens and access.token is None:  # a token is not for command lines, which others see
            webbrowser.open(address)
        # No line for each request: an address may hold the token, and searches.
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off"
        )
        uvicorn.Server(config).run(sockets=[bound])
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        bound.close()


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        ConfigError: the port is taken, or the host is none of this machine's.
    """
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"Port {port} of {host} is taken, perhaps by another `trajlake ui`. Give another "
                "one with --port; --port 0 takes any that is free."
            ) from error
        raise ConfigError(
            f"Nothing can listen at {host}, port {port} ({error.strerror}). Give --host an "
            "address of this machine, and --port a number from 1024."
        ) from error
    return listening


def _token(host: str) -> str | None:
    """The token that a visitor has to know; None where only this machine can come.

    Raises:
        ConfigError: the one that is set is too short.
    """
    given = os.environ.get(TOKEN_VARIABLE)
    if given is not None and len(given) < _SHORTEST_TOKEN:
        raise ConfigError(
            f"{TOKEN_VARIABLE} has {len(given)} characters. Set {_SHORTEST_TOKEN} or more, or "
            "unset it: one is made then, where one is needed."
        )
    if given is not None or is_loopback(host):
        return given
    return secrets.token_urlsafe(24)


def _address(access: Access) -> str:
    """The link that opens the browser; with the token, unless it is one that was set."""
    host = socket.gethostname() if access.host in ("0.0.0.0", "::") else access.host
    link = f"http://{f'[{host}]' if ':' in host else host}:{access.port}"
    if access.token is None:
        return f"{link}/"
    shown = f"${TOKEN_VARIABLE}" if os.environ.get(TOKEN_VARIABLE) else access.token
    return f"{link}{SIGN_IN}?token={shown}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
