"""The repository keeps the promises that no single module can keep: locks, purity, scenarios, documents."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaign.scenario import all_scenarios

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "deploy/requirements.lock")
BENCH_LOCK = "bench/requirements.lock"  # may differ: of peers that want other versions, for nothing but to be measured beside

MAPPED = ("supervisor", "supervisor/commands", "webhook_worker", "shared/database")
"""Packages that tell at their head what is in them."""

PURE = (
    "shared/answers.py",
    "shared/backoff.py",
    "shared/webhook_info.py",
    "supervisor/messages.py",
    "supervisor/state.py",
    "supervisor/observation.py",
    "supervisor/call_observation.py",
    "supervisor/core.py",
    "supervisor/readings.py",
    "supervisor/session_plan.py",
    "supervisor/workers_plan.py",
    "supervisor/succession.py",
    "supervisor/restart.py",
    "supervisor/drift.py",
    "supervisor/narration.py",
    "webhook_worker/blocked_loop.py",
    "webhook_worker/claim_plan.py",
    "webhook_worker/lanes.py",
    "webhook_worker/menu.py",
    "webhook_worker/outcomes.py",
    "webhook_worker/updates.py",
    "webhook_worker/verify.py",
)
"""Modules that decide and do nothing else."""

IMPURE = frozenset(
    {
        "asyncio",
        "os",
        "time",
        "random",
        "logging",
        "socket",
        "threading",
        "psycopg",
        "httpx",
        "fastapi",
        "telegram",
    }
)
"""What a pure module imports neither itself nor through another module of ours: the time and chance are given to it."""

SCENARIOS = (
    *(f"a{number:02}" for number in (*range(1, 31), 32)),
    *(f"b{number:02}" for number in range(1, 33)),
)
"""The incidents of the predecessor and its kind, and the faults. Each has at least one test that carries its id in its name.
Not a31: callbacks of other services are to come later, and there is nothing yet that could be tested."""


# -------------------------------------------------------------------------------------------------------------- locks


def locked(lock: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name to pin (version and marker) and hashes. Whatever else stands in the file is an error."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    entry = re.compile(
        r"(?P<name>[a-z0-9-]+)==(?P<pin>[A-Za-z0-9.+]+(?: ; [A-Za-z0-9_ .'()<>=!]+)?)"
        r"(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
    )
    entries: dict[str, tuple[str, tuple[str, ...]]] = {}
    at = 0
    while at < len(text):
        found = entry.match(text, at)
        assert found is not None, f"{lock}: not a hashed pin: {text[at : at + 80]!r}"
        assert found["name"] not in entries, f"{lock}: {found['name']} twice"
        entries[found["name"]] = (found["pin"], tuple(re.findall("[0-9a-f]{64}", found["hashes"])))
        at = found.end()
    return entries


@pytest.mark.parametrize("lock", [*LOCKS, BENCH_LOCK])
def test_locks_hold_hashed_pins_and_nothing_else(lock: str) -> None:
    """No URL, host, path or option: what is installed does not depend on where it is fetched from."""
    assert len(locked(lock)) > 20


def test_production_is_a_part_of_what_is_tested() -> None:
    """Every version of production is the tested one, with the same hashes; tests may need it on more systems."""
    tested, production = (
        {name: (pin.partition(" ; ")[0], hashes) for name, (pin, hashes) in locked(lock).items()}
        for lock in LOCKS
    )
    assert {name: tested.get(name) for name in production} == production


def test_locks_hold_everything_that_pyproject_asks_for() -> None:
    """A dependency that is added to pyproject.toml alone would be missing on the next machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = project["dependencies"]
    extras = project["optional-dependencies"]
    locks = (
        (LOCKS[0], [*needed, *extras["local"], *extras["test"]]),
        (LOCKS[1], needed),
        (BENCH_LOCK, [*needed, *extras["bench"]]),
    )
    for lock, lines in locks:
        names = {re.match(r"[A-Za-z0-9-]+", line)[0].lower() for line in lines}  # type: ignore[index]
        assert names - locked(lock).keys() == set(), lock


