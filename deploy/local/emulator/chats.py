"""The chats that a bot is in: users, messages, and what the bot does in them.

The bot's view of Telegram: one `Chats` belongs to one bot, and a chat exists for it from the first message of a user on
(before that: 400 "chat not found"). Messages are kept as the JSON objects of the Bot API.

Does not promise limits of sending rate, rights in groups, or anything that other members of a group would see.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

from deploy.local.emulator.clock import Clock
from deploy.local.emulator.errors import ControlError, bad_request
from deploy.local.emulator.formatting import find_commands
from deploy.local.emulator.journal import BotEvent, Journal
from deploy.local.emulator.keyboards import find_button
from deploy.local.emulator.update_kinds import CALLBACK_SECONDS

# Identifiers of supergroups and channels begin below this (Bot API documentation, Chat).
SUPERGROUP_BELOW = -1_000_000_000_000
# Of each chat, so that an hour of load does not fill the memory; older ones are not found any more.
MAX_MESSAGES = 1000
MAX_QUERIES = 10_000
Json = dict[str, Any]


class Chats:
    """Users, chats and messages of one bot."""

    def __init__(
        self, bot_profile: Mapping[str, Any], outbox: Journal[BotEvent], clock: Clock, rng: random.Random
    ) -> None:
        self._profile = bot_profile
        self._outbox = outbox
        self._clock = clock
        self._rng = rng
        self._message_ids = itertools.count(1)
        self._users: dict[int, Json] = {}
        self._chats: dict[int, Json] = {}
        self._messages: dict[int, dict[int, Json]] = {}
        # Until when each query may be answered, and the chat it came from.
        self._queries: dict[str, tuple[float, int | None]] = {}

    # What users do

    def add_user(self, user_id: int, given: Mapping[str, Any]) -> Json:
        """Makes a user known, or renames one."""
        user = self._users.setdefault(
            user_id,
            {"id": user_id, "is_bot": False, "first_name": f"User {user_id}", "language_code": "en"},
        )
        user.update({name: value for name, value in given.items() if value is not None})
        return user

    def enter_chat(self, chat_id: int, user: Json, title: str | None = None) -> Json:
        """The chat that a user writes in: their own, or a group."""
        chat = self._chats.get(chat_id)
        if chat is None:
            if chat_id > 0:
                chat = {"id": chat_id, "type": "private"}
                chat.update(
                    {name: user[name] for name in ("first_name", "last_name", "username") if name in user}
                )
            else:
                kind = "supergroup" if chat_id < SUPERGROUP_BELOW else "group"
                chat = {"id": chat_id, "type": kind, "title": title or f"Group {-chat_id}"}
            self._chats[chat_id] = chat
            self._messages[chat_id] = {}
        return chat

    def write(self, user: Json, chat: Json, text: str, extra: Mapping[str, Any]) -> Json:
        """A user's message."""
        message: Json = {
            "message_id": next(self._message_ids),
            "from": user,
            "chat": chat,
            "date": int(self._clock.now()),
            "text": text,
        }
        if entities := find_commands(text):
            message["entities"] = entities
        message.update(extra)
        self._keep(chat["id"], message)
        return message

    def learn(self, payload: Any) -> None:
        """Makes known whoever and whatever an injected update speaks of, so that the bot can answer there."""
        while isinstance(payload, Mapping):
            self._learn_from(payload)
            payload = payload.get("message")

    def _learn_from(self, payload: Mapping[str, Any]) -> None:
        user = payload.get("from")
        if isinstance(user, Mapping) and isinstance(user.get("id"), int):
            self.add_user(user["id"], user)
        chat = payload.get("chat")
        if isinstance(chat, Mapping) and isinstance(chat.get("id"), int):
            self.enter_chat(chat["id"], self.add_user(chat["id"], {}) if chat["id"] > 0 else {}).update(chat)
            if isinstance(payload.get("message_id"), int) and isinstance(user, Mapping):
                self._messages[chat["id"]].setdefault(payload["message_id"], dict(payload))
        if isinstance(payload.get("id"), str):
            message = payload.get("message")
            where = message.get("chat") if isinstance(message, Mapping) else None
            self.note_query(
                payload["id"], CALLBACK_SECONDS, where.get("id") if isinstance(where, Mapping) else None
            )

    def press(
        self, user: Json, chat_id: int, message_id: int | None, text: str | None, data: str | None
    ) -> Json:
        """A user's press on an inline button: the callback query.

        Args:
            message_id: None takes the latest message of the chat that has such a button.
        """
        messages = self._messages.get(chat_id, {})
        candidates = [messages[message_id]] if message_id in messages else []
        if message_id is None:
            candidates = list(reversed(messages.values()))
        for message in candidates:
            button = find_button(message.get("reply_markup", {}), text, data)
            if button is not None:
                query_id = str(self._rng.randint(10**17, 10**18))
                self.note_query(query_id, CALLBACK_SECONDS, chat_id)
                return {
                    "id": query_id,
                    "from": user,
                    "message": dict(message),
                    "chat_instance": str(chat_id),
                    "data": button["callback_data"],
                }
        raise ControlError(f"no button with text {text!r} or data {data!r} in chat {chat_id}", 404)

    def note_query(self, query_id: str, lifetime_seconds: float, chat_id: int | None) -> None:
        """A query that the bot may answer."""
        if len(self._queries) >= MAX_QUERIES:
            del self._queries[next(iter(self._queries))]
        self._queries[query_id] = self._clock.monotonic() + lifetime_seconds, chat_id

    # What the bot does

    def find_chat(self, chat_id: int) -> Json:
        chat = self._chats.get(chat_id)
        if chat is None:
            raise bad_request("chat not found")
        return chat

    def find_user(self, user_id: int) -> Json | None:
        return self._users.get(user_id)

    def find_message(self, chat_id: int, message_id: int, otherwise: str) -> Json:
        """A message of a chat; 400 with `otherwise` if there is none."""
        self.find_chat(chat_id)
        message = self._messages[chat_id].get(message_id)
        if message is None:
            raise bad_request(otherwise)
        return message

    def is_own(self, message: Json) -> bool:
        return bool(message["from"]["id"] == self._profile["id"])

    def post(self, chat_id: int, content: Mapping[str, Any]) -> Json:
        """A message of the bot."""
        message: Json = {
            "message_id": next(self._message_ids),
            "from": self.bot_user(),
            "chat": self.find_chat(chat_id),
            "date": int(self._clock.now()),
            **content,
        }
        self._keep(chat_id, message)
        self.tell("sent", chat_id, message)
        return message

    def change(self, message: Json, content: Mapping[str, Any]) -> Json:
        """An edit: the fields of `content` replace those of the message; None takes one away."""
        updated = {**message, **content, "edit_date": int(self._clock.now())}
        updated = {name: value for name, value in updated.items() if value is not None}
        chat_id = message["chat"]["id"]
        self._messages[chat_id][message["message_id"]] = updated
        self.tell("edited", chat_id, updated)
        return updated

    def remove(self, chat_id: int, message_id: int) -> None:
        message = self.find_message(chat_id, message_id, "message to delete not found")
        del self._messages[chat_id][message_id]
        self.tell("deleted", chat_id, message)

    def check_query(self, query_id: str) -> int | None:
        """The chat of a query that may still be answered."""
        until, chat_id = self._queries.get(query_id, (0.0, None))
        if until < self._clock.monotonic():
            raise bad_request("query is too old and response timeout expired or query ID is invalid")
        return chat_id

    def bot_user(self) -> Json:
        return {name: self._profile[name] for name in ("id", "is_bot", "first_name", "username")}

    def messages(self, chat_id: int) -> list[Json]:
        return list(self._messages.get(chat_id, {}).values())

    def chats(self) -> list[Json]:
        return list(self._chats.values())

    def _keep(self, chat_id: int, message: Json) -> None:
        messages = self._messages[chat_id]
        messages[message["message_id"]] = message
        if len(messages) > MAX_MESSAGES:
            del messages[next(iter(messages))]

    def tell(self, kind: str, chat_id: int | None, message: Json | None = None, **details: Any) -> None:
        """Puts something that the bot did into the outbox."""
        self._outbox.add(
            BotEvent(
                seq=self._outbox.take_seq(),
                bot_id=self._profile["id"],
                kind=kind,
                at=self._clock.now(),
                monotonic=self._clock.monotonic(),
                chat_id=chat_id,
                message_id=message["message_id"] if message else None,
                # A copy: later edits must not change what was said.
                message=dict(message) if message else None,
                details=details,
            )
        )
