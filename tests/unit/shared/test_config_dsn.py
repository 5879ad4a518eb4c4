"""Connection strings, as libpq reads them; libpq itself is the judge."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import OperationalError, ProgrammingError, connect
from psycopg.conninfo import conninfo_to_dict

from shared import dsn

GOOD = [
    "postgresql://",
    "postgres:///bot",
    "postgresql://db",
    "postgresql://bot@db/bot",
    "postgresql://bot:secret@db:5433/bot?sslmode=require&application_name=x%20y",
    "postgresql://bot:p%40ss%2Fw%25@db/bot",
    "postgresql://bot:p#?&=+w@db/bot",
    "postgresql://bot:@db/bot",
    "postgresql://a:1,b:2,c/bot?target_session_attrs=read-write",
    "postgresql://[::1]:5432/bot",
    "postgresql://%2Fvar%2Frun%2Fpostgresql/bot",
    "postgresql:///bot?host=/var/run/postgresql&user=u&password=p%26w&ssl=true",
    "postgresql://db?sslmode=disable",
    "host=db user=bot password=secret dbname=bot",
    "host = db  port=5432 password = 'it\\'s a \\\\ secret' dbname=''",
    "host=/tmp password=with\\ blank",
    "dbname=bot",
    "service=bot",
]

BAD = [
    "db.example.com",
    "just words",
    "=x",
    "host=db password",
    "host=db password='open",
    "postgresql://db?nonsense",
    "postgresql://db?pgbouncer=true",
    "postgresql://db?a=b=c",
    "postgresql://db/bot?sslmode=%zz",
    "postgresql://bot:100%@db/bot",
    "postgresql://[::1/bot",
    "nonsense=1",
]

REFUSED_WHEN_CONNECTING = [
    "postgresql://bot:secret@127.0.0.1:1/bot?sslmode=requre",
    "postgresql://bot:secret@127.0.0.1:1/bot?gssencmode=no",
    "postgresql://bot:secret@127.0.0.1:1/bot?channel_binding=yes",
    "postgresql://bot:secret@127.0.0.1:1/bot?target_session_attrs=master",
    "postgresql://bot:secret@127.0.0.1:1/bot?load_balance_hosts=yes",
    "postgresql://bot:secret@127.0.0.1:1/bot?connect_timeout=5s",
    "postgresql://bot:secret@127.0.0.1:1/bot?keepalives_idle=30s",
    "postgresql://bot:secret@127.0.0.1:1/bot?tcp_user_timeout=x",
    "postgresql://bot:secret@127.0.0.1:1/bot?tcp_user_timeout=2147483648",
    "host=127.0.0.1 port=1,2",
    "host=127.0.0.1,127.0.0.1,127.0.0.1 port=1,2",
]

STRICTER = [
    "postgresql+asyncpg://bot:secret@db/bot",  # other libraries' spelling of a driver
    "mysql://bot:secret@db/bot?a=b",
    "http://db",
    "postgresql://bot:secret@db:port/bot",
    "postgresql://bot:pa/ss@db/bot",
    "postgresql://bot:secret@db:70000/bot",
    "host=db port=0",
    "postgresql://bot:%a1@db/bot",  # psycopg fails on it with a UnicodeDecodeError
    # Locks of a standby exclude nobody, and a primary would be refused by libpq for ever.
    "postgresql://bot:secret@db/bot?target_session_attrs=standby",
    "host=db password=secret target_session_attrs=read-only",
    "postgresql://bot:secret@a,b/bot?target_session_attrs=prefer-standby",
    "hostaddr=10.0.0.1,10.0.0.2 target_session_attrs=prefer-standby",
    # Of these libpq takes the keyword, and refuses the value whenever it connects; see below.
    *REFUSED_WHEN_CONNECTING,
]


@pytest.mark.parametrize("text", GOOD)
def test_what_libpq_takes_is_read_as_libpq_reads_it(text: str) -> None:
    """Keywords and values are the same, but for those that libpq fills in."""
    assert {key: value for key, value in dsn.parse(text).items() if value} == {
        key: value for key, value in conninfo_to_dict(text).items() if value
    }


@pytest.mark.parametrize("text", BAD)
def test_what_libpq_refuses_is_refused(text: str) -> None:
    """Found when the configuration is read, not when the first connection fails."""
    with pytest.raises(ProgrammingError):
        conninfo_to_dict(text)
    with pytest.raises(dsn.DsnFault):
        dsn.parse(text)


@pytest.mark.parametrize("text", STRICTER)
def test_what_cannot_work_is_refused_although_libpq_would_try(text: str) -> None:
    """Other schemes, and ports that are none: most often an unescaped password."""
    with pytest.raises(dsn.DsnFault):
        dsn.parse(text)


TAKEN_WHEN_CONNECTING = [
    *(
        f"host=127.0.0.1 port=1 {key}={value}"
        for key, values in dsn._CHOICES.items()
        for value in values
        if value not in dsn.STANDBYS_ONLY
    ),
    *(f"host=127.0.0.1 port=1 {key}=' +7 '" for key in dsn._NUMBERS),
    "host=127.0.0.1 port=1 tcp_user_timeout=2147483647",
    "host=127.0.0.1 port=1 keepalives_idle=0000000030",
    "host=127.0.0.1 port=1 keepalives=0 keepalives_idle=30s",
    "host=/nowhere keepalives_idle=30s",
    "host=127.0.0.1,127.0.0.1 port=1",
    "host=127.0.0.1,127.0.0.1 port=1,1",
    "hostaddr=127.0.0.1,127.0.0.1 port=1,1",
]


@pytest.mark.parametrize("text", TAKEN_WHEN_CONNECTING)
def test_values_that_libpq_connects_with_are_taken(text: str) -> None:
    """Nobody listens there; with a value that it did not know it would not try."""
    dsn.parse(text)
    with pytest.raises(
        OperationalError, match=r"Connection refused|No such file|not supported|not compiled|GSS"
    ):
        connect(text)


@pytest.mark.parametrize("text", REFUSED_WHEN_CONNECTING)
def test_values_that_libpq_refuses_whenever_it_connects_are_refused_before(text: str) -> None:
    """An instance that could never connect would stand by for ever."""
    with pytest.raises(
        (OperationalError, ProgrammingError), match=r"invalid|could not match|bad value|matching"
    ):
        connect(text)
    with pytest.raises(dsn.DsnFault):
        dsn.parse(text)


@pytest.mark.parametrize(
    ("text", "service", "is_good"),
    [
        ("service=bot", None, False),
        ("postgresql:///bot?service=bot", None, False),
        ("dbname=bot", "bot", False),
        ("postgresql:///bot", "bot", False),
        ("service=bot host=db", None, True),
        ("postgresql:///bot?service=bot&hostaddr=10.0.0.1", None, True),
        ("postgresql://db/bot", "bot", True),
        ("dbname=bot", None, True),
    ],
)
def test_the_host_is_not_left_to_a_service(text: str, service: str | None, is_good: bool) -> None:
    """libpq would look it up in the event loop, and an outage of the resolver stop everything for seconds."""
    with nullcontext() if is_good else pytest.raises(dsn.DsnFault, match="write host="):
        dsn.check_host(text, service=service)


@pytest.mark.parametrize("text", [*BAD, *STRICTER])
def test_a21_a_fault_holds_nothing_of_the_string(text: str) -> None:
    """libpq's own words quote it; ours and their causes do not."""
    with pytest.raises(dsn.DsnFault) as raised:
        dsn.parse(text)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("postgresql://bot:p%40ss@db/bot", {"p%40ss", "p@ss", "postgresql://bot:p%40ss@db/bot"}),
        (
            "postgres:///bot?password=p%26w&sslpassword=k",
            {"p%26w", "p&w", "k", "postgres:///bot?password=p%26w&sslpassword=k"},
        ),
        ("host=db password='it\\'s'", {"it's", "it\\'s", "host=db password='it\\'s'"}),
        ("host=db password = plain", {"plain", "host=db password = plain"}),
        ("postgresql://bot@db/bot", set()),
        ("postgresql://bot:@db/bot", set()),
    ],
)
def test_the_secrets_of_a_string_are_its_passwords_in_each_form_and_itself(
    text: str, secrets: set[str]
) -> None:
    """As written, for errors that quote it; decoded, for those that quote what was sent. Without a password: nothing."""
    assert set(dsn.secrets_of(text)) == secrets


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="ab1:/@?&=%'\\ [],.2F", max_size=30),
    st.sampled_from(["", "postgresql://", "postgres://u:"]),
)
def test_whatever_we_take_libpq_takes_too_and_sees_the_same_password(text: str, scheme: str) -> None:
    """Reading by ourselves saves an import; it must not let through what libpq would refuse, nor miss the password."""
    whole = scheme + text
    try:
        found = dsn.parse(whole)
    except dsn.DsnFault:
        return
    assert conninfo_to_dict(whole).get("password", "") == found.get("password", "")
    if found.get("password"):
        assert found["password"] in dsn.secrets_of(whole)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20))
def test_any_password_survives_its_escaping_in_both_forms(password: str) -> None:
    """What an operator's page percent-encodes or quotes is found again."""
    from urllib.parse import quote

    escaped = re.sub(r"([\\'])", r"\\\1", password)
    assert password in dsn.secrets_of(f"postgresql://bot:{quote(password, safe='')}@db/bot")
    assert password in dsn.secrets_of(f"host=db password='{escaped}'")
