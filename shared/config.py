"""Everything the environment says, read once, validated whole, and passed on explicitly.

`load` alone judges INTERFACE.md's table "Environment". It reports every fault of an environment together, one line each,
because an operator who mends one variable per deploy needs as many deploys as there are faults. It opens nothing, asks nobody,
and imports nothing slow: worker and supervisor call it before they import what they are made of.

Of the table, PORT, HOST and what names an instance are read before as well, without a judgement, as the port is bound and the
first worker started (supervisor/__main__.py).

Not promised: that the database, Telegram, or BOT_APP can be reached or work; that is found by those who use them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from shared import base_url as urls
from shared import dsn
from shared.environment import EnvironmentReader, describe_characters
from shared.errors import ConfigurationError
from shared.identity import DEPLOY_VARIABLES, Identity, identify
from shared.naming import INSTANCE_VARIABLES, MAX_ID_CHARACTERS
from shared.redaction import Redactor
from shared.secret import MASK
from shared.secret import Secret as Secret  # for those who take a configuration apart

DEFAULT_PORT = 8080
DEFAULT_HOST = "0.0.0.0"  # noqa: S104 - the platform's router comes from elsewhere

SHUTDOWN_SECONDS = 25.0
"""All of a shutdown fits into this: the core ends it a second before (supervisor/readings.py, STOP_SECONDS). Render, Heroku and
Kubernetes kill 30 s after SIGTERM (PLATFORMS.md, row "stop")."""

LONGEST_DRAIN_SECONDS = SHUTDOWN_SECONDS - 5.0
LONGEST_LINGER_SECONDS = SHUTDOWN_SECONDS - 5.0
"""What a shutdown leaves to each, from its first signal: the rest is for the process's end, and for the term's and the lock's
(supervisor/workers_plan.py, supervisor/readings.py)."""

_SECRET_NAMES = frozenset(
    {"TELEGRAM_BOT_TOKEN", "DATABASE_URL", "WEBHOOK_SECRET_PATH", "WEBHOOK_SECRET_TOKEN", "PGPASSWORD"}
)
_DAY_SECONDS = 86_400.0
_LONGEST_SECONDS = 3_660 * _DAY_SECONDS  # of what the interface does not limit
_MAX_BOT_ID = 2**63 - 1  # bot_id is a bigint in the database
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")  # as `logging` names them

_TOKEN = re.compile(r"(?P<bot_id>[0-9]{1,19}):[A-Za-z0-9_-]{3,}")
_TOKEN_CHARACTER = re.compile(r"[A-Za-z0-9_:-]")
_SECRET_CHARACTER = re.compile(r"[A-Za-z0-9_-]")  # of secret_token (TELEGRAM.md); the path keeps to the same
_BOT_APP = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
# A name or IPv4; or IPv6, whose two colons at least tell it from an address with a port. Behind % an interface: eth0.100.
_HOST = re.compile(r"[0-9A-Za-z._-]{1,253}|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%[\w.-]+)?")
_UPDATE_KIND = re.compile(r"[a-z_]{1,64}")
_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_ID_CHARACTERS}}}")

# Where the public address comes from, in this order (INTERFACE.md); the platform's own variables name a host only.
_BASE_URL_SOURCES = (
    ("WEBHOOK_BASE_URL", "{}"),
    ("RENDER_EXTERNAL_URL", "{}"),
    ("RAILWAY_PUBLIC_DOMAIN", "https://{}"),
    ("FLY_APP_NAME", "https://{}.fly.dev"),
    ("HEROKU_APP_DEFAULT_DOMAIN_NAME", "https://{}"),
)


class BotMode(Enum):
    """How updates arrive."""

    WEBHOOK = "webhook"  # Telegram posts them to any instance
    POLLING = "polling"  # the owner's worker fetches them


class WebhookOnExit(Enum):
    """What a clean exit does with the registration."""

    KEEP = "keep"  # Telegram goes on delivering, which also wakes a sleeping instance
    DELETE = "delete"  # the owner deletes it, if no other instance waits


class LogFormat(Enum):
    """How a line of the log is written."""

    TEXT = "text"  # for people: 2026-01-12 14:40:00 [TAG] message key=value
    JSON = "json"  # for collectors: one object a line


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A valid environment. Its repr holds no secret."""

    token: Secret
    bot_id: int  # the number before the token's colon: the same after a rotation
    database_url: Secret
    base_url: str | None  # scheme://host[:port], without a slash; None in polling mode
    webhook_path: Secret  # last part of the webhook's URL
    webhook_secret: Secret  # X-Telegram-Bot-Api-Secret-Token
    mode: BotMode
    bot_app: str  # module:attribute
    port: int
    health_port: int  # 0: off
    health_host: str
    allowed_updates: tuple[str, ...]  # empty: Telegram's default
    max_connections: int
    webhook_on_exit: WebhookOnExit
    allow_preview: bool
    is_preview: bool
    db_pool_size: int
    dead_letter_days: int
    reconcile_seconds: float
    handler_timeout_seconds: float
    max_attempts: int  # starts, the first included
    dispatch_concurrency: int
    linger_seconds: float
    drain_seconds: float
    identity: Identity
    api_base_url: str  # without a trailing slash
    log_format: LogFormat
    log_level: str  # one of _LOG_LEVELS
    database_secrets: tuple[Secret, ...] = ()  # passwords in DATABASE_URL, in each form, and PGPASSWORD

    @property
    def webhook_url(self) -> Secret:
        """The URL to register; a secret, since it ends in the secret path. In polling mode there is none to ask for."""
        assert self.base_url is not None, "nothing is registered in polling mode"
        return Secret(f"{self.base_url}/webhook/{self.webhook_path.reveal()}")

    @property
    def webhook_url_masked(self) -> str | None:
        """The same for people to read; None in polling mode."""
        return None if self.base_url is None else f"{self.base_url}/webhook/{MASK}"

    @property
    def may_own(self) -> bool:
        """Whether this instance takes part in ownership at all: preview deploys do not, unless they are allowed to."""
        return self.allow_preview or not self.is_preview

    @property
    def secrets(self) -> tuple[str, ...]:
        """Everything that `shared.log.configure` shall keep out of the log, in the clear."""
        known = (self.token, self.webhook_path, self.webhook_secret, *self.database_secrets)
        return tuple(dict.fromkeys(secret.reveal() for secret in known))

    @property
    def cautions(self) -> tuple[str, ...]:
        """What is allowed and yet probably not meant, a line each, for a warning in the log at start."""
        return tuple(
            f"{name} is {seconds:g}: longer than the {longest:g} s that a shutdown leaves to it; it is cut there"
            for name, seconds, longest in (
                ("DRAIN_SECONDS", self.drain_seconds, LONGEST_DRAIN_SECONDS),
                ("LINGER_SECONDS", self.linger_seconds, LONGEST_LINGER_SECONDS),
            )
            if seconds > longest
        )


