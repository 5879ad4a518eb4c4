"""The usual courses of an instance's life, what may go wrong in them, and what must come of it in the end."""

from __future__ import annotations

from collections.abc import Callable

from shared import wire
from supervisor import core
from tests.unit.supervisor.world import Instance, World

RECONCILE = 10.0

# --------------------------------------------------------------------------------------------------------------- stories
# Each boots its instances and puts what will happen into the world's queue; "a" is whom the faults befall.


def first_boot(world: World) -> float:
    """The lock is free."""
    world.boot("a", reconcile=RECONCILE)
    return 2.0


def standby_takes_over(world: World) -> float:
    """An older owner of the same deploy is killed while we stand by."""
    owner = world.boot("b", reconcile=RECONCILE)
    world.run(1.5)
    world.boot("a", reconcile=RECONCILE)
    world.at(2.5, owner.kill_9)
    return 4.5


def handed_over_to(world: World) -> float:
    """We are the new deploy."""
    world.boot("b", deploy="old", reconcile=RECONCILE)
    world.run(1.5)
    world.boot("a", deploy="new", reconcile=RECONCILE)
    return 6.0


def hands_over(world: World) -> float:
    """We are the old deploy."""
    world.boot("a", deploy="old", reconcile=RECONCILE)
    world.run(1.5)
    world.boot("b", deploy="new", reconcile=RECONCILE)
    return 6.0


def hands_over_on_request(world: World) -> float:
    """We own, another instance of our deploy stands by, and somebody asks."""
    world.boot("a", reconcile=RECONCILE)
    world.run(1.5)
    world.boot("b", reconcile=RECONCILE)

    def ask() -> None:
        world.database.request_handover(world.now)

    world.at(2.5, ask)
    return 8.0


def replaces_its_worker(world: World) -> float:
    """SIGHUP to an owner."""
    instance = world.boot("a", reconcile=RECONCILE)
    world.at(2.0, instance.replace_worker)
    return 5.0


def replaces_a_standbys_worker(world: World) -> float:
    """SIGHUP to a standby."""
    world.boot("b", reconcile=RECONCILE)
    world.run(1.5)
    instance = world.boot("a", reconcile=RECONCILE)
    world.at(2.0, instance.replace_worker)
    return 5.0


def owner_stops(world: World) -> float:
    """SIGTERM to an owner, and nobody waits."""
    instance = world.boot("a", reconcile=RECONCILE)
    world.at(2.0, instance.stop)
    return 9.0


def owner_stops_beside_a_standby(world: World) -> float:
    """SIGTERM to an owner, and somebody waits."""
    instance = world.boot("a", reconcile=RECONCILE)
    world.run(1.5)
    world.boot("b", reconcile=RECONCILE)
    world.at(3.0, instance.stop)
    return 10.0


def standby_stops(world: World) -> float:
    """SIGTERM to a standby."""
    world.boot("b", reconcile=RECONCILE)
    world.run(1.5)
    instance = world.boot("a", reconcile=RECONCILE)
    world.at(2.0, instance.stop)
    return 8.0


def owner_stops_and_deletes(world: World) -> float:
    """SIGTERM to an owner with WEBHOOK_ON_EXIT=delete."""
    instance = world.boot("a", reconcile=RECONCILE, delete_on_exit=True)
    world.at(2.0, instance.stop)
    return 9.0


def polls(world: World) -> float:
    """BOT_MODE=polling, over a webhook that somebody had set."""
    world.telegram.url = "elsewhere"
    world.boot("a", polls=True, reconcile=RECONCILE)
    return 2.0


def preview(world: World) -> float:
    """A preview deploy, which never owns."""
    world.boot("a", may_own=False, reconcile=RECONCILE)
    return 3.0


STORIES: tuple[Callable[[World], float], ...] = (
    first_boot,
    standby_takes_over,
    handed_over_to,
    hands_over,
    hands_over_on_request,
    replaces_its_worker,
    replaces_a_standbys_worker,
    owner_stops,
    owner_stops_beside_a_standby,
    standby_stops,
    owner_stops_and_deletes,
    polls,
    preview,
)

# ---------------------------------------------------------------------------------------------------------------- faults

Fault = Callable[[World, Instance], None]


def session_lost(world: World, a: Instance) -> None:
    a.lose_session()


def statement_failed(world: World, a: Instance) -> None:
    a.statement_fault = "fail"


def answer_lost(world: World, a: Instance) -> None:
    a.statement_fault = "lost answer"


def statement_never_answered(world: World, a: Instance) -> None:
    a.statement_fault = "hang"


def database_restarts(world: World, a: Instance) -> None:
    world.stop_database(3.0)


def leader_exits(world: World, a: Instance) -> None:
    if (worker := a.leader_or_any()) is not None:
        a.end_worker(worker.id, "killed by SIGSEGV")


def newest_worker_exits(world: World, a: Instance) -> None:
    if alive := [w for w in a.workers.values() if w.alive]:
        a.end_worker(alive[-1].id, "killed by SIGKILL")


def leader_hangs(world: World, a: Instance) -> None:
    if (worker := a.leader_or_any()) is not None:
        worker.hung = True


def newest_worker_hangs(world: World, a: Instance) -> None:
    if alive := [w for w in a.workers.values() if w.alive]:
        alive[-1].hung = True


def next_start_is_refused(world: World, a: Instance) -> None:
    a.spawn_fault = "faults"


def next_start_crashes(world: World, a: Instance) -> None:
    a.spawn_fault = "crash"


