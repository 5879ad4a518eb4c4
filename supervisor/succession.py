"""Who should own next: the hand-over to a newer deploy, or because somebody asks for it. Pure.

During a rolling deploy the platform runs old and new side by side for a minute or more, and the new code should own as soon
as it can: not only after the old instance got its SIGTERM. So an owner looks, at every heartbeat, for a ready instance of a
*younger deploy* that waits for the lock, and hands over to it.

Ages are counted by the database's clock. An instance is as old as the first announcement under its platform's instance id
(a restart in place makes nobody younger); a deploy is as old as the oldest of its instances that lives, or did within the
last minute (so the code that a rollback brings back is young again).

That clock may be set back (b16). An instance that was known before keeps its age, counted on by our own clock. Of any other a
time in the future is from before the setting: as the time of a first announcement it makes the instance the oldest, and
anything else that happened then is over.

Against ping-pong: "younger" is a strict order of deploys, so of two deploys only one can ever hand over to the other; a deploy
that handed over is handed nothing back within a minute, whatever its age looks like; and an instance that gave up or failed as
owner is no candidate until its backoff is over.

Asked by a person (`supervisor handover`), an owner hands over to an instance of any deploy, its own too, once: the request is
the term's, and goes with it. Where only older code stands by, the rule above holds for the minute in which nothing is handed
back to the deploy that handed over; then the newer code owns again. Whoever wants older code for longer rolls back.

Not promised: that the successor gets the lock. It may die in between; then whoever waits gets it.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from supervisor.messages import Peer

ALIVE_SECONDS = 6.0
"""An instance that announced itself within this lives: three announcements of 2 s."""

REMEMBERED_SECONDS = 60.0
"""A deploy's age counts instances that lived within the last minute; nothing is handed back within it either."""

REQUESTED_SECONDS = 60.0
"""How long an owner that finds nobody to hand over to goes on looking. The person who asked waits as long, and expects nothing
after that."""

_BEFORE_ALL_SECONDS = 1e9
"""More than any clock is set back by (30 years): is added to an age from before, so that those are in order, too."""


def as_known(peers: Iterable[Peer], before: Iterable[Peer], elapsed_seconds: float) -> tuple[Peer, ...]:
    """`peers`, no younger than they can be, if the database's clock was set back since.

    Args:
        peers: everybody, as the database shows them now.
        before: the same, as they were known.
        elapsed_seconds: since then, by our clock.
    """
    known = {p.instance_id: p for p in before}
    return tuple(_as_known(p, known.get(p.instance_id), elapsed_seconds) for p in peers)


def _as_known(peer: Peer, before: Peer | None, elapsed_seconds: float) -> Peer:
    # A shorter fall is the time that the question was under way.
    if before is None or peer.age_seconds >= before.age_seconds + elapsed_seconds - ALIVE_SECONDS:
        return peer
    silent, handed_over = peer.silent_seconds, peer.handed_over_seconds
    if silent < -ALIVE_SECONDS:
        silent = before.silent_seconds + elapsed_seconds
    if handed_over is not None and handed_over < -ALIVE_SECONDS and before.handed_over_seconds is not None:
        handed_over = before.handed_over_seconds + elapsed_seconds
    age = before.age_seconds + elapsed_seconds
    return replace(peer, age_seconds=age, silent_seconds=silent, handed_over_seconds=handed_over)


def is_alive(peer: Peer) -> bool:
    """Whether it announced itself lately; a time that has not come yet is one from before the clock was set back."""
    return -ALIVE_SECONDS <= peer.silent_seconds <= ALIVE_SECONDS


def is_request_young(requested_seconds: float | None) -> bool:
    """Whether to hand over for it; a time that has not come for so long is one from before the clock was set back."""
    return requested_seconds is not None and abs(requested_seconds) <= REQUESTED_SECONDS


def others_there(peers: Iterable[Peer], instance_id: str) -> bool:
    """Whether another instance lives and could own: it is ready, or waits for the lock.

    Who waits takes a lock that is free although it is not ready: it does not store, or its token is unproven. Between two of
    its waits it is not seen waiting.
    """
    return other_there(peers, instance_id) is not None


