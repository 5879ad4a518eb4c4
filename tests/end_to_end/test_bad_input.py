"""Bad configuration: exit 2, a line for each fault, no traceback, no secret."""

from __future__ import annotations

import socket

import pytest

from deploy.local.ports import LOOPBACK
from tests.end_to_end.instance import Instance, World
from tests.end_to_end.test_start import workers_of

TOKEN = "4242:bad-input-token_bad-input-token_abc"
DSN = f"postgresql://somebody:password-of-somebody@{LOOPBACK}:1/nowhere"


async def run(variables: dict[str, str], *arguments: str, port: int = 0) -> tuple[int, str]:
    """Run `python -m supervisor` with nothing but these variables; its exit status and its output."""
    from deploy.local.ports import free_port

    environment = {
        "PORT": str(port or free_port()),
        "HEALTH_PORT": str(free_port()),
        "HOST": LOOPBACK,
        "TELEGRAM_BOT_TOKEN": TOKEN,
        "DATABASE_URL": DSN,
        "WEBHOOK_BASE_URL": "https://bot.example.com",
        **variables,
    }
    instance = Instance("bad", environment)
    instance.environment = {k: v for k, v in environment.items() if v != "-"}
    try:
        await instance.start(*arguments)
        status = await instance.wait_for_exit()
        # A worker was started before anything of the configuration was known.
        assert workers_of(instance) == []
    finally:
        await instance.close()
    return status, "\n".join(instance.output)


BAD = {
    "TELEGRAM_BOT_TOKEN": "not-a-token-but-a-secret",
    "DATABASE_URL": "mysql://user:secret-password@host/db",
    "WEBHOOK_BASE_URL": "http://bot.example.com",
    "WEBHOOK_SECRET_PATH": "short!",
    "WEBHOOK_SECRET_TOKEN": "has spaces in it, which is wrong",
    "BOT_MODE": "carrier-pigeon",
    "BOT_APP": "no colon here",
    "MAX_CONNECTIONS": "101",
    "RECONCILE_SECONDS": "0",
    "DRAIN_SECONDS": "-1",
    "DB_POOL_SIZE": "none",
    "WEBHOOK_ON_EXIT": "explode",
    "LOG_FORMAT": "xml",
}


@pytest.mark.parametrize("variable", sorted(BAD))
async def test_a_bad_variable_is_exit_2_and_one_line_that_names_it(variable: str) -> None:
    """The line names the variable; neither a traceback nor the value of a secret is printed."""
    status, output = await run({variable: BAD[variable]})
    assert status == 2
    faults = [line for line in output.splitlines() if line.strip()]
    assert len(faults) == 1
    assert faults[0].startswith(variable)
    assert "Traceback" not in output
    if variable in ("TELEGRAM_BOT_TOKEN", "DATABASE_URL", "WEBHOOK_SECRET_PATH", "WEBHOOK_SECRET_TOKEN"):
        assert BAD[variable] not in output
        assert "secret-password" not in output


async def test_all_faults_are_named_together() -> None:
    """One start tells everything that is wrong."""
    status, output = await run(BAD)
    assert status == 2
    for variable in BAD:
        assert any(line.startswith(variable) for line in output.splitlines()), variable


async def test_a11_without_a_database_there_is_no_leadership_but_an_error(world: World) -> None:
    """DATABASE_URL missing: no fallback that makes every container owner, but exit 2 with the variable's name."""
    for missing in ("DATABASE_URL", "TELEGRAM_BOT_TOKEN", "WEBHOOK_BASE_URL"):
        status, output = await run({missing: "-"})
        assert status == 2
        assert output.startswith(missing)
    assert await world.methods_called() == []


@pytest.mark.parametrize(
    "base_url",
    [
        "https://bot.example.com:8444",
        "https://bot.example.com/path",
        "https://bot.example.com ",
        "bot.example.com",
        "https://user:word@bot.example.com",
    ],
)
async def test_a_base_url_that_telegram_would_not_take_is_refused(base_url: str) -> None:
    """http, other ports, a path, whitespace, no scheme, credentials: each is named before Telegram is asked."""
    status, output = await run({"WEBHOOK_BASE_URL": base_url})
    assert status == 2
    assert "WEBHOOK_BASE_URL" in output


@pytest.mark.parametrize(
    ("bot_app", "words"),
    [
        ("no_such_module:build", "no_such_module"),
        ("webhook_worker.menu_bot:no_such_attribute", "no_such_attribute"),
        ("os:sep", "BOT_APP"),
        ("tests.end_to_end.bots:raising", "a bot that raises"),
    ],
)
async def test_a_bot_app_that_cannot_be_used_is_exit_2(bot_app: str, words: str) -> None:
    """It does not import, is not there, is not what is expected, or raises: said in a line that names BOT_APP."""
    status, output = await run({"BOT_APP": bot_app})
    assert status == 2
    assert any("BOT_APP" in line and words in line for line in output.splitlines())


async def test_a_port_that_is_taken_is_exit_2_and_a_health_port_is_a_warning(world: World) -> None:
    """PORT is what the platform routes to; HEALTH_PORT is a convenience."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        status, output = await run({}, port=port)
        assert status == 2
        assert output.startswith("PORT")
        one = await world.start_public("one", HEALTH_PORT=str(port))
        await one.wait_until_healthy()
        assert one.has("[HEALTH] HEALTH_PORT cannot be bound")


async def test_equal_ports_are_exit_2() -> None:
    """Probes of one would be answered by the other."""
    from deploy.local.ports import free_port

    port = free_port()
    status, output = await run({"HEALTH_PORT": str(port)}, port=port)
    assert status == 2
    assert "HEALTH_PORT" in output


async def test_unknown_arguments_are_exit_2_with_the_usage() -> None:
    """Nothing is started by a typing error."""
    status, output = await run({}, "serve")
    assert status == 2
    assert "usage: python -m supervisor" in output
