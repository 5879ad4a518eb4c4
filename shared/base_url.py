"""The two addresses that an operator gives: where Telegram finds us, and where we find the Bot API server.

Not promised: that anything answers there.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

TELEGRAM_API = "https://api.telegram.org"
"""The hosted Bot API server."""

WEBHOOK_PORTS = (443, 80, 88, 8443)
"""The only ports to which the hosted Bot API server delivers (TELEGRAM.md, "setWebhook", url)."""

_LABEL = "[a-z0-9_][a-z0-9_-]{0,62}"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?|\[[0-9a-f:.]{{2,45}}\]")


class UrlFault(ValueError):
    """An address cannot be used as it is; the text says why and quotes at most its scheme or port."""


def webhook_base(text: str, *, hosted: bool) -> str:
    """`scheme://host[:port]`, in lower case, as Telegram will show it in getWebhookInfo.

    Args:
        text: what the operator or the platform gave; one trailing slash is taken off.
        hosted: for the hosted Bot API server: https on four ports. Another server may be in `--local` mode: any.

    Raises:
        UrlFault: it is more or less than that.
    """
    base, path = _split(text)
    if path not in ("", "/"):
        raise UrlFault("it has a path")
    scheme, _, rest = base.partition("://")
    if hosted:
        if scheme != "https":
            raise UrlFault("it begins with http://, and Telegram delivers to https only")
        port = re.search(r":([0-9]+)$", rest)
        if port and int(port[1]) not in WEBHOOK_PORTS:
            raise UrlFault(f"its port is {port[1]}")
        if rest.startswith("["):
            raise UrlFault("its host is an IPv6 address, to which Telegram does not deliver")
    return base


def api_base(text: str) -> str:
    """`scheme://host[:port][/path]` of a Bot API server, without a trailing slash.

    Raises:
        UrlFault: it is more or less than that.
    """
    base, path = _split(text)
    if path != path.rstrip("/") + "/" * path.endswith("/") or "//" in path:
        raise UrlFault("its path has an empty part")
    return base + path.rstrip("/")


def is_hosted(api_base_url: str) -> bool:
    """Whether this is Telegram's own server."""
    return api_base_url in (TELEGRAM_API, f"{TELEGRAM_API}:443")


def _split(text: str) -> tuple[str, str]:
    # Looked at before urlsplit sees it, which silently takes some of these away.
    if re.search(r"\s", text):
        raise UrlFault("it holds white space")
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise UrlFault("it holds a character that is not printable ASCII")
    if "?" in text or "#" in text:
        raise UrlFault("it has a query or a fragment")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UrlFault("its host or port is malformed") from None
    if parts.scheme not in ("https", "http") or "://" not in text:
        raise UrlFault("it does not begin with https://")
    if "@" in parts.netloc:
        raise UrlFault("it holds a user name or a password")
    host, colon, port_text = parts.netloc.lower().rpartition(":")
    if not colon or parts.netloc.endswith("]"):
        host, port_text = parts.netloc.lower(), ""
    elif not port_text or not port_text.isdecimal() or not port:
        raise UrlFault("its port is not a number from 1 to 65535")
    if not _HOST.fullmatch(host):
        raise UrlFault("its host is missing or malformed")
    return f"{parts.scheme}://{host}{f':{port}' if port_text else ''}", parts.path
