"""What is handed to a platform agrees with itself, with the code, and with the README."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shared import config
from shared.errors import ConfigurationError
from shared.inherited import INSTANCE_VARIABLE
from supervisor.readings import STOP_SECONDS

ROOT = Path(__file__).parents[3]
TOKEN = "123456:AAAbbbCCCdddEEEfffGGG"
DSN = "postgresql://user:password@database.internal:5432/bot"

Yaml = str | list["Yaml"] | dict[str, "Yaml"]
_KEY = re.compile(r"(?P<key>[A-Za-z_]+):(?: (?P<value>.+))?")


def read_yaml(text: str) -> Yaml:
    """Just as much of YAML as our manifests need: block mappings and lists, plain and double-quoted scalars, `[]`, `{}`.

    Raises:
        ValueError: something else; a platform may read it otherwise than a person does.
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
            text = lines[0].lstrip()[2:]
            if _KEY.fullmatch(text) is None:
                items.append(_read_scalar(text))
                lines = lines[1:]
                continue
            # "- key: value" begins a mapping that is indented by two more.
            item, lines = _read_block([" " * (indent + 2) + text, *lines[1:]], indent + 2)
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
    if text in ("[]", "{}"):
        return [] if text == "[]" else {}
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
    assert read_yaml('a: 1\nb:\n  - c: "18"\n    d: []\n  - c: x\ne:\n  - f\n  - "g"\nh: {}\n') == {
        "a": "1",
        "b": [{"c": "18", "d": []}, {"c": "x"}],
        "e": ["f", "g"],
        "h": {},
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
    """/readyz would become the platform's own 503, without Retry-After, when the database is away."""
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


# --------------------------------------------------------------------------------------------------------- containers


def at(value: Yaml | None, *path: str | int) -> Yaml:
    """What stands at a path of keys and positions."""
    for step in path:
        if isinstance(step, int):
            assert isinstance(value, list)
            value = value[step]
        else:
            value = mapping(value)[step]
    assert value is not None
    return value


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    """Its instructions, a list of words each."""
    lines = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def compose() -> Yaml:
    return read_yaml((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def kubernetes() -> list[Yaml]:
    """Its documents."""
    text = (ROOT / "deploy/kubernetes.yaml").read_text(encoding="utf-8")
    return [read_yaml(document) for document in text.split("\n---\n")]


@pytest.fixture(scope="module")
def fly() -> dict[str, Any]:
    return tomllib.loads((ROOT / "deploy/fly.toml").read_text(encoding="utf-8"))


def test_image_starts_what_the_procfile_starts(dockerfile: list[list[str]]) -> None:
    """In exec form: a shell as PID 1 would keep SIGTERM for itself."""
    [command] = [words[1:] for words in dockerfile if words[0] == "CMD"]
    assert json.loads(" ".join(command)) == ["python", "-m", "supervisor"]
    [image] = [words[1] for words in dockerfile if words[0] == "FROM"]
    assert re.fullmatch(r"python:3\.1[123]-slim", image)
    runs = [" ".join(words[1:]) for words in dockerfile if words[0] == "RUN"]
    assert runs[0] == "pip install --no-cache-dir --require-hashes -r deploy/requirements.lock"
    assert [words[1] for words in dockerfile if words[0] == "USER"] == ["10001"]


def test_image_has_all_that_production_needs_and_no_more() -> None:
    """What is left out is left out of the context: packages of production are not among it, and secrets are."""
    lines = (ROOT / "deploy/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    ignored = {line for line in lines if line and not line.startswith("#")}
    tracked = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert {"supervisor", "webhook_worker", "shared"} <= tracked - ignored
    assert {"tests", "bench", "docs", "deploy/local", "**/.env*", "**/.git", ".*"} <= ignored


def test_every_platform_waits_longer_than_a_shutdown_takes(
    compose: Yaml, kubernetes: list[Yaml], fly: dict[str, Any]
) -> None:
    """And asks with a signal that means the stop of one instance."""
    grace = str(at(compose, "services", "bot", "stop_grace_period"))
    waits = [
        float(grace.removesuffix("s")),
        float(str(at(kubernetes[0], "spec", "template", "spec", "terminationGracePeriodSeconds"))),
        float(fly["kill_timeout"]),
    ]
    assert all(config.SHUTDOWN_SECONDS < seconds <= 300 for seconds in waits)
    assert fly["kill_signal"] == "SIGTERM"


def test_a_stop_is_over_within_what_every_platform_is_asked_for() -> None:
    """The core ends it before; a second is for the process itself."""
    assert STOP_SECONDS + 1.0 <= config.SHUTDOWN_SECONDS


def test_every_platform_probes_the_path_that_is_healthy_while_passive(
    kubernetes: list[Yaml], fly: dict[str, Any]
) -> None:
    """On PORT; a start may take the worker's two minutes."""
    container = mapping(at(kubernetes[0], "spec", "template", "spec", "containers", 0))
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert at(container[name], "httpGet") == {"path": "/healthz", "port": "http"}
    start = container["startupProbe"]
    assert int(str(at(start, "periodSeconds"))) * int(str(at(start, "failureThreshold"))) >= 120
    assert at(container["ports"], 0) == {"name": "http", "containerPort": "8080"}
    [check] = fly["http_service"]["checks"]
    assert (check["path"], check["method"]) == ("/healthz", "GET")
    assert str(fly["http_service"]["internal_port"]) == fly["env"]["PORT"]
    assert fly["http_service"]["auto_stop_machines"] == "off"


def test_kubernetes_is_a_good_configuration(kubernetes: list[Yaml]) -> None:
    """New pods before old ones go, a deploy of its own for each template, and one Service in front of all."""
    deployment, service = kubernetes
    update = at(deployment, "spec", "strategy", "rollingUpdate")
    assert update == {"maxSurge": "1", "maxUnavailable": "0"}
    entries = at(deployment, "spec", "template", "spec", "containers", 0, "env")
    assert isinstance(entries, list)
    fields = {"metadata.name": "bot-6d4b-x2x", "metadata.labels['pod-template-hash']": "6d4b"}
    environ = {"TELEGRAM_BOT_TOKEN": TOKEN, "DATABASE_URL": DSN, "HOSTNAME": "bot-6d4b-x2x"}
    for entry in entries:
        name = str(at(entry, "name"))
        value = mapping(entry).get("value") or fields[str(at(entry, "valueFrom", "fieldRef", "fieldPath"))]
        environ[name] = str(value)
    loaded = load(environ)
    assert loaded.identity.deploy_id is not None
    assert loaded.identity.deploy_id.startswith("6d4b+")
    assert loaded.identity.platform_instance_id == "bot-6d4b-x2x"
    labels = at(deployment, "spec", "template", "metadata", "labels")
    assert labels == at(deployment, "spec", "selector", "matchLabels") == at(service, "spec", "selector")
    assert at(service, "spec", "ports", 0, "targetPort") == "http"


def test_compose_is_a_good_configuration(compose: Yaml) -> None:
    """With what the operator exports; nothing of it stands in the file."""
    exported = {"TELEGRAM_BOT_TOKEN": TOKEN, "BOT_HOST": "bot.example.org", "POSTGRES_PASSWORD": "hunter2"}

    def filled(text: str) -> str:
        return re.sub(
            r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}",
            lambda found: exported[found[1]] if found[2] != "-" else exported.get(found[1], found[3]),
            text,
        )

    environ = {
        name: filled(str(value))
        for name, value in mapping(at(compose, "services", "bot", "environment")).items()
    }
    loaded = load(environ)
    assert loaded.log_format is config.LogFormat.TEXT
    exported["LOG_FORMAT"] = "json"
    asked_for = {"LOG_FORMAT": filled(str(at(compose, "services", "bot", "environment", "LOG_FORMAT")))}
    assert load({**environ, **asked_for}).log_format is config.LogFormat.JSON
    assert loaded.webhook_url_masked == "https://bot.example.org/webhook/***"
    database = {
        name: filled(str(value))
        for name, value in mapping(at(compose, "services", "postgres", "environment")).items()
    }
    assert loaded.database_url.reveal() == (
        f"postgresql://{database['POSTGRES_USER']}:{database['POSTGRES_PASSWORD']}@postgres:5432/{database['POSTGRES_DB']}"
    )
    command = at(compose, "services", "caddy", "command")
    assert isinstance(command, list)
    assert [filled(str(word)) for word in command][-3:] == ["bot.example.org", "--to", f"bot:{loaded.port}"]


def test_every_manifest_names_the_bot_that_runs(
    variables: dict[str, dict[str, Yaml]], compose: Yaml, kubernetes: list[Yaml], fly: dict[str, Any]
) -> None:
    """Whoever puts a bot of his own into the image sees where to name it, and does not deploy the menu bot."""
    entries = at(kubernetes[0], "spec", "template", "spec", "containers", 0, "env")
    assert isinstance(entries, list)
    in_kubernetes = {str(at(entry, "name")): mapping(entry).get("value") for entry in entries}
    in_compose = str(at(compose, "services", "bot", "environment", "BOT_APP"))
    default = config.load(
        {"TELEGRAM_BOT_TOKEN": TOKEN, "DATABASE_URL": DSN, "WEBHOOK_BASE_URL": "https://bot.example"},
        stdin_is_terminal=False,
        stdout_is_terminal=False,
    ).bot_app
    assert {fly["env"]["BOT_APP"], in_kubernetes["BOT_APP"], variables["BOT_APP"]["value"]} == {default}
    assert in_compose == f"${{BOT_APP:-{default}}}"


def test_a_bot_in_a_container_has_a_folder_to_write_to(dockerfile: list[list[str]], compose: Yaml) -> None:
    """Owned by the image's user, and kept beyond the container; in a project that no other folder's name can hit."""
    [user] = [words[1] for words in dockerfile if words[0] == "USER"]
    assert ["RUN", "install", "-d", "-o", user, "/data"] in dockerfile
    assert at(compose, "services", "bot", "volumes", 0) == "files:/data"
    assert at(compose, "name") == "webhook-supervisor"


def test_fly_is_a_good_configuration(fly: dict[str, Any]) -> None:
    """With what Fly sets by itself."""
    loaded = load(
        {
            "TELEGRAM_BOT_TOKEN": TOKEN,
            "DATABASE_URL": DSN,
            "FLY_APP_NAME": "my-bot",
            "FLY_IMAGE_REF": "registry.fly.io/my-bot:deployment-1",
            "FLY_MACHINE_ID": "148e",
            **fly["env"],
        }
    )
    assert loaded.webhook_url_masked == "https://my-bot.fly.dev/webhook/***"
    assert loaded.identity.platform_instance_id == "148e"
    assert str(loaded.identity.deploy_id).startswith("registry.fly.io/my-bot:deployment-1+")


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
    platforms = re.compile(
        r"(RENDER|RAILWAY|FLY|HEROKU)_|(DYNO|HOSTNAME|IS_PULL_REQUEST|PGPASSWORD|PGSERVICE)$"
    )
    assert {name for name in asked - named if not platforms.match(name)} == set()


def test_readme_and_interface_name_the_same_variables() -> None:
    """The contract and what users read are two pages about one thing."""
    text = (ROOT / "docs/INTERFACE.md").read_text(encoding="utf-8")
    section = re.search(r"^## Environment$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    rows = [line.split("|")[1] for line in section[1].splitlines() if line.startswith("| ")][1:]
    promised = set(re.findall(r"[A-Z][A-Z_]+", " ".join(rows)))
    assert promised == set().union(*(names for names, _, _ in readme_rows()))


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
