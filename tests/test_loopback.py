"""The HTTP server of the tests."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

from tests.support.loopback import Server
from tests.support.patience import PATIENCE


def test_server_ends_after_an_aborted_request() -> None:
    server = Server(lambda exchange: None)
    with server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"PUT / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        client.shutdown(socket.SHUT_RDWR)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(server.__exit__).result(timeout=PATIENCE)
