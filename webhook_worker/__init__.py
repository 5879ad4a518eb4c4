"""The worker: receives updates, stores them, and, in the owner, runs the bot on them.

Law: imports `shared` and never `supervisor` or `deploy`; asks its control socket and nothing else who owns the bot; answers 200
only after a commit; runs handlers only between `Lead` and the deadline. It never touches the lock or the webhook.

For handlers of a bot there are two names here, and no others:

    from webhook_worker import RetryUpdate, attempt

    raise RetryUpdate("the shop is closed", retry_after_seconds=60)    handle this update again, later
    attempt()                                                          1 the first time, 2 the second ...

They are fetched when first asked for: importing this package stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from webhook_worker.outcomes import RetryUpdate, attempt

__all__ = ["RetryUpdate", "attempt"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from webhook_worker import outcomes

    return getattr(outcomes, name)
