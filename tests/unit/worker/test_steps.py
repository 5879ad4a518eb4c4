"""What the steps of a handler tell the update whose they are."""

from __future__ import annotations

import asyncio

import pytest

from webhook_worker.steps import Steps, Turns


class Told:
    """As an update in flight; writes down what it is told."""

    def __init__(self, *, is_term_over: bool = False) -> None:
        self.is_term_over = is_term_over
        self.notes: list[str] = []

    def note_wait(self, now: float) -> None:
        self.notes.append("waits")

    def note_begin(self, now: float, *, has_waited: bool) -> None:
        self.notes.append("begins after a wait" if has_waited else "begins")

    def note_refusal(self, now: float) -> None:
        self.notes.append("refused")


async def handle() -> str:
    """A handler of a single step."""
    return "handled"


def steps_of(told: Told, *, may_go_on: bool = True, owes_turn: bool = False) -> Steps:
    turns = Turns(lambda: 100.0, lambda: may_go_on)
    turns.owes_turn = owes_turn
    return Steps(handle(), turns, told, on_refusal=lambda: told.notes.append("and its task"))


def test_a_refused_step_is_told_before_the_handler_is_cancelled() -> None:
    """To the update, so that the attempt is given back; and to whoever asked for a task beside."""
    told = Told()
    with pytest.raises(asyncio.CancelledError):
        steps_of(told, may_go_on=False).send(None)
    assert told.notes == ["refused", "and its task", "begins"]


def test_a_step_that_is_put_off_is_told_once_however_many_turns_it_waits() -> None:
    """The time that it waited does not count as the handler's."""
    told = Told()
    steps = steps_of(told, owes_turn=True)
    assert [steps.send(None), steps.send(None)] == [None, None]
    assert told.notes == ["waits"]
    steps.close()


def test_nothing_is_put_off_once_the_term_is_over() -> None:
    """A drain's end has no time for turns."""
    told = Told(is_term_over=True)
    with pytest.raises(StopIteration, match="handled"):
        steps_of(told, owes_turn=True).send(None)
    assert told.notes == ["begins"]
