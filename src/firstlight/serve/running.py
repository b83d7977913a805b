"""A server as a process: its socket, its start and its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from firstlight.errors import ConfigError
from firstlight.serve.worker import EngineWorker

GRACE_S = 5.0
"""How long answers that are being written may go on after the server was told to end."""

KEEP_ALIVE_S = 30


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on an address; port 0 takes a free one. Raises ConfigError that says what is in the way."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: {error}", hint="127.0.0.1 is this machine alone") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if hasattr(socket, "SO_REUSEADDR"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port} is in use on {host}",
                hint=f"end the other program, or try --port {port + 1 if port < 65535 else 0}",
            ) from None
        if error.errno == errno.EACCES:
            raise ConfigError(
                f"--port {port} is not allowed for you", hint="ports from 1024 on are free for all"
            ) from None
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror}", hint="127.0.0.1 is this machine alone"
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser finds the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"


class Server(uvicorn.Server):
    """Ends well: after a signal nothing new is taken, running answers get `GRACE_S`, and then end as they stand.

    on_start: called when the server listens and its model is ready.
    """

    def __init__(
        self,
        app: FastAPI,
        worker: EngineWorker,
        *,
        grace_s: float = GRACE_S,
        on_start: Callable[[], None] | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_keep_alive=KEEP_ALIVE_S,
            # Answers end after the grace time; what is left then are clients that do not read.
            timeout_graceful_shutdown=int(grace_s) + 3,
            # No web sockets are spoken.
            ws="none",
        )
        super().__init__(config)
        self._worker = worker
        self._grace_s = grace_s
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self._on_start is not None:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.begin_shutdown()
        asyncio.get_running_loop().call_later(self._grace_s, self._worker.end_all)
        await super().shutdown(sockets=sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that ended the server well is not raised again: the command then ends with 0."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            # The second time: no grace.
            self._grace_s = 0.0
            self.force_exit = True
        super().handle_exit(sig, frame)


def run_server(server: Server, listener: socket.socket) -> None:
    """Serve until a signal comes."""
    with contextlib.closing(listener):
        server.run(sockets=[listener])
