"""What a webhook is registered as: parameters, their limits, and when a call changes something.

Pure. TELEGRAM.md "setWebhook, deleteWebhook, getWebhookInfo"; the order of the checks and the words of the errors are
those of `Client.cpp` of the public Bot API server. One of its consequences that surprises: an old webhook is closed
*before* the new parameters are judged, so a refused setWebhook leaves the bot without any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from deploy.local.emulator.errors import bad_request
from deploy.local.emulator.parameters import Parameters
from deploy.local.emulator.update_kinds import DEFAULT_ALLOWED, list_allowed

DEFAULT_MAX_CONNECTIONS = 40
MAX_CONNECTIONS = 100
# A server in --local mode takes any sensible number.
MAX_CONNECTIONS_LOCAL = 100_000
WEBHOOK_PORTS = frozenset({443, 80, 88, 8443})
# TELEGRAM.md, rate: one setWebhook with a URL in a second.
SET_INTERVAL_SECONDS = 1.0
_SECRET = re.compile(r"[A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class WebhookUrl:
    """A webhook's URL, taken apart."""

    is_https: bool
    host: str
    port: int
    target: str
    userinfo: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """The parameters of setWebhook; the empty `url` stands for no webhook."""

    url: str = ""
    max_connections: int = 0
    secret_token: str = ""
    fixed_ip_address: str = ""
    certificate: bytes | None = None
    allowed_updates: frozenset[str] = DEFAULT_ALLOWED

    def is_unchanged_by(self, new: Registration, *, drops_pending: bool) -> bool:
        """Whether a call for `new` would be the no-op "Webhook is already set" (or "deleted").

        A certificate is never compared: with one, before or now, every call is a change.
        """
        has_certificate = self.certificate is not None or new.certificate is not None
        return self == new and not has_certificate and not drops_pending

    def without_webhook(self) -> Registration:
        """What is left when it is deleted: `allowed_updates` is the bot's, not the webhook's."""
        return Registration(allowed_updates=self.allowed_updates)


@dataclass(slots=True)
class WebhookHistory:
    """What getWebhookInfo tells besides the parameters; it begins anew with each webhook."""

    ip_address: str = ""
    last_error_date: int = 0
    last_error_message: str = ""


def requested_registration(now: Registration, call: Parameters, *, local_mode: bool) -> Registration:
    """What a setWebhook asks for; a URL that is missing or empty asks for none.

    `allowed_updates`, where absent, is that of the call before.
    """
    allowed = call.allowed_updates()
    kept = replace(now.without_webhook(), allowed_updates=now.allowed_updates if allowed is None else allowed)
    url = call.text("url")
    if not url:
        return kept
    limit = MAX_CONNECTIONS_LOCAL if local_mode else MAX_CONNECTIONS
    return replace(
        kept,
        url=url,
        max_connections=call.integer("max_connections", DEFAULT_MAX_CONNECTIONS, low=1, high=limit),
        secret_token=call.text("secret_token"),
        fixed_ip_address=call.text("ip_address"),
        certificate=call.file("certificate"),
    )


def check_registration(new: Registration, *, local_mode: bool) -> WebhookUrl:
    """The parts of a URL that may be registered.

    Raises:
        ApiError: 400, in the server's words.
    """
    url = parse_url(new.url)
    if url is None:
        raise bad_request("invalid webhook URL specified")
    if len(new.secret_token) > 256:
        raise bad_request("secret token is too long")
    if not _SECRET.fullmatch(new.secret_token):
        raise bad_request("secret token contains unallowed characters")
    if not local_mode:
        if not url.is_https:
            raise bad_request("bad webhook: An HTTPS URL must be provided for webhook")
        if url.port not in WEBHOOK_PORTS:
            raise bad_request("bad webhook: Webhook can be set up only on ports 80, 88, 443 or 8443")
    return url


def parse_url(text: str) -> WebhookUrl | None:
    """Takes a URL apart as the server does: https unless it says http; None if it is no URL."""
    match = re.fullmatch(
        r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://)?(?P<authority>[^/?#\s]+)(?P<rest>[^\s]*)", text.strip()
    )
    if match is None:
        return None
    scheme = (match["scheme"] or "https").lower()
    userinfo, _, host_and_port = match["authority"].rpartition("@")
    address = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::(?P<port>\d{1,5}))?", host_and_port)
    if scheme not in ("http", "https") or address is None:
        return None
    port = int(address["port"] or (443 if scheme == "https" else 80))
    if not 0 < port < 65536:
        return None
    target = match["rest"].partition("#")[0]
    return WebhookUrl(
        is_https=scheme == "https",
        host=address["host"].lower(),
        port=port,
        target=target if target.startswith("/") else f"/{target}",
        userinfo=unquote(userinfo),
    )


def describe_webhook(current: Registration, history: WebhookHistory, pending: int) -> Mapping[str, Any]:
    """The answer of getWebhookInfo; what has no value is absent."""
    info: dict[str, Any] = {
        "url": current.url,
        "has_custom_certificate": current.certificate is not None,
        "pending_update_count": pending,
    }
    if current.url and history.ip_address:
        info["ip_address"] = history.ip_address
    if current.url and history.last_error_date:
        info["last_error_date"] = history.last_error_date
        info["last_error_message"] = history.last_error_message
    if current.url:
        info["max_connections"] = current.max_connections
    if (allowed := list_allowed(current.allowed_updates)) is not None:
        info["allowed_updates"] = allowed
    return info
