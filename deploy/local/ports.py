"""Free TCP ports on the loopback address.

Does not promise that a port stays free until it is bound: who asks must be ready to ask again.
"""

import random
import socket

LOOPBACK = "127.0.0.1"
# Below the ranges that Linux (32768) and macOS (49152) take outgoing ports from. A server that is down for a
# restart would otherwise lose its port to somebody's outgoing connection, or a client that knocks on it would
# be connected to itself, which TCP allows.
_LOWEST, _HIGHEST = 15000, 32000


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens now, outside the range of outgoing connections.

    Raises:
        OSError: in a thousand tries no port could be bound.
    """
    fault: OSError | None = None
    for _ in range(1000):
        port = random.randint(_LOWEST, _HIGHEST)
        with socket.socket() as probe:
            # As servers do, so that a port in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                fault = error
                continue
            return port
    raise OSError(f"no free port on {LOOPBACK} between {_LOWEST} and {_HIGHEST}") from fault


def is_listening(port: int) -> bool:
    """Whether somebody accepts connections on 127.0.0.1:port now."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False
