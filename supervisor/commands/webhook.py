"""`webhook`: the registration by hand. In polling mode none is wanted: `info` is content without one, and `set` refuses.

    info      what Telegram has, beside what this environment would register
    set       registers what an owner with this environment would: recorded in the database first, so that whichever instance
              gets the first request knows path and secret
    delete    removes it; what is pending at Telegram stays

`set` and `delete` refuse while an instance owns: it asserts its own again within RECONCILE_SECONDS, and somebody would be
overwritten. So who owns is asked before every try: with their pauses they may take a minute. `--force` does it all the same,
also where the database, which knows who owns, cannot be asked.

Not promised: that it stays so. The next owner asserts what its own environment says.
"""

from __future__ import annotations

import datetime
import json
from typing import Any
from urllib.parse import urlsplit

import tenacity

from shared.config import BotMode, Config
from shared.errors import CommandFailed, Conflict, RetryLater, TelegramError, TelegramUnavailable
from shared.redaction import Redactor
from shared.secret import MASK
from shared.telegram_api import TelegramApi, WebhookInfo
from supervisor import drift
from supervisor.commands.standing import Standing, has_tables, read_standing, session
from supervisor.commands.times import moment_ago
from supervisor.messages import WebhookFacts
from supervisor.registrar import register, retry_pause_seconds, wanted_of
from supervisor.registration_log import RegistrationLog

PATIENCE_SECONDS = 10.0
TRIES = 3
"""Of a call that Telegram puts off by so little, or does not answer; whoever typed the command is waiting."""


async def info(config: Config, *, as_json: bool) -> int:
    """Prints what Telegram has, and whether it is what this environment would register; `check` is who judges.

    Returns:
        0.

    Raises:
        CommandFailed: Telegram cannot be asked.
    """
    document = as_document(config, await read_webhook(config))
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        print("\n".join(as_lines(document, datetime.datetime.now(datetime.UTC))))
    return 0


def as_lines(document: dict[str, Any], now: datetime.datetime) -> list[str]:
    """For people: what there is, of its times also how long ago they were."""
    shown = dict(document)
    for name in ("last_error_date", "last_synchronization_error_date"):
        if shown[name] is not None:
            shown[name] = moment_ago(datetime.datetime.fromtimestamp(shown[name], datetime.UTC), now)
    return [f"{name:21} {value}" for name, value in shown.items() if value is not None]


def as_document(config: Config, found: WebhookInfo) -> dict[str, Any]:
    """What Telegram has, as people may see it; times as Telegram has them, unix seconds."""
    facts = facts_of(config, found)
    said = found.last_error_message
    return {
        "url": masked(config, found.url),
        "in_sync": facts.in_sync,
        "drift": facts.drift,
        "pending_update_count": found.pending_update_count,
        "max_connections": found.max_connections,
        "allowed_updates": None if found.allowed_updates is None else list(found.allowed_updates),
        "ip_address": found.ip_address,
        "has_custom_certificate": found.has_custom_certificate,
        "last_error_date": found.last_error_date,
        "last_error_message": None if said is None else Redactor(config.secrets)(said),
        "last_synchronization_error_date": found.last_synchronization_error_date,
    }


def facts_of(config: Config, found: WebhookInfo) -> WebhookFacts:
    """What Telegram has, against this environment; a list of kinds that may stand for ours is taken for it."""
    # Whether it does, an owner finds out by setting it; who only looks cannot.
    return drift.compare(wanted_of(config), found, frozenset(found.allowed_updates or ()))


async def read_webhook(config: Config) -> WebhookInfo:
    """What Telegram has.

    Raises:
        CommandFailed: Telegram does not say.
    """
    try:
        async with TelegramApi(config.api_base_url, config.token) as api:
            return await api.get_webhook_info()
    except TelegramError as exc:
        raise CommandFailed(f"Telegram does not say what is registered: {exc}") from exc


