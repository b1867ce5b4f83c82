"""HTTP as no well-behaved client sends it: raw bytes on a socket, and whatever comes back."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import dataclass
from typing import Any, Self

from larder.services.ports import HOST


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def error(self) -> dict[str, str]:
        return json.loads(self.body)["error"]


class Connection:
    """One connection; what it sends may be cut off by the server, which is not an error here."""

    def __init__(self, port: int, timeout_s: float = 20.0) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=timeout_s)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send; False where the server has closed the connection."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def answer(self) -> Answer | None:
        """Read one answer; None where the connection ends without one."""
        began = time.monotonic()
        while b"\r\n\r\n" not in self._rest:
            if not self._more():
                return None
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._rest) < length and self._more():
            pass
        body, self._rest = self._rest[:length], self._rest[length:]
        return Answer(int(status.split()[1]), headers, body, time.monotonic() - began)

    def closed_within(self, seconds: float) -> bool:
        """Whether the server closes the connection in time; what it still says is thrown away."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.01))
            with contextlib.suppress(TimeoutError):
                if not self._more():
                    return True
        return False

    def _more(self) -> bool:
        try:
            data = self.socket.recv(65_536)
        except (ConnectionResetError, BrokenPipeError):
            return False
        self._rest += data
        return bool(data)


def request(path: str, body: bytes = b"", *headers: str, method: str = "POST", length: int | None = None) -> bytes:
    """Bytes of a request of JSON with a Content-Length, which may be false."""
    lines = [f"{method} {path} HTTP/1.1", "Host: larder", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def exchange(port: int, data: bytes) -> Answer:
    """Send on a connection of its own and return the first answer."""
    with Connection(port) as connection:
        connection.send(data)
        answer = connection.answer()
    assert answer is not None, "the connection was closed without an answer"
    return answer
