"""The DSN, and what errors are called."""

import psycopg
import pytest

from shared.database import describe, work_channel
from shared.database.schema import read_migrations
from shared.database.session import client_settings
from shared.errors import SchemaError


def test_the_channel_of_a_bot_needs_no_quoting() -> None:
    """LISTEN takes an identifier and pg_notify a text: unquoted, they must be the same name."""
    assert work_channel(123) == "webhook_supervisor_123"
    assert len(work_channel(2**63 - 1)) < 64


@pytest.mark.parametrize("dsn", ["postgresql://u:p@h:5433/d", "host=h port=5433 dbname=d user=u password=p"])
def test_a_dsn_is_completed_with_time_limits(dsn: str) -> None:
    """A silent network must be noticed within seconds, whatever the operator wrote."""
    settings = client_settings(dsn, "name")
    assert settings["tcp_user_timeout"] == "3000"
    assert settings["keepalives_idle"] == "2"
    assert settings["connect_timeout"] == "5"
    assert settings["application_name"] == "name"
    assert (settings["host"], settings["port"], settings["dbname"], settings["password"]) == (
        "h",
        "5433",
        "d",
        "p",
    )


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u:p@one:1,two:2/d", "read-write"),
        ("hostaddr=10.0.0.1,10.0.0.2 dbname=d", "read-write"),
        ("postgresql://one,two/d?target_session_attrs=primary", "primary"),
        ("postgresql://one/d", None),
        ("dbname=a,b", None),
    ],
)
def test_b12_of_several_hosts_the_one_is_wanted_that_can_be_written_to(
    dsn: str, expected: str | None
) -> None:
    """After a failover the first of them may be a standby, which would be refused again and again."""
    assert client_settings(dsn, "name").get("target_session_attrs") == expected


def test_what_the_operator_says_in_the_dsn_holds() -> None:
    """Except the encoding, which our statements rely on."""
    dsn = "postgresql:///d?connect_timeout=9&application_name=bot&keepalives_idle=7&client_encoding=LATIN1&sslmode=require"
    settings = client_settings(dsn, "name")
    assert (settings["connect_timeout"], settings["application_name"], settings["keepalives_idle"]) == (
        "9",
        "bot",
        "7",
    )
    assert settings["client_encoding"] == "UTF8"
    assert settings["sslmode"] == "require"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            psycopg.OperationalError("failed to resolve host 'hunter2@db': [Errno -2] Name not known"),
            "does not resolve",
        ),
        (
            psycopg.OperationalError('connection to server at "h" failed: Connection refused'),
            "connection refused",
        ),
        (psycopg.errors.ConnectionTimeout("connection timeout expired"), "no answer"),
        (TimeoutError(), "no answer"),
        (
            psycopg.OperationalError(
                'connection failed: FATAL:  password authentication failed for user "bot"'
            ),
            'password authentication failed for user "bot"',
        ),
        (
            psycopg.ProgrammingError('invalid dsn: missing "=" after "hunter2" in connection'),
            "cannot be parsed",
        ),
        (psycopg.OperationalError("something about hunter2"), "no connection"),
        (
            psycopg.OperationalError(
                "Multiple connection attempts failed. All failures were:\n"
                "- host: 'hunter2', port: '1', hostaddr: '10.0.0.1': connection failed: session is read-only\n"
                "- host: 'two', port: '2', hostaddr: '10.0.0.2': connection failed: Connection refused"
            ),
            "can be written to",
        ),
        (
            psycopg.OperationalError(
                'connection to server at "h", port 1 failed: server is in hot standby mode'
            ),
            "can be written to",
        ),
        (
            psycopg.OperationalError("server closed the connection unexpectedly"),
            "server closed the connection",
        ),
    ],
)
def test_a12_every_way_not_to_reach_the_database_has_its_own_words(error: Exception, words: str) -> None:
    """One line, and no piece of the DSN: a password with an `@` ends up in what libpq takes for the host."""
    line = describe(error)
    assert words in line
    assert "hunter2" not in line
    assert "\n" not in line


@pytest.mark.parametrize("numbers", [(), (2,), (1, 3), (1, 1), (2, 1), (1, 2, 2), (0, 1)])
def test_a30_migrations_must_be_numbered_without_gap_or_duplicate(numbers: tuple[int, ...]) -> None:
    """Two migrations with one number were how a schema got lost."""
    text = "".join(f"-- migration {number}: something\nSELECT {number};\n" for number in numbers)
    with pytest.raises(SchemaError, match="1, 2, 3"):
        read_migrations(text.encode())


def test_a30_ours_are() -> None:
    """The file that is installed."""
    assert len(read_migrations()) >= 1
    two = read_migrations(b"-- head\n-- migration 1: a\nSELECT 1;\n-- migration 2: b\nSELECT 2;\n")
    assert two == (b"\nSELECT 1;\n", b"\nSELECT 2;\n")
