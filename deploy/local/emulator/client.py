"""A typed client of the emulator's control API, for tests, the demo and `make run`.

    async with EmulatorClient(base_url) as emulator:
        after = await emulator.last_event_seq()
        await emulator.send_text(user_id=7, text="/start")
        answer = await emulator.wait_for_message(chat_id=7, after=after, timeout_seconds=10)
        await emulator.press(chat_id=7, text=answer.keyboard[0][0])

Raises `httpx.HTTPError` when the emulator cannot be reached, `ControlError` when it refuses a call.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self, TypeVar

import httpx
import msgspec

from deploy.local.emulator.control_messages import (
    ActiveFault,
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
    UserProfile,
    WebhookState,
    describe_message,
)
from deploy.local.emulator.errors import ControlError
from deploy.local.emulator.faults import Fault, Outage
from deploy.local.emulator.journal import ApiCall, BotEvent, DeliveryAttempt

ValueT = TypeVar("ValueT")
# What a call may take beyond the time that it was asked to wait.
MARGIN_SECONDS = 30.0
PAGE = 10_000


class EmulatorClient:
    """One method for each control call. All but `send_text` mean the only bot: the API lets them leave its `bot_id` out."""

    def __init__(self, base_url: str) -> None:
        self._url = base_url.rstrip("/")
        # trust_env=False: no proxy of the environment stands between two processes of one machine.
        self._http = httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=200))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.aclose()

    # Users

    async def send_text(
        self,
        user_id: int,
        text: str,
        *,
        chat_id: int | None = None,
        bot_id: int | None = None,
        profile: UserProfile | None = None,
    ) -> Sent:
        """A user writes in their own chat, or in `chat_id` (a group if negative)."""
        wish = SendText(user_id, text, chat_id=chat_id, bot_id=bot_id, profile=profile)
        return await self._post("send", wish, Sent)

    async def send_many(self, wishes: Iterable[SendText]) -> list[Sent]:
        """Several texts in one call, in their order: for load."""
        return await self._post("send_many", list(wishes), list[Sent])

    async def press(
        self,
        chat_id: int,
        *,
        text: str | None = None,
        data: str | None = None,
        message_id: int | None = None,
        user_id: int | None = None,
    ) -> Pressed:
        """A user presses the button with that text or data, on the latest message that has one."""
        return await self._post("press", Press(chat_id, text, data, message_id, user_id), Pressed)

    async def inject(
        self,
        update: dict[str, Any] | None = None,
        *,
        raw: bytes | None = None,
        verbatim: bool = False,
        update_id: int | None = None,
        queue: str | None = None,
    ) -> Injected:
        """Any update at all; see `Inject`."""
        return await self._post("inject", Inject(update, raw, verbatim, update_id, queue), Injected)

    # Reading

    async def state(self) -> EmulatorState:
        return await self._get("state", EmulatorState)

    async def messages(self, chat_id: int) -> list[ChatMessage]:
        """A chat as it stands, oldest first."""
        return await self._get("messages", list[ChatMessage], chat_id=chat_id)

    async def last_event_seq(self) -> int:
        """The number to begin to follow the outbox after."""
        return (await self.state()).last_event_seq

    async def events(
        self,
        *,
        after: int = 0,
        chat_id: int | None = None,
        timeout_seconds: float = 0.0,
    ) -> list[BotEvent]:
        """What the bot did after event `after`; waits up to `timeout_seconds` for the first."""
        return await self._get(
            "outbox", list[BotEvent], after=after, chat_id=chat_id, timeout=timeout_seconds
        )

    async def wait_for_event(
        self,
        *,
        after: int,
        kinds: Iterable[str],
        chat_id: int | None = None,
        timeout_seconds: float = 10.0,
    ) -> BotEvent:
        """The first event of one of the kinds after `after`.

        Raises:
            TimeoutError: there was none in time.
        """
        wanted = frozenset(kinds)
        deadline = time.monotonic() + timeout_seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no event {sorted(wanted)} in chat {chat_id} within {timeout_seconds} s")
            for event in await self.events(after=after, chat_id=chat_id, timeout_seconds=left):
                if event.kind in wanted:
                    return event
                after = event.seq

    async def wait_for_message(
        self, chat_id: int, *, after: int, timeout_seconds: float = 10.0
    ) -> ChatMessage:
        """The first message that the bot sent or edited in a chat after event `after`, as it then was."""
        event = await self.wait_for_event(
            after=after,
            kinds=("sent", "edited"),
            chat_id=chat_id,
            timeout_seconds=timeout_seconds,
        )
        assert event.message is not None
        return describe_message(event.message, event.bot_id)

    async def calls(
        self,
        *,
        after: int = 0,
        method: str | None = None,
        timeout_seconds: float = 0.0,
    ) -> list[ApiCall]:
        """The Bot API calls after call `after`, at most 10,000; waits up to `timeout_seconds` for the first."""
        return await self._get("calls", list[ApiCall], after=after, method=method, timeout=timeout_seconds)

    async def deliveries(self, *, after: int = 0, timeout_seconds: float = 0.0) -> list[DeliveryAttempt]:
        """Delivery attempts after number `after`, at most 10,000, those in flight included."""
        return await self._get("deliveries", list[DeliveryAttempt], after=after, timeout=timeout_seconds)

    async def all_deliveries(self, *, after: int = 0) -> AsyncIterator[DeliveryAttempt]:
        """The whole history, page by page."""
        while page := await self.deliveries(after=after):
            for attempt in page:
                yield attempt
            after = page[-1].seq

    async def counts(self) -> Counts:
        return await self._get("counts", Counts)

    async def webhook(self) -> WebhookState:
        return await self._get("webhook", WebhookState)

    async def wait_idle(self, *, timeout_seconds: float = 30.0) -> bool:
        """Waits until everything was delivered (or acknowledged, or expired); whether it came to that."""
        body = {"timeout_seconds": timeout_seconds}
        return bool((await self._post("wait_idle", body, dict[str, bool], timeout_seconds))["is_idle"])

    # Bots

    async def add_bot(self, token: str, *, username: str | None = None) -> int:
        """Makes a bot known; its id."""
        return (await self._post("bots", NewBot(token, username), dict[str, int]))["bot_id"]

    async def revoke_token(self) -> None:
        """Every call answers 401 from now on; the webhook ends, updates wait."""
        await self._post("revoke", {}, dict[str, Any])

    async def reissue_token(self, token: str) -> None:
        """A new token for the same bot; the old one is revoked."""
        await self._post("reissue", {"token": token}, dict[str, Any])

    async def fail_synchronization(self, *, date: int | None = None) -> None:
        """The server could not get at the bot's updates, now or at `date`."""
        await self._post("fail_synchronization", {"date": date}, dict[str, Any])

    # Faults

    async def add_fault(self, fault: Fault) -> int:
        """Puts a fault in force; its id clears it."""
        return (await self._post("faults", fault, dict[str, int]))["id"]

    async def clear_faults(self, fault_id: int | None = None) -> None:
        """Ends one fault, or all."""
        await self._post("clear_faults", {"id": fault_id}, dict[str, Any])

    async def faults(self) -> list[ActiveFault]:
        return (await self.state()).faults

    async def set_outage(self, outage: Outage) -> None:
        """Takes the whole Bot API away (`Outage.NONE` gives it back); webhooks are delivered all the same."""
        answer = await self._post("outage", {"outage": outage}, dict[str, str])
        # From now on by the way that an outage leaves open.
        self._url = answer["control_url"]

    async def _get(self, path: str, kind: type[ValueT], **query: object) -> ValueT:
        values = {name: str(value) for name, value in query.items() if value is not None}
        timeout = float(values.get("timeout", 0.0)) + MARGIN_SECONDS
        return _read(
            await self._http.get(f"{self._url}/control/{path}", params=values, timeout=timeout), kind
        )

    async def _post(self, path: str, body: object, kind: type[ValueT], wait_seconds: float = 0.0) -> ValueT:
        content = msgspec.json.encode(body)
        url = f"{self._url}/control/{path}"
        return _read(await self._http.post(url, content=content, timeout=wait_seconds + MARGIN_SECONDS), kind)


def _read(response: httpx.Response, kind: type[ValueT]) -> ValueT:
    if response.status_code != 200:
        try:
            message = str(response.json()["error"])
        except (ValueError, KeyError, TypeError):
            message = response.text[:200]
        raise ControlError(message, response.status_code)
    return msgspec.json.decode(response.content, type=kind)
