"""A package of ours in another version, as the bot's own requirements may have put it in the place of ours."""

from __future__ import annotations

from pathlib import Path

_MODULES = {"python-telegram-bot": "telegram", "psycopg": "psycopg", "uvicorn": "uvicorn"}


def put_library(folder: Path, name: str, version: str) -> str:
    """Writes one that cannot even be imported, as python-telegram-bot 13 from here; its folder goes into PYTHONPATH."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    package = folder / _MODULES[name] / "__init__.py"
    package.parent.mkdir()
    package.write_text("raise ImportError('no module named imghdr')\n", encoding="utf-8")
    return str(folder)
