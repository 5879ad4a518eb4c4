"""No environment makes `load` do anything but give a configuration or name faults, and no fault holds a secret."""

from __future__ import annotations

import string

from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared import config
from shared.config import BotMode, Config
from shared.errors import ConfigurationError

SECRET_NAMES = [
    "TELEGRAM_BOT_TOKEN",
    "DATABASE_URL",
    "WEBHOOK_SECRET_PATH",
    "WEBHOOK_SECRET_TOKEN",
    "PGPASSWORD",
]
NAMES = [
    *SECRET_NAMES,
    *[
        "WEBHOOK_BASE_URL",
        "RENDER_EXTERNAL_URL",
        "RAILWAY_PUBLIC_DOMAIN",
        "FLY_APP_NAME",
        "TELEGRAM_API_BASE_URL",
    ],
    *[
        "BOT_MODE",
        "BOT_APP",
        "PORT",
        "HEALTH_PORT",
        "HOST",
        "HEALTH_HOST",
        "ALLOWED_UPDATES",
        "MAX_CONNECTIONS",
    ],
    *[
        "WEBHOOK_ON_EXIT",
        "ALLOW_PREVIEW",
        "IS_PULL_REQUEST",
        "DB_POOL_SIZE",
        "DEAD_LETTER_DAYS",
        "RECONCILE_SECONDS",
    ],
    *["HANDLER_TIMEOUT_SECONDS", "MAX_ATTEMPTS", "DISPATCH_CONCURRENCY", "LINGER_SECONDS", "DRAIN_SECONDS"],
    *[
        "DEPLOY_ID",
        "INSTANCE_ID",
        "HOSTNAME",
        "DYNO",
        "LOG_FORMAT",
        "LOG_LEVEL",
        "WEBHOOK_SUPERVISOR_INSTANCE",
    ],
]

# What an environment can hold: no NUL, and bytes that are not UTF-8 as lone surrogates.
anything = st.text(
    st.one_of(
        st.characters(codec="utf-8", exclude_characters="\x00"),
        st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]),
    ),
    max_size=40,
)
plausible = st.one_of(
    st.sampled_from(
        ["webhook", "polling", "1", "8080", "0.5", "true", "text", "https://h", "a:b", "message", "123:abc"]
    ),
    st.sampled_from(
        ["postgresql://u:p@h/d", "host=h password='x y'", "https://h:8443/", "http://[::1]:1", "x" * 20]
    ),
    st.text(string.digits + ".:/@-_", max_size=12),
    st.text("htps:/[]@?#%:.a1 \t\r\n", max_size=24).map(lambda rest: "https://" + rest),
)
environments = st.dictionaries(st.sampled_from(NAMES), st.one_of(anything, plausible))


MINIMUM = {"TELEGRAM_BOT_TOKEN": "1:abc", "DATABASE_URL": "dbname=d", "WEBHOOK_BASE_URL": "https://h"}


def load(environ: dict[str, str], *, terminal: bool = False) -> Config | ConfigurationError:
    """What `load` makes of an environment; any other exception is a bug."""
    try:
        return config.load(environ, stdin_is_terminal=terminal, stdout_is_terminal=terminal)
    except ConfigurationError as exc:
        return exc


@settings(max_examples=400, deadline=None)
@given(environments, st.sampled_from([{}, MINIMUM]), st.booleans())
@example({"PORT": "²"}, MINIMUM, False)
@example({"WEBHOOK_BASE_URL": "https://[v1.x]"}, MINIMUM, False)
@example({"DATABASE_URL": "postgresql://\udcff"}, MINIMUM, False)
def test_any_environment_gives_a_configuration_or_named_faults(
    environ: dict[str, str], minimum: dict[str, str], terminal: bool
) -> None:
    """No other exception, ever; each fault is one printable line that begins with a variable's name."""
    found = load({**minimum, **environ}, terminal=terminal)
    if isinstance(found, ConfigurationError):
        assert found.faults
        for fault in found.faults:
            assert fault.split()[0].isupper()
            assert fault.isprintable()
    else:
        assert found.bot_id > 0
        assert found.port != found.health_port
        assert 16 <= len(found.webhook_path.reveal()) <= 128
        if found.mode is BotMode.WEBHOOK:
            assert str(found.webhook_url_masked).startswith("http")
            found.webhook_url.reveal().encode("ascii")
        found.identity.instance_id.encode("utf-8")


