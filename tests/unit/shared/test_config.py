"""What an environment means, and that each thing wrong with it is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from shared import config
from shared.config import BotMode, Config, LogFormat, WebhookOnExit
from shared.errors import ConfigurationError
from supervisor import __main__ as start

TOKEN = "123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc"
PASSWORD = "correct-horse"
DSN = f"postgresql://bot:{PASSWORD}@db.internal:5432/bot"
MINIMUM = {"TELEGRAM_BOT_TOKEN": TOKEN, "DATABASE_URL": DSN, "WEBHOOK_BASE_URL": "https://bot.example.com"}


def load(more: Mapping[str, str] | None = None, /, *, terminal: bool = False, **others: str) -> Config:
    """The configuration of the least environment with some variables more."""
    return config.load(
        {**MINIMUM, **(more or {}), **others}, stdin_is_terminal=terminal, stdout_is_terminal=terminal
    )


def faults(more: Mapping[str, str] | None = None, /, **others: str) -> tuple[str, ...]:
    """The faults of such an environment; it must have some."""
    with pytest.raises(ConfigurationError) as raised:
        load({**(more or {}), **others})
    return raised.value.faults


def only_fault(more: Mapping[str, str] | None = None, /, **others: str) -> str:
    """The one fault of such an environment."""
    found = faults(more, **others)
    assert len(found) == 1, found
    return found[0]


def test_the_least_environment_has_the_defaults_of_the_interface() -> None:
    """Every default of INTERFACE.md's table."""
    found = load()
    assert found.token.reveal() == TOKEN
    assert found.bot_id == 123456789
    assert found.database_url.reveal() == DSN
    assert found.base_url == "https://bot.example.com"
    assert found.mode is BotMode.WEBHOOK
    assert found.bot_app == "webhook_worker.menu_bot:build"
    assert (found.port, found.health_host, found.health_port) == (8080, "127.0.0.1", 8081)
    assert (found.allowed_updates, found.max_connections) == ((), 40)
    assert found.webhook_on_exit is WebhookOnExit.KEEP
    assert (found.allow_preview, found.is_preview) == (False, False)
    assert (found.db_pool_size, found.dead_letter_days, found.reconcile_seconds) == (4, 30, 60.0)
    assert (found.handler_timeout_seconds, found.max_attempts, found.dispatch_concurrency) == (300.0, 5, 32)
    assert (found.linger_seconds, found.drain_seconds) == (5.0, 20.0)
    assert found.api_base_url == "https://api.telegram.org"
    assert (found.log_format, found.log_level) == (LogFormat.JSON, "INFO")


def test_at_a_terminal_nothing_lingers_and_the_log_is_text() -> None:
    """The two defaults that depend on who sits there; given values win."""
    assert (load(terminal=True).linger_seconds, load(terminal=True).log_format) == (0.0, LogFormat.TEXT)
    given = load(terminal=True, LINGER_SECONDS="2.5", LOG_FORMAT="json")
    assert (given.linger_seconds, given.log_format) == (2.5, LogFormat.JSON)


def test_every_variable_that_is_set_is_taken() -> None:
    """No variable of the table is ignored."""
    found = load(
        WEBHOOK_SECRET_PATH="path_path-path_path",
        WEBHOOK_SECRET_TOKEN="token_token-token",
        BOT_APP="my_bot.main:Factory.build",
        PORT="10000",
        HEALTH_PORT="0",
        HOST="::",
        HEALTH_HOST="0.0.0.0",
        ALLOWED_UPDATES="message, callback_query,message",
        MAX_CONNECTIONS="100",
        WEBHOOK_ON_EXIT="delete",
        ALLOW_PREVIEW="1",
        IS_PULL_REQUEST="true",
        DB_POOL_SIZE="1",
        DEAD_LETTER_DAYS="7",
        RECONCILE_SECONDS="1",
        HANDLER_TIMEOUT_SECONDS="0.5",
        MAX_ATTEMPTS="1",
        DISPATCH_CONCURRENCY="1",
        LINGER_SECONDS="0",
        DRAIN_SECONDS="0",
        LOG_LEVEL="debug",
    )
    assert found.webhook_path.reveal() == "path_path-path_path"
    assert found.webhook_secret.reveal() == "token_token-token"
    assert found.bot_app == "my_bot.main:Factory.build"
    assert (found.port, found.health_port, found.health_host) == (10000, 0, "0.0.0.0")
    assert found.allowed_updates == ("message", "callback_query")
    assert found.max_connections == 100
    assert found.webhook_on_exit is WebhookOnExit.DELETE
    assert (found.allow_preview, found.is_preview) == (True, True)
    assert (found.db_pool_size, found.dead_letter_days, found.reconcile_seconds) == (1, 7, 1.0)
    assert (found.handler_timeout_seconds, found.max_attempts, found.dispatch_concurrency) == (0.5, 1, 1)
    assert (found.linger_seconds, found.drain_seconds) == (0.0, 0.0)
    assert found.log_level == "DEBUG"


