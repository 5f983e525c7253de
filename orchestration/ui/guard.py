"""Who is let in, and what every answer says of itself.

| threat                                 | what is against it                                 |
|----------------------------------------|----------------------------------------------------|
| a page of a stranger sends a form here | `Sec-Fetch-Site`, `Origin`, and a token in forms   |
| a name of a stranger's that leads here | `Host` must be one of this server's                |
| somebody else in the network           | a token, where the server is bound beyond loopback |
| a text that escaping would let through | Content-Security-Policy: our style and script only |
| the page in a stranger's frame         | `frame-ancestors`                                  |
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "trajlake_ui"
SIGN_IN = "/sign-in"

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'none'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "x-frame-options": "DENY",
}

_LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}


@dataclass(frozen=True)
class Access:
    """Who may come.

    Attributes:
        host: the address that the server is bound to.
        port: its port.
        token: what has to be known; None where everybody on this machine may come.
        form_token: what forms of this process carry.
    """

    host: str
    port: int
    token: str | None = field(default=None, repr=False)
    form_token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    def is_own_host(self, given: str) -> bool:
        """Whether a Host header names this server.

        A stranger's name can be made to lead to any address; an address cannot, so addresses are
        let in where the server listens on all of them.
        """
        name, _, port = given.rpartition(":") if _has_port(given) else (given, "", "80")
        if port != str(self.port):
            return False
        own = {*_LOOPBACK, self.host.lower(), f"[{self.host}]".lower()}
        if not is_loopback(self.host):
            own |= {socket.gethostname().lower(), socket.getfqdn().lower()}
            if _is_every_address(self.host) and _is_address(name.strip("[]")):
                return True
        return name.lower() in own

    def knows_token(self, given: str | None) -> bool:
        """Whether a text is the token; takes as long for a wrong one as for the right one."""
        return self.token is not None and secrets.compare_digest(
            (given or "").encode(), self.token.encode()
        )


class Guard:
    """Lets requests through to the app, or refuses them; ASGI."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "server" in headers:
                    del headers["server"]
            await send(message)

        refusal = self._refused(scope)
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._access.is_own_host(headers.get("host", "")):
            return _refusal(
                403,
                "This server is not called that. Use the address that `trajlake ui` printed.",
            )
        site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
        is_reading = scope["method"] in ("GET", "HEAD")
        is_from_outside = site in ("cross-site", "same-site")
        if is_from_outside and not (is_reading and mode == "navigate"):
            return _refusal(403, "A page of another site asked for this, so it is refused.")
        if not is_reading and not self._is_own_origin(headers, site):
            return _refusal(403, "This form was not sent by a page of this server.")
        if self._access.token is None:
            return None
        if scope["path"] == SIGN_IN and is_reading:
            return self._sign_in(scope)
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            morsel = None
        if self._access.knows_token(morsel.value if morsel else None):
            return None
        return _refusal(
            401, "Open the link that `trajlake ui` printed: it has the token that is needed here."
        )

    def _is_own_origin(self, headers: Headers, site: str | None) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return site in ("same-origin", "none")
        # A page without a referrer sends its forms with the origin `null`; browsers that do say
        # whether the sender is the same, and no script can.
        if origin == "null":
            return site == "same-origin"
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()

    def _sign_in(self, scope: Scope) -> Response:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not self._access.knows_token(given):
            return _refusal(401, "This is not the token that `trajlake ui` printed.")
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(COOKIE, given, httponly=True, samesite="strict", path="/")
        return response


def is_loopback(host: str) -> bool:
    """Whether an address or name is reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_every_address(host: str) -> bool:
    return host in ("0.0.0.0", "::", "")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _refusal(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status_code=status)