# For each variable values that it must not have, whatever the others are.
WRONG: dict[str, st.SearchStrategy[str]] = {
    "TELEGRAM_BOT_TOKEN": st.sampled_from(["x", "0:abc", "12:ab", "1:abc ", "9" * 19 + ":abc"]),
    "DATABASE_URL": st.sampled_from(
        ["mysql://h/d", "postgresql://h:x/d", "postgresql://a b/d", " dbname=d", "dbname"]
    ),
    "WEBHOOK_BASE_URL": st.sampled_from(["http://h", "https://h/path", "https://h:8444", "h", "https://u@h"]),
    "BOT_MODE": st.sampled_from(["WEBHOOK", "x"]),
    "BOT_APP": st.sampled_from(["module", "a:b:c", ":b", "a.:b", "1a:b"]),
    "ALLOWED_UPDATES": st.sampled_from(["message,", "Message", "a;b", ","]),
    "WEBHOOK_SECRET_PATH": st.text("abc", max_size=15).filter(bool) | st.just("ä" * 20) | st.just("a" * 129),
    "WEBHOOK_SECRET_TOKEN": st.text("abc", max_size=15).filter(bool)
    | st.just("a b" * 9)
    | st.just("a" * 257),
    "WEBHOOK_ON_EXIT": st.sampled_from(["Keep", "drop", "1"]),
    "LOG_FORMAT": st.sampled_from(["xml", "TEXT"]),
    "LOG_LEVEL": st.sampled_from(["loud", "10"]),
    "INSTANCE_ID": st.sampled_from(["a b", "x" * 300, "ä"]),
    "DEPLOY_ID": st.sampled_from(["a b", "x" * 300, "ä"]),
    "HOST": st.sampled_from(["a b", "h:1:", "https://h", "/"]),
    "HEALTH_HOST": st.sampled_from(["a b", "[::1]", "h/x"]),
    **dict.fromkeys(
        (
            "PORT",
            "MAX_CONNECTIONS",
            "DB_POOL_SIZE",
            "DEAD_LETTER_DAYS",
            "MAX_ATTEMPTS",
            "DISPATCH_CONCURRENCY",
        ),
        st.sampled_from(["0", "-1", "x", "1.5", "99999999999999999999", "1e2", "²"]),
    ),
    "HEALTH_PORT": st.sampled_from(["-1", "65536", "x"]),
    **dict.fromkeys(
        ("RECONCILE_SECONDS", "HANDLER_TIMEOUT_SECONDS", "LINGER_SECONDS", "DRAIN_SECONDS"),
        st.sampled_from(["-1", "x", "inf", "nan", "1e3", "1000000000"]),
    ),
    "ALLOW_PREVIEW": st.sampled_from(["yes", "2", "on"]),
}


@given(st.fixed_dictionaries({}, optional=WRONG))
def test_every_fault_is_named_with_all_the_others_and_nothing_else_is(wrong: dict[str, str]) -> None:
    """One start tells everything that is wrong: no fault hides another, or brings one up that is none."""
    found = load({**MINIMUM, **wrong})
    named = [fault.split()[0] for fault in found.faults] if isinstance(found, ConfigurationError) else []
    assert sorted(named) == sorted(wrong)


def mixed_in(secret: str) -> st.SearchStrategy[str]:
    """The secret itself, within other text, or a long piece of it: what people paste into the wrong field."""
    pieces = st.tuples(st.integers(0, len(secret) - 12), st.integers(12, len(secret)))
    return st.one_of(
        st.just(secret),
        st.builds(lambda before, after: before + secret + after, anything, anything),
        pieces.map(lambda cut: secret[cut[0] : cut[0] + cut[1]]),
    )


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a21_no_fault_holds_a_secret_whatever_field_it_was_put_into(data: st.DataObject) -> None:
    """Neither the whole nor a piece of 12 characters, whether the secret variable itself is well-formed or not."""
    letters = st.text("QXZJKVBW" + "qxzjkvbw", min_size=24, max_size=40)  # in no word of a fault
    body, spoiler = data.draw(letters), data.draw(st.sampled_from(["", " ", "'", "ä", "\n"]))
    name = data.draw(st.sampled_from(SECRET_NAMES[:4]))
    around = {"TELEGRAM_BOT_TOKEN": "987654:{}", "DATABASE_URL": "postgresql://u:{}@h/d"}.get(name, "{}")
    secret = around.format(body + spoiler)
    environ = {name: secret}
    for other in data.draw(st.sets(st.sampled_from(NAMES), max_size=8)) - {name}:
        environ[other] = data.draw(mixed_in(secret))
    found = load(environ)
    said = (
        "\n".join([*found.faults, str(found), repr(found)]) if isinstance(found, ConfigurationError) else ""
    )
    assert not [piece for at in range(len(body) - 11) if (piece := body[at : at + 12]) in said]
