"""The public port of a real worker over real HTTP: the table of INTERFACE.md, and what is thrown at a public port."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.local.postgres import PostgresServer
from shared import wire
from tests.integration.worker.worker_process import (
    BOT,
    HANG_SECONDS,
    PATH,
    SECRET,
    WorkerProcess,
    client,
    database_of,
    inbox_locked,
    listening_socket,
    post,
    states,
    until_answered,
    until_ready,
    until_somebody_waits,
    update,
    worker,
)
from tests.waiting import until

MIB = 1024 * 1024


@asynccontextmanager
async def raw(process: WorkerProcess) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection."""
    host, port = process.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side ends the connection."""
    received = b""
    try:
        while chunk := await asyncio.wait_for(reader.read(65536), HANG_SECONDS):
            received += chunk
    except ConnectionResetError:
        return received
    return received


def head(*lines: str, path: str = PATH, secret: str = SECRET, method: str = "POST") -> bytes:
    """The head of a delivery."""
    first = f"{method} /webhook/{path} HTTP/1.1"
    fields = ["host: bot.example.com", f"x-telegram-bot-api-secret-token: {secret}", *lines]
    return "\r\n".join([first, *fields, "", ""]).encode()


async def test_every_row_of_the_table(database_url: str, tmp_path: Path) -> None:
    """Statuses in their order, empty bodies, no server's name, and only what is right is stored."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        async with client(process.url) as http:
            await until_ready(http)
            good = update(1)
            assert (await post(http, good)).status_code == 200
            assert (await post(http, good)).status_code == 200, "one that was already there"
            wrong = {
                404: [
                    post(http, good, path="q" * 40),
                    http.get("/webhook/short"),
                    http.get("/status"),
                    http.get("/"),
                ],
                405: [http.get(f"/webhook/{PATH}"), http.put(f"/webhook/{PATH}", content=b"x" * 2 * MIB)],
                401: [post(http, good, secret="w" * 40), http.post(f"/webhook/{PATH}", content=b"not json")],
                413: [post(http, b"x" * (MIB + 1))],
                400: [post(http, b"not json"), post(http, b'{"update_id": 1.5}'), post(http, b"")],
            }
            for status, requests in wrong.items():
                for answer in await asyncio.gather(*requests):
                    assert answer.status_code == status
                    assert "server" not in answer.headers
                    assert answer.headers.get("allow") == ("POST" if status == 405 else None)
                    assert answer.content == b""
            await process.expect(wire.ForeignRegistration)
        assert await states(database) == {1: "pending"}
        for secret in (PATH, SECRET, good.decode()):
            assert secret not in process.log


async def test_a_path_may_be_written_in_several_ways(database_url: str, tmp_path: Path) -> None:
    """Each way, a whole POST in one read: what the short way does not know, ASGI does. And none of them is in the log."""
    ways = [
        f"/webhook/{PATH}?x=1",
        f"http://bot.example.com/webhook/{PATH}",
        f"/webhook/%{ord(PATH[0]):02X}{PATH[1:]}",
        f"/webhook%2F{PATH}",
    ]
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        async with client(process.url) as http:
            await until_ready(http)
        for number, way in enumerate(ways, start=1):
            async with raw(process) as (reader, writer):
                body = update(number)
                lines = (f"content-length: {len(body)}", "connection: close")
                writer.write(head(*lines).replace(f"/webhook/{PATH}".encode(), way.encode(), 1) + body)
                assert (await ended(reader)).startswith(b"HTTP/1.1 200 "), way
        assert await states(database) == dict.fromkeys(range(1, len(ways) + 1), "pending")
        assert PATH[1:] not in process.log


