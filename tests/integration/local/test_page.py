"""The web page of `make run`: what it shows and does, whom it refuses, and how it looks to a real browser."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from deploy.local.page.server import make_app
from deploy.local.ports import LOOPBACK, free_port
from tests.integration.local.chromium import PROGRAM, open_tab
from tests.integration.local.local_run import LIMIT_SECONDS, ROOT, running

State = dict[str, Any]
PORT = 8080  # of an application that is asked without a socket

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the local system's tests read /proc")


class Page:
    """The page of a running system, as its own script uses it."""

    def __init__(self, address: str, printed: str) -> None:
        self.address = address
        self.control = re.findall(r"control API: (\S+)/control/state", printed)[0]
        self._http = httpx.Client(base_url=address, headers={"Origin": address}, trust_env=False, timeout=30)

    def get(self, path: str) -> httpx.Response:
        return self._http.get(path)

    def post(self, path: str, **body: object) -> httpx.Response:
        return self._http.post(f"/api/{path}", json=body)

    def act(self, path: str, **body: object) -> None:
        """A button that is obeyed."""
        answer = self.post(path, **body)
        assert answer.is_success, answer.text

    def wait(self, condition: Callable[[State], object]) -> State:
        """What the page shows, once the condition holds."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition(state := self.get("/api/state").json()):
            assert time.monotonic() < deadline, f"waited in vain, {state}"
            time.sleep(0.1)
        return cast(State, state)

    def wait_for_owner(self, *, after_term: int = 0) -> State:
        """What the page shows, once there is one owner, healthy and routed, and nobody else is left."""
        return self.wait(
            lambda state: (
                state["owner"] is not None
                and state["owner"]["term"] > after_term
                and len(state["instances"]) == 1
                and is_well(state["instances"][0])
            )
        )

    def secret_path(self) -> str:
        """Of the registration, as the emulator knows it."""
        state = httpx.get(f"{self.control}/control/state", trust_env=False).json()
        return str(state["bots"][0]["webhook"]["url"]).rpartition("/")[2]


def is_well(instance: State) -> bool:
    """Whether it answers, is healthy, and gets requests."""
    return bool(
        instance["health"] == "ok"
        and instance["is_routed"]
        and instance["status"] is not None
        and instance["status"]["worker"]["ready"]
    )


def version_of(state: State) -> int:
    """Of the one instance: 3 for v3."""
    return int(state["instances"][0]["version"].removeprefix("v"))