def next_start_hangs(world: World, a: Instance) -> None:
    a.spawn_fault = "hang"


def next_lead_fails(world: World, a: Instance) -> None:
    a.lead_fault = "fail"


def next_lead_hangs(world: World, a: Instance) -> None:
    a.lead_fault = "hang"


def next_lead_swallows_its_cancellation(world: World, a: Instance) -> None:
    a.lead_fault = "swallow"


def call_is_retried(world: World, a: Instance) -> None:
    a.call_fault = "retry"


def call_is_rejected(world: World, a: Instance) -> None:
    a.call_fault = "reject"


def token_is_refused_once(world: World, a: Instance) -> None:
    a.call_fault = "refuse"


def worker_says_401(world: World, a: Instance) -> None:
    if a.state.telegram_answered:
        a.hear(wire.TokenRefused())


def drift(world: World, a: Instance) -> None:
    world.telegram.url = "elsewhere"


def foreign_secret(world: World, a: Instance) -> None:
    a.hear(wire.ForeignRegistration())


def stop(world: World, a: Instance) -> None:
    a.stop()


def stop_twice(world: World, a: Instance) -> None:
    a.stop()
    world.at(3.5, a.stop)


def sighup(world: World, a: Instance) -> None:
    a.replace_worker()


def sighup_twice(world: World, a: Instance) -> None:
    a.replace_worker()
    world.at(0.5, a.replace_worker)


def clock_jumps(world: World, a: Instance) -> None:
    world.now += 9.0


def suspended_an_hour(world: World, a: Instance) -> None:
    world.now += 3600.0
    for instance in world.instances.values():
        instance.lose_session("idle-session timeout")


def supervisor_stands_still(world: World, a: Instance) -> None:
    a.freeze(6.0)


def supervisor_stands_still_long(world: World, a: Instance) -> None:
    a.freeze(20.0)


def term_denied(world: World, a: Instance) -> None:
    world.name_ghost(5.0)


def lock_busy(world: World, a: Instance) -> None:
    world.ghost_takes_lock()


def younger_peer_comes_and_goes(world: World, a: Instance) -> None:
    world.ghost_peer("ghost")

    def goes() -> None:
        del world.database.rows["ghost"]

    world.at(4.0, goes)


FAULTS: tuple[Fault, ...] = (
    session_lost,
    statement_failed,
    answer_lost,
    statement_never_answered,
    database_restarts,
    leader_exits,
    newest_worker_exits,
    leader_hangs,
    newest_worker_hangs,
    next_start_is_refused,
    next_start_crashes,
    next_start_hangs,
    next_lead_fails,
    next_lead_hangs,
    next_lead_swallows_its_cancellation,
    call_is_retried,
    call_is_rejected,
    token_is_refused_once,
    worker_says_401,
    drift,
    foreign_secret,
    stop,
    stop_twice,
    sighup,
    sighup_twice,
    clock_jumps,
    suspended_an_hour,
    supervisor_stands_still,
    supervisor_stands_still_long,
    term_denied,
    lock_busy,
    younger_peer_comes_and_goes,
)

# --------------------------------------------------------------------------------------------------------------- the end


def unsettled(world: World) -> str | None:
    """What is not yet as it should be, or None: everybody who lives owns in full, stands by in full, or has ended rightly."""
    living = [i for i in world.instances.values() if i.lives]
    for instance in world.instances.values():
        if instance.exit_code is not None:
            assert instance.exit_code == expected_exit(instance), f"{instance.exit_code}: {instance.faults}"
            assert not any(w.alive for w in instance.workers.values())
    for instance in living:
        if reason := _unsettled_instance(world, instance):
            return f"{instance.name}: {reason}"
    wanted = any(i.state.settings.may_own for i in living)
    owners = world.owners()
    if len(owners) != (1 if wanted else 0):
        return f"owners: {[i.name for i in owners]}"
    return _unsettled_owner(world, owners[0]) if owners else None


def expected_exit(instance: Instance) -> int:
    """The exit code that INTERFACE.md gives for what befell it."""
    if not instance.state.telegram_answered and instance.state.token_refused:
        return 3
    if instance.state.stopping_since is not None:
        return 0
    return 2 if not instance.state.ever_accepted else 4


def _unsettled_instance(world: World, instance: Instance) -> str | None:
    state = instance.state
    if state.stopping_since is not None:
        return "stopping"
    alive = [w for w in instance.workers.values() if w.alive]
    if len(alive) != 1 or not alive[0].accepting or alive[0].hung:
        return f"workers: {alive}"
    if not state.session.open or instance.serving_unavailable:
        return "no session, or 503"
    if not core.health(state, world.now).ok:
        return str(core.health(state, world.now))
    if state.session.lock_held is not (world.database.holder == instance.session):
        return "who holds the lock?"
    if state.settings.may_own and not state.session.lock_held and not state.session.lock_tried:
        return "not in the queue"
    return None


def _unsettled_owner(world: World, owner: Instance) -> str | None:
    term, worker = owner.state.term, owner.dispatching
    if term is None or worker is None or worker.term != term.uuid:
        return f"does not dispatch: {term} {worker}"
    registration = term.registration
    if not (registration.asserted and registration.confirmed and registration.verified):
        return f"registration: {registration}"
    polling = owner.state.settings.polls
    if world.telegram.url != (None if polling else f"ours-{owner.token}"):
        return f"webhook: {world.telegram.url}"
    if polling and worker.polls_from is None:
        return "does not poll"
    return None
