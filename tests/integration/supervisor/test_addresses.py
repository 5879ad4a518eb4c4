"""Where the supervisor listens."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from deploy.local.ports import free_port
from shared.inherited import LISTEN_FD_VARIABLE
from supervisor.__main__ import bind
from supervisor.cli import _bind_health
from tests.integration.supervisor.lease_driver import config_for
from webhook_worker.__main__ import take_inherited


def reaches(port: int) -> list[str]:
    """The loopback addresses at which somebody listens."""
    found = []
    for address in ("127.0.0.1", "::1"):
        try:
            socket.create_connection((address, port), timeout=10).close()
        except OSError:
            continue
        found.append(address)
    return found


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here, or none beside IPv4")
def test_every_address_of_ipv6_includes_those_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOST=:: is what a private network on IPv6 needs (Railway, Fly); the platform's proxy may still come by IPv4."""
    port, health_port = free_port(), free_port()
    monkeypatch.setenv("HOST", "::")
    monkeypatch.setenv("PORT", str(port))
    listener, error = bind()
    assert listener is not None, error
    health = _bind_health(config_for("postgresql:///d", HEALTH_HOST="::", HEALTH_PORT=str(health_port)))
    assert health is not None
    with closing(listener), closing(health):
        assert reaches(port) == ["127.0.0.1", "::1"]
        assert reaches(health_port) == ["127.0.0.1", "::1"]


def link_local() -> str:
    """An address of this machine that is good on one interface alone, with that; skips where there is none."""
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else ():
        digits, *_, interface = line.split()
        if digits.startswith("fe80"):
            return f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))}%{interface}"
    pytest.skip("no link-local address here")


def test_a_link_local_address_is_bound_on_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system takes the interface as a number beside the address, and calls one without it an invalid argument."""
    host, port, health_port = link_local(), free_port(), free_port()
    monkeypatch.setenv("HOST", host)
    monkeypatch.setenv("PORT", str(port))
    listener, error = bind()
    assert listener is not None, error
    health = _bind_health(config_for("postgresql:///d", HEALTH_HOST=host, HEALTH_PORT=str(health_port)))
    assert health is not None
    zone = socket.if_nametoindex(host.partition("%")[2])
    with closing(listener), closing(health):
        assert [bound.getsockname()[3] for bound in (listener, health)] == [zone, zone]
        for number in (port, health_port):
            socket.create_connection((host, number), timeout=10).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_an_address_of_ipv4_is_that_alone(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """As ever."""
    port = free_port()
    monkeypatch.setenv("HOST", host)
    monkeypatch.setenv("PORT", str(port))
    listener, error = bind()
    assert listener is not None, error
    with closing(listener):
        assert reaches(port) == ["127.0.0.1"]


def test_nobody_makes_the_public_socket_block_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it blocks is told once for all processes that share it.

    A supervisor that was accepting when a worker duplicated it stood still until somebody connected, and missed its heartbeats.
    """
    monkeypatch.setenv("HOST", "127.0.0.1")
    monkeypatch.setenv("PORT", str(free_port()))
    listener, error = bind()
    assert listener is not None, error
    with closing(listener):
        listener.dup().close()
        assert not os.get_blocking(listener.fileno())
        monkeypatch.setenv(LISTEN_FD_VARIABLE, str(os.dup(listener.fileno())))
        with closing(take_inherited(LISTEN_FD_VARIABLE, is_shared=True)) as inherited:
            inherited.dup().close()
            assert not os.get_blocking(listener.fileno())
