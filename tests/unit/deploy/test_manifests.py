"""What is handed to a platform agrees with itself, with the code, and with the README."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from shared import config
from shared.errors import ConfigurationError
from shared.inherited import INSTANCE_VARIABLE

ROOT = Path(__file__).parents[3]
TOKEN = "123456:AAAbbbCCCdddEEEfffGGG"
DSN = "postgresql://user:password@database.internal:5432/bot"

Yaml = str | list["Yaml"] | dict[str, "Yaml"]
_KEY = re.compile(r"(?P<key>[A-Za-z]+):(?: (?P<value>.+))?")


def read_yaml(text: str) -> Yaml:
    """Just as much of YAML as render.yaml needs: block mappings and lists, plain and double-quoted scalars, `[]`.

    Raises:
        ValueError: something else; Render may read it otherwise than a person does.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    value, rest = _read_block(lines, 0)
    if rest:
        raise ValueError(f"not understood: {rest[0]!r}")
    return value


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _read_block(lines: list[str], indent: int) -> tuple[Yaml, list[str]]:
    if lines[0].lstrip().startswith("- "):
        items: list[Yaml] = []
        while lines and _indent(lines[0]) == indent and lines[0].lstrip().startswith("- "):
            # "- key: value" begins a mapping that is indented by two more.
            first = " " * (indent + 2) + lines[0].lstrip()[2:]
            item, lines = _read_block([first, *lines[1:]], indent + 2)
            items.append(item)
        return items, lines
    mapping: dict[str, Yaml] = {}
    while lines and _indent(lines[0]) == indent:
        found = _KEY.fullmatch(lines[0].strip())
        if found is None or found["key"] in mapping:
            raise ValueError(f"not understood: {lines[0]!r}")
        lines = lines[1:]
        if found["value"] is not None:
            mapping[found["key"]] = _read_scalar(found["value"])
        else:
            mapping[found["key"]], lines = _read_block(lines, _indent(lines[0]))
    return mapping, lines


def _read_scalar(text: str) -> Yaml:
    if text == "[]":
        return []
    if text.startswith('"') and text.endswith('"') and not re.search(r'["\\]', text[1:-1]):
        return text[1:-1]
    if text[0] in "\"'[]{}&*!|>%@`#" or " #" in text or ": " in text:
        raise ValueError(f"not understood: {text!r}")
    return text


def mapping(value: Yaml | None) -> dict[str, Yaml]:
    assert isinstance(value, dict)
    return value


def only(value: Yaml | None) -> dict[str, Yaml]:
    assert isinstance(value, list)
    assert len(value) == 1
    return mapping(value[0])


