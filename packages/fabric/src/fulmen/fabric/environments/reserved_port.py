"""A free port that stays ours from the moment it is chosen: between a look for one and listening there, others look."""

from __future__ import annotations

import os
import socket
import sys
import weakref
from typing import Any


class ReservedPort:
    """A free port of this machine, at which nobody else can listen while this object lives.

    Another process gets the number and not the place: a copy that was pickled reserves nothing.

    Args:
        address: Where processes will connect to. At a loopback address, other machines cannot.
    """

    def __init__(self, address: str) -> None:
        listening = _listen(address)
        self._socket: socket.socket | None = None
        self.number: int = listening.getsockname()[1]
        if sys.platform == "win32":  # torch cannot take a socket over there
            listening.close()
            return
        self._socket = listening
        weakref.finalize(self, listening.close)

    def descriptor(self) -> int | None:
        """A socket that listens there, for torch's `TCPStore`, which closes it; None if there is none to give."""
        return None if self._socket is None else os.dup(self._socket.fileno())

    def __getstate__(self) -> dict[str, Any]:
        return {"number": self.number, "_socket": None}


def _listen(address: str) -> socket.socket:
    if address.startswith("127."):
        return socket.create_server((address, 0), backlog=socket.SOMAXCONN)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=socket.SOMAXCONN, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=socket.SOMAXCONN)
