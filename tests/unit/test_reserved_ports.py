"""Ports that tests, benchmarks and the demo reserve before a server starts."""

from __future__ import annotations

import errno
import socket
import sys

import pytest

from foldlog.scripts.server.process import reserve_port
from foldlog.scripts.server.sockets import listen


@pytest.mark.skipif(sys.platform != "linux", reason="other systems release the port at once")
def test_a_reserved_port_is_free_for_our_server_alone():
    """The service binds the port twice in a row; a plain socket is refused before and after."""
    port = reserve_port()
    for _ in range(2):
        with socket.socket() as other, pytest.raises(OSError) as refused:
            other.bind(("127.0.0.1", port))
        assert refused.value.errno == errno.EADDRINUSE
        for listening in listen("127.0.0.1", port, 2):
            listening.close()


def test_each_reserved_port_is_another_one():
    ports = [reserve_port() for _ in range(50)]
    assert len(set(ports)) == 50
