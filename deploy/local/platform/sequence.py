"""What the platform decides: Render's deploy sequence and health rules, as facts in and actions out.

    deploy ──► BOOTING ── all its instances pass their probes ──► LIVE ── a later deploy is LIVE ──► RETIRED
                  └─ 15 min without that, or a later deploy ──► CANCELLED

    instance   waiting to be spawned ──► running ── SIGTERM ──► ending ── 30 s: SIGKILL ──► ended ──► spawned
    again
               in place (same name), unless its deploy is over or somebody stopped it

Numbers: PLATFORMS.md, first column, from Render's pages "Deploys", "Health checks" and "Zero-downtime
deploys". These do not say in which order several instances are replaced: here traffic moves when all new ones
are healthy. Nor do they name the pause before a process that ended is started again: here none after a life
of ten seconds, else 1 s, 2 s, 4 s ... 30 s. A retired instance that crashes before its time is started again
too.

Pure: no clock, no process. `observe` takes in what happened, `plan` compares what should be with what is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import assert_never

from deploy.local.platform.service import (
    Action,
    Announce,
    Deploy,
    DeployRequested,
    DeployStatus,
    Event,
    Exited,
    Instance,
    Kill,
    ProbeFailed,
    ProbePassed,
    RestartRequested,
    Route,
    ScaleRequested,
    Service,
    Spawn,
    StopRequested,
    Terminate,
    Timing,
)

# A process that lived this long is started again at once when it ends.
_LONG_LIFE_SECONDS = 10
_LONGEST_RESPAWN_FACTOR = 30


def observe(service: Service, event: Event, now: float, timing: Timing) -> Service:
    """The service after an event; what follows from it is for `plan`."""
    match event:
        case DeployRequested(count):
            deploy = Deploy(len(service.deploys) + 1, count, DeployStatus.BOOTING, now)
            return _with_instances(replace(service, deploys=(*service.deploys, deploy)), deploy.number, now)
        case ScaleRequested(count):
            live = service.with_status(DeployStatus.LIVE)
            if live is None:
                return service
            service = _replace_deploy(service, replace(live, count=count))
            for surplus in service.instances_of(live.number)[count:]:
                service = _replace_instance(service, replace(surplus, retire_at=now))
            return _with_instances(service, live.number, now)
        case RestartRequested(name):
            return _change(service, name, None, lambda item: replace(item, is_restart_wanted=True))
        case StopRequested(name):
            for item in service.instances:
                if item.name == name and item.retire_at is None:
                    deploy = service.deploy(item.deploy)
                    service = _replace_deploy(service, replace(deploy, count=deploy.count - 1))
                if item.name == name:
                    service = _replace_instance(service, replace(item, retire_at=now))
            return service
        case ProbePassed(name, life):
            return _change(
                service, name, life, lambda item: replace(item, has_passed=True, failing_since=None)
            )
        case ProbeFailed(name, life):
            return _change(
                service, name, life, lambda item: replace(item, failing_since=_first(item.failing_since, now))
            )
        case Exited(name, life):
            return _change(service, name, life, lambda item: _ended(item, now, timing))
        case _:
            assert_never(event)


def plan(service: Service, now: float, timing: Timing) -> tuple[Service, tuple[Action, ...]]:
    """What is to be done now; the service as it is when that is done."""
    actions: list[Action] = []
    for deploy in service.deploys:
        status = _due_status(service, deploy, now, timing)
        if status is deploy.status:
            continue
        service = _replace_deploy(service, replace(deploy, status=status))
        actions.append(Announce(deploy.number, status))
        if status is DeployStatus.LIVE:
            for old in service.deploys:
                if old.status is DeployStatus.LIVE and old.number != deploy.number:
                    service = _replace_deploy(service, replace(old, status=DeployStatus.RETIRED))
                    actions.append(Announce(old.number, DeployStatus.RETIRED))
                    service = _end_all(service, old.number, now + timing.overlap_seconds)
        elif status is DeployStatus.CANCELLED:
            service = _end_all(service, deploy.number, now)
    kept: list[Instance] = []
    signals: list[Action] = []
    for instance in service.instances:
        after, action = _step(instance, service.deploy(instance.deploy).status, now, timing)
        if action is not None:
            signals.append(action)
        if after.is_running or not after.is_over(now):
            kept.append(after)
    service = replace(service, instances=tuple(kept))
    routed = _routable(service, now, timing)
    if routed != service.routed:
        service = replace(service, routed=routed)
        # Before the signals: no request is sent to a process that has been told to end.
        actions.append(Route(routed))
    return service, (*actions, *signals)


def next_deadline(service: Service, now: float, timing: Timing) -> float | None:
    """When `plan` has to be asked again if nothing happens; None for never."""
    return min((at for at in _deadlines(service, timing) if at > now), default=None)


def _deadlines(service: Service, timing: Timing) -> Iterator[float]:
    for deploy in service.deploys:
        if deploy.status is DeployStatus.BOOTING:
            yield deploy.requested_at + timing.cancel_seconds
    for instance in service.instances:
        if instance.spawn_at is not None:
            yield instance.spawn_at
        if instance.retire_at is not None:
            yield instance.retire_at
        if instance.failing_since is not None:
            yield instance.failing_since + timing.no_traffic_seconds
            yield instance.failing_since + timing.restart_seconds
        if instance.terminated_at is not None:
            yield instance.terminated_at + timing.shutdown_delay_seconds


def _due_status(service: Service, deploy: Deploy, now: float, timing: Timing) -> DeployStatus:
    if deploy.status is not DeployStatus.BOOTING:
        return deploy.status
    if deploy.number != len(service.deploys) or now >= deploy.requested_at + timing.cancel_seconds:
        return DeployStatus.CANCELLED
    instances = service.instances_of(deploy.number)
    if len(instances) >= deploy.count and all(item.is_passing for item in instances):
        return DeployStatus.LIVE
    return deploy.status


def _step(
    item: Instance, status: DeployStatus, now: float, timing: Timing
) -> tuple[Instance, Spawn | Terminate | Kill | None]:
    if not item.is_running:
        if item.is_over(now) or item.spawn_at is None or now < item.spawn_at:
            return item, None
        after = Instance(
            name=item.name,
            deploy=item.deploy,
            spawn_at=None,
            life=item.life + 1,
            spawned_at=now,
            retire_at=item.retire_at,
            short_lives=item.short_lives,
        )
        return after, Spawn(item.name, item.deploy, after.life)
    if item.terminated_at is None:
        is_stuck = (
            status is DeployStatus.LIVE
            and item.failing_since is not None
            and now >= item.failing_since + timing.restart_seconds
        )
        if is_stuck or item.is_restart_wanted or item.is_over(now):
            return replace(item, terminated_at=now), Terminate(item.name)
    elif not item.is_killed and now >= item.terminated_at + timing.shutdown_delay_seconds:
        return replace(item, is_killed=True), Kill(item.name)
    return item, None


def _routable(service: Service, now: float, timing: Timing) -> tuple[str, ...]:
    live = service.with_status(DeployStatus.LIVE)
    if live is None:
        return ()
    return tuple(item.name for item in service.instances_of(live.number) if item.is_routable(now, timing))


def _ended(item: Instance, now: float, timing: Timing) -> Instance:
    """After its process has gone: to be spawned again, unless it is over."""
    lived_long = now - item.spawned_at >= _LONG_LIFE_SECONDS or item.terminated_at is not None
    pause = 0.0
    if not lived_long:
        pause = timing.respawn_seconds * min(2**item.short_lives, _LONGEST_RESPAWN_FACTOR)
    return replace(item, spawn_at=now + pause, short_lives=0 if lived_long else item.short_lives + 1)


def _first(earlier: float | None, now: float) -> float:
    return now if earlier is None else earlier


def _with_instances(service: Service, number: int, now: float) -> Service:
    """The service with as many instances of a deploy as it wants."""
    missing = service.deploy(number).count - len(service.instances_of(number))
    new = tuple(
        Instance(name=f"srv-local-{number}-{service.names + index + 1}", deploy=number, spawn_at=now)
        for index in range(missing)
    )
    return replace(service, instances=(*service.instances, *new), names=service.names + len(new))


def _end_all(service: Service, number: int, at: float) -> Service:
    for item in service.instances_of(number):
        service = _replace_instance(service, replace(item, retire_at=at))
    return service


def _change(service: Service, name: str, life: int | None, change: Callable[[Instance], Instance]) -> Service:
    """Applies a change to an instance, unless the report is about an earlier process of that name."""
    for item in service.instances:
        if item.name == name and item.is_running and life in (None, item.life):
            return _replace_instance(service, change(item))
    return service


def _replace_deploy(service: Service, deploy: Deploy) -> Service:
    return replace(
        service, deploys=tuple(deploy if old.number == deploy.number else old for old in service.deploys)
    )


def _replace_instance(service: Service, instance: Instance) -> Service:
    return replace(
        service, instances=tuple(instance if old.name == instance.name else old for old in service.instances)
    )
