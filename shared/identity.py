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
from collections.abc import Mapping
from dataclasses import dataclass

from shared.inherited import INSTANCE_VARIABLE
from shared.naming import first_set, new_instance_id, platform_instance_id, without_unsafe

DEPLOY_VARIABLES = (
    "DEPLOY_ID",
    "RENDER_GIT_COMMIT",
    "HEROKU_RELEASE_VERSION",
    "FLY_IMAGE_REF",
    "RAILWAY_DEPLOYMENT_ID",
)
"""Where the name of the code is looked for, in this order."""

_CONFIGURATION_PREFIXES = ("WEBHOOK_", "BOT_")
_CONFIGURATION_NAMES = frozenset({"ALLOWED_UPDATES", "MAX_CONNECTIONS"})
# Variables that a supervisor sets for its own worker (inherited.py). They begin with WEBHOOK_ too, and differ at each start:
# with them in the fingerprint, a worker would take itself for another deploy than its supervisor.
_OWN_PREFIX = "WEBHOOK_SUPERVISOR_"


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
    return Identity(
        instance_id=without_unsafe(environ.get(INSTANCE_VARIABLE, "")) or new_instance_id(environ),
        platform_instance_id=platform_instance_id(environ),
        deploy_id=deploy_id(environ, token),
        token_fingerprint=token_fingerprint(token),
    )


def deploy_id(environ: Mapping[str, str], token: str) -> str | None:
    """The platform's name for the code, "+", and a fingerprint of the configuration; None without the former."""
    code = first_set(environ, DEPLOY_VARIABLES)
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
