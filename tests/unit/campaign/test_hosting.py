"""What a deploy came to, as the campaign reads it: who owned, when, and how often that changed."""

from __future__ import annotations

from deploy.local.platform.records import Occurrence, Record
from tests.campaign.evidence import TermChange
from tests.campaign.hosting import Move, deploy_of, new_owners, outlived_grace

OLD, SIBLING, NEW = "srv-local-1-1", "srv-local-1-2", "srv-local-2-3"


def terms(*begun: tuple[float, str]) -> list[TermChange]:
    """Terms that began then, each of another start of its instance."""
    return [
        TermChange(at, at, 1, number, f"uuid {number}", f"{name}-{number:08x}")
        for number, (at, name) in enumerate(begun, start=1)
    ]


def test_b17_a_new_term_of_the_same_instance_is_no_change_of_owner() -> None:
    """A worker that is replaced, or an instance that is restarted in place, begins one too."""
    assert new_owners(terms((1, OLD), (5, OLD), (9, NEW), (12, NEW)), 4, 20) == (NEW,)


def test_b17_every_change_counts_there_and_back() -> None:
    """Ping-pong is seen, and what came before or after the deploy is not."""
    begun = terms((1, SIBLING), (2, OLD), (9, NEW), (12, OLD), (15, NEW), (30, SIBLING))
    assert new_owners(begun, 4, 20) == (NEW, OLD, NEW)


def test_b17_who_owned_before_the_deploy_is_not_new() -> None:
    """Nor is whoever never lost it."""
    assert new_owners(terms((1, OLD)), 4, 20) == ()
    assert new_owners([], 4, 20) == ()


def move(owned_at: float | None, sigterm_at: float | None) -> Move:
    """A deploy that was live at 10."""
    return Move(2, 10.0, owned_at, sigterm_at, (NEW,), 3)


def test_b17_a_deploy_that_owns_late_or_never_is_not_in_time() -> None:
    """In time is before the platform tells the old one to end."""
    assert move(12.0, 22.0).owned_before_sigterm
    assert move(12.0, None).owned_before_sigterm
    assert not move(23.0, 22.0).owned_before_sigterm
    assert not move(None, 22.0).owned_before_sigterm


def test_b17_what_is_printed_says_which() -> None:
    """The bounds of the issue, in a line."""
    assert str(move(12.0, 22.0)) == (
        "owned 2.0 s after the switch, 10.0 s before the old one's SIGTERM; "
        "1 change(s) of owner; 3 answers other than 200"
    )
    assert "1.0 s AFTER the old one's SIGTERM" in str(move(23.0, 22.0))
    assert "never owned" in str(move(None, 22.0))


def test_instances_belong_to_deploys_by_their_names() -> None:
    """And others to none."""
    assert deploy_of(NEW) == 2
    assert deploy_of("srv-local-12-345") == 12
    assert deploy_of("eldest") == 0


def test_a_kill_after_the_whole_grace_is_held_against_the_instance() -> None:
    """Whoever was told to end, and had the time that is promised, must be gone by itself."""
    told = [Record(100.0, Occurrence.SIGTERM_SENT, OLD), Record(120.0, Occurrence.SIGTERM_SENT, NEW)]
    assert outlived_grace(told, Record(130.0, Occurrence.SIGKILL_SENT, OLD)) == 30.0


def test_a_kill_is_excused_by_an_impatient_platform_and_by_whoever_sent_it() -> None:
    """The last SIGTERM counts: an instance that was restarted in place got one for each of its processes."""
    first, second = Record(100.0, Occurrence.SIGTERM_SENT, OLD), Record(129.0, Occurrence.SIGTERM_SENT, OLD)
    assert outlived_grace([first, second], Record(130.0, Occurrence.SIGKILL_SENT, OLD)) is None
    assert outlived_grace([first], Record(130.0, Occurrence.SIGKILL_SENT, OLD, "pid 17")) is None
    assert outlived_grace([], Record(130.0, Occurrence.SIGKILL_SENT, OLD)) is None
