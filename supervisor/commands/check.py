"""`check`: every phase of the diagnosis, in the order in which a bot comes to life, without changing anything.

    configuration   the environment
    bot             BOT_APP is built, in a process of its own
    database        reached, direct, the primary, new enough, to be written to
    schema          the tables are what this version needs, or can be made
    owner           an instance owns, and none of its deploy or a newer one gave up; or none has run yet
    telegram        the token is valid, and the bot's
    webhook         what is registered is what this environment says, and deliveries succeed
    address         the public address leads to an instance
    inbox           updates are handled

A phase is ok, failed, or skipped, with the reason, where an earlier one makes it pointless. Each says what was found, and
where it failed what to do.

Not promised: that everything good now was good a minute ago; the log tells that.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared import database
from shared.config import BotMode, Config
from shared.errors import CommandFailed, DatabaseRefused, SchemaError, TelegramError, TokenRefused
from shared.redaction import Redactor
from shared.telegram_api import TelegramApi, WebhookInfo
from supervisor import suitability
from supervisor.commands import trial_build
from supervisor.commands.standing import Standing, has_tables, read_standing
from supervisor.commands.webhook import facts_of, masked, read_webhook

BUILD_SECONDS = 60.0
"""A bot that is not built by then would fail its health for as long."""

ADDRESS_SECONDS = 10.0
"""As long as a call to Telegram: the name's look-up alone takes 5 s where the first nameserver is dead."""

POLLED_AT_ONCE = 100
"""Updates in one answer to getUpdates: an owner that polls leaves no more than that at Telegram, but for a moment."""

OLD_SECONDS = 300.0
"""An update that waits longer: nobody handles, or its chat is held up."""

RECENT_SECONDS = 600.0
"""A delivery that failed longer ago is history: Telegram shows the last error until the webhook is set anew."""


class PhaseStatus(Enum):
    """What came of a phase."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One phase: what was found, and what to do where it failed."""

    phase: str
    status: PhaseStatus
    detail: str
    remedy: str | None = None

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.status.value:8} {self.phase:13} {self.detail}{remedy}"


def _ok(phase: str, detail: str) -> Finding:
    return Finding(phase, PhaseStatus.OK, detail)


def _failed(phase: str, detail: str, remedy: str | None = None) -> Finding:
    return Finding(phase, PhaseStatus.FAILED, detail, remedy)


def _skipped(phase: str, detail: str) -> Finding:
    return Finding(phase, PhaseStatus.SKIPPED, detail)


def tell_configuration(faults: tuple[str, ...], *, as_json: bool) -> int:
    """Where there is no configuration to go on with: its faults are the diagnosis. Exit code 2."""
    findings = [_failed("configuration", fault) for fault in faults]
    if as_json:
        print(_document(findings))
    else:
        for finding in findings:
            print(finding)
    return 2


async def check(config: Config, *, as_json: bool) -> int:
    """Looks at everything, and prints each phase as it is over.

    Returns:
        0 if nothing failed, else 1.
    """
    findings = []
    async for finding in _Diagnosis(config).phases():
        findings.append(finding)
        if not as_json:
            print(finding, flush=True)
    if as_json:
        print(_document(findings))
    return 1 if any(finding.status is PhaseStatus.FAILED for finding in findings) else 0


def _document(findings: list[Finding]) -> str:
    phases = [
        {"phase": item.phase, "verdict": item.status.value, "detail": item.detail, "remedy": item.remedy}
        for item in findings
    ]
    is_good = all(item.status is not PhaseStatus.FAILED for item in findings)
    return json.dumps({"ok": is_good, "phases": phases}, indent=1)


