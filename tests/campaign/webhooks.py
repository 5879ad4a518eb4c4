"""What an instance would register, and whether that is what stands at Telegram."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared import config as configuration
from tests.campaign.instance import Instance
from tests.end_to_end.instance import eventually

if TYPE_CHECKING:
    from tests.campaign.field import Field


def expected_webhook(instance: Instance) -> tuple[str, str]:
    """The URL and the secret token that an instance registers, by its environment."""
    config = configuration.load(instance.environment, stdin_is_terminal=False, stdout_is_terminal=False)
    return config.webhook_url.reveal(), config.webhook_secret.reveal()


async def wait_until_registered(field: Field, instance: Instance) -> None:
    """Returns when an instance's registration stands at Telegram and it says so itself."""

    async def stands() -> bool:
        webhook = await field.telegram.webhook()
        if (webhook.url, webhook.secret_token) != expected_webhook(instance):
            return False
        status = await instance.try_status()
        return status is not None and bool(status["webhook"]["in_sync"])

    await eventually(stands, f"the webhook of {instance.name}")
