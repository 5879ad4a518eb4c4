"""What a simulation will do, made from its seed alone: how the system is, what its users do, and what befalls it, when.

A plan is data, so that a failing one can be made smaller by leaving steps out (shrink.py): a step names its victim by a number
between 0 and 1, of those that there are at that moment, and everything that happens by chance has a generator of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from random import Random


class Fault(Enum):
    """What may befall a system; the amount is in seconds where it is one."""

    KILL_SUPERVISOR = "kill -9 a supervisor"
    KILL_WORKER = "kill -9 a worker"
    STOP_SUPERVISOR = "SIGSTOP a supervisor"
    STOP_WORKER = "SIGSTOP a worker"
    STOP_BOTH = "SIGSTOP a supervisor and its workers"
    HANG_UP = "SIGHUP a supervisor"
    TERMINATE = "SIGTERM an instance, which is started again"
    CUT = "cut a host off from the database"
    SLOW = "a slow network"
    END_SESSION = "end the owner's session at the server"
    RESTART_DATABASE = "restart the database"
    DATABASE_AWAY = "the database is away"
    FAIL_OVER = "fail over to a replica that lags"
    FEW_SESSIONS = "others take the database sessions of an instance's workers"
    READ_ONLY = "the database takes no writes"
    SET_DATABASE_CLOCK = "set the database's wall clock"
    HOLD_TERM = "a claim that vanished holds the term's row"
    TELEGRAM_AWAY = "Telegram's API is away"
    TELEGRAM_FAULT = "a fault of one call"
    OVERWRITE = "somebody else sets the webhook"
    FORGE = "a request with another secret"
    DEPLOY = "a deploy of newer code"
    ROTATE = "a deploy with other secrets"
    BROKEN_DEPLOY = "a deploy that does not work"
    ROLL_BACK = "a deploy of the code before"
    REVOKE = "the token is revoked, a deploy has the new one"
    REPEAT = "Telegram sends an update again"
    RESTART_ALL = "everything is killed"


@dataclass(frozen=True, slots=True)
class Step:
    """Something that befalls the system.

    Attributes:
        at: seconds from the begin.
        who: of those that it can befall, in [0, 1); below 0.5 it is the owner, if there is one.
        amount: how long, or how much.
        variant: chooses among the ways there are.
    """

    at: float
    fault: Fault
    who: float = 0.0
    amount: float = 0.0
    variant: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A simulation.

    Attributes:
        seconds: of traffic and faults; then everything is left alone, and must recover.
        instances: of each deploy.
        has_deploy_ids: whether the platform names deploys.
        odd_work: share of updates whose handlers misbehave.
        steps: in the order of their times.
    """

    seed: int
    seconds: float = 120.0
    instances: int = 2
    has_deploy_ids: bool = True
    chats: int = 12
    updates_per_second: float = 3.0
    odd_work: float = 0.05
    concurrency: int = 8
    has_persistence: bool = False
    tick_seconds: float = 0.25
    linger_seconds: float = 5.0
    drain_seconds: float = 10.0
    reconcile_seconds: float = 30.0
    start_seconds: float = 1.5
    old_stays_seconds: float = 20.0
    steps: tuple[Step, ...] = ()


# How often each is chosen: what is usual in a platform's life, and what is hard, more often.
_WEIGHTS = {
    Fault.KILL_SUPERVISOR: 8,
    Fault.KILL_WORKER: 8,
    Fault.STOP_SUPERVISOR: 5,
    Fault.STOP_WORKER: 4,
    Fault.STOP_BOTH: 4,
    Fault.HANG_UP: 3,
    Fault.TERMINATE: 4,
    Fault.CUT: 10,
    Fault.SLOW: 3,
    Fault.END_SESSION: 4,
    Fault.RESTART_DATABASE: 5,
    Fault.FAIL_OVER: 3,
    Fault.READ_ONLY: 2,
    Fault.SET_DATABASE_CLOCK: 2,
    Fault.HOLD_TERM: 2,
    Fault.TELEGRAM_AWAY: 4,
    Fault.TELEGRAM_FAULT: 5,
    Fault.OVERWRITE: 3,
    Fault.FORGE: 2,
    Fault.DEPLOY: 6,
    Fault.ROTATE: 3,
    Fault.BROKEN_DEPLOY: 2,
    Fault.ROLL_BACK: 3,
    Fault.REVOKE: 1,
    Fault.REPEAT: 4,
    Fault.RESTART_ALL: 1,
}

_AWAY_SHARE = 0.06
_AWAY_SECONDS = (60.0, 600.0)
"""How many seeds have a database that is away besides, and for how long: longer than most plans, so it is not one of the faults
that a plan is full of; and with a generator of its own, so that the rest of a plan is what it would be without."""

_LONG = (0.05, 0.5, 2.0, 4.0, 7.0, 9.0, 12.0, 16.0, 25.0)
"""Around the limits that there are: 2.5 to 5.5 s of the client's, 8 of the deadline, 12 and 15 of the server's."""


def make_plan(seed: int) -> Plan:
    """The plan of a seed."""
    random = Random(f"plan {seed}")
    seconds = random.choice([40.0, 60.0, 90.0, 180.0])
    # Some seeds are stormy, and some have two or three faults that meet each other.
    count = max(1, round(seconds / random.choice([4.0, 10.0, 25.0, 60.0])))
    kinds = list(_WEIGHTS)
    if random.random() < 0.5:
        kinds = random.sample(kinds, random.randint(1, 5))
    weights = [_WEIGHTS[kind] for kind in kinds]
    chats, concurrency = random.choice([1, 4, 12, 40]), random.choice([1, 4, 8, 32])
    odd_work = random.choice([0.0, 0.0, 0.02, 0.05])
    # What can be handled: in a lane one after the other, a second each with its retries; a poison update costs its five starts.
    most_per_second = 0.25 * min(chats, concurrency) / (1.0 + 40.0 * odd_work)
    steps = [_make_step(random, random.choices(kinds, weights)[0], seconds) for _ in range(count)]
    away = Random(f"plan {seed} away")
    if away.random() < _AWAY_SHARE:
        steps.append(
            replace(
                _make_step(away, Fault.DATABASE_AWAY, seconds), amount=round(away.uniform(*_AWAY_SECONDS), 4)
            )
        )
    return Plan(
        seed,
        seconds=seconds,
        instances=random.choice([1, 1, 2, 2, 2, 3, 3, 5]),
        has_deploy_ids=random.random() < 0.85,
        chats=chats,
        updates_per_second=round(min(random.choice([0.5, 2.0, 5.0, 10.0]), most_per_second), 3),
        odd_work=odd_work,
        concurrency=concurrency,
        has_persistence=random.random() < 0.2,
        tick_seconds=random.choice([0.25, 0.5, 1.0, 1.0]),
        linger_seconds=random.choice([0.0, 5.0]),
        drain_seconds=random.choice([0.0, 2.0, 10.0, 20.0]),
        reconcile_seconds=random.choice([10.0, 30.0, 60.0]),
        start_seconds=random.choice([0.3, 1.5, 4.0]),
        old_stays_seconds=random.choice([5.0, 20.0, 60.0]),
        steps=tuple(sorted(steps, key=lambda step: step.at)),
    )


def _make_step(random: Random, fault: Fault, seconds: float) -> Step:
    amount = random.choice(_LONG) * random.uniform(0.8, 1.2)
    return Step(
        at=round(random.uniform(3.0, seconds), 4),
        fault=fault,
        who=random.random(),
        amount=round(amount, 4),
        variant=random.randrange(12),
    )