def events(state: State, instance: str | None = None) -> set[str]:
    """What has happened lately, to one instance or to any."""
    return {event["what"] for event in state["events"] if instance in (None, event["who"])}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of a system for this module; a test leaves it with one healthy owner."""
    port = free_port()
    with running(tmp_path_factory.mktemp("system"), page_port=port) as (_, terminal):
        printed = terminal.wait_for("Ctrl-C ends everything")
        address = f"http://{LOOPBACK}:{port}"
        assert address in printed
        yield Page(address, printed)


def test_it_shows_who_owns_and_tells_no_secret(page: Page) -> None:
    """Owner, term, lock, worker, webhook, inbox, events, log lines; of the secret path nothing."""
    state = page.wait_for_owner()
    [instance] = state["instances"]
    assert state["owner"]["name"] == instance["name"]
    assert instance["status"]["lock"]["state"] == "held"
    assert state["telegram"]["webhook"].endswith("/webhook/***")
    assert state["inbox"]["pending"] == 0
    state = page.wait(lambda state: "webhook set" in events(state, instance["name"]))
    assert {"deploy requested", "deploy live"} <= events(state)
    assert any("[WEBHOOK] webhook set" in line["what"] for line in state["lines"])
    answer = page.get("/")
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    for text in (answer.text, page.get("/api/state").text):
        assert page.secret_path() not in text


def test_what_went_wrong_at_telegram_is_told_with_its_time(page: Page) -> None:
    """It stays when all is well again, and only its age tells that."""
    name = page.wait_for_owner()["instances"][0]["name"]
    begin = int(time.time())
    page.act(f"instances/{name}/stop")
    page.wait(lambda state: state["instances"] == [])
    page.act("say", text="into the void")
    telegram = page.wait(lambda state: state["telegram"]["last_error"])["telegram"]
    assert begin <= telegram["last_error_at"] <= time.time()
    page.act("deploy")
    page.wait_for_owner()
    # Sent again by Telegram, and answered, or that answer would be taken for one to what others say.
    page.wait(lambda state: state["chat"][-1]["from_bot"])


def test_a_user_talks_to_the_bot(page: Page) -> None:
    """A command is answered with buttons, a button changes the message; one that is not there is said."""
    page.wait_for_owner()
    page.act("say", text="/start")
    menu = page.wait(lambda state: state["chat"] and state["chat"][-1]["from_bot"])["chat"][-1]
    key = menu["keyboard"][0][0]
    page.act("press", message_id=menu["id"], data=key["callback_data"])
    page.wait(lambda state: state["chat"][-1]["is_edited"] and state["chat"][-1]["text"] != menu["text"])
    assert page.post("press", message_id=menu["id"], data="no such data").status_code == 409
    assert page.post("say", text="").status_code == 422


def test_deploys_replace_rotate_and_roll_back(page: Page) -> None:
    """Each brings a new owner; new secrets are registered, stay with the next version, and go with a roll back."""
    before = page.wait_for_owner()
    if before["instances"][0]["deploy"] == 1:
        assert page.post("rollback").status_code == 409
    first_path = page.secret_path()
    version = version_of(before)
    for action in ("rotate", "deploy"):
        page.act(action)
        before = page.wait_for_owner(after_term=before["owner"]["term"])
        assert version_of(before) > version
        version = version_of(before)
        assert page.secret_path() != first_path
    page.act("rollback")
    before = page.wait_for_owner(after_term=before["owner"]["term"])
    assert version_of(before) < version
    assert {"secrets rotated", "SIGTERM", "exit"} <= events(before)


def test_instances_are_killed_stopped_frozen_and_come_back(page: Page) -> None:
    """Each button does what it says, and is in the list of what happened."""
    state = page.wait_for_owner()
    name, term = state["owner"]["name"], state["owner"]["term"]

    page.act(f"instances/{name}/kill")
    state = page.wait_for_owner(after_term=term)
    assert "SIGKILL" in events(state, name)

    worker = state["instances"][0]["status"]["worker"]["pid"]
    # Again where it was too busy to say its worker's pid.
    page.wait(lambda _: page.post(f"instances/{name}/kill-worker").is_success)
    state = page.wait(
        lambda state: (
            is_well(state["instances"][0]) and state["instances"][0]["status"]["worker"]["pid"] != worker
        )
    )
    assert "SIGKILL for the worker" in events(state, name)

    term = page.wait_for_owner()["owner"]["term"]
    page.act(f"instances/{name}/restart")
    page.wait_for_owner(after_term=term)

    page.act("scale", count=2)
    state = page.wait(lambda state: sum(map(is_well, state["instances"])) == 2)
    other = next(item["name"] for item in state["instances"] if item["name"] != state["owner"]["name"])
    page.act(f"instances/{other}/freeze")
    page.wait(
        lambda state: [item["is_frozen"] for item in state["instances"] if item["status"] is None] == [True]
    )
    page.act(f"instances/{other}/thaw")
    page.wait(
        lambda state: not any(item["is_frozen"] or item["status"] is None for item in state["instances"])
    )
    page.act(f"instances/{other}/stop")
    state = page.wait_for_owner()
    assert {"SIGSTOP", "SIGCONT", "exit"} <= events(state, other)
    assert page.post(f"instances/{other}/kill").status_code == 409
    assert page.post(f"instances/{name}/unknown").status_code == 422

    page.act(f"instances/{name}/stop")
    state = page.wait(lambda state: state["instances"] == [])
    assert state["owner"] is None
    page.act("deploy")
    page.wait_for_owner()


def test_the_bot_api_is_taken_away_and_given_back(page: Page) -> None:
    """Meanwhile the page shows it, and goes on to show everything else."""
    page.act("away", is_away=True)
    page.wait(lambda state: state["telegram"]["is_away"])
    page.act("away", is_away=False)
    page.wait(lambda state: not state["telegram"]["is_away"])
    page.wait_for_owner()


# ------------------------------------------------------------------------------------------------------------ safety


class Unused:
    """In the place of the system; counts what came through."""

    def __init__(self) -> None:
        self.deploys = 0

    def deploy(self) -> int:
        self.deploys += 1
        return self.deploys


async def ask(desk: Unused, method: str, port: int = PORT, /, **headers: str) -> httpx.Response:
    """A request for a deploy (or for the page), as some program or other page would send it."""
    app = make_app(cast(Any, desk), cast(Any, desk), port)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url=f"http://{LOOPBACK}:{port}"
    ) as http:
        return await http.request(method, "/api/deploy" if method == "POST" else "/", headers=headers)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", {}),
        ("POST", {"Origin": "null"}),
        ("POST", {"Origin": "https://evil.example"}),
        ("POST", {"Origin": f"http://{LOOPBACK}:{PORT + 1}"}),
        ("POST", {"Origin": f"https://{LOOPBACK}:{PORT}"}),
        ("POST", {"Origin": f"http://localhost:{PORT}"}),
        ("POST", {"Host": f"evil.example:{PORT}", "Origin": f"http://evil.example:{PORT}"}),
        (
            "POST",
            {"Host": f"{LOOPBACK}.evil.example:{PORT}", "Origin": f"http://{LOOPBACK}.evil.example:{PORT}"},
        ),
        ("GET", {"Host": f"evil.example:{PORT}"}),
        ("GET", {"Host": LOOPBACK}),
        ("GET", {"Origin": "https://evil.example"}),
    ],
)
async def test_others_are_refused(method: str, headers: dict[str, str]) -> None:
    """Another page, a name that was made to lead here, or a POST that does not say where it comes from."""
    desk = Unused()
    assert (await ask(desk, method, **headers)).status_code == 403
    assert desk.deploys == 0


@pytest.mark.parametrize("host", [f"{LOOPBACK}:{PORT}", f"localhost:{PORT}"])
async def test_the_page_itself_is_obeyed(host: str) -> None:
    """By both names of this machine; actions are never a GET."""
    desk = Unused()
    assert (await ask(desk, "POST", Host=host, Origin=f"http://{host}")).json() == {"deploy": 1}
    page = await ask(desk, "GET", Host=host)
    assert page.status_code == 200
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert desk.deploys == 1


@pytest.mark.parametrize("host", [LOOPBACK, "localhost", f"{LOOPBACK}:80"])
async def test_at_port_80_browsers_leave_the_port_out(host: str) -> None:
    """In Host and in Origin; another site's name is refused there too."""
    desk = Unused()
    answer = await ask(desk, "POST", 80, Host=host, Origin=f"http://{host}")
    assert answer.json() == {"deploy": 1}
    assert (await ask(desk, "GET", 80, Host="evil.example")).status_code == 403
    assert (await ask(desk, "POST", 80, Host=host, Origin="http://evil.example")).status_code == 403


