"""Reads a libpq connection string without libpq: importing psycopg costs 150 ms, and the port must be bound before that.

Both forms, as the documentation of libpq gives them (34.1.1 "Connection Strings"): `postgresql://user:password@host/db?...`
and `host=... password='...'`. What is needed of them is whether they can be right, and every secret in them, to be kept out of
the log. A keyword that is not known here is put to libpq itself, which may be younger than our list.

Not promised: that a connection succeeds. Hosts, and values of options that are texts, are seen when connecting.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

URL_SCHEMES = ("postgresql://", "postgres://")

SECRET_KEYWORDS = frozenset(
    {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
)
"""Whose values never appear anywhere."""

# All keywords of libpq 18.
_KEYWORDS = SECRET_KEYWORDS.union(
    [
        "service",
        "servicefile",
        "user",
        "dbname",
        "host",
        "hostaddr",
        "port",
        "passfile",
        "options",
        "application_name",
    ],
    ["fallback_application_name", "client_encoding", "connect_timeout", "keepalives", "keepalives_idle"],
    [
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "channel_binding",
        "require_auth",
        "requirepeer",
    ],
    [
        "sslmode",
        "sslnegotiation",
        "sslcompression",
        "sslcert",
        "sslkey",
        "sslcertmode",
        "sslrootcert",
        "sslcrl",
    ],
    ["sslcrldir", "sslsni", "sslkeylogfile", "ssl_min_protocol_version", "ssl_max_protocol_version"],
    ["min_protocol_version", "max_protocol_version", "gssencmode", "krbsrvname", "gsslib", "gssdelegation"],
    [
        "replication",
        "target_session_attrs",
        "load_balance_hosts",
        "oauth_issuer",
        "oauth_client_id",
        "oauth_scope",
    ],
)

_PREFERENCES = ("disable", "prefer", "require")
_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "gssencmode": _PREFERENCES,
    "channel_binding": _PREFERENCES,
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": ("disable", "random"),
}
"""Of libpq 18: what else is written there, no connection is tried with."""

STANDBYS_ONLY = ("read-only", "standby")
"""Of target_session_attrs: what never leads to a server that can hold the lock."""

_NUMBERS = (
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
_NUMBER = re.compile(r"\s*[+-]?[0-9]{1,20}\s*")
_LARGEST_NUMBER = 2**31 - 1

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PERCENT_FAULT = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_PAIR = re.compile(
    r"""\s* (?P<key> [^\s=]+ ) \s* = \s*
        (?: '(?P<quoted> (?: [^'\\] | \\. )* )' | (?P<bare> (?: [^\s'\\] | \\. )* ) ) (?= \s | $ )""",
    re.VERBOSE | re.DOTALL,
)
_SECRET_PARAMETER = re.compile(rf"[?&](?:{'|'.join(sorted(SECRET_KEYWORDS))})=([^&]+)")


class DsnFault(ValueError):
    """The connection string cannot be right; the text says why, and holds nothing of the string."""


def parse(dsn: str) -> dict[str, str]:
    """The keywords of a connection string and their values, decoded.

    Raises:
        DsnFault: no client could connect with it.
    """
    if dsn.startswith(URL_SCHEMES):
        options = _parse_url(dsn.split("://", 1)[1])
    elif _SCHEME.match(dsn):
        raise DsnFault("its scheme is neither postgresql:// nor postgres://")
    else:
        options = _parse_pairs(dsn)
    _check_port(options.get("port", ""), options.get("host") or options.get("hostaddr") or "")
    _check_values(options)
    if not _KEYWORDS.issuperset(options):
        _ask_libpq(dsn)
    return options


def check_host(dsn: str, *, service: str | None) -> None:
    """That the server's address is in the string, if a service file could have one.

    libpq reads that file by itself, and resolves the host in it itself, in the event loop: while the resolver does not answer,
    heartbeats and requests would wait. What is in the string is resolved beside the loop.

    Args:
        dsn: the connection string.
        service: PGSERVICE.

    Raises:
        DsnFault: as `parse`, and where it is left to a service.
    """
    options = parse(dsn)
    if (options.get("service") or service) and not (options.get("host") or options.get("hostaddr")):
        raise DsnFault(
            "it leaves the host to a service file (service=... or PGSERVICE): write host=... into it"
        )


def secrets_of(dsn: str) -> tuple[str, ...]:
    """Everything in a connection string that no log may hold: the passwords, decoded and as written, and then the whole.

    Empty if it holds no password.

    Raises:
        DsnFault: as `parse`.
    """
    decoded = [value for key, value in parse(dsn).items() if key in SECRET_KEYWORDS and value]
    if not decoded:
        return ()
    return tuple(dict.fromkeys([*decoded, *_passwords_as_written(dsn), dsn]))


def _parse_url(rest: str) -> dict[str, str]:
    if re.search(r"\s", rest):
        raise DsnFault("it holds white space (write %20 for a blank)")
    if _PERCENT_FAULT.search(rest):
        raise DsnFault("a % in it does not begin a percent-encoded character (write %25 for %)")
    options: dict[str, str] = {}
    if "@" in rest.partition("/")[0]:
        credentials, _, rest = rest.partition("@")
        options["user"], _, options["password"] = credentials.partition(":")
    before, _, query = rest.partition("?")
    hosts, _, options["dbname"] = before.partition("/")
    options |= _parse_hosts(hosts)
    if query:
        options |= _parse_query(query)
    try:
        return {key: unquote(value, errors="strict") for key, value in options.items()}
    except UnicodeDecodeError:
        # libpq takes it, and psycopg then fails with this very error whenever it connects.
        raise DsnFault("its percent-encoded characters are not UTF-8") from None


def _parse_hosts(hosts: str) -> dict[str, str]:
    names: list[str] = []
    ports: list[str] = []
    for host in hosts.split(","):
        found = re.fullmatch(r"(?P<name>\[[^\[\]]+\]|[^:\[\]@]*)(?::(?P<port>[^:]*))?", host)
        if found is None:
            raise DsnFault(
                "the part between the user and the database is not host:port (percent-encode / : @ in a password)"
            )
        names.append(found["name"].strip("[]"))
        ports.append(found["port"] or "")
    return {"host": ",".join(names), "port": ",".join(ports)}


def _parse_query(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in query.split("&"):
        key, equals, value = pair.partition("=")
        if not key or not equals or "=" in value:
            raise DsnFault("after its ? stands something that is not key=value&key=value")
        if (key, value) == ("ssl", "true"):  # libpq takes this for JDBC's sake
            key, value = "sslmode", "require"
        options[unquote(key)] = value
    return options


def _parse_pairs(dsn: str) -> dict[str, str]:
    options: dict[str, str] = {}
    at = 0
    while dsn[at:].strip():
        found = _PAIR.match(dsn, at)
        if found is None:
            raise DsnFault("it is neither a postgresql:// URL nor a list of key=value")
        value = found["quoted"] if found["quoted"] is not None else found["bare"]
        options[found["key"]] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
        at = found.end()
    return options


def _check_port(ports: str, hosts: str) -> None:
    for port in ports.split(","):
        if port and not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
            raise DsnFault("its port is not a number from 1 to 65535 (percent-encode / : @ in a password)")
    # Without a host here it is that of PGHOST, or the local socket.
    if hosts and ports.count(",") not in (0, hosts.count(",")):
        raise DsnFault("it has neither one port nor one for each host")


def _check_values(options: dict[str, str]) -> None:
    for key, choices in _CHOICES.items():
        if options.get(key) and options[key] not in choices:
            raise DsnFault(f"its {key} is none of {', '.join(choices)}")
    wanted = options.get("target_session_attrs")
    # To prefer a standby changes nothing with one host; of several it leads away from the one that can be written to.
    is_among_several = any("," in options.get(name, "") for name in ("host", "hostaddr"))
    if wanted in STANDBYS_ONLY or (wanted == "prefer-standby" and is_among_several):
        raise DsnFault(
            "its target_session_attrs asks for a standby server, whose locks exclude nobody (leave it out)"
        )
    # Of TCP libpq reads nothing where it uses none of it.
    uses_tcp = options.get("keepalives") != "0" and not options.get("host", "").startswith("/")
    for key in _NUMBERS if uses_tcp else ("connect_timeout",):
        if options.get(key) and not _is_number(options[key]):
            raise DsnFault(f"its {key} is not a whole number")


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and abs(int(text)) <= _LARGEST_NUMBER


def _passwords_as_written(dsn: str) -> list[str]:
    if dsn.startswith(URL_SCHEMES):
        found = re.match(r"[a-z]+://[^/@:]*:([^/@]+)@", dsn)
        written = [found[1]] if found else []
        written += _SECRET_PARAMETER.findall(dsn)
        return written
    return [
        pair["quoted"] or pair["bare"]
        for pair in _PAIR.finditer(dsn)
        if pair["key"] in SECRET_KEYWORDS and (pair["quoted"] or pair["bare"])
    ]


def _ask_libpq(dsn: str) -> None:
    # Late, and only for a string that is odd: see the module's docstring.
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(dsn)
    except ProgrammingError:
        # libpq's own words would quote the string.
        raise DsnFault(
            "it has an option that libpq does not know (pgbouncer=true and the like belong to other clients)"
        ) from None