async def test_a26_health_and_readiness_over_http(database_url: str, tmp_path: Path) -> None:
    """/healthz is what the supervisor said; HEAD has no body; keep-alive goes on."""
    async with database_of(database_url), worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        async with client(process.url) as http:
            answer = await http.get("/healthz")
            assert (answer.status_code, answer.json()["reason"]) == (503, "starting")
            process.send(wire.SetHealth(ok=True, role="PASSIVE"))
            answer = await until_answered(http, "/healthz", 200)
            assert answer.json() == {"status": "ok", "role": "PASSIVE"}
            answer = await http.head("/healthz")
            assert (answer.status_code, answer.content) == (200, b"")
            process.send(wire.SetHealth(ok=False, role="PASSIVE", reason="stopping"))
            expected = {"status": "failing", "role": "PASSIVE", "reason": "stopping"}
            answer = await until_answered(http, "/healthz", 503)
            assert answer.json() == expected
            await until_ready(http)


async def test_b17_what_was_said_before_it_accepts_is_what_the_first_probe_hears(
    database_url: str, tmp_path: Path
) -> None:
    """It replaces another, who was healthy; the probe waits in the backlog, and is answered before anything else is."""
    async with (
        database_of(database_url),
        worker(database_url, tmp_path) as process,
        raw(process) as (reader, writer),
    ):
        process.send(wire.SetHealth(ok=True, role="PASSIVE"))
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await ended(reader)).startswith(b"HTTP/1.1 200 ")


async def test_a05_database_away_is_503_with_retry_after_2_and_recovers(
    own_postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """A wrong secret is 503 too: nobody can tell. Health stays good, readiness and the beats say what it is."""
    own_postgres_server.start()
    dsn = own_postgres_server.dsn()
    async with database_of(dsn):
        pass
    async with worker(dsn, tmp_path) as process, client(process.url) as http:
        await process.expect(wire.Accepting)
        process.send(wire.SetHealth(ok=True, role="PASSIVE"))
        await until_ready(http)
        assert (await post(http, update(1))).status_code == 200
        await asyncio.to_thread(own_postgres_server.kill)
        await until_answered(http, "/readyz", 503)
        for answer in (await post(http, update(2)), await post(http, update(2), secret="w" * 40)):
            assert (answer.status_code, answer.headers["retry-after"], answer.content) == (503, "2", b"")
        assert (await http.get("/healthz")).status_code == 200
        beat = await process.expect(wire.Beat)
        while not (beat.storing_reason or "").startswith("database away"):
            beat = await process.expect(wire.Beat)
        assert not beat.storing
        await asyncio.to_thread(own_postgres_server.start)
        await until(
            lambda: post(http, update(2)), "an update is stored", lambda answer: answer.status_code == 200
        )
        # The session that looks things up comes back by itself, within a second of the one that stores.
        refused = await until(
            lambda: post(http, update(2), secret="w" * 40),
            "a wrong secret is told from a right one",
            lambda answer: answer.status_code != 503,
        )
        assert refused.status_code == 401
        async with database_of(dsn) as database:
            assert await states(database) == {1: "pending", 2: "pending"}


async def test_a_worker_without_schema_is_not_ready_and_stores_nothing(
    database_url: str, tmp_path: Path
) -> None:
    """The supervisor applies it; until then 503, and afterwards it is ready by itself."""
    async with worker(database_url, tmp_path) as process, client(process.url) as http:
        await process.expect(wire.Accepting)
        await until_answered(http, "/readyz", 503, "the tables are not made yet")
        assert (await post(http, update(1))).status_code == 503
        async with database_of(database_url) as database:
            await until_ready(http)
            assert (await post(http, update(1))).status_code == 200
            assert await states(database) == {1: "pending"}


async def test_b27_two_workers_that_get_the_same_updates_store_one_row_each(
    database_url: str, tmp_path: Path
) -> None:
    """Telegram repeats, routers repeat; both answer 200."""
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path, name="one") as one,
        worker(database_url, tmp_path, name="two") as two,
        client(one.url) as http_one,
        client(two.url) as http_two,
    ):
        for process, http in ((one, http_one), (two, http_two)):
            await process.expect(wire.Accepting)
            await until_ready(http)
        answers = await asyncio.gather(
            *(post(http, update(number)) for number in range(50) for http in (http_one, http_two))
        )
        assert {answer.status_code for answer in answers} == {200}
        assert list((await states(database)).values()) == ["pending"] * 50
        await until(
            lambda: (one.log + two.log).count("received update_id="),
            "50 updates are received, by the log",
            lambda count: count >= 50,
        )
    assert (one.log + two.log).count("received update_id=") == 50