def test_a_port_that_is_taken_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    """In one line, with the remedy."""
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        with running(tmp_path, page_port=port) as (process, terminal):
            printed = terminal.wait_for("Ctrl-C ends everything")
            [line] = [line for line in printed.splitlines() if "no web page" in line]
            assert f"port {port} of 127.0.0.1: Address already in use" in line
            assert "LOCAL_PAGE_PORT=" in line
            process.terminate()
            terminal.wait_for("stopping")
            assert process.wait(LIMIT_SECONDS) == 0


def test_a_port_that_is_none_is_refused() -> None:
    """Before anything is started."""
    answer = subprocess.run(
        [sys.executable, "-m", "deploy.local"],
        cwd=ROOT,
        env={**os.environ, "LOCAL_PAGE_PORT": "http", "TELEGRAM_BOT_TOKEN": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert "LOCAL_PAGE_PORT must be a port" in answer.stderr


# ----------------------------------------------------------------------------------------------------------- browser


@pytest.mark.skipif(PROGRAM is None, reason="no chromium here (Debian's package of that name)")
def test_a_browser_shows_the_owner_and_a_click_brings_a_new_one(page: Page, tmp_path: Path) -> None:
    """Without a complaint in its console; what a user writes stays text, and the keyboard is enough."""
    before = page.wait_for_owner()["owner"]
    with open_tab(page.address, tmp_path, LIMIT_SECONDS) as tab:
        shown = tab.wait_for("document.querySelector('#owner b')?.textContent")
        assert shown == f"{before['name']} · term {before['term']}"
        assert tab.wait_for("document.querySelector('article.active')?.dataset.name") == before["name"]

        text = "<img src=x onerror=document.title='broken'>"
        tab.evaluate("document.querySelector('#text').focus()")
        tab.call("Input.insertText", text=text)
        tab.press(("Enter", "\r"))
        mine = "[...document.querySelectorAll('.said.mine')].at(-1)?.textContent"
        tab.wait_for(f"{mine} === {text!r}")
        assert tab.evaluate("document.querySelectorAll('img').length") == 0
        assert tab.evaluate("document.title") != "broken"

        tab.evaluate("document.querySelector('#deploy').click()")
        tab.wait_for(f"!document.querySelector('#owner b').textContent.startsWith({before['name'] + ' '!r})")
        after = page.wait_for_owner(after_term=before["term"])["owner"]
        tab.wait_for(
            f"document.querySelector('#owner b').textContent === {after['name'] + ' · term ' + str(after['term'])!r}"
        )
        assert tab.complaints == []


@pytest.mark.skipif(PROGRAM is None, reason="no chromium here (Debian's package of that name)")
def test_what_a_browser_shows_stays_where_it_is_when_more_comes(page: Page, tmp_path: Path) -> None:
    """The keyboard's focus is not lost, nor what somebody selects, and a screen reader reads nothing twice."""
    page.wait_for_owner()
    page.act("say", text="/start")
    page.wait(lambda state: state["chat"] and state["chat"][-1]["keyboard"])
    with open_tab(page.address, tmp_path, LIMIT_SECONDS) as tab:
        tab.wait_for("document.querySelector('.said:last-child .keys button:enabled') !== null")
        tab.evaluate(
            "menu = document.querySelector('.said:last-child'), key = menu.querySelector('.keys button:enabled'),"
            "happened = document.querySelector('#events li'), line = document.querySelector('#lines li'), key.focus()"
        )
        page.act("say", text="one message more")
        page.act("scale", count=2)
        tab.wait_for(
            "[...document.querySelectorAll('.said.mine')].at(-1)?.textContent === 'one message more'"
        )
        tab.wait_for("document.querySelector('#events li') !== happened")
        tab.wait_for("document.querySelector('#lines li') !== line")
        assert tab.evaluate("[menu, happened, line].every(node => node.isConnected)")
        assert tab.evaluate("document.activeElement === key")

        # A key that another page of the menu takes the place of, in the same message.
        tab.press(("Enter", "\r"))
        tab.wait_for("!key.isConnected")
        assert tab.evaluate("menu.isConnected && menu.contains(document.activeElement)")
        assert tab.complaints == []
        page.act("scale", count=1)
        page.wait_for_owner()
