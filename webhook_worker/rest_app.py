"""What the public port answers beside the webhook and the probes: FastAPI's part, and the place for an endpoint more.

Today that is a 404; without a body, as from the supervisor while it stands in: a refusal tells no more than its status.
Importing FastAPI takes longer than everything that the first update needs, and 14 MiB, so it is done when somebody asks for
such a thing (see shared/late_import.py): a scanner, as a rule.
"""

from __future__ import annotations

from fastapi import FastAPI, HTTPException, Request, Response


def rest_app() -> FastAPI:
    """The application."""
    return FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={404: _status_alone, 405: _status_alone},
    )


async def _status_alone(request: Request, refusal: HTTPException) -> Response:
    return Response(status_code=refusal.status_code, headers=refusal.headers)