@pytest.fixture(scope="module")
def blueprint() -> dict[str, Yaml]:
    return mapping(read_yaml((ROOT / "deploy/render.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def service(blueprint: dict[str, Yaml]) -> dict[str, Yaml]:
    return only(blueprint["services"])


@pytest.fixture(scope="module")
def variables(service: dict[str, Yaml]) -> dict[str, dict[str, Yaml]]:
    """The entries of envVars by their key."""
    entries = service["envVars"]
    assert isinstance(entries, list)
    return {str(mapping(entry)["key"]): mapping(entry) for entry in entries}


def test_the_reader_refuses_yaml_that_it_does_not_know() -> None:
    """A construct beyond the subset is an error of the test, not a silently different manifest."""
    assert read_yaml('a: 1\nb:\n  - c: "18"\n    d: []\n  - c: x\n') == {
        "a": "1",
        "b": [{"c": "18", "d": []}, {"c": "x"}],
    }
    for unknown in (
        "a: &b 1\n",
        "a: {b: 1}\n",
        "a: 1 # why\n",
        "a: 1\na: 2\n",
        "a: 1\n    b: 2\n",
        "a: |\n  x\n",
    ):
        with pytest.raises(ValueError, match="not understood"):
            read_yaml(unknown)


# ------------------------------------------------------------------------------------------------------------- Render


def test_procfile_and_blueprint_start_the_same_command(service: dict[str, Yaml]) -> None:
    """Whatever platform reads whichever of the two, the production entry is the same."""
    procfile = (ROOT / "Procfile").read_text(encoding="utf-8")
    assert procfile == "web: python -m supervisor\n"
    assert procfile.removeprefix("web: ").strip() == service["startCommand"]


def test_platform_probes_the_path_that_is_healthy_while_passive(service: dict[str, Yaml]) -> None:
    """/readyz would become the platform's own 503, without Retry-After, when the database is away (DESIGN.md)."""
    assert service["type"] == "web"
    assert service["healthCheckPath"] == "/healthz"


def test_platform_waits_longer_than_a_shutdown_takes(service: dict[str, Yaml]) -> None:
    """SIGKILL comes after our own last step, and within what Render lets us set."""
    assert config.SHUTDOWN_SECONDS < int(str(service["maxShutdownDelaySeconds"])) <= 300
    assert service["plan"] != "free", "Render refuses maxShutdownDelaySeconds on the free plan"


def test_build_installs_the_hashed_lock_of_production(service: dict[str, Yaml]) -> None:
    """What runs is what was tested, byte by byte."""
    command = str(service["buildCommand"]).split()
    assert command == ["pip", "install", "--require-hashes", "-r", "deploy/requirements.lock"]
    assert (ROOT / command[-1]).is_file()


def test_python_is_one_that_is_tested_in_full(variables: dict[str, dict[str, Yaml]]) -> None:
    """Render wants all three numbers of PYTHON_VERSION (render.com/docs/python-version)."""
    assert re.fullmatch(r"3\.1[123]\.[0-9]+", str(variables["PYTHON_VERSION"]["value"]))


def test_database_is_the_blueprints_own_and_reached_directly(
    blueprint: dict[str, Yaml], service: dict[str, Yaml], variables: dict[str, dict[str, Yaml]]
) -> None:
    """connectionString is the direct address in the private network, which ends at the region's border."""
    database = only(blueprint["databases"])
    reference = mapping(variables["DATABASE_URL"]["fromDatabase"])
    assert reference == {"name": database["name"], "property": "connectionString"}
    assert database["region"] == service["region"]
    assert int(str(database["postgresMajorVersion"])) >= 14
    assert database["ipAllowList"] == []


def test_no_secret_stands_in_the_blueprint(variables: dict[str, dict[str, Yaml]]) -> None:
    """The token is asked for, the DSN is referred to, the webhook's secrets are derived."""
    assert variables["TELEGRAM_BOT_TOKEN"] == {"key": "TELEGRAM_BOT_TOKEN", "sync": "false"}
    in_clear = {name: str(entry["value"]) for name, entry in variables.items() if "value" in entry}
    assert in_clear.keys() == {"PYTHON_VERSION", "BOT_APP", "LOG_FORMAT"}
    assert not any(re.search(r"[0-9]+:[A-Za-z0-9_-]{10}|://", value) for value in in_clear.values())


def test_secrets_that_render_generates_would_be_refused(variables: dict[str, dict[str, Yaml]]) -> None:
    """generateValue gives 256 bits in base64, always with "=": exit 2 on the first deploy. So none is generated."""
    generated = base64.b64encode(bytes(range(32))).decode()
    for name in ("WEBHOOK_SECRET_PATH", "WEBHOOK_SECRET_TOKEN"):
        assert name not in variables
        with pytest.raises(ConfigurationError, match=name):
            load({**render_environment(variables), name: generated})
    assert not any("generateValue" in entry for entry in variables.values())


def test_blueprint_on_render_is_a_good_configuration(variables: dict[str, dict[str, Yaml]]) -> None:
    """With what Render adds, nothing is missing: address, secrets, deploy and instance."""
    loaded = load(render_environment(variables))
    assert loaded.webhook_url_masked == "https://webhook-supervisor.onrender.com/webhook/***"
    assert len(loaded.webhook_path.reveal()) >= 32
    assert len(loaded.webhook_secret.reveal()) >= 32
    assert loaded.identity.deploy_id is not None
    assert loaded.identity.deploy_id.startswith("0123abc+")
    assert loaded.identity.platform_instance_id == "srv-x-7d9f"
    assert loaded.port == 10000


def render_environment(variables: dict[str, dict[str, Yaml]]) -> dict[str, str]:
    """The environment of an instance: the Blueprint's, and what Render sets by itself."""
    return {
        **{name: str(entry["value"]) for name, entry in variables.items() if "value" in entry},
        "TELEGRAM_BOT_TOKEN": TOKEN,
        "DATABASE_URL": DSN,
        "PORT": "10000",
        "IS_PULL_REQUEST": "false",
        "RENDER_EXTERNAL_URL": "https://webhook-supervisor.onrender.com",
        "RENDER_GIT_COMMIT": "0123abc",
        "RENDER_INSTANCE_ID": "srv-x-7d9f",
    }


def load(environ: Mapping[str, str]) -> config.Config:
    return config.load(environ, stdin_is_terminal=False, stdout_is_terminal=False)


# ------------------------------------------------------------------------------------------- the README's environment


class RecordingEnvironment(Mapping[str, str]):
    """An environment that remembers which names were asked for."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def readme_rows() -> list[tuple[set[str], str, str]]:
    """The rows of the README's environment table: the names that it is about, its default, and all of its text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Environment$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    rows = [line.strip("| ").split(" | ") for line in section[1].splitlines() if line.startswith("| `")]
    assert all(len(row) == 3 for row in rows)
    return [(set(re.findall(r"`([A-Z_]+)`", row[0])), row[1], " | ".join(row)) for row in rows]


def test_readme_names_exactly_the_variables_that_are_read() -> None:
    """Nobody has to read the code to find a variable, and no variable is promised that does nothing.

    Every other name that is looked at is a platform's, and stands as the default of one of ours.
    """
    environ = RecordingEnvironment({"TELEGRAM_BOT_TOKEN": TOKEN, "DATABASE_URL": DSN})
    with pytest.raises(ConfigurationError, match="WEBHOOK_BASE_URL"):
        load(environ)  # nothing names the address, so that every source of it is asked
    asked = environ.asked - {INSTANCE_VARIABLE}
    rows = readme_rows()
    named = set().union(*(names for names, _, _ in rows))
    mentioned = set().union(*(set(re.findall(r"[A-Z][A-Z_]+[A-Z]", text)) for _, _, text in rows))
    assert named - asked == set(), "promised, and never read"
    assert asked - mentioned == set(), "read, and not in the README"
    platforms = re.compile(r"(RENDER|RAILWAY|FLY|HEROKU)_|(DYNO|HOSTNAME|IS_PULL_REQUEST|PGPASSWORD)$")
    assert {name for name in asked - named if not platforms.match(name)} == set()


def test_readme_tells_the_defaults_that_are_taken() -> None:
    """Where a default is one value, it is the one that the code takes."""
    loaded = load(
        {"TELEGRAM_BOT_TOKEN": TOKEN, "DATABASE_URL": DSN, "WEBHOOK_BASE_URL": "https://bot.example"}
    )
    checked = 0
    for names, default, _ in readme_rows():
        values = re.findall(r"`([^`]+)`", default)
        fields = [name.lower() for name in re.findall(r"[A-Z_]+", " ".join(sorted(names)))]
        if len(names) != 1 or len(values) != 1 or not hasattr(loaded, fields[0]):
            continue
        taken = getattr(loaded, fields[0])
        taken = getattr(taken, "value", taken)  # an Enum's
        shown = (
            f"{taken:g}"
            if isinstance(taken, float)
            else str(int(taken) if isinstance(taken, bool) else taken)
        )
        assert values[0] == shown, f"{fields[0]}: the README says {values[0]}, the code takes {shown}"
        checked += 1
    assert checked >= 15
