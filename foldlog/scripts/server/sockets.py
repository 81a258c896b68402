"""Opens the sockets on which the web workers listen: one socket for each worker."""

from __future__ import annotations

import socket

from foldlog.domain.errors import OperatorError

#: Connections that wait to be accepted, because ten thousand clients may reconnect at once.
BACKLOG = 4_096
#: A connection closes after a client was silent, or stopped reading, for this long.
SILENT_SECONDS = 60


def listen(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """Opens `count` sockets that listen on the same address and port, one for each web worker.

    The kernel distributes new connections among these sockets. If all workers shared one socket,
    the worker that wakes up first would get most of the connections. Raises `OperatorError` if the
    address is invalid or in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        # SO_REUSEPORT would also share the port with a second service, so check that it is free.
        with socket.create_server(address[:2], family=family):
            pass
        sockets = [
            socket.create_server(address[:2], family=family, backlog=BACKLOG, reuse_port=True)
            for _ in range(count)
        ]
    except OSError as exc:
        raise OperatorError(f"cannot listen on {host} port {port}: {exc.strerror}") from exc
    for listening in sockets:
        _close_silent_connections(listening)
    return sockets


def _close_silent_connections(listening: socket.socket) -> None:
    """Sets options of a listening socket, so that the operating system closes accepted connections
    whose client has disappeared or has stopped reading."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", SILENT_SECONDS),
        ("TCP_KEEPINTVL", max(1, SILENT_SECONDS // 4)),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", SILENT_SECONDS * 1000),
    ):
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