def load(environ: Mapping[str, str], *, stdin_is_terminal: bool, stdout_is_terminal: bool) -> Config:
    """The configuration that an environment describes.

    Args:
        environ: usually os.environ. An empty value counts as unset; what is not ours is not looked at.
        stdin_is_terminal: somebody presses Ctrl-C and wants no linger.
        stdout_is_terminal: somebody reads the log as it comes.

    Raises:
        ConfigurationError: with a line for each fault; end the process with status 2.
    """
    read = EnvironmentReader(environ, secret_names=_SECRET_NAMES)
    token, bot_id = _token(read)
    database_url, database_secrets = _database_url(read)
    mode = read.choice("BOT_MODE", BotMode.WEBHOOK)
    api_base_url = _api_base_url(read)
    base_url = _base_url(read, hosted=urls.is_hosted(api_base_url)) if mode is BotMode.WEBHOOK else None
    port, health_port = _ports(read)
    _ids(read, Redactor([token, database_url]))
    _host(read, "HOST", DEFAULT_HOST)  # the port is bound already: here the address is only judged
    config = Config(
        token=Secret(token),
        bot_id=bot_id,
        database_url=Secret(database_url),
        database_secrets=tuple(map(Secret, database_secrets)),
        base_url=base_url,
        webhook_path=Secret(_secret(read, "WEBHOOK_SECRET_PATH", token, 16, 128)),
        webhook_secret=Secret(_secret(read, "WEBHOOK_SECRET_TOKEN", token, 16, 256)),
        mode=mode,
        bot_app=read.pattern(
            "BOT_APP",
            "webhook_worker.menu_bot:build",
            _BOT_APP,
            "module:attribute",
            "write it like my_bot.main:build",
        ),
        port=port,
        health_port=health_port,
        health_host=_host(read, "HEALTH_HOST", "127.0.0.1"),
        allowed_updates=_allowed_updates(read),
        max_connections=read.whole_number("MAX_CONNECTIONS", 40, 1, 100),
        webhook_on_exit=read.choice("WEBHOOK_ON_EXIT", WebhookOnExit.KEEP),
        allow_preview=read.flag("ALLOW_PREVIEW"),
        is_preview=(read.text("IS_PULL_REQUEST") or "").lower() == "true",
        db_pool_size=read.whole_number("DB_POOL_SIZE", 4, 1, 100),
        dead_letter_days=read.whole_number("DEAD_LETTER_DAYS", 30, 1, 36_500),
        reconcile_seconds=read.seconds("RECONCILE_SECONDS", 60.0, 1.0, _LONGEST_SECONDS),
        handler_timeout_seconds=read.seconds("HANDLER_TIMEOUT_SECONDS", 300.0, 0.01, _DAY_SECONDS),
        max_attempts=read.whole_number("MAX_ATTEMPTS", 5, 1, 1000),
        dispatch_concurrency=read.whole_number("DISPATCH_CONCURRENCY", 32, 1, 10_000),
        linger_seconds=read.seconds("LINGER_SECONDS", 0.0 if stdin_is_terminal else 5.0, 0.0, _DAY_SECONDS),
        drain_seconds=read.seconds("DRAIN_SECONDS", 20.0, 0.0, _LONGEST_SECONDS),
        identity=identify(environ, token),
        api_base_url=api_base_url,
        log_format=read.choice("LOG_FORMAT", LogFormat.TEXT if stdout_is_terminal else LogFormat.JSON),
        log_level=_log_level(read),
    )
    if read.faults:
        raise ConfigurationError(tuple(read.faults))
    return config