def test_an_empty_variable_is_an_unset_one() -> None:
    """Platforms' pages leave empty fields behind."""
    empty = dict.fromkeys(
        ["PORT", "BOT_MODE", "LOG_FORMAT", "WEBHOOK_SECRET_PATH", "ALLOWED_UPDATES", "ALLOW_PREVIEW"], ""
    )
    assert (load(empty).port, load(empty).webhook_path) == (8080, load().webhook_path)


# ------------------------------------------------------------------------------------------------------------- secrets


def test_secrets_are_derived_from_the_token_each_by_its_own_label() -> None:
    """Same on every instance, different from each other, gone with the token, and never the token (a21)."""
    first, again, rotated = load(), load(), load(TELEGRAM_BOT_TOKEN="123456789:another")
    derived = {first.webhook_path.reveal(), first.webhook_secret.reveal()}
    assert (first.webhook_path, first.webhook_secret) == (again.webhook_path, again.webhook_secret)
    assert len(derived | {rotated.webhook_path.reveal(), rotated.webhook_secret.reveal()}) == 4
    assert not any(TOKEN.partition(":")[2] in secret or secret in TOKEN for secret in derived)
    for secret in derived:
        load(WEBHOOK_SECRET_PATH=secret, WEBHOOK_SECRET_TOKEN=secret)  # and is what may be given


def test_a21_a_configuration_does_not_show_its_secrets() -> None:
    """Neither repr nor str, of the whole or of a part, holds one; nor is a secret to be pickled."""
    found = load(WEBHOOK_SECRET_PATH="path_path-path_path", WEBHOOK_SECRET_TOKEN="token_token-token")
    shown = f"{found!r} {found} {found.token} {found.token!r} {found.webhook_url} {found.webhook_url_masked}"
    assert not [secret for secret in found.secrets if secret in shown]
    assert found.webhook_url.reveal() == "https://bot.example.com/webhook/path_path-path_path"
    assert found.webhook_url_masked == "https://bot.example.com/webhook/***"
    with pytest.raises(TypeError, match="not pickled"):
        __import__("pickle").dumps(found.token)


def test_secrets_name_everything_that_the_log_must_hide() -> None:
    """Token, path, secret token, DSN, and its password as written, decoded, and from PGPASSWORD."""
    dsn = "postgresql://bot:p%40ss%2Fword@db/bot"
    found = load(DATABASE_URL=dsn, PGPASSWORD="from-outside")
    derived = {found.webhook_path.reveal(), found.webhook_secret.reveal()}
    assert set(found.secrets) == derived | {TOKEN, dsn, "p%40ss%2Fword", "p@ss/word", "from-outside"}


