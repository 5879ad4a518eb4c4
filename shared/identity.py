"""Who this instance is, from what each platform gives (PLATFORMS.md, row "gives us").

    platform_instance_id   INSTANCE_ID, or the platform's name for the place this instance runs in: a restart keeps it
    instance_id            the same, and a random part for each start: nobody is taken for who ran there before
    deploy_id              the code that runs, and a fingerprint of the configuration: "abc1234+9f3a2b". Platforms keep their
                           id when only a variable is changed, and a rotated token must be a newer deploy
    token_fingerprint      tells instances with another token apart

Not promised: uniqueness of what the platform gives. Two machines with one HOSTNAME share a platform_instance_id; their
instance_ids still differ.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from shared.wire import INSTANCE_VARIABLE

INSTANCE_VARIABLES = (
    "INSTANCE_ID",
    "RENDER_INSTANCE_ID",
    "DYNO",
    "FLY_MACHINE_ID",
    "RAILWAY_REPLICA_ID",
    "HOSTNAME",
)
"""Where the name of the instance is looked for, in this order."""

DEPLOY_VARIABLES = (
    "DEPLOY_ID",
    "RENDER_GIT_COMMIT",
    "HEROKU_RELEASE_VERSION",
    "FLY_IMAGE_REF",
    "RAILWAY_DEPLOYMENT_ID",
)
"""Where the name of the code is looked for, in this order."""

MAX_ID_CHARACTERS = 200
"""Longest id taken over. FLY_IMAGE_REF, the longest we know, has about 80 characters."""

_CONFIGURATION_PREFIXES = ("WEBHOOK_", "BOT_")
_CONFIGURATION_NAMES = frozenset({"ALLOWED_UPDATES", "MAX_CONNECTIONS"})
# Variables that a supervisor sets for its own worker (shared.wire). They begin with WEBHOOK_ too, and differ at each start:
# with them in the fingerprint, a worker would take itself for another deploy than its supervisor.
_OWN_PREFIX = "WEBHOOK_SUPERVISOR_"

_UNSAFE = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True)
class Identity:
    """Names of this instance; none of them is, or leads back to, a secret."""

    instance_id: str
    platform_instance_id: str
    deploy_id: str | None  # None: the platform names none, so hand-over waits for SIGTERM
    token_fingerprint: str


def identify(environ: Mapping[str, str], token: str) -> Identity:
    """Names this instance. Every call makes another `instance_id`, unless the supervisor has given one to its worker.

    Args:
        environ: the environment; an empty value counts as unset.
        token: the bot's token, the key of both fingerprints.
    """
    platform_instance_id = _first(environ, INSTANCE_VARIABLES) or _clean(os.uname().nodename) or "instance"
    return Identity(
        instance_id=_UNSAFE.sub("_", environ.get(INSTANCE_VARIABLE, ""))
        or f"{platform_instance_id}-{os.urandom(4).hex()}",
        platform_instance_id=platform_instance_id,
        deploy_id=deploy_id(environ, token),
        token_fingerprint=token_fingerprint(token),
    )


def deploy_id(environ: Mapping[str, str], token: str) -> str | None:
    """The platform's name for the code, "+", and a fingerprint of the configuration; None without the former."""
    code = _first(environ, DEPLOY_VARIABLES)
    return None if code is None else f"{code}+{_configuration_fingerprint(environ, token)}"


def token_fingerprint(token: str) -> str:
    """12 hexadecimal digits that differ for another token and do not lead back to this one."""
    return _keyed_hash(token, "token fingerprint")[:12]


def _configuration_fingerprint(environ: Mapping[str, str], token: str) -> str:
    parts = [
        f"{len(name)}:{name}={len(value)}:{value}"  # with lengths: no two configurations give one text
        for name, value in sorted(environ.items())
        if value and _is_configuration(name)
    ]
    return _keyed_hash(token, "configuration\n" + "\n".join(parts))[:6]


def _is_configuration(name: str) -> bool:
    if name.startswith(_OWN_PREFIX):
        return False
    return name.startswith(_CONFIGURATION_PREFIXES) or name in _CONFIGURATION_NAMES


def _keyed_hash(token: str, text: str) -> str:
    # Keyed by the token, so that a weak value among the hashed ones cannot be found by trying.
    key = token.encode("utf-8", "surrogateescape")
    message = f"webhook-supervisor {text}".encode("utf-8", "surrogateescape")
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((cleaned for name in names if (cleaned := _clean(environ.get(name, "")))), None)


def _clean(name: str) -> str:
    # Ids go into the database and into log lines: no blanks, no control characters, nothing that is not ASCII.
    return _UNSAFE.sub("_", name.strip())[:MAX_ID_CHARACTERS]
