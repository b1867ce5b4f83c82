"""A TCP proxy in front of Redis that can be gone, half-open, slow or cut off, as networks and hung servers are."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

Mode = Literal["pass", "refuse", "swallow", "slow", "reset"]
DELAY_S = 0.2
#: Closing with this option and a zero wait sends a reset instead of an orderly end.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards a port of this machine to another one.

    Use it as a context manager. `mode` may be set at any time; setting it ends the connections there are, as what they
    carried is lost.

    Modes: "pass"; "refuse": nobody listens; "swallow": connections are accepted, and nothing ever comes back; "slow":
    every piece is `delay_s` late in each direction; "reset": connections are accepted and reset.

    Attributes
    ----------
    accepted
        Connections so far.
    asked
        When clients sent a piece that has `watch` in it, in monotonic seconds.
    """

    def __init__(self, target: int, *, delay_s: float = DELAY_S, watch: bytes | None = None) -> None:
        self._target, self._delay_s, self._watch = target, delay_s, watch
        self.accepted = 0
        self.asked: list[float] = []
        self._mode: Mode = "pass"
        self._open: set[socket.socket] = set()
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.mode = "refuse"

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        before, self._mode = self._mode, mode
        if mode == "refuse":
            _end(self._listener)
        elif before == "refuse":
            self._listener = self._listen(self.port)
        for connection in list(self._open):
            if mode == "reset":
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            _end(connection)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=256)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client = listener.accept()[0]
                self.accepted += 1
                if self._mode == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    client.close()
                    continue
                self._open.add(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                self._open.add(server)
                back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
                back.start()
                self._pump(client, server, watched=True)
                _end(server)
                back.join()
                self._open.discard(server)
        except OSError:
            pass
        finally:
            _end(client)
            self._open.discard(client)

    def _pump(self, source: socket.socket, sink: socket.socket, *, watched: bool = False) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if watched and self._watch and self._watch in data:
                    self.asked.append(time.monotonic())
                if self._mode == "swallow":
                    continue
                if self._mode == "slow":
                    time.sleep(self._delay_s)
                sink.sendall(data)
        _end(sink)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        connection.close()
