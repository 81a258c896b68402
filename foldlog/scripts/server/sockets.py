"""The sockets that web workers listen on, one each."""

from __future__ import annotations

import socket

from foldlog.domain.errors import OperatorError

#: connections that wait to be accepted; ten thousand clients may come back at once
BACKLOG = 4_096
#: how long a client may take nothing of what it is sent, and say nothing when it is asked
SILENT_SECONDS = 60


def listen(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """Sockets on one address, one for each worker. The kernel shares new connections between them;
    one socket for all would give most of them to whoever wakes first.

    Raises `OperatorError` if the address is not to be had, or somebody else listens there.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        # What shares with its brothers would share with a second service, too: so look first.
        with socket.create_server(address[:2], family=family):
            pass
        sockets = [
            socket.create_server(address[:2], family=family, backlog=BACKLOG, reuse_port=True)
            for _ in range(count)
        ]
    except OSError as exc:
        raise OperatorError(f"cannot listen on {host} port {port}: {exc.strerror}") from exc
    for listening in sockets:
        _give_up_on_the_silent(listening)
    return sockets


def _give_up_on_the_silent(listening: socket.socket) -> None:
    """What is accepted here closes by itself, as far as the system can, when a client has gone
    without a word, or reads nothing of what it is sent."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", SILENT_SECONDS),
        ("TCP_KEEPINTVL", max(1, SILENT_SECONDS // 4)),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", SILENT_SECONDS * 1000),
    ):
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