def test_platforms_that_build_by_themselves_install_production() -> None:
    """Without a requirements.txt at the root Heroku builds nothing, and Railway installs nothing; hashes hold there too."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if not line.startswith("#")] == [f"-r {LOCKS[1]}"]
    # Railway's builder looks for these letters, and copies this one file only where they are not (Railpack, python.go,
    # installNeedsAllFiles): the lock would not be there.
    assert "file://" in text


# --------------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("package", MAPPED)
def test_maps_name_every_module(package: str) -> None:
    """Who opens a package finds each of its modules in the drawing at its head: where a name stands, and not in a sentence."""
    text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    drawing = "\n".join(line for line in (text or "").splitlines() if line.startswith("    "))
    # In the left column, in a list, before its colon, or alone in parentheses.
    named = re.findall(r"\b(\w+)(?:\.py)?(?=  |[:,;)]|$)", drawing, re.MULTILINE)
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    assert modules - set(named) == set()


# ------------------------------------------------------------------------------------------------------------- purity


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, by its full name; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                raise AssertionError(f"{path}: a relative import")


def file_of(module: str) -> Path | None:
    """The file of a module of ours, or None."""
    base = ROOT / Path(*module.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def impurities(path: Path, through: tuple[str, ...] = ()) -> Iterator[str]:
    """The chains of imports that lead from a file to something impure."""
    chain = (*through, path.relative_to(ROOT).as_posix())
    for module in sorted(set(imports_of(path))):
        if module.split(".")[0] in IMPURE:
            yield " -> ".join((*chain, module))
        elif (ours := file_of(module)) is not None and ours.relative_to(ROOT).as_posix() not in chain:
            yield from impurities(ours, chain)


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_reach_nothing_impure(module: str) -> None:
    """Decisions are enumerated and simulated in tests: they must not be able to look at a clock or a network."""
    assert list(impurities(ROOT / module)) == []


def test_impurity_is_seen_through_other_modules() -> None:
    """The check itself objects to an import at the third hand."""
    assert any("psycopg" in chain for chain in impurities(ROOT / "supervisor/lease.py"))
    assert any(chain.count("->") > 1 for chain in impurities(ROOT / "supervisor/runner.py"))


# ---------------------------------------------------------------------------------------------------------- scenarios


def test_names_carry_every_scenario() -> None:
    """Whoever reads of an incident or a fault finds the tests that keep it from coming back."""
    names = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }
    carried = {match[1] for name in names if (match := re.match(r"test_([ab]\d\d)_", name))}
    assert set(SCENARIOS) - carried == set()


def test_modules_of_tests_have_names_of_their_own() -> None:
    """Outside a package a file's name is the module's, and pytest refuses the second one: only in a run of both."""
    names = [
        path.name
        for path in (ROOT / "tests").rglob("test_*.py")
        if not (path.parent / "__init__.py").exists()
    ]
    assert sorted(set(names)) == sorted(names)


def test_the_campaign_has_every_fault() -> None:
    """Each of them is also tried against whole instances, by itself."""
    tried = {scenario.partition("-")[0] for scenario in all_scenarios()}
    assert {scenario for scenario in SCENARIOS if scenario.startswith("b")} - tried == set()


def test_a06_nobody_ends_the_session_of_another() -> None:
    """No function of Postgres that does is called: an owner is asked, or ends by itself."""
    for package in ("supervisor", "webhook_worker", "shared"):
        for path in (ROOT / package).rglob("*.py"):
            assert not re.search("pg_(terminate|cancel)_backend", path.read_text(encoding="utf-8")), path


# ---------------------------------------------------------------------------------------------------------- documents

DOCUMENTS = ("README.md", "deploy/README.md", "docs/decisions.md")


def anchors_of(document: Path) -> set[str]:
    """The anchors of a document's headings, as the usual hosts make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Every relative link names a file that is there, and a heading that is in it."""
    path = ROOT / document
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), f"{document}: {target}"
        if anchor:
            assert anchor in anchors_of(linked), f"{document}: {target}"


def test_cited_documents_are_here() -> None:
    """Code names the page that a number or a rule comes from; whoever reads it can look there."""
    sources = [path for pattern in ("*.py", "*.sql") for path in ROOT.rglob(pattern)]
    own = [path for path in sources if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
    cited = {
        name: path for path in own for name in re.findall(r"\b[A-Z]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert cited.keys() >= {"INTERFACE.md", "TELEGRAM.md", "SCENARIOS.md", "PLATFORMS.md"}
    missing = {name: path for name, path in cited.items() if name != "README.md"}
    assert {name: path for name, path in missing.items() if not (ROOT / "docs" / name).is_file()} == {}


def test_layout_in_the_readme_exists() -> None:
    """A reader who looks where the README says finds it there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Layout$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    folders = re.findall(r"^    ([a-z_/]+/) ", section[1], re.MULTILINE)
    assert len(folders) >= 6
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_the_documents_exist(document: str) -> None:
    """Every `make` target that is named is one of the Makefile's."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z_-]*):", makefile, re.MULTILINE))
    named = set(
        re.findall(r"(?:^    |`)make ([a-z]+)", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert named - targets == set()
