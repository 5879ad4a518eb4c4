"""The control side: what users do, what tests want to know, what they break.

Usable in-process (`Emulator.control`); `control_http.py` serves the same over HTTP, `client.py` calls that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from deploy.local.emulator.bot import Bot
from deploy.local.emulator.bot_api import TOKEN, Account, BotApi
from deploy.local.emulator.control_messages import (
    ActiveFault,
    BotState,
    ChatMessage,
    Counts,
    EmulatorState,
    Inject,
    Injected,
    NewBot,
    Press,
    Pressed,
    SendText,
    Sent,
    WebhookState,
    describe_message,
)
from deploy.local.emulator.errors import ControlError
from deploy.local.emulator.faults import Fault, Outage
from deploy.local.emulator.journal import ApiCall, BotEvent, DeliveryJournal, Journal
from deploy.local.emulator.update_kinds import (
    DAY_SECONDS,
    KINDS,
    expiry_of,
    find_kind,
    list_allowed,
    name_queue,
)
from deploy.local.emulator.update_log import StoredUpdate

_MAX_DIGITS = 4000  # Python reads no more
_INT64 = range(-(2**63), 2**63)


class Control:
    """Everything that the control API can do, except to start and stop listening."""

    def __init__(
        self,
        accounts: dict[int, Account],
        api: BotApi,
        deliveries: DeliveryJournal,
        calls: Journal[ApiCall],
        outbox: Journal[BotEvent],
        open_account: Callable[[NewBot], Account],
        now: Callable[[], float],
    ) -> None:
        self._accounts = accounts
        self._api = api
        self.deliveries = deliveries
        self.calls = calls
        self.outbox = outbox
        self._open_account = open_account
        self._now = now

    # Bots

    def account(self, bot_id: int | None) -> Account:
        """A bot's account; without an id, that of the only bot."""
        if bot_id is None and len(self._accounts) == 1:
            return next(iter(self._accounts.values()))
        account = self._accounts.get(bot_id or 0)
        if account is None:
            raise ControlError(f"bot_id must be one of {sorted(self._accounts)}, not {bot_id}", 404)
        return account

    def add_bot(self, new: NewBot) -> int:
        """Makes a bot known; its id."""
        check_token(new.token)
        if int(new.token.partition(":")[0]) in self._accounts:
            raise ControlError("this bot is known already; reissue its token instead", 409)
        return self._open_account(new).bot.id

    def revoke(self, bot_id: int | None) -> None:
        self.account(bot_id).bot.revoke()

    def reissue(self, bot_id: int | None, token: str) -> None:
        check_token(token)
        self.account(bot_id).bot.reissue(token)

    def fail_synchronization(self, bot_id: int | None, date: int | None = None) -> None:
        self.account(bot_id).bot.fail_synchronization(date)

    # Users

    def send_text(self, wish: SendText) -> Sent:
        account = self.account(wish.bot_id)
        profile = msgspec.to_builtins(wish.profile) if wish.profile else {}
        user = account.chats.add_user(wish.user_id, profile)
        chat = account.chats.enter_chat(wish.chat_id or wish.user_id, user, wish.chat_title)
        message = account.chats.write(user, chat, wish.text, wish.extra)
        update = account.bot.push({"message": message})
        return Sent(update.update_id if update else None, message["message_id"], chat["id"])

    def press(self, wish: Press) -> Pressed:
        account = self.account(wish.bot_id)
        if wish.user_id is None and wish.chat_id < 0:
            raise ControlError("in a group, user_id must say who presses")
        user = account.chats.add_user(wish.user_id or wish.chat_id, {})
        query = account.chats.press(user, wish.chat_id, wish.message_id, wish.text, wish.data)
        update = account.bot.push({"callback_query": query})
        return Pressed(update.update_id if update else None, query["id"], query["data"])

    def inject(self, wish: Inject) -> Injected:
        bot = self.account(wish.bot_id).bot
        if wish.raw is None:
            if wish.update is None:
                raise ControlError("either update or raw must be given")
            fields = dict(wish.update)
            update_id = wish.update_id if wish.update_id is not None else fields.pop("update_id", None)
            fields.pop("update_id", None)
            rest = json.dumps(fields).encode("ascii")
        else:
            update_id, rest = wish.update_id, wish.raw
            fields = _read_object(wish.raw, is_checked=not wish.verbatim)
        if update_id is not None and (type(update_id) is not int or update_id not in _INT64):
            raise ControlError("update_id must be an integer within 64 bits")
        kind = find_kind(fields)
        payload = fields.get(kind)
        if wish.raw is None and kind in KINDS and kind not in bot.registration.allowed_updates:
            bot.refused["not_allowed"] += 1
            return Injected(None)
        self.account(wish.bot_id).chats.learn(payload)
        if wish.verbatim:
            return _injected(bot.push_verbatim(rest, update_id or 0))
        expires_at = expiry_of(kind, payload, self._now()) if kind else self._now() + DAY_SECONDS
        return _injected(
            bot.push_bytes(kind, wish.queue or name_queue(kind, payload), rest, update_id, expires_at)
        )

    # Reading

    def messages(self, bot_id: int | None, chat_id: int) -> list[ChatMessage]:
        """A chat as it stands, oldest first."""
        account = self.account(bot_id)
        return [describe_message(raw, account.bot.id) for raw in account.chats.messages(chat_id)]

    def counts(self, bot_id: int | None) -> Counts:
        bot = self.account(bot_id).bot
        bot.log.expire(self._now())
        return Counts(
            sent=bot.pushed_count,
            delivered=self.deliveries.delivered[bot.id],
            pending=len(bot.log),
            in_flight=bot.in_flight_count,
            attempts=self.deliveries.attempts[bot.id],
            dropped=self.deliveries.dropped[bot.id],
            expired=bot.log.expired_count,
            not_2xx=dict(self.deliveries.failures.get(bot.id, {})),
            refused=dict(bot.refused),
        )

    def webhook(self, bot_id: int | None) -> WebhookState:
        bot = self.account(bot_id).bot
        current = bot.registration
        return WebhookState(
            url=current.url,
            secret_token=current.secret_token,
            max_connections=current.max_connections,
            allowed_updates=list_allowed(current.allowed_updates),
            connections=bot.connection_count,
            in_flight=bot.in_flight_count,
            info=dict(bot.webhook_info()),
        )

    def state(self, control_url: str) -> EmulatorState:
        return EmulatorState(
            bots=[self._bot_state(account.bot) for account in self._accounts.values()],
            outage=self._api.outage,
            faults=self.faults(),
            control_url=control_url,
            last_event_seq=self.outbox.last_seq,
            last_call_seq=self.calls.last_seq,
            last_delivery_seq=self.deliveries.last_seq,
        )

    async def wait_idle(self, bot_id: int | None, timeout_seconds: float) -> bool:
        """Waits until nothing is pending or in flight, for one bot or for all; whether it came to that."""
        bots = [self.account(bot_id).bot] if bot_id is not None else [a.bot for a in self._accounts.values()]
        return await self.deliveries.wait(lambda: all(map(self._is_idle, bots)), timeout_seconds)

    # Breaking

    def add_fault(self, fault: Fault) -> int:
        return self._api.faults.add(fault)

    def clear_faults(self, number: int | None = None) -> None:
        self._api.faults.clear(number)

    def faults(self) -> list[ActiveFault]:
        return [ActiveFault(number, fault, left) for number, fault, left in self._api.faults.active()]

    def set_outage(self, outage: Outage) -> None:
        self._api.outage = outage

    def _bot_state(self, bot: Bot) -> BotState:
        return BotState(bot.id, bot.profile["username"], self.webhook(bot.id), self.counts(bot.id))

    def _is_idle(self, bot: Bot) -> bool:
        bot.log.expire(self._now())
        return not len(bot.log) and not bot.in_flight_count


def check_token(token: str) -> None:
    if not TOKEN.fullmatch(token):
        raise ControlError("a token is a bot's id, a colon, and letters, digits, '_' and '-'")


def _read_object(raw: bytes, *, is_checked: bool) -> dict[str, Any]:
    """The fields of an object; none of one that is nested too deep for us, which is sent all the same.

    Raises:
        ControlError: if it is to be checked, and no server would send it.
    """
    try:
        decoded = json.loads(raw.decode("utf-8"), parse_int=_read_integer, parse_constant=_refuse_constant)
    except RecursionError:
        return {}
    except ValueError:
        decoded = None
    if is_checked and (not isinstance(decoded, dict) or "update_id" in decoded):
        raise ControlError("raw must be a JSON object without update_id, unless verbatim")
    return decoded if isinstance(decoded, dict) else {}


def _read_integer(digits: str) -> int:
    return int(digits) if len(digits) < _MAX_DIGITS else 0


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _injected(update: StoredUpdate | None) -> Injected:
    return Injected(update.update_id if update else None)