def _token(read: EnvironmentReader) -> tuple[str, int]:
    name, must_be = "TELEGRAM_BOT_TOKEN", "the bot's token, like 123456:ABC-def"
    token = read.text(name)
    if token is None:
        read.fault(name, must_be, "it is not set", "take it from @BotFather")
        return "", 0
    found = _TOKEN.fullmatch(token)
    if found and 0 < int(found["bot_id"]) <= _MAX_BOT_ID:
        return token, int(found["bot_id"])
    read.fault(
        name,
        must_be,
        describe_characters(token, _TOKEN_CHARACTER)
        or (
            "its number does not fit into 64 bits or is 0"
            if found
            else f"it has {len(token)} characters in another form"
        ),
        "copy it anew from @BotFather, without quotes or blanks",
    )
    return token, 0


def _database_url(read: EnvironmentReader) -> tuple[str, tuple[str, ...]]:
    name, must_be = (
        "DATABASE_URL",
        "a libpq connection string like postgresql://user:password@host:5432/database",
    )
    text = read.text(name)
    if text is None:
        read.fault(
            name,
            must_be,
            "it is not set",
            "without a database nobody can own the bot: give the direct URL of one",
        )
        return "", ()
    password = read.text("PGPASSWORD")  # libpq takes it where the string has none
    try:
        text.encode()
        if text != text.strip():
            raise dsn.DsnFault("it begins or ends with white space")
        dsn.check_host(text, service=read.text("PGSERVICE"))
        return text, (*dsn.secrets_of(text), *([password] if password else []))
    except dsn.DsnFault as exc:
        found = str(exc)
    except UnicodeEncodeError:
        found = "it is not UTF-8"
    read.fault(name, must_be, found, "copy the direct URL (not the pooled one) from your database's page")
    return "", ()