async def test_b28_a_registration_that_the_owner_has_recorded_is_accepted(
    database_url: str, tmp_path: Path
) -> None:
    """An instance with the old configuration accepts what the new owner registered; the owner hears of superseded ones."""
    new_path, new_secret = "n" * 40, "m" * 40
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        async with client(process.url) as http:
            await until_ready(http)
            assert (await post(http, update(1), path=new_path, secret=new_secret)).status_code == 404
            await database.execute(
                "INSERT INTO webhook_supervisor.registrations (bot_id, path_hash, secret_hash, recorded_at)"
                " VALUES (%s, %s, %s, now())",
                (
                    BOT,
                    hashlib.sha256(new_path.encode()).digest(),
                    hashlib.sha256(new_secret.encode()).digest(),
                ),
            )
            assert (await post(http, update(1), path=new_path, secret=new_secret)).status_code == 200
            assert (await post(http, update(2))).status_code == 200
            assert not any(isinstance(message, wire.ForeignRegistration) for message in process.messages)
            await database.execute("UPDATE webhook_supervisor.registrations SET superseded_at = now()")
            async with asyncio.timeout(HANG_SECONDS):
                while not any(isinstance(message, wire.ForeignRegistration) for message in process.messages):
                    assert (await post(http, update(3), path=new_path, secret=new_secret)).status_code == 200
                    await asyncio.sleep(0.05)
            # b16: the database's clock is set back, so that it lies ahead; or it is gone.
            for over in (
                "UPDATE webhook_supervisor.registrations SET superseded_at = now() + interval '1 hour'",
                "DELETE FROM webhook_supervisor.registrations",
            ):
                await database.execute(over)
                await until(
                    lambda: post(http, update(3), path=new_path, secret=new_secret),
                    "what is over is refused",
                    lambda answer: answer.status_code != 200,
                )
                await database.execute("UPDATE webhook_supervisor.registrations SET superseded_at = now()")


NO_HTTP = (
    b"garbage\r\n\r\n",
    b"POST\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
    b"GET http://[::1 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET http://x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"POST /webhook/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: identity\r\n\r\n",
    b"POST /webhook/x HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
    b"POST /webhook/x HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    b"POST /webhook/x HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
)


