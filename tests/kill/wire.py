"""A network between a task and its store that can fail, and that can lose single responses."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


class Wire:
    """Forward connections to a server on loopback; a context manager.

    The port stays bound while the network is down, so no other process can take it: connections are reset instead.

    :param port: the server's
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._down = False
        self._replies_to_lose = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._timers: list[threading.Timer] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.pull()

    def pull(self, seconds: float | None = None) -> None:
        """Cut all connections and refuse new ones, for a while or until :meth:`mend`."""
        with self._lock:
            self._down = True
            open_now = list(self._open)
        for connection in open_now:
            _reset(connection)
        if seconds is not None:
            timer = threading.Timer(seconds, self.mend)
            timer.daemon = True
            self._timers.append(timer)
            timer.start()

    def mend(self) -> None:
        """Accept connections again."""
        with self._lock:
            self._down = False
            self._replies_to_lose = 0

    def lose_replies(self, count: int) -> None:
        """Forward the next requests, and drop their responses."""
        with self._lock:
            self._replies_to_lose = count

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with self._lock:
            down = self._down
            self._open.add(near)
        try:
            if down:
                return
            with socket.create_connection(("127.0.0.1", self._target)) as far:
                back = threading.Thread(target=self._answer, args=(far, near), daemon=True)
                back.start()
                with contextlib.suppress(OSError):
                    while data := near.recv(65536):
                        far.sendall(data)
                with contextlib.suppress(OSError):
                    far.shutdown(socket.SHUT_WR)
                back.join()
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(near)
            _reset(near)
            near.close()

    def _answer(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                with self._lock:
                    lose = self._replies_to_lose > 0 and not data.startswith(b"HTTP/1.1 100")
                    self._replies_to_lose -= lose
                if lose:
                    break
                near.sendall(data)
        _reset(near)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
