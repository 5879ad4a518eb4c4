"""What the public port answers beside the webhook and the probes: FastAPI's part, and the place for an endpoint more.

Today that is a 404. Importing FastAPI takes longer than everything that the first update needs, and 14 MiB, so it is done when
somebody asks for such a thing (see late_import.py): a scanner, as a rule.
"""

from __future__ import annotations

from fastapi import FastAPI


def rest_app() -> FastAPI:
    """The application."""
    return FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
