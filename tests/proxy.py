"""A door before a server on loopback, which can be shut, so that the server's clients are refused."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Literal

Mode = Literal["open", "shut", "busy"]
_BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Door:
    """A TCP proxy to ``port``, on a port of its own.

    Attributes
    ----------
    port : int
        Where clients connect to.
    mode : {"open", "shut", "busy"}
        Shut: connections are closed, those that are open too. Busy: every request is answered by HTTP status 503.
    refused : int
        Connections that were.
    delay : float
        Seconds until a request goes on to the server, as of one that is far away.
    requests, most : int
        Requests until now, and how many there were at once at most.
    """

    def __init__(self, port: int, delay: float = 0.0) -> None:
        self.mode: Mode = "open"
        self.refused = 0
        self.delay = delay
        self.requests, self.most, self._waiting = 0, 0, 0
        self._counting = threading.Lock()
        self._open: set[socket.socket] = set()
        door = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                door._let_in(self.request, port)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def turn(self, mode: Mode) -> None:
        """Go on in another mode."""
        self.mode = mode
        for connection in list(self._open):
            _end(connection)

    def close(self) -> None:
        """End the proxy."""
        self.turn("shut")
        self._server.shutdown()
        self._server.server_close()

    def _let_in(self, client: socket.socket, port: int) -> None:
        if self.mode != "open":
            self.refused += 1
            if self.mode == "busy":
                client.recv(65_536)
                client.sendall(_BUSY)
            return
        with socket.create_connection(("127.0.0.1", port)) as server:
            self._open |= {client, server}
            back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            back.start()
            _pass_on(client, server, self._hold)
            back.join()
            self._open -= {client, server}

    def _hold(self) -> None:
        with self._counting:
            self.requests += 1
            self._waiting += 1
            self.most = max(self.most, self._waiting)
        time.sleep(self.delay)
        with self._counting:
            self._waiting -= 1


def _pass_on(source: socket.socket, target: socket.socket, hold: Callable[[], None] = lambda: None) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(65_536):
            hold()
            target.sendall(content)
    _end(target)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
