"""/healthz and /readyz of the public port, and the 404 of everything that is not the webhook: FastAPI's part.

Importing it takes longer than everything that the first update needs, so it is done late, beside what goes on already (see
late_import.py).
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from webhook_worker.health import Health


def health_app(health: Health, fault: Callable[[], str | None]) -> FastAPI:
    """The application.

    Args:
        health: what /healthz says.
        fault: `Ingest.fault`: why an update sent now would not be stored.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> JSONResponse:
        status, body = health.answer()
        return JSONResponse(body, status_code=status)

    @app.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> JSONResponse:
        reason = fault()
        if reason is None:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "failing", "reason": reason}, status_code=503)

    return app