# ---------------------------------------------------------------------------------------------------- the public address


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({"WEBHOOK_BASE_URL": "https://Bot.Example.com/"}, "https://bot.example.com"),
        (
            {"WEBHOOK_BASE_URL": "https://a.example:8443", "RENDER_EXTERNAL_URL": "https://b"},
            "https://a.example:8443",
        ),
        ({"RENDER_EXTERNAL_URL": "https://b.onrender.com", "FLY_APP_NAME": "f"}, "https://b.onrender.com"),
        ({"RAILWAY_PUBLIC_DOMAIN": "r.up.railway.app"}, "https://r.up.railway.app"),
        ({"FLY_APP_NAME": "my-bot"}, "https://my-bot.fly.dev"),
        ({"HEROKU_APP_DEFAULT_DOMAIN_NAME": "h-12.herokuapp.com"}, "https://h-12.herokuapp.com"),
    ],
)
def test_the_public_address_is_given_or_the_platforms(environ: dict[str, str], address: str) -> None:
    """The order of INTERFACE.md, a trailing slash taken off, in the form in which Telegram gives it back."""
    assert load({"WEBHOOK_BASE_URL": "", **environ}).base_url == address


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("http://bot.example.com", "http://"),
        ("bot.example.com", "https://"),
        ("ftp://bot.example.com", "https://"),
        ("https://bot.example.com:8080", "port is 8080"),
        ("https://bot.example.com:0", "port"),
        ("https://bot.example.com:99999", "port"),
        ("https://bot.example.com:", "port"),
        ("https://bot.example.com/webhook", "path"),
        ("https://bot.example.com//", "path"),
        ("https://bot.example.com?x=1", "query"),
        ("https://bot.example.com/#x", "query"),
        ("https://user:hunter2@bot.example.com", "user name"),
        (" https://bot.example.com", "white space"),
        ("https://bot.example.com\n", "white space"),
        ("https://bot example.com", "white space"),
        ("https://bücher.example", "ASCII"),
        ("https://", "host"),
        ("https:///", "host"),
        ("https://-x", "host"),
        ("https://a..b", "host"),
        ("https://[::1]", "IPv6"),
        ("https://[", "malformed"),
    ],
)
def test_an_address_to_which_telegram_would_not_deliver_is_refused(address: str, found: str) -> None:
    """https, four ports, nothing after the host (TELEGRAM.md); the address itself is not quoted."""
    fault = only_fault(WEBHOOK_BASE_URL=address)
    assert fault.startswith("WEBHOOK_BASE_URL must be https://")
    assert found in fault
    assert "hunter2" not in fault


def test_for_another_bot_api_server_http_and_any_port_are_allowed() -> None:
    """The emulator, or a server in --local mode; Telegram's own, written out, is not another."""
    local = {"TELEGRAM_API_BASE_URL": "http://127.0.0.1:9000/", "WEBHOOK_BASE_URL": "http://127.0.0.1:9001"}
    found = load(local)
    assert (found.api_base_url, found.base_url) == ("http://127.0.0.1:9000", "http://127.0.0.1:9001")
    assert (
        load(TELEGRAM_API_BASE_URL="https://tg.example/bot-api/").api_base_url == "https://tg.example/bot-api"
    )
    for hosted in ("https://api.telegram.org", "https://API.telegram.org/", "https://api.telegram.org:443"):
        assert "http://" in only_fault(TELEGRAM_API_BASE_URL=hosted, WEBHOOK_BASE_URL="http://127.0.0.1:9001")


@pytest.mark.parametrize(
    "address", ["api.telegram.org", "https://x?y", "https://a:b@x", "https://x//y", "https://x//", "x y"]
)
def test_a_malformed_bot_api_address_is_refused(address: str) -> None:
    """The one fault is its own."""
    assert only_fault(TELEGRAM_API_BASE_URL=address).startswith("TELEGRAM_API_BASE_URL must be http(s)://")


def test_a_platforms_address_that_is_unusable_is_named_by_its_own_variable() -> None:
    """The operator never set WEBHOOK_BASE_URL and would look for it in vain."""
    fault = only_fault(WEBHOOK_BASE_URL="", RAILWAY_PUBLIC_DOMAIN="a b")
    assert fault.startswith("RAILWAY_PUBLIC_DOMAIN must be")
    assert "set WEBHOOK_BASE_URL" in fault
    missing = only_fault(WEBHOOK_BASE_URL="")
    assert missing.startswith("WEBHOOK_BASE_URL must be https://")
    assert "not set" in missing


# ----------------------------------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize(
    ("token", "found"),
    [
        ("", "not set"),
        ("nonsense", "8 characters"),
        ("abc:def", "7 characters"),
        ("123:", "4 characters"),
        ("123:ab", "6 characters"),
        ("0:abcdef", "64 bits or is 0"),
        ("9223372036854775808:abcdef", "64 bits"),
        ("123:abc def", "white space"),
        ("123:abcdef\n", "begins or ends with white space"),
        ("'123:abcdef'", "quotation mark"),
        ("123:abc.def", "punctuation"),
        ("123:äbcdef", "not ASCII"),
        ("123:abc\x1bdef", "control character"),
        ("١٢٣:abcdef", "not ASCII"),
        ("123:abc:def", "11 characters"),
    ],
)
def test_a_token_that_is_none_is_refused_and_not_quoted(token: str, found: str) -> None:
    """The fault tells what kind of thing is wrong with it, and nothing of it."""
    fault = only_fault(TELEGRAM_BOT_TOKEN=token)
    assert fault.startswith("TELEGRAM_BOT_TOKEN must be")
    assert found in fault
    assert "abc" not in fault.replace("ABC", "")
    assert "nonsense" not in fault


