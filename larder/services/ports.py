"""Ports on this machine's loopback, and the probes that see whether a service answers there."""

from __future__ import annotations

import http.client
import socket

from feature_repo.errors import UnavailableError

HOST = "127.0.0.1"
_PROBE_TIMEOUT_S = 1.0
_TRIES = 100


def is_free(port: int) -> bool:
    """Whether a service could listen on `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def next_free_port(first: int) -> int:
    """Return the first free port from `first` upwards.

    Raises
    ------
    UnavailableError
        If none of 100 ports is free.
    """
    for port in range(first, min(first + _TRIES, 65536)):
        if is_free(port):
            return port
    raise UnavailableError(f"none of the ports {first} to {first + _TRIES - 1} is free; choose others in the settings")


def any_free_port() -> int:
    """Return a free port that the system chose."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def http_ok(path: str, port: int) -> bool:
    """Whether `GET path` answers 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def redis_pong(port: int) -> bool:
    """Whether a Redis answers PING; one that still loads its data does not yet."""
    try:
        with socket.create_connection((HOST, port), timeout=_PROBE_TIMEOUT_S) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