async def test_a_client_that_ends_its_side_behind_its_request_is_answered(
    database_url: str, tmp_path: Path
) -> None:
    """As `nc -N` does, whichever way the request goes, and where two were sent ahead; the answer is the last."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        async with client(process.url) as http:
            await until_ready(http)
        number = 0
        for paths in ([PATH], [f"{PATH}?x=1"], [PATH, PATH]):
            async with raw(process) as (reader, writer):
                async with inbox_locked(database):  # so that the end is there before the answer
                    for path in paths:
                        number += 1
                        body = update(number)
                        writer.write(head(f"content-length: {len(body)}", path=path) + body)
                    writer.write_eof()
                    await until_somebody_waits(database)
                answers = await ended(reader)
                assert answers.count(b"HTTP/1.1 200 ") == len(paths), (paths, answers)
        assert await states(database) == dict.fromkeys(range(1, number + 1), "pending")


async def test_b29_a_client_that_ends_its_side_and_has_no_whole_request_is_cut_off(
    database_url: str, tmp_path: Path
) -> None:
    """At once: nothing of it can come any more, and nobody is owed an answer."""
    async with worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        for beginning in (b"", b"POST /webh", head("content-length: 8") + b"not"):
            async with raw(process) as (reader, writer):
                writer.write(beginning)
                writer.write_eof()
                assert await ended(reader) == b""
        async with raw(process) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"}"), HANG_SECONDS)).startswith(b"HTTP/1.1 503 ")
            writer.write_eof()
            assert await ended(reader) == b""


async def test_b29_what_is_no_http_does_no_harm(database_url: str, tmp_path: Path) -> None:
    """It is refused or cut off, and the next client is served."""
    async with worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        for garbage in NO_HTTP:
            async with raw(process) as (reader, writer):
                writer.write(garbage)
                writer.write_eof()
                answer = await ended(reader)
                assert answer == b"" or answer.split()[1] in (b"400", b"404"), (garbage, answer)
                assert answer.partition(b"\r\n\r\n")[2] == b""
            async with client(process.url) as http:
                assert (await http.get("/healthz")).status_code == 503
        assert "Traceback" not in process.log
        for filler in (b"x-filler: " + b"y" * 1000 + b"\r\n", b"y" * 1012):
            assert await sent_until_cut_off(process, filler * 64) < 8 * MIB
        async with client(process.url) as http:
            assert (await http.get("/healthz")).status_code == 503


async def sent_until_cut_off(process: WorkerProcess, filler: bytes) -> int:
    """How much of a head without end we get rid of: many fields, or one that never ends."""
    sent = 0
    async with raw(process) as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\nx-long: ")
        try:
            while sent < 64 * MIB:
                writer.write(filler)
                sent += len(filler)
                await writer.drain()
        except ConnectionError:
            return sent
    return sent


async def test_b29_bodies_that_are_too_large_are_refused_before_they_have_come(
    database_url: str, tmp_path: Path
) -> None:
    """By their announced length, or as soon as more has come; the rest is thrown away, and the connection is good again."""
    async with database_of(database_url), worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        async with client(process.url) as http:
            await until_ready(http)
        async with raw(process) as (reader, writer):
            writer.write(head(f"content-length: {10 * MIB}"))
            status = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HANG_SECONDS)
            assert status.split()[1] == b"413"
            writer.write(b"x" * 10 * MIB)
            await writer.drain()
            writer.write(head("content-length: 8") + b"not json")
            status = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HANG_SECONDS)
            assert status.split()[1] == b"400"
        async with raw(process) as (reader, writer):  # nothing announces its length
            writer.write(head("transfer-encoding: chunked"))
            for _ in range(17):
                writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                await writer.drain()
            status = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HANG_SECONDS)
            assert status.split()[1] == b"413"


async def test_b29_slow_clients_do_not_keep_others_waiting(database_url: str, tmp_path: Path) -> None:
    """A hundred heads and bodies that do not end, and a delivery beside them."""
    async with (
        database_of(database_url),
        worker(database_url, tmp_path) as process,
        client(process.url) as http,
    ):
        await process.expect(wire.Accepting)
        await until_ready(http)
        host, port = process.url.removeprefix("http://").split(":")
        writers = []
        for number in range(100):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(head("content-length: 100") + b"{" if number % 2 else b"POST /webh")
            writers.append(writer)
        assert (await post(http, update(1))).status_code == 200
        for writer in writers:
            writer.close()


async def test_nothing_of_a_request_reaches_the_log(database_url: str, tmp_path: Path) -> None:
    """a21: neither the path, nor the secret, nor what a user wrote."""
    async with (
        database_of(database_url),
        worker(database_url, tmp_path, environ={"LOG_LEVEL": "DEBUG"}) as process,
    ):
        await process.expect(wire.Accepting)
        async with client(process.url) as http:
            await until_ready(http)
            body = update(1, "a private text")
            assert (await post(http, body)).status_code == 200
            assert (await post(http, body[:-1])).status_code == 400
            assert (await post(http, body, secret="another-secret-token")).status_code == 401
        await process.logged("refused an update")
        for words in ("private text", PATH, SECRET, "another-secret-token"):
            assert words not in process.log


async def test_a23_a_burst_larger_than_the_pool_is_taken(database_url: str, tmp_path: Path) -> None:
    """One database session, a hundred connections: nobody is refused, nobody is lost."""
    listener = listening_socket()
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path, listener=listener, environ={"DB_POOL_SIZE": "1"}) as process,
        client(process.url) as http,
    ):
        await process.expect(wire.Accepting)
        await until_ready(http)
        answers = await asyncio.gather(*(post(http, update(number)) for number in range(200)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(await states(database)) == 200
        cursor = await database.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'webhook-supervisor worker%'"
            " AND datname = current_database()"
        )
        assert await cursor.fetchone() == (1,)
    listener.close()
