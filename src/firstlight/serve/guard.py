"""What stands before every route: who may ask, from where, and what a browser may do with the answer.

A server on the loopback interface is reachable from every page that the user's browser shows. Two attacks are known: a page
whose host name is made to point at 127.0.0.1 (DNS rebinding), which the ``Host`` header gives away; and a page that just
sends requests without reading the answer, which the ``Origin`` header gives away. Both are refused.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firstlight.serve.errors import ApiError
from firstlight.serve.meters import Meters
from firstlight.serve.replies import JsonResponse

PROTECTED = ("/v1/", "/api/", "/metrics")
"""Paths that need the key, where there is one. The studio's files and /health hold no secret."""

MAX_BODY_BYTES = 1 << 20
DRAINED_BYTES = 16 << 20
"""A body that is too large is read on up to here, unlooked at: a client that still sends does not hear the answer."""

PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """ASGI middleware.

    api_key: None asks for none. hosts: names that the ``Host`` header may have; None allows any. origins: pages of other
    hosts that may ask (the same host's always may). max_body_bytes: of a request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None = None,
        hosts: Iterable[str] | None = None,
        origins: Iterable[str] = (),
        max_body_bytes: int = MAX_BODY_BYTES,
        meters: Meters | None = None,
    ) -> None:
        self._app = app
        self._key_digest = None if api_key is None else _digest(api_key)
        self._hosts = None if hosts is None else frozenset(hosts)
        self._origins = frozenset(origins)
        self._max_body_bytes = max_body_bytes
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), scope["path"])
            await send(message)

        try:
            error = self._mistake(scope)
            if error is not None:
                response = JsonResponse(error.to_dict(), status_code=error.status, headers=dict(error.headers))
                await response(scope, receive, send_guarded)
            else:
                await self._app(scope, self._limited(scope, receive), send_guarded)
        except BaseException:
            status = 500 if status == 499 else status
            raise
        finally:
            if self._meters is not None:
                self._meters.requests.add(_route(scope), str(status))

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """``receive`` that raises a 413 for a body that is too large."""
        num_bytes = 0
        announced = Headers(scope=scope).get("content-length", "")
        is_hopeless = announced.isdecimal() and int(announced[:20]) > DRAINED_BYTES

        async def receive_limited() -> Message:
            nonlocal num_bytes
            message: Message = {} if is_hopeless else await receive()
            num_bytes += len(bytes(message.get("body", b"")))
            if is_hopeless or num_bytes > self._max_body_bytes:
                while message.get("more_body") and num_bytes <= DRAINED_BYTES:
                    message = await receive()
                    num_bytes += len(bytes(message.get("body", b"")))
                raise HTTPException(
                    413, f"the body is larger than {self._max_body_bytes:,} bytes", headers={"Connection": "close"}
                )
            return message

        return receive_limited

    def _mistake(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = host_name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            return ApiError(
                403,
                f"the host {host[:100]!r} is not this server's: it answers to {', '.join(sorted(self._hosts))}",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and not _is_same(origin, headers.get("host", "")):
            return ApiError(403, "pages of other sites may not use this server", code="origin_not_allowed")
        if self._key_digest is None or not scope["path"].startswith(PROTECTED) or scope["method"] == "OPTIONS":
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            return _unauthorised("You didn't provide an API key: send it as `Authorization: Bearer KEY`.")
        # Digests have one length, so the time does not tell how long the key is either.
        if not hmac.compare_digest(_digest(given.strip()), self._key_digest):
            return _unauthorised("Incorrect API key provided.")
        return None


def _unauthorised(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _add_headers(headers: MutableHeaders, path: str) -> None:
    is_data = path.startswith((*PROTECTED, "/health"))
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Content-Security-Policy", DATA_POLICY if is_data else PAGE_POLICY)
    if is_data:
        headers.setdefault("Cache-Control", "no-store")


def _route(scope: Scope) -> str:
    """The route's pattern, so that made-up paths do not fill the counters."""
    return getattr(scope.get("route"), "path", None) or "other"


def host_name(host: str) -> str:
    """The name in a ``Host`` header, without its port; an IPv6 address without its brackets.

    >>> host_name("localhost:8000"), host_name("[::1]:8000"), host_name("LOCALHOST")
    ('localhost', '::1', 'localhost')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_same(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address that a server listens on.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