@pytest.mark.parametrize("bot_id", [1, 2**63 - 1])
def test_a08_bot_ids_at_the_extremes_are_taken(bot_id: int) -> None:
    """What the lock key and the database's bigint can hold."""
    assert load(TELEGRAM_BOT_TOKEN=f"{bot_id}:abc").bot_id == bot_id


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("short", "5 characters"),
        ("x" * 15, "15 characters"),
        ("x" * 129, "129 characters"),
        ("sixteen chars ok?", "white space, punctuation"),
        ("ünfzehnundmehrzeichen", "not ASCII"),
    ],
)
def test_a_secret_path_of_other_characters_or_length_is_refused_and_not_quoted(
    value: str, found: str
) -> None:
    """Length or kind of character, never the value."""
    fault = only_fault(WEBHOOK_SECRET_PATH=value)
    assert fault.startswith("WEBHOOK_SECRET_PATH must be 16 to 128 characters of A-Z a-z 0-9 _ -")
    assert found in fault
    assert value not in fault


def test_a_secret_token_may_have_16_to_256_characters() -> None:
    """The limit of setWebhook above, ours below."""
    assert load(WEBHOOK_SECRET_TOKEN="x" * 16).webhook_secret.reveal() == "x" * 16
    assert load(WEBHOOK_SECRET_TOKEN="x" * 256).webhook_secret.reveal() == "x" * 256
    assert "257 characters" in only_fault(WEBHOOK_SECRET_TOKEN="x" * 257)
    assert "15 characters" in only_fault(WEBHOOK_SECRET_TOKEN="x" * 15)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("PORT", ["0", "65536", "-1", "80a", "8_0", "٨٠", "+80", "8080.0", " 8080", "nan", "1e3"]),
        ("HEALTH_PORT", ["-1", "65536", "x"]),
        ("MAX_CONNECTIONS", ["0", "101", "x"]),
        ("DB_POOL_SIZE", ["0", "101"]),
        ("DEAD_LETTER_DAYS", ["0", "1.5"]),
        ("MAX_ATTEMPTS", ["0", "-5"]),
        ("DISPATCH_CONCURRENCY", ["0", "1000000000000000000000"]),
        ("RECONCILE_SECONDS", ["0", "0.9", "nan", "inf", "-inf", "1e2", "1000000000"]),
        ("HANDLER_TIMEOUT_SECONDS", ["0", "-1", "NaN"]),
        ("LINGER_SECONDS", ["-1", "x", "Infinity"]),
        ("DRAIN_SECONDS", ["-0.1", "20s"]),
        ("BOT_MODE", ["Webhook", "push"]),
        ("WEBHOOK_ON_EXIT", ["drop", "1"]),
        ("ALLOW_PREVIEW", ["yes", "2"]),
        ("LOG_FORMAT", ["xml"]),
        ("LOG_LEVEL", ["loud", "20"]),
        ("ALLOWED_UPDATES", ["message,", '["message"]', "Message", "message callback_query"]),
        (
            "BOT_APP",
            [
                "my_bot",
                "my_bot:",
                ":build",
                "my bot:build",
                "my-bot:build",
                "a:b:c",
                "my_bot/main.py:build",
                ".a:b",
            ],
        ),
        ("HOST", ["http://x", "[::]", "a b"]),
        ("HEALTH_HOST", ["a/b", "0.0.0.0:8081", "127.0.0.1:", "a:b", ":"]),
        ("INSTANCE_ID", ["a b", "x" * 201]),
        ("DEPLOY_ID", ["\n"]),
    ],
)
def test_a_value_out_of_range_or_form_is_named_with_what_it_must_be(name: str, values: list[str]) -> None:
    """One fault, of one line: the variable, what it must be, what was found, what to do."""
    for value in values:
        fault = only_fault({name: value})
        assert fault.startswith(f"{name} must be "), (value, fault)
        assert fault.count("; ") >= 2
        assert len(fault.splitlines()) == 1
        assert ascii(value) in fault or f"{len(value)} characters" in fault


@pytest.mark.parametrize(
    "name", ["RECONCILE_SECONDS", "HANDLER_TIMEOUT_SECONDS", "LINGER_SECONDS", "DRAIN_SECONDS"]
)
def test_the_limits_that_a_fault_names_are_taken(name: str) -> None:
    """In the form in which it names them."""
    low, high = only_fault({name: "-1"}).partition("; ")[0].rpartition(" from ")[2].split(" to ")
    for limit in (low, high):
        load({name: limit})