def _api_base_url(read: EnvironmentReader) -> str:
    text = read.text("TELEGRAM_API_BASE_URL")
    if text is None:
        return urls.TELEGRAM_API
    try:
        return urls.api_base(text)
    except urls.UrlFault as exc:
        read.fault(
            "TELEGRAM_API_BASE_URL",
            "http(s)://host[:port][/path] of a Bot API server",
            str(exc),
            f"correct it, or unset it for {urls.TELEGRAM_API}",
        )
        return urls.TELEGRAM_API


def _base_url(read: EnvironmentReader, *, hosted: bool) -> str | None:
    ports = ", ".join(map(str, urls.WEBHOOK_PORTS))
    must_be = (
        f"https://host[:port], port one of {ports}, nothing after it"
        if hosted
        else "http(s)://host[:port], nothing after it"
    )
    for name, form in _BASE_URL_SOURCES:
        text = read.text(name)
        if text is None:
            continue
        try:
            return urls.webhook_base(form.format(text), hosted=hosted)
        except urls.UrlFault as exc:
            what = must_be if form == "{}" else f"such that {form.format('$' + name)} is {must_be}"
            remedy = (
                "correct it" if name == "WEBHOOK_BASE_URL" else "set WEBHOOK_BASE_URL to the public address"
            )
            read.fault(name, what, str(exc), remedy)
            return None
    read.fault(
        "WEBHOOK_BASE_URL",
        must_be,
        "it is not set, and the platform names no address",
        "set it to the public address of this service",
    )
    return None


def _ports(read: EnvironmentReader) -> tuple[int, int]:
    port = read.whole_number("PORT", DEFAULT_PORT, 1, 65_535)
    health_port = read.whole_number("HEALTH_PORT", 8081, 0, 65_535)
    if port == health_port:
        read.fault(
            "HEALTH_PORT",
            "another than PORT",
            f"both are {port}",
            "set HEALTH_PORT to a free port, or to 0 for none",
        )
    return port, health_port


def _host(read: EnvironmentReader, name: str, default: str) -> str:
    return read.pattern(
        name, default, _HOST, "an address or a host name, without port or brackets", f"unset it for {default}"
    )


def _secret(read: EnvironmentReader, name: str, token: str, low: int, high: int) -> str:
    value = read.text(name)
    if value is None:
        # Every instance derives the same one, and its label keeps the one from telling anything of the other.
        digest = hmac.new(
            token.encode("utf-8", "surrogateescape"), f"webhook-supervisor {name}".encode(), hashlib.sha256
        )
        return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
    found = describe_characters(value, _SECRET_CHARACTER)
    if not low <= len(value) <= high:
        found = f"it has {len(value)} characters" + (f", and {found}" if found else "")
    if found:
        must_be = f"{low} to {high} characters of A-Z a-z 0-9 _ -"
        read.fault(name, must_be, found, "choose another, or unset it to have one derived from the token")
    return value


def _allowed_updates(read: EnvironmentReader) -> tuple[str, ...]:
    text = read.text("ALLOWED_UPDATES")
    if text is None:
        return ()
    kinds = [kind.strip(" ") for kind in text.split(",")]
    if all(_UPDATE_KIND.fullmatch(kind) for kind in kinds):
        return tuple(dict.fromkeys(kinds))
    read.fault(
        "ALLOWED_UPDATES",
        "names of update kinds with commas between, like message,callback_query",
        read.quoted(text),
        "correct it, or unset it for Telegram's default",
    )
    return ()


def _ids(read: EnvironmentReader, secrets: Redactor) -> None:
    # What a platform gives is taken as well as can be; what the operator chose is either usable or a mistake.
    must_be = f"1 to {MAX_ID_CHARACTERS} printable ASCII characters without blanks"
    for name in (INSTANCE_VARIABLES[0], DEPLOY_VARIABLES[0]):
        if secrets(found := read.pattern(name, "", _ID, must_be, "shorten or unset it")) != found:
            read.fault(name, must_be, "it holds a secret", "it is shown to many: choose another, or unset it")


def _log_level(read: EnvironmentReader) -> str:
    text = read.text("LOG_LEVEL") or "INFO"
    if text.upper() in _LOG_LEVELS:
        return text.upper()
    read.fault("LOG_LEVEL", " or ".join(_LOG_LEVELS), read.quoted(text), "correct it, or unset it for INFO")
    return "INFO"
