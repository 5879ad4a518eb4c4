"""A Bot API server to test against: TELEGRAM.md, rule by rule, on one machine.

Imports nothing of `shared`, `supervisor` or `webhook_worker`, so that it cannot share their mistakes. Pure modules
(`update_kinds`, `backoff`, `update_log`, `delivery_plan`, `registration`, `faults`, `keyboards`, `formatting`,
`commands`) are given time and random numbers; the rest are shells around them:

    http_server ─► bot_api ─► methods, chats      what bots call, and what users see of it
                └► control_http ─► control        what tests and pages call        (client.py is its other end)
    bot ─► update_log ─► webhook_actor ─► webhook_http      the way of an update to the webhook
                     └─► long_poll                          the way of an update to getUpdates

As a process, whose first line on stdout is `{"base_url", "control_url", "bot_ids"}`:

    python -m deploy.local.emulator --port 0 --token 123456789:AAA

In-process, with the machine's clock or one that is handed in:

    async with Emulator([token], seed=1) as emulator, emulator.client() as client: ...

`EmulatorClient(base_url)`, all methods async:

    send_text(user_id, text, *, chat_id, bot_id, profile) -> Sent              a user writes
    send_many([SendText, ...]) -> [Sent, ...]                                  the same, for load
    press(chat_id, *, text, data, message_id, user_id) -> Pressed              a user presses an inline button
    inject(update, *, raw, verbatim, update_id, queue) -> Injected             any update, any bytes, any number
    messages(chat_id) -> [ChatMessage, ...]                                    a chat as it stands
    last_event_seq() -> int; events(after=, chat_id=, timeout_seconds=) -> [BotEvent, ...]
    wait_for_event(after=, kinds=, chat_id=, timeout_seconds=) -> BotEvent     TimeoutError if there is none
    wait_for_message(chat_id, after=, timeout_seconds=) -> ChatMessage         the bot's next message or edit
    calls(after=, method=, timeout_seconds=) -> [ApiCall, ...]                 Bot API calls, with times
    deliveries(after=, timeout_seconds=) -> [DeliveryAttempt, ...]             attempts, with times
    all_deliveries(after=) -> async iterator                                   the same, page by page
    counts() -> Counts; webhook() -> WebhookState; state() -> EmulatorState
    wait_idle(timeout_seconds=) -> bool                                        everything delivered?
    add_bot(token), revoke_token(), reissue_token(token)
    add_fault(Fault(FaultKind.HANG, method="setWebhook", count=1)) -> id; clear_faults(id); set_outage(Outage.REFUSED)

What it does not promise: durability (a restart begins empty), limits of sending rate, rights in groups, Markdown,
downloads of files, and every method of the Bot API: those that are here are in `bot_api.py` and `methods.py`.
"""

from deploy.local.emulator.client import EmulatorClient
from deploy.local.emulator.emulator import DEFAULT_TOKEN, Emulator
from deploy.local.emulator.faults import Fault, FaultKind, Outage

__all__ = ["DEFAULT_TOKEN", "Emulator", "EmulatorClient", "Fault", "FaultKind", "Outage"]
