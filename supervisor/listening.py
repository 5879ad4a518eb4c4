"""A listening socket, at an address as HOST and HEALTH_HOST name it.

Imports nothing but `socket`: PORT is bound before anything else is imported (`__main__`).

Not promised: that the address makes sense. The system says so, and `cli` says it to the operator.
"""

import socket


def listen(host: str, port: int, *, backlog: int) -> socket.socket:
    """Binds, and listens.

    Raises:
        OSError: as the system says it.
        ValueError: it is not a name and not an address.
    """
    is_ipv6 = ":" in host
    return socket.create_server(
        address_of(host, port),
        family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
        backlog=backlog,
        # "::" is every address, as 0.0.0.0 is for IPv4: without this, the platform's proxy could not come by IPv4.
        dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
    )


def address_of(host: str, port: int) -> tuple[object, ...]:
    """What `bind` takes.

    Raises:
        OSError: there is no such zone here.
        ValueError: it is not an address.
    """
    if "%" not in host:
        return host, port
    # A link-local address is one of an interface. `bind` drops the zone in the text, and takes its number beside it.
    [(*_, address), *_] = socket.getaddrinfo(
        host, port, socket.AF_INET6, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )
    return address
