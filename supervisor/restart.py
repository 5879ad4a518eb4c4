"""When a worker that ended by itself is started again, and when that is no longer sensible. Pure.

The first restart is immediate, since most deaths are single; from the second within the window on the pause doubles, with
jitter, so that instances which fail together do not restart together. Crashes are counted wherever they happen, also after
"ready": a worker that comes up well and dies at the first update is the usual crash loop.

Excused are crashes while an update that was in flight at an earlier crash runs by itself: they are that update's doing, and
its own limit (MAX_ATTEMPTS) ends them. But only so many: a worker that dies whatever it runs has such an update in flight
nearly always, since each death leaves new ones, and would otherwise go on for ever beside a healthy instance (b21).

Where updates are rare, such a worker's crashes are too far apart to be remembered together. So an owner that could give up to
a healthy instance counts, however old they are, all crashes of dispatching workers since an update was last completed.

Put off is the start of a bot that found something outside away (Telegram, a database): its worker stores all the time, and the
end of this process would mend nothing. The next one comes after the same pauses, and never before the time that it was told
(Telegram's flood limit, which calls within it prolong): its worker comes up and stores meanwhile.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from shared.backoff import doubled_seconds, spread_seconds

WINDOW_SECONDS = 300.0
"""Crashes older than this no longer count, except where it never came up. Five minutes: longer than the whole sequence of
pauses below."""

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0

EXCUSED_CRASHES = 16
"""As many within the window are put down to updates: four poison ones, with the default MAX_ATTEMPTS of 5. A worker that dies
at once for another reason is through with them in half a minute."""

CRASHES_BEFORE_GIVING_UP = 4
"""As many crashes within the window, and an owner gives up to a healthy instance: after about 5 s of trying. Or as many,
however far apart, between which nothing was completed: the fourth update."""

CRASHES_BEFORE_EXIT = 10
"""As many within the window, and the process ends: the platform's own restart may place it elsewhere. Exit code 4; 2 where no
worker ever accepted."""

CRASHES_BEFORE_NEVER_UP = 5
"""As many without ever having been up, however far apart, and it is taken for a fault of the deploy (exit code 2). A BOT_APP
that hangs at its import is killed after two minutes: five of those are never within the window."""


class Restarts(Struct, frozen=True):
    """The crashes that count and those that are excused, oldest first, and the starts of a bot that were put off.

    Attributes:
        next_spawn_at: the earliest next start.
        next_lead_at: the earliest next start of a bot, by the word of what it found away.
        counted: how many crashes ever counted, of workers that had begun.
        ever: how many ends there ever were, whatever they count for.
        fruitless: how many crashes counted, of workers that dispatched, since an update was last completed.
    """

    crashes: tuple[float, ...] = ()
    next_spawn_at: float = 0.0
    excused: tuple[float, ...] = ()
    counted: int = 0
    ever: int = 0
    put_offs: tuple[float, ...] = ()
    fruitless: int = 0
    next_lead_at: float = float("-inf")

    def crashed(
        self, at: float, chance: float, *, suspect: bool, began: bool = True, dispatching: bool = False
    ) -> Restarts:
        """The state after a crash.

        Args:
            at: when, in seconds.
            chance: in [0, 1), spreads the pause by a fifth either way.
            suspect: an update that was in flight at an earlier crash ran by itself.
            began: false where there was no process: no fault of the deploy, so it does not count toward "never up".
            dispatching: it ran updates, or could have.
        """
        excused = _within_window(self.excused, at)
        if suspect and len(excused) < EXCUSED_CRASHES:
            return replace(self, next_spawn_at=at, excused=(*excused, at), ever=self.ever + 1)
        crashes = (*_within_window(self.crashes, at), at)
        pause = spread_seconds(pause_seconds(len(crashes)), chance)
        return replace(
            self,
            crashes=crashes,
            next_spawn_at=at + pause,
            excused=excused,
            counted=self.counted + began,
            ever=self.ever + 1,
            fruitless=self.fruitless + dispatching,
        )

    def completed(self) -> Restarts:
        """The state once an update was completed: what crashed before was not a worker that dies whatever it runs."""
        return replace(self, fruitless=0) if self.fruitless else self

    def put_off(self, at: float, chance: float) -> Restarts:
        """The state after the end of a worker whose bot did not start because something outside was away.

        Args:
            at: when, in seconds.
            chance: in [0, 1), spreads the pause by a fifth either way.
        """
        put_offs = (*_within_window(self.put_offs, at), at)
        pause = spread_seconds(pause_seconds(len(put_offs) + self.count(at)), chance)
        return replace(self, put_offs=put_offs, next_spawn_at=at + pause, ever=self.ever + 1)

    def count(self, now: float) -> int:
        """How many crashes count at `now`."""
        return len(_within_window(self.crashes, now))

    def count_all(self, now: float) -> int:
        """What counts where another instance could have better luck: also older crashes between which nothing was completed,
        and the starts that were put off.
        """
        return max(self.count(now), self.fruitless) + len(_within_window(self.put_offs, now))


def _within_window(crashes: tuple[float, ...], now: float) -> tuple[float, ...]:
    return tuple(at for at in crashes if now - at < WINDOW_SECONDS)


def pause_seconds(crashes: int) -> float:
    """The pause before the next start after so many crashes within the window, without jitter."""
    if crashes <= 1:
        return 0.0
    return doubled_seconds(FIRST_PAUSE_SECONDS, crashes - 2, LONGEST_PAUSE_SECONDS)