async def set_webhook(config: Config, *, force: bool) -> int:
    """Registers what this environment says.

    Raises:
        CommandFailed: updates are polled, an instance owns, which cannot be known, or Telegram refuses or does not answer.
    """
    if config.mode is BotMode.POLLING:
        raise CommandFailed(
            "BOT_MODE is polling, where the owner keeps the webhook deleted: set BOT_MODE=webhook and deploy"
        )
    await _expect_nobody_owns(config, force=force)
    log = RegistrationLog(config)
    try:
        async with session(config, may_write=True) as connection:
            # Before any instance has run there is nothing to record it in, and nobody who would look it up.
            is_recorded = await has_tables(connection)
            if is_recorded:
                await log.record(connection)
            description = await _call(config, delete=False, force=force)
            if is_recorded:
                await log.confirm(connection)
    except CommandFailed as failed:
        if not force or isinstance(failed.__cause__, TelegramError):
            raise
        print(f"not recorded for instances with another path or secret: {failed}")
        description = await _call(config, delete=False, force=force)
    print(f"{description}: {config.webhook_url_masked}")
    return 0


async def delete_webhook(config: Config, *, force: bool) -> int:
    """Removes the registration.

    Raises:
        CommandFailed: an instance owns, which cannot be known, or Telegram refuses or does not answer.
    """
    await _expect_nobody_owns(config, force=force)
    print(await _call(config, delete=True, force=force))
    return 0


async def _call(config: Config, *, delete: bool, force: bool) -> str:
    # Of a call without an answer: what became of it, no refusal of a later one tells.
    is_in_doubt, is_repeated = False, False

    async def call_once(api: TelegramApi) -> str:
        nonlocal is_in_doubt, is_repeated
        if is_repeated:
            await _expect_nobody_owns(config, force=force)
        is_repeated = True
        try:
            return await (api.delete_webhook() if delete else register(api, config))
        except TelegramError as exc:
            is_in_doubt = is_in_doubt or _may_be_applied(exc)
            raise

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(_is_worth_repeating),
        wait=_pause,
        stop=tenacity.stop_after_attempt(TRIES),
        reraise=True,
    )
    try:
        async with TelegramApi(config.api_base_url, config.token) as api:
            return await retrying(call_once, api)
    except TelegramError as exc:
        if is_in_doubt:
            raise CommandFailed(
                f"Telegram may have done it, and did not say so: {exc}; look with `webhook info`"
            ) from exc
        raise CommandFailed(f"Telegram did not do it: {exc}") from exc
    except CommandFailed as failed:
        before = "No earlier try was applied"
        if is_in_doubt:
            before = (
                "An earlier try may have been applied: `webhook info` tells, "
                "and an owner mends it within its RECONCILE_SECONDS"
            )
        raise CommandFailed(f"Telegram was not asked again, since by now {failed}. {before}") from failed


def _may_be_applied(exc: TelegramError) -> bool:
    return isinstance(exc, Conflict) or (isinstance(exc, TelegramUnavailable) and exc.may_be_applied)


def _is_worth_repeating(exc: BaseException) -> bool:
    # An owner that left a moment ago may just have made one: Telegram takes one a second.
    is_soon = isinstance(exc, RetryLater) and exc.retry_after_seconds <= PATIENCE_SECONDS
    # Where the one before was applied after all: done twice is done once.
    return is_soon or isinstance(exc, TelegramUnavailable | Conflict)


def _pause(retry: tenacity.RetryCallState) -> float:
    error = None if retry.outcome is None else retry.outcome.exception()
    return retry_pause_seconds(retry.attempt_number, error, chance=0.5)


async def _expect_nobody_owns(config: Config, *, force: bool) -> None:
    if force:
        return
    try:
        async with session(config) as connection:
            standing: Standing = await read_standing(connection, config)
    except CommandFailed as failed:
        raise CommandFailed(
            f"{failed}; so it is not known whether an instance owns: --force does it anyway"
        ) from failed
    if standing.lock_pid is None:
        return
    holder = next(
        (i.instance_id for i in standing.instances if i.holds), f"server process {standing.lock_pid}"
    )
    raise CommandFailed(
        f"{holder} owns the bot and keeps its own registration; stop it, or set its environment and deploy. "
        "--force does it anyway, until the owner asserts its own again"
    )


def masked(config: Config, url: str) -> str:
    """A registered URL as people may see it: what stands behind the host may be a secret, ours or somebody's."""
    if not url:
        return ""
    if config.mode is BotMode.WEBHOOK and url == config.webhook_url.reveal():
        return str(config.webhook_url_masked)
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}/{MASK}"
