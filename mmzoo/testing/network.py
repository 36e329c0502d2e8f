"""Disable the network in tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def no_network() -> Iterator[None]:
    """Make any attempt to connect or to look up a host raise an error within the block."""

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise OSError("the network is blocked in this test")

    with (
        patch.object(socket.socket, "connect", refuse),
        patch.object(socket, "getaddrinfo", refuse),
        patch.object(socket, "create_connection", refuse),
    ):
        yield
