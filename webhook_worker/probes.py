"""/healthz and /readyz of the public port: JSON from memory, for GET and HEAD.

Not FastAPI's: a platform sends traffic from the first 200 on, and a probe that waited for FastAPI to be imported would hold it
back for a second, or ten on a small instance.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from webhook_worker.asgi import Send

Probe = Callable[[], tuple[int, dict[str, str]]]
"""Status code and JSON of the answer as of now."""


def readiness(fault: Callable[[], str | None]) -> Probe:
    """/readyz.

    Args:
        fault: `Ingest.fault`: why an update sent now would not be stored.
    """

    def answer() -> tuple[int, dict[str, str]]:
        reason = fault()
        return (200, {"status": "ok"}) if reason is None else (503, {"status": "failing", "reason": reason})

    return answer


async def answer_probe(probe: Probe, method: str, send: Send) -> None:
    """Answers one request; what is neither GET nor HEAD with 405."""
    if method in ("GET", "HEAD"):
        status, document = probe()
        body = msgspec.json.encode(document)
        headers = [(b"content-type", b"application/json")]
    else:
        status, body, headers = 405, b"", [(b"allow", b"GET, HEAD")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