def test_polling_needs_no_public_address() -> None:
    """Nor is one looked at that somebody left there."""
    for base_url in ("", "https://bot.example.com", "not an address"):
        found = load(BOT_MODE="polling", WEBHOOK_BASE_URL=base_url)
        assert found.mode is BotMode.POLLING
        assert found.base_url is None
        assert found.webhook_url_masked is None


def test_port_and_health_port_must_differ() -> None:
    """Also where one of them is a default."""
    assert only_fault(PORT="8081").startswith("HEALTH_PORT must be another than PORT; both are 8081")
    assert only_fault(HEALTH_PORT="8080").startswith("HEALTH_PORT must be another than PORT")


@pytest.mark.parametrize(("name", "longest"), [("DRAIN_SECONDS", 20), ("LINGER_SECONDS", 20)])
def test_more_than_a_shutdown_leaves_time_for_is_allowed_with_a_caution(name: str, longest: int) -> None:
    """INTERFACE.md allows 0 or more, and a platform may be told to wait; most are not."""
    environment: dict[str, Any] = {name: str(longest)}
    assert load(**environment).cautions == ()
    environment[name] = str(longest + 1)
    (caution,) = load(**environment).cautions
    assert caution.startswith(f"{name} is {longest + 1}: longer than the {longest} s ")


# ----------------------------------------------------------------------------------------------------------------- whole


def test_all_faults_of_an_environment_are_reported_together() -> None:
    """Whoever mends one per deploy needs as many deploys as there are faults."""
    found = faults(
        TELEGRAM_BOT_TOKEN="",
        WEBHOOK_BASE_URL="",
        DATABASE_URL="mysql://x",
        WEBHOOK_SECRET_PATH="a b",
        WEBHOOK_SECRET_TOKEN="c",
        BOT_MODE="push",
        BOT_APP="x",
        PORT="0",
        MAX_ATTEMPTS="0",
        DRAIN_SECONDS="nan",
        LOG_LEVEL="loud",
    )
    names = {
        "TELEGRAM_BOT_TOKEN",
        "DATABASE_URL",
        "WEBHOOK_SECRET_PATH",
        "WEBHOOK_SECRET_TOKEN",
        "BOT_MODE",
        "BOT_APP",
    }
    names |= {"PORT", "MAX_ATTEMPTS", "DRAIN_SECONDS", "LOG_LEVEL", "WEBHOOK_BASE_URL"}
    assert {fault.split()[0] for fault in found} == names
    assert len(found) == len(names)


def test_a_secret_in_the_wrong_field_is_not_quoted() -> None:
    """People paste a token where a port belongs."""
    for name in ("PORT", "BOT_APP", "LOG_LEVEL", "ALLOWED_UPDATES", "HEALTH_HOST", "INSTANCE_ID"):
        for value in (TOKEN, f"{TOKEN} ", f"{TOKEN.partition(':')[2]} ", f"{DSN}?"):
            for fault in faults({name: value}):
                assert value.strip(" ?") not in fault
                assert PASSWORD not in fault


def test_a_host_that_is_left_to_a_service_is_a_fault_with_its_remedy() -> None:
    """It would be looked up in the event loop."""
    fault = only_fault(DATABASE_URL="dbname=bot", PGSERVICE="bot")
    assert fault.startswith("DATABASE_URL must be")
    assert "write host=... into it" in fault


def test_a11_no_database_is_a_fault_that_says_what_it_is_for() -> None:
    """No fallback: without a database nobody can own the bot."""
    fault = only_fault(DATABASE_URL="")
    assert fault.startswith("DATABASE_URL must be")
    assert "nobody can own" in fault


def test_reading_a_configuration_imports_nothing_slow() -> None:
    """It stands in the way of every start; psycopg alone costs 150 ms."""
    script = (
        "import sys; from shared import config;"
        f"config.load({MINIMUM!r}, stdin_is_terminal=False, stdout_is_terminal=False);"
        "print([name for name in ('psycopg', 'httpx', 'asyncio', 'structlog', 'telegram', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_port_is_bound_where_the_configuration_says_that_it_is() -> None:
    """The start binds before it can import the configuration, so it has the defaults once more."""
    assert (int(start.DEFAULT_PORT), start.DEFAULT_HOST) == (config.DEFAULT_PORT, config.DEFAULT_HOST)
