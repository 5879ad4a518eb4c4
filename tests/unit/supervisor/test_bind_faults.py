"""What is said where PORT or HEALTH_PORT cannot be bound: of the port or of the address, whichever it is, with its remedy."""

from __future__ import annotations

import errno
import socket
from contextlib import closing

import pytest
from structlog.testing import capture_logs

from shared import config
from supervisor.__main__ import bind
from supervisor.cli import Started, _bind_health, main
from supervisor.listening import address_of

ENVIRONMENT = {
    "TELEGRAM_BOT_TOKEN": "123456:AAAbbbCCCdddEEEfffGGG",
    "DATABASE_URL": "postgresql://user:password@database.internal/bot",
    "WEBHOOK_BASE_URL": "https://bot.example.com",
}
OF_THE_ADDRESS = [
    OSError(
        errno.EADDRNOTAVAIL, "Cannot assign requested address (while attempting to bind on address ('x', 1))"
    ),
    OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol"),
    socket.gaierror(
        socket.EAI_NONAME, "Name or service not known (while attempting to bind on address ('x', 1))"
    ),
    OSError(0, "HOST is not a name or an address"),
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A good configuration, and nothing else of ours."""
    for name in ("HOST", "PORT", "HEALTH_HOST", "HEALTH_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def refused(capsys: pytest.CaptureFixture[str], error: OSError | None) -> list[str]:
    """What a start prints that ends with exit code 2."""
    assert main([], Started(None, error)) == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("error", OF_THE_ADDRESS)
def test_an_address_that_is_none_of_this_machines_is_a_fault_of_host(
    capsys: pytest.CaptureFixture[str], error: OSError
) -> None:
    """Another port would not help. The address is not quoted: it may be a secret in the wrong field."""
    [line] = refused(capsys, error)
    assert line.startswith("HOST: cannot be bound: ")
    assert "expected an address of this machine" in line
    assert "unset it for 0.0.0.0" in line
    assert "while attempting" not in line


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(errno.EADDRINUSE, "Address already in use"), "PORT: 8080 is taken by another process"),
        (OSError(errno.EACCES, "Permission denied"), "PORT: 8080 cannot be bound: Permission denied"),
    ],
)
def test_a_port_that_is_taken_or_not_for_us_is_a_fault_of_port(
    capsys: pytest.CaptureFixture[str], error: OSError, found: str
) -> None:
    """As ever."""
    [line] = refused(capsys, error)
    assert line.startswith(found)
    assert line.endswith("set another PORT")


@pytest.mark.parametrize("host", ["a b", ENVIRONMENT["TELEGRAM_BOT_TOKEN"]])
def test_what_is_no_address_at_all_is_one_fault(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    """It is not bound either, which goes without saying; and nothing is quoted that is a secret."""
    environment.setenv("HOST", host)
    [line] = refused(capsys, OSError(0, f"unknown (while attempting to bind on address ({host!r}, 8080))"))
    assert line.startswith("HOST must be an address or a host name")
    assert ENVIRONMENT["TELEGRAM_BOT_TOKEN"] not in line


def test_a_bind_to_an_address_of_others_ends_so(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the system says it: the address is one for documentation (RFC 5737)."""
    environment.setenv("HOST", "203.0.113.9")
    environment.setenv("PORT", "8080")
    listener, error = bind()
    if listener is not None:
        listener.close()
        pytest.skip("this system binds addresses that it does not have")
    [line] = refused(capsys, error)
    assert line.startswith("HOST: cannot be bound: ")


def test_a_zone_is_looked_up_also_where_this_machine_has_not_the_address() -> None:
    """Whatever interface there is: `bind` wants its number."""
    number, name = socket.if_nameindex()[0]
    assert address_of(f"fe80::1%{name}", 8080) == ("fe80::1", 8080, 0, number)
    assert address_of("fe80::1", 8080) == ("fe80::1", 8080)


def test_a_zone_that_is_no_interface_of_this_machine_is_a_fault_of_host(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of HEALTH_HOST a warning."""
    environment.setenv("HOST", "fe80::1%nowhere.100")
    environment.setenv("PORT", "8080")
    listener, error = bind()
    assert listener is None
    [line] = refused(capsys, error)
    assert line.startswith("HOST: cannot be bound: ")
    assert "Invalid argument" not in line
    assert "HEALTH_HOST" in str(warning(HEALTH_HOST="fe80::1%nowhere.100")["remedy"])


def warning(**variables: str) -> dict[str, object]:
    """What the log has where the health port is not bound; the supervisor goes on."""
    loaded = config.load({**ENVIRONMENT, **variables}, stdin_is_terminal=False, stdout_is_terminal=False)
    with capture_logs() as lines:
        health = _bind_health(loaded)
    if health is not None:
        health.close()
        pytest.skip("this system binds addresses that it does not have")
    [line] = lines
    assert (line["log_level"], line["event"]) == (
        "warning",
        "HEALTH_PORT cannot be bound, going on without it",
    )
    return dict(line)


@pytest.mark.parametrize("host", ["203.0.113.9", "x" * 64])
def test_a_health_host_that_is_none_of_this_machines_is_a_warning_that_names_it(host: str) -> None:
    """The second is longer than a name's part may be, and is not even looked up."""
    line = warning(HEALTH_HOST=host)
    assert line["host"] == host
    assert line["remedy"] == "set HEALTH_HOST to an address of this machine, or unset it for 127.0.0.1"


def test_a_health_port_that_is_taken_is_a_warning_that_names_it() -> None:
    """Two instances on one machine."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        line = warning(HEALTH_PORT=str(taken.getsockname()[1]))
    assert line["reason"] == "Address already in use"
    assert line["remedy"] == "set another HEALTH_PORT, or 0 to turn it off"
