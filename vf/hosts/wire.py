"""Lines of JSON over a socket, `[kind, value]` each."""

import json
import socket
from typing import Any


class Lines:
    """Lines of JSON from a socket that is ready to be read."""

    def __init__(self, source: socket.socket) -> None:
        self._source, self._rest = source, b""

    def read(self) -> tuple[list[tuple[str, Any]], bool]:
        """What is there now, and whether the other side has closed. Nonsense counts as closed."""
        try:
            data = self._source.recv(1 << 16)
        except OSError:
            return [], True
        *whole, self._rest = (self._rest + data).split(b"\n")
        try:
            found = [(str(kind), value) for kind, value in map(json.loads, whole)]
        except (ValueError, TypeError):
            return [], True
        return found, not data or len(self._rest) > 1 << 24


def keep_alive(connection: socket.socket, seconds: float) -> None:
    """Lets the system close a connection whose other side is silent for `seconds`, whatever this program does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    each = max(int(seconds / 4), 1)
    for name, value in (("TCP_KEEPIDLE", each), ("TCP_KEEPINTVL", each), ("TCP_KEEPCNT", 3),
                        ("TCP_USER_TIMEOUT", int(1000 * seconds))):  # fmt: skip
        if (option := getattr(socket, name, None)) is not None:  # Linux has them all
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def say(connection: socket.socket, kind: str, value: Any) -> None:
    """Sends one line. Raises OSError where the other side has gone."""
    connection.sendall(json.dumps([kind, value]).encode() + b"\n")
