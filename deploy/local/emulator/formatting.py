"""Texts as the server reads them: length, bot commands, HTML.

Pure. Offsets of entities count UTF-16 code units, as the Bot API documentation demands.

Does not promise Markdown: a text with `parse_mode` Markdown or MarkdownV2 is kept as written, without entities. Links,
mentions and hashtags that a client would mark by itself are not looked for, except commands.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from deploy.local.emulator.errors import bad_request

# Bot API documentation, sendMessage and sendPhoto: characters after the parsing of entities.
MAX_TEXT = 4096
MAX_CAPTION = 1024
_COMMAND = re.compile(r"(?<!\S)/[A-Za-z0-9_]{1,32}(?:@[A-Za-z0-9_]{3,32})?(?![A-Za-z0-9_@/])")
_TAGS = {
    "b": "bold",
    "strong": "bold",
    "i": "italic",
    "em": "italic",
    "u": "underline",
    "ins": "underline",
    "s": "strikethrough",
    "strike": "strikethrough",
    "del": "strikethrough",
    "code": "code",
    "pre": "pre",
    "a": "text_link",
    "tg-spoiler": "spoiler",
    "blockquote": "blockquote",
    "tg-emoji": "custom_emoji",
    "span": "spoiler",
}


def utf16_length(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def find_commands(text: str) -> list[dict[str, Any]]:
    """A `bot_command` entity for every /command."""
    return [
        {"type": "bot_command", "offset": utf16_length(text[: match.start()]), "length": len(match[0])}
        for match in _COMMAND.finditer(text)
    ]


def read_text(text: str, parse_mode: str, entities: Any) -> tuple[str, list[dict[str, Any]]]:
    """The text as it will be shown, and its entities.

    Raises:
        ApiError: 400 for an unknown mode or markup that is broken.
    """
    mode = parse_mode.lower()
    if mode == "html":
        return _read_html(text)
    if mode not in ("", "none", "markdown", "markdownv2"):
        raise bad_request("unsupported parse_mode")
    given = entities if isinstance(entities, list) else []
    return text, [entity for entity in given if isinstance(entity, dict)] or find_commands(text)


class _Html(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.entities: list[dict[str, Any]] = []
        self._open: list[tuple[str, int, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _TAGS:
            raise bad_request(
                f'can\'t parse entities: Unsupported start tag "{tag}" at byte offset {self.getpos()[1]}'
            )
        extra: dict[str, Any] = {}
        values = dict(attrs)
        if tag == "a":
            extra["url"] = values.get("href") or ""
        if tag == "tg-emoji":
            extra["custom_emoji_id"] = values.get("emoji-id") or ""
        self._open.append((tag, utf16_length(self.text), extra))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1][0] != tag:
            raise bad_request(f"can't parse entities: Unexpected end tag at byte offset {self.getpos()[1]}")
        _, start, extra = self._open.pop()
        length = utf16_length(self.text) - start
        if length:
            self.entities.append({"type": _TAGS[tag], "offset": start, "length": length, **extra})

    def handle_data(self, data: str) -> None:
        self.text += data

    def check_closed(self) -> None:
        if self._open:
            raise bad_request(
                f"can't parse entities: Can't find end tag corresponding to start tag \"{self._open[-1][0]}\""
            )


def _read_html(text: str) -> tuple[str, list[dict[str, Any]]]:
    parser = _Html()
    parser.feed(text)
    parser.close()
    parser.check_closed()
    entities = sorted([*parser.entities, *find_commands(parser.text)], key=lambda entity: entity["offset"])
    return parser.text, entities
