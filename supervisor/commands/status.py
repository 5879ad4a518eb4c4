"""`status`: who owns since when, every instance, the inbox, the last registration."""

from __future__ import annotations

import datetime
import json
from typing import Any

from shared.config import BotMode, Config
from supervisor.commands.standing import Instance, Standing, read_standing, session
from supervisor.commands.times import moment, span


async def status(config: Config, *, as_json: bool) -> int:
    """Prints how things stand.

    Raises:
        CommandFailed: the database cannot be used.
    """
    async with session(config) as connection:
        standing = await read_standing(connection, config)
    if as_json:
        print(json.dumps(as_document(standing, config), indent=1))
    else:
        print("\n".join(as_lines(standing, config, datetime.datetime.now(datetime.UTC))))
    return 0


def as_document(standing: Standing, config: Config) -> dict[str, Any]:
    """For programs; times in ISO 8601, null where there is nothing."""
    term, owner = standing.term, standing.owner
    registration = standing.registration if config.mode is BotMode.WEBHOOK else None
    return {
        "bot_id": config.bot_id,
        "owner": None
        if owner is None or term is None
        else {
            "instance_id": owner.instance_id,
            "deploy_id": owner.deploy_id,
            "term": term.number,
            "since": _iso(term.began_at),
        },
        "last_term": None
        if term is None
        else {
            "number": term.number,
            "instance_id": term.instance_id,
            "began_at": _iso(term.began_at),
            "ended_at": _iso(term.ended_at),
        },
        "instances": [
            {
                "instance_id": instance.instance_id,
                "deploy_id": instance.deploy_id,
                "role": "ACTIVE" if instance is owner else "PASSIVE",
                "ready": instance.ready,
                "holds_lock": instance.holds,
                "waits_for_lock": instance.waits,
                "abstains_seconds": round(instance.abstains_seconds, 1) if instance.abstains else 0.0,
                "since": _iso(instance.since),
                "silent_seconds": round(instance.silent_seconds, 1),
            }
            for instance in standing.present
        ],
        "inbox": {
            "pending": standing.inbox.pending,
            "in_flight": standing.inbox.in_flight,
            "dead": standing.inbox.dead,
            "oldest_pending_seconds": round(standing.inbox.oldest_pending_seconds, 1),
        },
        "registration": None
        if registration is None
        else {
            "recorded_at": _iso(registration.recorded_at),
            "confirmed_at": _iso(registration.confirmed_at),
            "is_of_this_environment": registration.is_ours,
        },
    }


def as_lines(standing: Standing, config: Config, now: datetime.datetime) -> list[str]:
    """For people, in the order in which one asks: who owns, who is there, what waits, what is registered."""
    return [
        f"owner         {_owner_text(standing, now)}",
        *_instance_lines(standing),
        f"inbox         {_inbox_text(standing)}",
        f"registration  {_registration_text(standing, config)}",
    ]


def _owner_text(standing: Standing, now: datetime.datetime) -> str:
    term, owner = standing.term, standing.owner
    if owner is not None and term is not None:
        return f"{owner.instance_id} since {moment(term.began_at)} ({span(now - term.began_at)}), term {term.number}"
    if standing.lock_pid is not None:
        return (
            f"nobody has begun a term; the session of the server's process {standing.lock_pid} holds the lock"
        )
    if term is None:
        return "nobody, and there was never one"
    if term.ended_at is None:
        return f"nobody; the last was {term.instance_id}, which did not end its term {term.number} in order"
    return f"nobody; the last was {term.instance_id}, until {moment(term.ended_at)}, term {term.number}"


def _instance_lines(standing: Standing) -> list[str]:
    if not standing.present:
        return ["instances     none"]
    lines = []
    for instance in standing.present:
        said = [
            "ACTIVE" if instance is standing.owner else "PASSIVE",
            "ready" if instance.ready else "not ready",
            *(["holds the lock"] if instance.holds else []),
            *(["waits for the lock"] if instance.waits else []),
            *([_abstention_text(instance)] if instance.abstains else []),
            f"deploy {instance.deploy_id or 'not named'}",
            f"announced {instance.silent_seconds:.0f} s ago",
        ]
        lines.append(f"instance      {instance.instance_id}: {', '.join(said)}")
    return lines


def _abstention_text(instance: Instance) -> str:
    return f"gave up the lock or was told to wait, candidate again in {instance.abstains_seconds:.0f} s"


def _inbox_text(standing: Standing) -> str:
    depth = standing.inbox
    oldest = f", the oldest for {depth.oldest_pending_seconds:.0f} s" if depth.pending else ""
    return f"{depth.pending} pending{oldest}; {depth.in_flight} in flight; {depth.dead} dead letters"


def _registration_text(standing: Standing, config: Config) -> str:
    registration = standing.registration
    if config.mode is BotMode.POLLING:
        return "none: updates are polled"
    if registration is None:
        return "none was ever made"
    # Not the last time: what was overwritten and mended since leaves the row as it is.
    confirmed = (
        "not confirmed yet"
        if registration.confirmed_at is None
        else f"first confirmed {moment(registration.confirmed_at)}"
    )
    whose = (
        "this environment's" if registration.is_ours else "of another path or secret than this environment's"
    )
    return f"recorded {moment(registration.recorded_at)}, {confirmed}; {whose}"


def _iso(at: datetime.datetime | None) -> str | None:
    return None if at is None else at.astimezone(datetime.UTC).isoformat()
