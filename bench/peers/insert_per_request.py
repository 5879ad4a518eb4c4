"""bare_uvicorn.py, durable the plain way: an INSERT and its commit for each request, on a pool of 8 connections.

The table has the columns that an update arrives with and the indexes that ours keeps for a new row, so that Postgres does the
same work for both.
"""

from __future__ import annotations

from typing import Any

import msgspec
from psycopg_pool import AsyncConnectionPool

from bench.peers import settings
from bench.peers.bare_uvicorn import END, START, read_body, serve

_SCHEMA = """
CREATE SCHEMA peer;
CREATE TABLE peer.inbox (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bot_id bigint NOT NULL,
    update_id bigint NOT NULL,
    lane bigint NOT NULL,
    body bytea,
    state text NOT NULL DEFAULT 'pending',
    received_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX ON peer.inbox (bot_id, update_id);
CREATE INDEX ON peer.inbox (bot_id, lane, seq) WHERE state = 'pending';
CREATE INDEX ON peer.inbox (bot_id, seq) WHERE state = 'pending';
"""
_INSERT = (
    "INSERT INTO peer.inbox (bot_id, update_id, lane, body) VALUES (%b, %b, %b, %b) ON CONFLICT DO NOTHING"
)
_BOT_ID = int(settings.TOKEN.partition(":")[0])


class _Chat(msgspec.Struct):
    id: int


class _Message(msgspec.Struct):
    chat: _Chat


class _Update(msgspec.Struct):
    update_id: int
    message: _Message


_decode = msgspec.json.Decoder(_Update).decode
_pool = AsyncConnectionPool(
    settings.DATABASE_URL, min_size=8, max_size=8, open=False, kwargs={"autocommit": True}
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Stores the update, commits, and answers."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    body = await read_body(receive)
    update = _decode(body)
    async with _pool.connection() as connection:
        await connection.execute(
            _INSERT, (_BOT_ID, update.update_id, update.message.chat.id, body), prepare=True
        )
    await send(START)
    await send(END)


async def _lifespan(receive: Any, send: Any) -> None:
    await receive()
    await _pool.open(wait=True)
    async with _pool.connection() as connection:
        await connection.execute(_SCHEMA)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await _pool.close()
    await send({"type": "lifespan.shutdown.complete"})


if __name__ == "__main__":
    serve(app, lifespan="on")