class _Diagnosis:
    """The phases, and what a later one needs of an earlier one."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._redact = Redactor(config.secrets)
        self._standing: Standing | None = None
        self._is_read_only = False
        self._is_token_good = False

    async def phases(self) -> AsyncIterator[Finding]:
        """Each as it is over."""
        config = self._config
        cautions = "".join(f"; {caution}" for caution in config.cautions)
        how = "polls" if config.mode is BotMode.POLLING else f"at {config.webhook_url_masked}"
        yield _ok("configuration", f"bot {config.bot_id} {how}{cautions}")
        yield await self._bot()
        for finding in await self._database():
            yield finding
        yield self._owner()
        yield await self._telegram()
        yield await self._webhook()
        yield await self._address()
        yield self._inbox()

    async def _bot(self) -> Finding:
        try:
            async with asyncio.timeout(BUILD_SECONDS):
                status, errors = await trial_build.build()
        except TimeoutError:
            return _failed(
                "bot",
                f"{self._config.bot_app} was not built within {BUILD_SECONDS:g} s",
                f"let it return within {BUILD_SECONDS:g} s; move what waits into post_init",
            )
        except OSError as exc:
            return _failed(
                "bot",
                f"no process could be started to build {self._config.bot_app}: {exc.strerror or repr(exc)}",
                "raise the limit of processes (ulimit -u, or pids.max of the container), of memory or of open files",
            )
        if status == 0:
            return _ok("bot", f"{self._config.bot_app} is built")
        said = errors.strip().splitlines()
        if status == 2:
            return _failed(
                "bot", self._redact("; ".join(line for line in said if line.startswith("BOT_APP")))
            )
        last = f": {said[-1]}" if said else ""
        return _failed(
            "bot",
            self._redact(f"{self._config.bot_app} ended its process with status {status}{last}"),
        )

    async def _database(self) -> list[Finding]:
        dsn = self._config.database_url.reveal()
        try:
            connection = await suitability.connect(dsn, "webhook-supervisor check")
            async with connection:
                await suitability.refuse_unsuitable(connection, dsn)
                if fault := await _read_only_fault(connection):
                    self._is_read_only = True
                    if (await _schema(connection)).status is PhaseStatus.OK:
                        self._standing = await read_standing(connection, self._config)
                    return [fault, _skipped("schema", "nothing can be written")]
                version = connection.info.server_version
                found = [
                    _ok("database", f"Postgres {version // 10000}.{version % 10000}, direct, the primary")
                ]
                # From here on the server itself refuses whatever would change something.
                await connection.execute("SET default_transaction_read_only = on")
                found.append(await _schema(connection))
                if found[-1].status is PhaseStatus.OK:
                    self._standing = await read_standing(connection, self._config)
                return found
        except DatabaseRefused as exc:
            return [_failed("database", f"DATABASE_URL {exc}"), _skipped("schema", "the database is refused")]
        except (psycopg.Error, OSError, TimeoutError) as exc:
            why = database.describe(exc)
            remedy = "see that the database is up and can be reached from here"
            return [_failed("database", why, remedy), _skipped("schema", "the database is not there")]

    def _owner(self) -> Finding:
        standing = self._standing
        if standing is None:
            return _skipped("owner", "the database does not tell")
        term, owner, present = standing.term, standing.owner, standing.present
        if owner is None and self._is_read_only:
            return _skipped("owner", "the database is read-only, and no instance can announce itself there")
        if owner is not None and term is not None:
            others = len(present) - 1
            said = f"{owner.instance_id}, term {term.number}; {others} other instance{'s'[: others != 1]}"
            if unfit := [f"{i.instance_id} of deploy {i.deploy_id or 'not named'}" for i in standing.unfit]:
                return _failed(
                    "owner",
                    f"{said}; {', '.join(unfit)} gave up the lock or was told to wait",
                    "see [LOCK], [WORKER] and [BOT] in its log",
                )
            return _ok("owner", said)
        if not present:
            if term is None:
                return _ok("owner", "no instance has run yet")
            return _failed(
                "owner",
                f"no instance runs; the last owner was {term.instance_id}",
                "start one: see the platform's events",
            )
        ready = sum(instance.ready for instance in present)
        return _failed(
            "owner",
            f"none of {len(present)} instances owns; {ready} ready, {sum(i.waits for i in present)} waiting for the lock",
            "see [LOCK] and [LOCK_CONTROLLER] in their logs, and lock.reason in /status",
        )

    async def _telegram(self) -> Finding:
        try:
            async with TelegramApi(self._config.api_base_url, self._config.token) as api:
                me = await api.get_me()
        except TokenRefused as exc:
            return _failed("telegram", str(exc), "take the present token from @BotFather")
        except TelegramError as exc:
            return _failed(
                "telegram", str(exc), f"see that {self._config.api_base_url} can be reached from here"
            )
        self._is_token_good = True
        return _ok("telegram", f"@{me.username or me.name} (id={me.id})")

    async def _webhook(self) -> Finding:
        if not self._is_token_good:
            return _skipped("webhook", "Telegram does not answer for this token")
        try:
            info = await read_webhook(self._config)
        except CommandFailed as exc:
            return _failed("webhook", str(exc))
        return self._webhook_finding(info)

    def _webhook_finding(self, info: WebhookInfo) -> Finding:
        facts = facts_of(self._config, info)
        has_run = self._standing is None or self._standing.term is not None
        polls = self._config.mode is BotMode.POLLING
        if not facts.in_sync and not has_run:
            if polls:
                found = "one is set; the first owner deletes it"
            elif info.url:
                found = "another one is set; the first owner replaces it"
            else:
                found = "none is set; the first owner sets it"
            return _ok("webhook", found)
        if not facts.in_sync:
            return _failed(
                "webhook",
                f"{facts.drift}",
                "see that an instance owns: it mends this within RECONCILE_SECONDS",
            )
        if polls:
            said = f"none is set, {info.pending_update_count} pending at Telegram"
            if has_run and info.pending_update_count > POLLED_AT_ONCE:
                return _failed(
                    "webhook",
                    f"{said}, more than a poll takes",
                    "see [POLLING] in the owner's log for what keeps it from polling",
                )
            return _ok("webhook", said)
        said = f"{masked(self._config, info.url)}, {info.pending_update_count} pending at Telegram"
        failed_seconds = float("inf") if info.last_error_date is None else time.time() - info.last_error_date
        if info.pending_update_count and failed_seconds < RECENT_SECONDS:
            why = f"{said}; {failed_seconds:.0f} s ago a delivery failed: {self._redact(str(info.last_error_message))}"
            return _failed("webhook", why, "see step 4 of the runbook")
        return _ok("webhook", said)

    async def _address(self) -> Finding:
        import httpx

        if self._config.base_url is None:
            return _skipped("address", "updates are polled: none is needed")
        if self._standing is not None and not self._standing.present:
            return _skipped("address", "no instance runs")
        url = f"{self._config.base_url}/healthz"
        try:
            async with asyncio.timeout(ADDRESS_SECONDS), httpx.AsyncClient(timeout=ADDRESS_SECONDS) as client:
                answer = await client.get(url)
        except (ImportError, ValueError) as exc:
            # As shared/telegram_api.py has it: what httpx says of a proxy may hold its password.
            why = f"a client cannot be made: {type(exc).__name__}"
            return _failed("address", why, "look at HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and SSL_CERT_FILE")
        except (TimeoutError, OSError, httpx.HTTPError, httpx.InvalidURL) as exc:
            return _failed(
                "address",
                f"{url}: {type(exc).__name__} {exc}".rstrip(),
                "see that this service is up, and that WEBHOOK_BASE_URL leads to it",
            )
        try:
            said = answer.json()
            health, reason = str(said["status"]), said.get("reason")
        except (ValueError, KeyError, TypeError, AttributeError):
            return _failed(
                "address",
                f"{url}: status {answer.status_code}, and not an instance's words",
                "let WEBHOOK_BASE_URL lead to this service; something else answers there",
            )
        if answer.status_code == 200:
            return _ok("address", f"{url}: {health}, {said.get('role')}")
        return _failed("address", f"{url}: status {answer.status_code}, {health}: {reason}")

    def _inbox(self) -> Finding:
        if self._standing is None:
            return _skipped("inbox", "the database does not tell")
        depth = self._standing.inbox
        said = f"{depth.pending} pending, {depth.in_flight} in flight, {depth.dead} dead letters"
        if depth.oldest_pending_seconds > OLD_SECONDS:
            why = f"{said}; the oldest has waited for {depth.oldest_pending_seconds:.0f} s"
            return _failed("inbox", why, "`inbox list` shows what each waits for")
        return _ok("inbox", said)


async def _read_only_fault(connection: AsyncConnection[TupleRow]) -> Finding | None:
    """Asked before this session is made read-only by ourselves."""
    [[default]] = await (await connection.execute("SHOW default_transaction_read_only")).fetchall()
    if default == "off":
        return None
    return _failed(
        "database",
        "a new session is read-only (default_transaction_read_only is on), so an instance can neither own nor store",
        "make room if the disk is full, since providers set it then; else ALTER ROLE or ALTER DATABASE ... RESET "
        "default_transaction_read_only, or take it out of DATABASE_URL",
    )


async def _schema(connection: AsyncConnection[TupleRow]) -> Finding:
    try:
        due = await database.due_migrations(connection)
        if not due:
            await database.check_schema(connection)
            return _ok("schema", "what this version needs is there")
    except (psycopg.errors.InsufficientPrivilege, SchemaError) as exc:
        return _failed("schema", database.describe(exc) if isinstance(exc, psycopg.Error) else str(exc))
    if await has_tables(connection):
        return _ok(
            "schema", f"of an earlier version; the next instance brings it up to date (migration {due[-1]})"
        )
    [[may_create]] = await (
        await connection.execute("SELECT has_database_privilege(current_database(), 'CREATE')")
    ).fetchall()
    if may_create:
        return _ok("schema", "not there yet; the first instance makes it")
    return _failed(
        "schema",
        "not there, and this role may not make it",
        "GRANT CREATE ON DATABASE to it, or let a role that has it start this version once",
    )
