"""A python-telegram-bot of another version, as the bot's own requirements may have put it in the place of ours."""

from __future__ import annotations

from pathlib import Path


def put_library(folder: Path, version: str) -> str:
    """Writes one that cannot even be imported, as 13 from here; its folder goes into PYTHONPATH."""
    metadata = folder / f"python_telegram_bot-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(
        f"Metadata-Version: 2.1\nName: python-telegram-bot\nVersion: {version}\n", encoding="utf-8"
    )
    package = folder / "telegram" / "__init__.py"
    package.parent.mkdir()
    package.write_text("raise ImportError('no module named imghdr')\n", encoding="utf-8")
    return str(folder)
