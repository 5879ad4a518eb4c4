"""Free TCP ports on the loopback address.

Does not promise that a port stays free until it is bound: who asks must be ready to ask again. But this process is not
given one again before half of all others, since it may be long until one is bound.
"""

import random
import socket

LOOPBACK = "127.0.0.1"
# Below the ranges that Linux (32768) and macOS (49152) take outgoing ports from. A server that is down for a
# restart would otherwise lose its port to somebody's outgoing connection, or a client that knocks on it would
# be connected to itself, which TCP allows.
_LOWEST, _HIGHEST = 15000, 32000
_range = (_LOWEST, _HIGHEST)
_given: dict[int, None] = {}  # in the order in which they were


def keep_to_part(number: int, count: int) -> None:
    """From now on this process is given ports of one of `count` equal parts only, so that others beside it get others.

    Numbers beyond `count`, of processes that took the place of others, begin anew.
    """
    global _range
    number %= count
    size = (_HIGHEST - _LOWEST) // count
    _range = (_LOWEST + number * size, _LOWEST + (number + 1) * size - 1)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens now, outside the range of outgoing connections.

    Raises:
        OSError: in a thousand tries no port could be bound.
    """
    fault: OSError | None = None
    lowest, highest = _range
    if len(_given) > (highest - lowest) / 2:
        del _given[next(iter(_given))]
    for _ in range(1000):
        port = random.randint(lowest, highest)
        if port in _given:
            continue
        with socket.socket() as probe:
            # As servers do, so that a port in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                fault = error
                continue
            _given[port] = None
            return port
    raise OSError(f"no free port on {LOOPBACK} between {lowest} and {highest}") from fault


def is_listening(port: int) -> bool:
    """Whether somebody accepts connections on 127.0.0.1:port now."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False
