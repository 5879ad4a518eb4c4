"""What a Bot API method answers when it fails.

ApiError                the answer {"ok": false, ...} of TELEGRAM.md "Errors of any method"
ControlError            a control call that makes no sense: the test or the page is at fault
"""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """Becomes the answer's `error_code`, `description` and `parameters`."""

    def __init__(self, code: int, description: str, *, retry_after: int | None = None) -> None:
        super().__init__(f"{code} {description}")
        self.code = code
        self.description = description
        self.retry_after = retry_after

    def to_json(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"ok": False, "error_code": self.code, "description": self.description}
        if self.retry_after is not None:
            answer["parameters"] = {"retry_after": self.retry_after}
        return answer


class ControlError(Exception):
    """A control call that cannot be done; `status` is its HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def bad_request(what: str) -> ApiError:
    return ApiError(400, f"Bad Request: {what}")


def too_many_requests(retry_after: int) -> ApiError:
    return ApiError(429, f"Too Many Requests: retry after {retry_after}", retry_after=retry_after)


def unauthorized() -> ApiError:
    """The token is not, or no longer, a bot's."""
    return ApiError(401, "Unauthorized")


def not_found() -> ApiError:
    """The token is malformed, or the path is no method's."""
    return ApiError(404, "Not Found")
