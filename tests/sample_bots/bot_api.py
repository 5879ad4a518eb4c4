"""A Bot API server for one test: remembers the calls, answers as it is told to. Not the emulator: it has no chats and no rules.

async with BotApi() as api:
    api.answer("sendMessage", 429, {"ok": False, ..., "parameters": {"retry_after": 3}})
    ...
    assert api.methods == ["getMe", "sendMessage"]
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qsl

ME = {"id": 123456, "is_bot": True, "first_name": "Sample", "username": "sample_bot"}
MESSAGE = {"message_id": 2, "date": 1, "chat": {"id": 7, "type": "private"}, "text": "x"}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a method, with its parameters as they came."""

    method: str
    parameters: dict[str, str]


class BotApi:
    """Listens on a port of its own while its context lasts."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._answers: dict[str, list[tuple[int, Any]]] = {}
        self._connections: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """For TELEGRAM_API_BASE_URL."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def methods(self) -> list[str]:
        """What was called, in order."""
        return [call.method for call in self.calls]

    def answer(self, method: str, status: int, body: Any) -> None:
        """The answer to one later call of a method, bytes as they are; several are given in their order."""
        self._answers.setdefault(method, []).append((status, body))

    def refuse(self, method: str, status: int, description: str, **parameters: int) -> None:
        """The same, in the form of Telegram's errors."""
        body = {"ok": False, "error_code": status, "description": description}
        self.answer(method, status, body | ({"parameters": parameters} if parameters else {}))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method = head.split(" ")[1].rpartition("/")[2]
                self.calls.append(Call(method, dict(parse_qsl(body.decode()))))
                status, answer = self._next(method)
                payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    def _next(self, method: str) -> tuple[int, Any]:
        if waiting := self._answers.get(method):
            return waiting.pop(0)
        result = {"getMe": ME, "sendMessage": MESSAGE, "editMessageText": MESSAGE}.get(method, True)
        return 200, {"ok": True, "result": result}
