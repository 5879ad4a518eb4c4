"""The end of a scenario: everything is delivered and handled, the webhook is right, nothing is left behind; then the verdict.

    traffic over ─► delivered ─► handled ─► W ─► instances stopped ─► H ─► evidence ─► judge

Every wait has a limit on a hang. What does not come true in time is an objection, and the rest is judged all the same.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from signal import SIGKILL, SIGTERM

from deploy.local.evidence import InboxReader, read_deliveries, read_runs
from deploy.local.history import Row
from shared import config as configuration
from shared.config import SHUTDOWN_SECONDS
from tests.campaign.evidence import Call, Evidence
from tests.campaign.field import HANG, Field
from tests.campaign.instance import Instance, zombies_of
from tests.campaign.judge import Invariant
from tests.end_to_end.instance import eventually

STOP_SECONDS = SHUTDOWN_SECONDS + 5.0
"""An orderly stop is promised within 25 s; the rest is the machine's."""

_POLL_SECONDS = 0.2


async def conclude(field: Field) -> Evidence:
    """Brings the scenario to its end, with everything that is not as it should be written down in `field.objections`."""
    if not await field.telegram.wait_idle(timeout_seconds=HANG):
        counts = await field.telegram.counts()
        field.object(
            Invariant.FAILED,
            f"{counts.pending} updates were not delivered within {HANG:.0f} s: {counts.not_2xx}",
        )
    await _expect_handled(field)
    if field.expects_webhook:
        await _expect(
            field,
            Invariant.WEBHOOK,
            lambda: _has_converged(field),
            "the owner's webhook, asserted in its term",
        )
    await _look_at_processes(field)
    ended_at = time.monotonic()
    await _stop_all(field)
    # What they call on their way out, too.
    calls = await _read_calls(field)
    await _expect(
        field, Invariant.HYGIENE, lambda: _is_left_alone(field), "no session and no lock left in the database"
    )
    return Evidence(
        deliveries=await read_deliveries(field.telegram, field.traffic.sent),
        runs=read_runs(field.history_folder, field.traffic.sent),
        rows=await _read_rows(field),
        deaths=field.deaths,
        changes=await field.recorder.inbox_changes(),
        terms=await field.recorder.term_changes(),
        signs=await field.recorder.signs(),
        probes=field.prober.probes,
        calls=calls,
        freezes=field.freezes,
        standstills=field.standstills,
        urls=field.urls,
        urls_of_others=field.urls_of_others,
        ended_at=ended_at,
    )


async def _expect(
    field: Field, invariant: Invariant, condition: Callable[[], Awaitable[str | None]], what: str
) -> None:
    """Waits until a condition gives no reason against it any more; else the last one is written down."""
    reason: str | None = ""

    async def holds() -> bool:
        nonlocal reason
        reason = await condition()
        return reason is None

    try:
        await eventually(holds, what)
    except AssertionError:
        field.object(invariant, f"waited {HANG:.0f} s in vain for {what}: {reason}")


async def _expect_handled(field: Field) -> None:
    """However much faults have left to be handled: it is done, as long as it becomes less."""
    least, least_at = math.inf, time.monotonic()
    while time.monotonic() - least_at < HANG:
        rows = await field.recorder.fetch_when_back(
            "SELECT state, count(*) FROM webhook_supervisor.inbox WHERE state IN ('pending', 'claimed') GROUP BY state"
        )
        left = sum(int(count) for _, count in rows)
        if left == 0:
            return
        if left < least:
            least, least_at = left, time.monotonic()
        await asyncio.sleep(_POLL_SECONDS)
    found = ", ".join(f"{count} updates are {state}" for state, count in rows)
    field.object(Invariant.LOSS, f"nothing was handled for {HANG:.0f} s: {found}")


