"""A standby is given as DSN, lags behind, and is promoted, while the old primary dies or lives on."""

from __future__ import annotations

import asyncio
import random
import time
from signal import SIGTERM

from deploy.local.evidence import InboxReader, read_runs
from deploy.local.history import judge
from deploy.local.ports import LOOPBACK
from deploy.local.postgres import PostgresServer
from tests.campaign.evidence import Evidence
from tests.campaign.faults.proxy import Proxy, run_proxy
from tests.campaign.faults.standby import Standby, a_standby
from tests.campaign.field import Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.lagging import Failover, count_forgotten, judge_by_replica
from tests.campaign.recorder import Recorder
from tests.campaign.scenario import Need, scenario
from tests.campaign.staging import SETTINGS
from tests.campaign.tenure import instance_of
from tests.campaign.threads import in_thread


@scenario(id="b12", title="standby as DSN; promoted while the old primary lives; lagging replica", repetitions=8, short=2,
    needs=(Need.LINUX,), own_server=True, hang_seconds_each=180)  # fmt: skip
async def failover(field: Field, chance: random.Random) -> None:
    """Refused; one owner on each timeline; and what the replica had is handled once and in order."""
    proxy = await _lead_by_a_name(field)
    await field.start("one")
    await field.start("two")
    primary = field.server
    failovers: list[Failover] = []

    def revise(evidence: Evidence) -> Evidence:
        judged = judge_by_replica(evidence, failovers)
        field.figures |= count_forgotten(evidence, judged)
        return judged

    field.revise = revise
    async with field.flowing():
        for repetition in range(field.repetitions):
            await field.steady()
            folder = field.folder / f"standby{repetition}"
            standby = await field.closing.enter_async_context(
                in_thread(a_standby(primary, folder, settings=SETTINGS))
            )
            await _expect_refusal(field, f"misled{repetition}", standby.server.dsn(field.database))
            left = await _start_beside(field, f"left{repetition}", primary) if repetition % 2 else None
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            lag_seconds = chance.uniform(1.0, 4.0)
            failovers.append(
                await _fail_over(field, proxy, primary, standby, lag_seconds, is_dead=left is None)
            )
            if left is not None:
                await _expect_one_owner_each(field, left, primary)
                await asyncio.to_thread(primary.kill)
            primary = standby.server


async def _lead_by_a_name(field: Field) -> Proxy:
    """The database is reached by a way that a failover moves, as a provider's name or proxy; by the harness too."""
    proxy = await field.closing.enter_async_context(run_proxy(field.server.port))
    field.database_url = proxy.dsn(field.database_url)
    await field.recorder.close()
    field.recorder = Recorder(field.database_url)
    return proxy


async def _expect_refusal(field: Field, name: str, dsn: str) -> None:
    misled = await field.start(name, dsn=dsn)
    status = await misled.wait_for_exit()
    if status != 2:
        field.object(Invariant.AVAILABLE, f"an instance on a standby ended with {status}, expected 2")
    for words in ("standby server", "primary's address"):
        if words not in "\n".join(misled.output):
            field.object(Invariant.AVAILABLE, f"an instance on a standby does not say {words!r}")


async def _fail_over(
    field: Field,
    proxy: Proxy,
    primary: PostgresServer,
    standby: Standby,
    lag_seconds: float,
    *,
    is_dead: bool,
) -> Failover:
    """The standby falls behind, clients are cut off from the primary, and led to the standby when it is promoted."""
    # A replica is a moment behind at any time; of that moment nothing is excused but what it lacks.
    lagged_at = time.monotonic() - 1.0
    await asyncio.to_thread(standby.stop_receiving)
    await asyncio.sleep(lag_seconds)
    cut_at = time.monotonic()
    await proxy.refuse()
    await proxy.reset_all()
    old = Recorder(primary.dsn(field.database))
    # Whoever is left there may own already: a term of the old timeline, which ends none of the new one's. Nor does one that
    # the server begins for a waiter whom the cut has parted from it, before it notices that nobody is there any more.
    terms = [
        term
        for term in await old.term_changes()
        if instance_of(term.instance_id) in field.instances and term.at < cut_at
    ]
    signs = [sign for sign in await old.signs() if instance_of(sign.instance_id) in field.instances]
    ((stored,),) = await old.fetch("SELECT count(*) FROM webhook_supervisor.inbox")
    await old.close()
    if is_dead:
        await asyncio.to_thread(primary.kill)
    await asyncio.to_thread(standby.promote)
    new = Recorder(standby.server.dsn(field.database))
    # A done row does not tell its starts any more; the history, which lagged as far, does.
    rows = await new.fetch(
        "SELECT i.update_id, coalesce(max(c.starts), 0) FROM webhook_supervisor.inbox i "
        "LEFT JOIN campaign.inbox_changes c USING (seq) GROUP BY i.update_id"
    )
    await new.close()
    if len(rows) >= stored:
        field.object(Invariant.FAILED, f"the replica did not lag: it has {len(rows)} updates of {stored}")
    await proxy.lead_to(LOOPBACK, standby.server.port)
    await proxy.listen()
    what = "dies" if is_dead else "lives on"
    over_at = field.inject(f"failover to a replica {lag_seconds:.1f} s behind, the old primary {what}").at
    return Failover(lagged_at, over_at, dict(rows), terms, signs)


async def _start_beside(field: Field, name: str, primary: PostgresServer) -> Instance:
    """An instance that knows nothing of the failover: no request reaches it, and what it does is not of this history."""
    history = field.folder / f"history-{name}"
    history.mkdir()
    left = field.prepare(name, dsn=primary.dsn(field.database), HISTORY_DIR=str(history))
    del field.instances[name]
    # It owns on the old timeline, of whose terms the judge does not know: there it may set what the others set.
    field.urls_of_others.append(field.urls[name])
    field.closing.push_async_callback(left.close)
    await left.start()
    await left.wait_for("[LOCK] lock held elsewhere, standing by")
    return left


async def _expect_one_owner_each(field: Field, left: Instance, primary: PostgresServer) -> None:
    """On the old timeline whoever was left there, on the new one exactly one of the others; each does its work once."""
    await left.wait_until_owner()
    owner = await field.owner()
    old = await InboxReader.open(primary.dsn(field.database))
    try:
        await old.wait_for_count("pending", "claimed", at_most=0, limit_seconds=120)
        rows = await old.rows(field.traffic.sent)
    finally:
        await old.close()
    active = [i.name for i in (*field.running, left) if (await i.status())["role"] == "ACTIVE"]
    if sorted(active) != sorted([owner.name, left.name]):
        field.object(Invariant.EXCLUSION, f"owners of two timelines: {', '.join(active)}")
    runs = read_runs(field.folder / f"history-{left.name}", field.traffic.sent)
    for breach in judge([], runs, rows).doubled:
        field.object(Invariant.ONCE, f"on the old timeline, update {breach.update_id} {breach.why}")
    left.signal(SIGTERM)
    if (status := await left.wait_for_exit()) != 0:
        field.object(Invariant.HYGIENE, f"{left.name} was told to stop and ended with {status}")
