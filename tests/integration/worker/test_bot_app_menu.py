"""The built-in bot, as its users see it: with the Bot API emulator, from a user's words to what stands in the chat."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from deploy.local.emulator.client import EmulatorClient
from deploy.local.emulator.control_messages import ChatMessage
from deploy.local.emulator_process import RunningEmulator
from tests.sample_bots.settings import config_for
from webhook_worker import bot_app
from webhook_worker.bot import Bot
from webhook_worker.menu import Page, callback_data
from webhook_worker.menu_bot import MENU_FILE
from webhook_worker.menu_file import load_menu
from webhook_worker.outcomes import Done, Outcome

USER = 42
MENU = load_menu(MENU_FILE)


class Conversation:
    """A user's chat with the built-in bot. Updates are fetched from the emulator and handled one by one."""

    def __init__(self, bot: Bot, emulator: EmulatorClient, api_url: str) -> None:
        self._bot = bot
        self.emulator = emulator
        self._api_url = api_url
        self._offset = 0

    async def say(self, text: str, *, chat_id: int | None = None) -> list[ChatMessage]:
        """Writes, and gives the chat as it stands then."""
        await self.emulator.send_text(USER, text, chat_id=chat_id)
        return await self.settled(chat_id or USER)

    async def press(self, text: str, *, message_id: int | None = None) -> list[ChatMessage]:
        """Presses a button, and gives the chat as it stands then."""
        await self.emulator.press(USER, text=text, message_id=message_id, user_id=USER)
        return await self.settled(USER)

    async def press_unknown(self, data: str) -> list[ChatMessage]:
        """Presses a button that this menu does not have."""
        message = (await self.emulator.messages(USER))[-1]
        query = {
            "id": "1",
            "from": {"id": USER, "is_bot": False, "first_name": "U"},
            "chat_instance": "1",
            "message": message.raw,
            "data": data,
        }
        await self.emulator.inject({"callback_query": query})
        return await self.settled(USER)

    async def settled(self, chat_id: int) -> list[ChatMessage]:
        """Hands over all that waits; every update must be done."""
        for body in await self.updates():
            assert await self.handle(body) == Done()
        return await self.emulator.messages(chat_id)

    async def handle(self, body: bytes) -> Outcome:
        """As the dispatcher does."""
        return await self._bot.handle(body, 1)

    async def updates(self) -> list[bytes]:
        """What waits at Telegram."""
        parameters = {
            "offset": self._offset,
            "allowed_updates": json.dumps(["message", "edited_message", "callback_query"]),
        }
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.post(f"{self._api_url}/getUpdates", json=parameters)
        updates = answer.json()["result"]
        if updates:
            self._offset = updates[-1]["update_id"] + 1
        return [json.dumps(update).encode() for update in updates]


@pytest.fixture
async def conversation(running_emulator: RunningEmulator) -> AsyncIterator[Conversation]:
    """The built-in bot, loaded as the worker loads it."""
    config = config_for(
        "webhook_worker.menu_bot:build", api_url=running_emulator.base_url, token=running_emulator.token
    )
    bot = await bot_app.load(config)
    await bot.initialize()
    await bot.start()
    api_url = f"{running_emulator.base_url}/bot{running_emulator.token}"
    yield Conversation(bot, running_emulator.client, api_url)
    await bot.stop()


def is_page(message: ChatMessage, page: Page) -> bool:
    """The message shows that page, its title in bold and its buttons below."""
    entities = [{"type": "bold", "offset": 0, "length": len(page.title)}] if page.title else None
    return (
        message.from_bot
        and message.text == page.message
        and message.keyboard == [[button.text for button in row] for row in page.rows]
        and message.raw.get("entities") == entities
    )


async def test_start_shows_the_main_menu(conversation: Conversation) -> None:
    """The first thing that anybody sees of this project."""
    chat = await conversation.say("/start")
    assert len(chat) == 2
    assert is_page(chat[1], MENU.main)


