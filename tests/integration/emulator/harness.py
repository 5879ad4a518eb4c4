"""A bot's side of the Bot API, and short-cuts to what a test looks at."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Self, cast

import httpx

from deploy.local.emulator import DEFAULT_TOKEN, Emulator
from deploy.local.emulator.control_messages import Inject, SendText
from deploy.local.emulator.journal import DeliveryAttempt
from tests.manual_clock import ManualClock

LIMIT_SECONDS = 20.0


class Harness:
    """An emulator on a clock that stands still, with one bot."""

    def __init__(self, **options: Any) -> None:
        self.clock = ManualClock()
        self.emulator = Emulator(**{"seed": 1, "clock": self.clock, **options})
        self._http = httpx.AsyncClient(trust_env=False, timeout=LIMIT_SECONDS)

    async def __aenter__(self) -> Self:
        await self.emulator.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.aclose()
        await self.emulator.__aexit__(*exc_info)

    async def call(self, method: str, *, token: str = DEFAULT_TOKEN, **parameters: Any) -> dict[str, Any]:
        """The whole answer of a method; lists and objects go as JSON text, as in a form."""
        form = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in parameters.items()
        }
        response = await self._http.post(f"{self.emulator.base_url}/bot{token}/{method}", data=form)
        answer = cast(dict[str, Any], response.json())
        assert answer["ok"] == (response.status_code == 200)
        assert answer.get("error_code", 200) == response.status_code
        return answer

    async def set_webhook(self, url: str, **parameters: Any) -> None:
        """Sets a webhook, with the clock past the rate limit before and after."""
        self.clock.advance(1)
        answer = await self.call("setWebhook", url=url, **parameters)
        assert answer == {"ok": True, "result": True, "description": "Webhook was set"}

    async def upload_certificate(self, url: str, certificate: bytes) -> dict[str, Any]:
        """setWebhook with a certificate, with the clock past the rate limit before; the whole answer."""
        self.clock.advance(1)
        upload = {"certificate": ("certificate.pem", certificate)}
        address = f"{self.emulator.base_url}/bot{DEFAULT_TOKEN}/setWebhook"
        response = await self._http.post(address, data={"url": url}, files=upload)
        return cast(dict[str, Any], response.json())

    def send(self, text: str, user_id: int = 7, **fields: Any) -> int:
        """A user's text; the number of its update."""
        update_id = self.emulator.control.send_text(SendText(user_id, text, **fields)).update_id
        assert update_id is not None
        return update_id

    def inject(self, **update: Any) -> int | None:
        return self.emulator.control.inject(Inject(update)).update_id

    async def info(self) -> dict[str, Any]:
        return cast(dict[str, Any], (await self.call("getWebhookInfo"))["result"])

    @property
    def attempts(self) -> list[DeliveryAttempt]:
        return self.emulator.control.deliveries.after(0, limit=100_000)

    @property
    def finished(self) -> list[DeliveryAttempt]:
        return [attempt for attempt in self.attempts if attempt.finished_at is not None]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition on the history of deliveries."""
        assert await self.emulator.control.deliveries.wait(condition, LIMIT_SECONDS)

    async def until_finished(self, count: int) -> DeliveryAttempt:
        """Waits for that many attempts to end; the last of them."""
        await self.until(lambda: len(self.finished) >= count)
        return self.finished[count - 1]

    async def until_settled(self) -> DeliveryAttempt:
        """Waits until no attempt is in flight; the last one."""
        await self.until(lambda: bool(self.attempts) and len(self.finished) == len(self.attempts))
        return self.attempts[-1]

    async def pass_delay(self, attempt: DeliveryAttempt) -> None:
        """Lets the time until the next try pass; after a long one its connection has idled out, and the next may
        be opened 2 s later."""
        count = len(self.attempts)
        self.clock.advance(attempt.retry_in_seconds or 0)
        if len(self.attempts) == count:
            self.clock.advance(2)
