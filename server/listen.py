"""The server's port, taken before anything is loaded."""

from __future__ import annotations

import os
import socket

from .errors import StartupError


def listen(host: str, port: int) -> socket.socket:
    """Take the port.

    Raises:
        StartupError: it is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise StartupError(
            f"cannot listen on {host}:{port}: {cause}", "choose another --host or --port, or stop what listens there"
        ) from error
