"""Names of instances and deploys, platform by platform."""

from __future__ import annotations

import pytest

from shared import identity, naming
from shared.identity import identify
from shared.inherited import CONTROL_FD_VARIABLE, INSTANCE_VARIABLE, LISTEN_FD_VARIABLE

TOKEN = "123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc"


@pytest.mark.parametrize(
    ("environ", "instance", "deploy"),
    [
        (
            {"RENDER_INSTANCE_ID": "srv-1-abc", "RENDER_GIT_COMMIT": "c0ffee", "HOSTNAME": "h"},
            "srv-1-abc",
            "c0ffee",
        ),
        ({"DYNO": "web.1", "HEROKU_RELEASE_VERSION": "v42", "HOSTNAME": "h"}, "web.1", "v42"),
        (
            {"FLY_MACHINE_ID": "91", "FLY_IMAGE_REF": "registry.fly.io/b:deployment-1"},
            "91",
            "registry.fly.io/b:deployment-1",
        ),
        ({"RAILWAY_REPLICA_ID": "r1", "RAILWAY_DEPLOYMENT_ID": "d1"}, "r1", "d1"),
        ({"HOSTNAME": "bot-7d9f-x2x"}, "bot-7d9f-x2x", None),
        (
            {"INSTANCE_ID": "mine", "DEPLOY_ID": "this", "DYNO": "web.1", "RENDER_GIT_COMMIT": "c0ffee"},
            "mine",
            "this",
        ),
        ({"INSTANCE_ID": "", "DEPLOY_ID": "", "DYNO": "web.1"}, "web.1", None),
    ],
)
def test_each_platform_names_instance_and_deploy(
    environ: dict[str, str], instance: str, deploy: str | None
) -> None:
    """The operator's variable first, then the platform's (PLATFORMS.md); no deploy id where none is given."""
    found = identify(environ, TOKEN)
    assert found.platform_instance_id == instance
    assert found.instance_id.startswith(f"{instance}-")
    if deploy is None:
        assert found.deploy_id is None
    else:
        assert found.deploy_id is not None
        assert found.deploy_id.rpartition("+")[0] == deploy


def test_each_start_is_another_instance_in_the_same_place() -> None:
    """So that nobody is taken for who ran there before; and there is a name even where no platform gives one."""
    first, second = identify({}, TOKEN), identify({}, TOKEN)
    assert first.instance_id != second.instance_id
    assert first.platform_instance_id == second.platform_instance_id != ""


def test_a_worker_takes_its_supervisors_instance_id_whole() -> None:
    """The two are one instance, and name themselves alike; so they are of one deploy."""
    environ = {"DYNO": "web.1", "DEPLOY_ID": "d"}
    supervisor = identify(environ, TOKEN)
    given = {INSTANCE_VARIABLE: supervisor.instance_id, LISTEN_FD_VARIABLE: "3", CONTROL_FD_VARIABLE: "4"}
    assert identify({**environ, **given}, TOKEN) == supervisor


@pytest.mark.parametrize(
    "name",
    [
        "WEBHOOK_BASE_URL",
        "WEBHOOK_SECRET_TOKEN",
        "WEBHOOK_ON_EXIT",
        "BOT_APP",
        "BOT_WHATEVER",
        "ALLOWED_UPDATES",
        "MAX_CONNECTIONS",
    ],
)
def test_a_deploy_is_another_when_only_a_variable_changed(name: str) -> None:
    """Platforms keep their id then; but an empty variable is an unset one."""
    environ = {"DEPLOY_ID": "abc1234"}
    before = identity.deploy_id(environ, TOKEN)
    assert identity.deploy_id({**environ, name: "one"}, TOKEN) != before
    assert identity.deploy_id({**environ, name: "one"}, TOKEN) != identity.deploy_id(
        {**environ, name: "two"}, TOKEN
    )
    assert identity.deploy_id({**environ, name: ""}, TOKEN) == before


def test_a_deploy_is_another_after_a_token_rotation() -> None:
    """The instances with the new token must be the younger deploy (b24)."""
    assert identity.deploy_id({"DEPLOY_ID": "d"}, TOKEN) != identity.deploy_id(
        {"DEPLOY_ID": "d"}, "123456789:rotated"
    )
    assert identity.token_fingerprint(TOKEN) != identity.token_fingerprint("123456789:rotated")


@pytest.mark.parametrize(
    "name", ["PORT", "HOSTNAME", "RENDER_EXTERNAL_URL", "DATABASE_URL", "LOG_LEVEL", "INSTANCE_ID", "PATH"]
)
def test_what_differs_between_instances_of_one_deploy_is_not_in_its_id(name: str) -> None:
    """Else every instance were a deploy of its own, and ownership would go round."""
    assert identity.deploy_id({"DEPLOY_ID": "d", name: "x"}, TOKEN) == identity.deploy_id(
        {"DEPLOY_ID": "d"}, TOKEN
    )


def test_the_same_text_under_other_names_is_another_configuration() -> None:
    """Two environments never run into one text before they are hashed."""
    one = {"DEPLOY_ID": "d", "BOT_A": "x", "BOT_B": "y"}
    for joined in ("x\nBOT_B=y", "x\n5:BOT_B=1:y", "xBOT_By", "x=BOT_B=y"):
        assert identity.deploy_id(one, TOKEN) != identity.deploy_id(
            {"DEPLOY_ID": "d", "BOT_A": joined}, TOKEN
        )


def test_a21_no_identity_leads_back_to_a_secret() -> None:
    """Fingerprints are short, hexadecimal, and keyed."""
    environ = {"DEPLOY_ID": "abc1234", "WEBHOOK_SECRET_TOKEN": "swordfish-swordfish"}
    found = identify(environ, TOKEN)
    assert found.deploy_id is not None
    code, _, fingerprint = found.deploy_id.partition("+")
    assert (code, len(fingerprint), len(found.token_fingerprint)) == ("abc1234", 6, 12)
    int(fingerprint, 16)
    int(found.token_fingerprint, 16)
    shown = repr(found)
    assert "swordfish" not in shown
    assert TOKEN.partition(":")[2] not in shown


def test_a_platforms_odd_name_becomes_one_that_can_be_stored_and_logged() -> None:
    """Blanks, control characters and bytes that are not UTF-8 would break a log line or the database's text."""
    found = identify({"HOSTNAME": " my host\n\udcff" + "x" * 300}, TOKEN)
    assert found.platform_instance_id.isascii()
    assert found.platform_instance_id.isprintable()
    assert found.platform_instance_id.startswith("my_host__xxx")
    assert len(found.platform_instance_id) == naming.MAX_ID_CHARACTERS