async def _has_converged(field: Field) -> str | None:
    owners = []
    for instance in field.running:
        status = await instance.try_status()
        if status is not None and status["role"] == "ACTIVE":
            owners.append((instance, status))
    if len(owners) != 1:
        return f"{len(owners)} instances say that they are the owner"
    owner, status = owners[0]
    if not status["webhook"]["in_sync"]:
        return f"{owner.name} says that its webhook is not in sync: {status['webhook']['last_error']}"
    config = configuration.load(owner.environment, stdin_is_terminal=False, stdout_is_terminal=False)
    webhook = await field.telegram.webhook()
    if webhook.url != f"{field.public_url}/webhook/{config.webhook_path.reveal()}":
        return "the webhook's URL is not the owner's"
    if webhook.secret_token != config.webhook_secret.reveal():
        return "the webhook's secret is not the owner's"
    begun = max((term.at for term in await field.recorder.term_changes() if not term.closed), default=0.0)
    if not any(call.at >= begun and call.status == 200 for call in await _read_calls(field, "setWebhook")):
        return f"{owner.name} has not called setWebhook in its term"
    return None


async def _look_at_processes(field: Field) -> None:
    for instance in field.running:

        async def has_begun(instance: Instance = instance) -> str | None:
            pid = instance.process.pid
            answers = (
                probe for probe in field.prober.probes if probe.pid == pid and probe.status is not None
            )
            return "no probe was answered" if next(answers, None) is None else None

        # In its first milliseconds an interpreter is ended by the signal that is to stop it.
        await _expect(field, Invariant.AVAILABLE, has_begun, f"{instance.name} that has begun")

        async def has_given_back(instance: Instance = instance) -> str | None:
            return field.descriptors.look(instance)

        await _expect(field, Invariant.HYGIENE, has_given_back, "its descriptors given back")

        async def has_no_zombie(instance: Instance = instance) -> str | None:
            zombies = zombies_of(instance.process.pid)
            return f"{instance.name} does not reap {zombies}" if zombies else None

        await _expect(field, Invariant.HYGIENE, has_no_zombie, "no zombie")


async def _stop_all(field: Field) -> None:
    running = field.running
    for instance in running:
        instance.signal(SIGTERM)
    for instance in running:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                status = await instance.wait_for_exit()
        except TimeoutError:
            field.object(
                Invariant.HYGIENE, f"{instance.name} did not stop within {STOP_SECONDS:.0f} s of SIGTERM"
            )
            instance.signal(SIGKILL)
            continue
        if status != 0:
            field.object(Invariant.HYGIENE, f"{instance.name} was told to stop and ended with {status}")
    for instance in field.instances.values():
        if instance.leftovers:
            field.object(
                Invariant.HYGIENE,
                f"{instance.name} left {instance.leftovers} processes behind, which had to be killed",
            )


async def _is_left_alone(field: Field) -> str | None:
    rows = await field.recorder.fetch_when_back(
        "SELECT application_name FROM pg_stat_activity "
        "WHERE datname = current_database() AND starts_with(application_name, 'webhook-supervisor')"
    )
    locks = await field.recorder.fetch_when_back(
        "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        "WHERE l.locktype = 'advisory' AND d.datname = current_database()"
    )
    if rows:
        return f"{len(rows)} sessions: {', '.join(sorted({str(name) for (name,) in rows}))}"
    return f"{len(locks)} advisory locks" if locks else None


async def _read_calls(field: Field, method: str | None = None) -> list[Call]:
    calls: list[Call] = []
    after = 0
    while page := await field.telegram.calls(after=after, method=method):
        # Answers to the users are calls too, one for each update.
        calls += [
            Call(
                call.method,
                call.started_monotonic,
                call.status,
                call.parameters.get("url", ""),
                call.fault or "",
            )
            for call in page
            if call.method.lower() in ("setwebhook", "deletewebhook")
        ]
        after = page[-1].seq
    return calls


async def _read_rows(field: Field) -> list[Row]:
    reader = await InboxReader.open(field.database_url)
    try:
        return await reader.rows(field.traffic.sent)
    finally:
        await reader.close()