def other_there(peers: Iterable[Peer], instance_id: str) -> str | None:
    """Of those one that is ready, if there is one, and was heard of last."""
    there = (p for p in peers if p.instance_id != instance_id and (p.ready or p.waiting) and is_alive(p))
    first = min(there, key=lambda p: (not p.ready, p.silent_seconds), default=None)
    return None if first is None else first.instance_id


def others_waiting(peers: Iterable[Peer], instance_id: str) -> bool:
    """Whether another live and ready instance waits for the lock."""
    return any(p.waiting and p.ready and is_alive(p) for p in peers if p.instance_id != instance_id)


def _age(peer: Peer) -> float:
    return peer.age_seconds + (_BEFORE_ALL_SECONDS if peer.age_seconds < -ALIVE_SECONDS else 0.0)


def _is_recent(seconds: float | None) -> bool:
    """Whether that was within the last minute."""
    return seconds is not None and -ALIVE_SECONDS <= seconds <= REMEMBERED_SECONDS


def _deploy_age(peers: tuple[Peer, ...], deploy_id: str | None) -> float:
    remembered = (p for p in peers if p.deploy_id == deploy_id and _is_recent(p.silent_seconds))
    return max(map(_age, remembered), default=0.0)


def _handed_over_lately(peers: tuple[Peer, ...], deploy_id: str) -> bool:
    return any(p.deploy_id == deploy_id and _is_recent(p.handed_over_seconds) for p in peers)


def _could_own(peer: Peer, *, waiting: bool = True) -> bool:
    """Whether it lives, could lead, has not given up, and stands in the queue, if that is asked."""
    return peer.ready and (peer.waiting or not waiting) and peer.candidate and is_alive(peer)


def _named(peers: tuple[Peer, ...], eligible: Iterable[Peer]) -> str | None:
    """Of the youngest deploy the longest-lived instance, so that everybody who looks at the same rows names the same one."""
    order = [(_deploy_age(peers, p.deploy_id), -_age(p), p.instance_id) for p in eligible]
    return min(order)[2] if order else None


def successor(peers: tuple[Peer, ...], instance_id: str, *, waiting: bool = True) -> str | None:
    """The instance that `instance_id`, the owner, should hand over to; None: it stays.

    Args:
        peers: everybody, the owner included.
        instance_id: the owner.
        waiting: only who stands in the queue at this very moment. False, for a hand-over under way: a candidate leaves the
            queue for milliseconds between two waits, and may just then have been looked at.
    """
    me = next((p for p in peers if p.instance_id == instance_id), None)
    if me is None or me.deploy_id is None:
        return None
    my_age = _deploy_age(peers, me.deploy_id)
    eligible = [
        p
        for p in peers
        if p.deploy_id is not None
        and p.deploy_id != me.deploy_id
        and _could_own(p, waiting=waiting)
        and _deploy_age(peers, p.deploy_id) < my_age
        and not _handed_over_lately(peers, p.deploy_id)
    ]
    return _named(peers, eligible)


def successor_of_any_deploy(peers: tuple[Peer, ...], instance_id: str, *, waiting: bool = True) -> str | None:
    """Whoever could own in the place of `instance_id`, of whatever deploy: where somebody asks for it, or our own cannot go on.

    Args: as of `successor`. That a deploy handed over lately is not held against it.
    """
    others = (p for p in peers if p.instance_id != instance_id and _could_own(p, waiting=waiting))
    return _named(peers, others)


def other_code_waiting(peers: tuple[Peer, ...], instance_id: str) -> str | None:
    """An instance of another deploy that could own, of whatever age; where the platform gives no deploy id, of any.

    One that gave up is none: it may have met the same, and the lock would go to and fro.
    """
    mine = next((p.deploy_id for p in peers if p.instance_id == instance_id), None)
    others = (p for p in peers if p.instance_id != instance_id and (mine is None or p.deploy_id != mine))
    return _named(peers, filter(_could_own, others))


def bearer_of_another_token(
    peers: tuple[Peer, ...], instance_id: str, token_fingerprint: str, *, waiting: bool = True
) -> str | None:
    """A ready, waiting instance with another token: to it goes the ownership of one whose token Telegram refuses.

    Args: as of `successor`, and the owner's token.
    """
    bearers = [
        (_age(p), p.instance_id)
        for p in peers
        if p.instance_id != instance_id
        and p.token_fingerprint != token_fingerprint
        and _could_own(p, waiting=waiting)
    ]
    return min(bearers)[1] if bearers else None
