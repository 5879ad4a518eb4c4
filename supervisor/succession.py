"""Who should own next: the hand-over to a newer deploy. Pure.

During a rolling deploy the platform runs old and new side by side for a minute or more, and the new code should own as soon
as it can: not only after the old instance got its SIGTERM. So an owner looks, at every heartbeat, for a ready instance of a
*younger deploy* that waits for the lock, and hands over to it.

Ages are counted by the database's clock. An instance is as old as the first announcement under its platform's instance id
(a restart in place makes nobody younger); a deploy is as old as the oldest of its instances that lives, or did within the
last minute (so the code that a rollback brings back is young again).

Against ping-pong: "younger" is a strict order of deploys, so of two deploys only one can ever hand over to the other; a deploy
that handed over is handed nothing back within a minute, whatever its age looks like; and an instance that gave up or failed as
owner is no candidate until its backoff is over.

Not promised: that the successor gets the lock. It may die in between; then whoever waits gets it.
"""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.messages import Peer

ALIVE_SECONDS = 6.0
"""An instance that announced itself within this lives: three announcements of 2 s."""

REMEMBERED_SECONDS = 60.0
"""A deploy's age counts instances that lived within the last minute; nothing is handed back within it either."""


def is_alive(peer: Peer) -> bool:
    """Whether it announced itself lately; a time that has not come yet is one from before the clock was set back."""
    return -ALIVE_SECONDS <= peer.silent_seconds <= ALIVE_SECONDS


def others_ready(peers: Iterable[Peer], instance_id: str) -> bool:
    """Whether another instance lives and could own; between two of its waits it is not seen waiting."""
    return any(p.ready and is_alive(p) for p in peers if p.instance_id != instance_id)


def others_waiting(peers: Iterable[Peer], instance_id: str) -> bool:
    """Whether another live and ready instance waits for the lock."""
    return any(p.waiting and p.ready and is_alive(p) for p in peers if p.instance_id != instance_id)


def _deploy_age(peers: tuple[Peer, ...], deploy_id: str) -> float:
    remembered = [p for p in peers if p.deploy_id == deploy_id and p.silent_seconds <= REMEMBERED_SECONDS]
    return max((p.age_seconds for p in remembered), default=0.0)


def _handed_over_lately(peers: tuple[Peer, ...], deploy_id: str) -> bool:
    return any(
        p.deploy_id == deploy_id
        and p.handed_over_seconds is not None
        and p.handed_over_seconds <= REMEMBERED_SECONDS
        for p in peers
    )


def successor(peers: tuple[Peer, ...], instance_id: str, *, waiting: bool = True) -> str | None:
    """The instance that `instance_id`, the owner, should hand over to; None: it stays.

    Of the youngest eligible deploy the longest-lived instance is taken, so that everybody who looks at the same rows names
    the same one.

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
        (_deploy_age(peers, p.deploy_id), -p.age_seconds, p.instance_id)
        for p in peers
        if p.deploy_id is not None
        and p.deploy_id != me.deploy_id
        and p.ready
        and (p.waiting or not waiting)
        and p.candidate
        and is_alive(p)
        and _deploy_age(peers, p.deploy_id) < my_age
        and not _handed_over_lately(peers, p.deploy_id)
    ]
    return min(eligible)[2] if eligible else None


def bearer_of_another_token(peers: tuple[Peer, ...], instance_id: str, token_fingerprint: str) -> str | None:
    """A ready, waiting instance with another token: to it goes the ownership of one whose token Telegram refuses."""
    bearers = [
        (p.age_seconds, p.instance_id)
        for p in peers
        if p.instance_id != instance_id
        and p.token_fingerprint != token_fingerprint
        and p.ready
        and p.waiting
        and p.candidate
        and is_alive(p)
    ]
    return min(bearers)[1] if bearers else None