async def test_every_page_is_reached_by_its_buttons_and_left_by_back(conversation: Conversation) -> None:
    """In the one message; the whole menu is walked through."""
    message = (await conversation.say("/start"))[-1]
    walked = set()
    ahead = [MENU.main]
    while ahead:
        page = ahead.pop()
        walked.add(page.id)
        # There by data, as from any page with such a button; then each of its own buttons, and back again.
        for button in (button for row in page.rows for button in row if button.page is not None):
            await conversation.press_unknown(callback_data(page.id))
            assert is_page((await conversation.emulator.messages(USER))[-1], page)
            assert button.page is not None
            target = MENU.pages[button.page]
            chat = await conversation.press(button.text)
            assert is_page(chat[-1], target)
            assert chat[-1].message_id == message.message_id
            if target.id not in walked:
                ahead.append(target)
    assert walked == set(MENU.pages)
    calls = await conversation.emulator.calls(method="answerCallbackQuery")
    assert calls, "the clock on the button would go on"


async def test_help_lists_the_commands_with_a_way_to_the_menu(conversation: Conversation) -> None:
    """All of them, and nothing else."""
    chat = await conversation.say("/help")
    assert chat[-1].text == "Commands\n\n" + "\n".join(
        f"/{command.command} - {command.description}" for command in MENU.commands
    )
    assert is_page((await conversation.press(chat[-1].keyboard[0][0]))[-1], MENU.main)


async def test_every_command_opens_its_page(conversation: Conversation) -> None:
    """As /help says."""
    for command in MENU.commands:
        if command.page is not None:
            chat = await conversation.say(f"/{command.command}")
            assert is_page(chat[-1], MENU.pages[command.page])


@pytest.mark.parametrize("data", ["menu:gone", "gone", ""])
async def test_a_stale_button_shows_the_main_menu(conversation: Conversation, data: str) -> None:
    """Messages in chats are older than the menu that is deployed; silence would look like a dead bot."""
    await conversation.say("/settings")
    chat = await conversation.press_unknown(data)
    assert is_page(chat[-1], MENU.main)


async def test_a_button_pressed_twice_is_no_error(conversation: Conversation) -> None:
    """ "Message is not modified": it shows the page already, also when the update is handled again."""
    await conversation.say("/start")
    for _ in range(2):
        chat = await conversation.press_unknown(callback_data("about"))
        assert is_page(chat[-1], MENU.pages["about"])
    assert len(chat) == 2


async def test_a_button_of_a_message_that_is_gone_gets_a_new_one(conversation: Conversation) -> None:
    """Deleted, or too old: the answer comes as a new message."""
    shown = (await conversation.say("/start"))[-1]
    await conversation.emulator.press(USER, text=shown.keyboard[0][0], user_id=USER)
    [body] = await conversation.updates()
    async with httpx.AsyncClient(trust_env=False) as http:
        deleted = await http.post(
            f"{conversation._api_url}/deleteMessage", json={"chat_id": USER, "message_id": shown.message_id}
        )
    assert deleted.json()["ok"]
    assert await conversation.handle(body) == Done()
    button = MENU.main.rows[0][0]
    assert button.page is not None
    chat = await conversation.emulator.messages(USER)
    assert is_page(chat[-1], MENU.pages[button.page])
    assert chat[-1].message_id > shown.message_id
    # And where Telegram says at once that it cannot be reached any more.
    update = json.loads(body)
    update["callback_query"]["message"] |= {"date": 0}
    assert await conversation.handle(json.dumps(update).encode()) == Done()
    assert len(await conversation.emulator.messages(USER)) == len(chat) + 1


@pytest.mark.parametrize("text", ["hello", "/unknown", "/start@another_bot"])
async def test_what_is_no_command_gets_a_hint(conversation: Conversation, text: str) -> None:
    """In private. In a group people talk to one another."""
    chat = await conversation.say(text)
    assert (chat[-1].text, chat[-1].keyboard) == (MENU.hint, [])
    group = await conversation.say(text, chat_id=-100)
    assert not any(message.from_bot for message in group)


async def test_commands_work_in_groups(conversation: Conversation) -> None:
    """Where somebody does talk to the bot."""
    chat = await conversation.say("/start", chat_id=-100)
    assert is_page(chat[-1], MENU.main)


async def test_an_edited_message_is_not_answered_again(conversation: Conversation) -> None:
    """Mending a typing error is no second /start."""
    sent = await conversation.say("/start")
    edited = sent[0].raw | {"edit_date": sent[0].date + 1}
    await conversation.emulator.inject({"edited_message": edited})
    assert len(await conversation.settled(USER)) == len(sent)
