"""The campaign's command: `python -m tests.campaign [IDS...]`; see `--help`, and `tests.campaign`.

Exit status: 0 nothing found; 1 a breach, a failure, or, with CI=true in the environment, a scenario that was skipped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from datetime import date
from pathlib import Path

from deploy.local.postgres_binaries import find_binaries
from tests.campaign import proof
from tests.campaign.result import Result, bring_up_to_date, format_bounds, format_table
from tests.campaign.sabotage import Safety
from tests.campaign.scenario import Scenario, all_scenarios
from tests.campaign.staging import Options, enter_pool, run_one, shared_server

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
_SHOWN = 10


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign", description="Real faults, and a judge that can object."
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="scenarios (b01 ...); all by default")
    parser.add_argument("--short", action="store_true", help="the shortened campaign, as in CI")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many scenarios at a time")
    parser.add_argument("--seed", type=int, default=None, help="of all random choices; printed if not given")
    parser.add_argument(
        "--repetitions", "--steps", type=int, default=None, help="of the fault, in each scenario"
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="where the results go")
    parser.add_argument(
        "--write-docs", action="store_true", help=f"puts the rows into the table of docs/{DOCUMENT.name}"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keeps the logs of scenarios without a breach too"
    )
    parser.add_argument(
        "--sabotage",
        default=None,
        metavar="SAFETY",
        help="proves the judge instead: all, or the name of a safety",
    )
    parser.add_argument("--list", action="store_true", help="only tells what there is")
    return parser.parse_args(arguments)


def choose(ids: list[str]) -> list[Scenario]:
    """The scenarios of these ids, all without any."""
    scenarios = all_scenarios()
    unknown = [id_ for id_ in ids if id_ not in scenarios]
    if unknown:
        sys.exit(f"no scenario {', '.join(unknown)}; there are {', '.join(scenarios)}")
    return [scenarios[id_] for id_ in ids or scenarios]


def run(scenarios: list[Scenario], options: Options, *, jobs: int) -> list[Result]:
    """Stages them, so many at a time, each in a process of its own, and says what comes of each."""
    results: dict[str, Result] = {}
    context = multiprocessing.get_context("spawn")
    entering = (context.Value("i", 0), jobs)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=enter_pool, initargs=entering) as pool:
        staged: dict[Future[Result], Scenario] = {}
        for scenario in scenarios:
            missing = scenario.missing()
            if missing is None:
                staged[pool.submit(run_one, scenario.id, options)] = scenario
            else:
                results[scenario.id] = Result(scenario.id, scenario.title, skipped=missing)
                print(f"{scenario.id} {scenario.title}\n    SKIPPED: {missing}", flush=True)
        for done in as_completed(staged):
            scenario = staged[done]
            results[scenario.id] = done.result()
            print(f"{scenario.id} {scenario.title}", flush=True)
            tell(results[scenario.id])
    return [results[scenario.id] for scenario in scenarios]


async def run_proofs(safeties: Sequence[Safety], options: Options) -> list[proof.Proof]:
    """Takes one safety out after the other, and says who noticed."""
    proofs = []
    async with shared_server(options) as server:
        for safety in safeties:
            print(f"without {safety.value}", flush=True)
            proofs.append(await proof.prove(safety, all_scenarios(), server, options))
            print(f"    {' | '.join(proofs[-1].cells()[1:])}", flush=True)
    return proofs


def tell(result: Result) -> None:
    """What a scenario came to, as it goes."""
    print(f"    {result.seconds:.0f} s, {result.faults} faults", flush=True)
    for name, times in result.times.items():
        print(
            f"    {name}: median {statistics.median(times):.3f} s, worst {max(times):.3f} s, n={len(times)}"
        )
    for name, figure in result.figures.items():
        print(f"    {name}: {figure:g}")
    for report in result.bounds:
        print(f"    {report}")
    for objection in result.objections[:_SHOWN]:
        print(f"    BREACH {objection}")
    if len(result.objections) > _SHOWN:
        print(f"    ... and {len(result.objections) - _SHOWN} more", flush=True)


def write_document(marker: str, change: Callable[[str], str]) -> None:
    """Changes what stands between two markers of docs/reliability.md."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    before, found, rest = DOCUMENT.read_text().partition(begin)
    text, ended, after = rest.partition(end)
    assert found, f"{DOCUMENT} has no {begin}"
    assert ended, f"{DOCUMENT} has no {end}"
    DOCUMENT.write_text(f"{before}{begin}\n{change(text)}\n{end}{after}")


def as_json(result: Result) -> dict[str, object]:
    """A result for other programs."""
    verdict = None if result.judgement is None else result.judgement.verdict
    return {
        "scenario": result.id,
        "title": result.title,
        "skipped": result.skipped,
        "repetitions": result.repetitions,
        "faults": result.faults,
        "sent": 0 if verdict is None else verdict.sent,
        "answered_200": result.answered_200,
        "handled": 0 if result.judgement is None else result.judgement.done,
        "dead": 0 if result.judgement is None else result.judgement.dead,
        "rerun": 0 if verdict is None else verdict.rerun,
        "lost": 0 if verdict is None else len(verdict.lost),
        "doubled": 0 if verdict is None else len(verdict.doubled),
        "out_of_order": 0 if verdict is None else len(verdict.out_of_order),
        "breaches": [str(objection) for objection in result.objections],
        "seconds": dict(result.times),
        "figures": dict(result.figures),
        "bounds": [str(report) for report in result.bounds],
        "took_seconds": round(result.seconds, 1),
    }


def campaign(arguments: argparse.Namespace, options: Options) -> int:
    """Stages the scenarios and prints their table; the exit status."""
    scenarios = choose(arguments.ids)
    kind = "short" if options.is_short else "long"
    print(f"{kind} campaign of {len(scenarios)} scenarios, seed {options.seed}", flush=True)
    begin = time.monotonic()
    results = run(scenarios, options, jobs=arguments.jobs)
    heading = (
        f"{kind.capitalize()} campaign, {(time.monotonic() - begin) / 60:.0f} minutes, seed {options.seed}."
    )
    table = "\n\n".join(part for part in (heading, format_table(results), format_bounds(results)) if part)
    print(f"\n{table}\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([as_json(result) for result in results], indent=1))
    if arguments.write_docs:
        run_name = f"{kind}, {date.today()}, seed {options.seed}"
        order = list(all_scenarios())
        write_document("campaign", lambda text: bring_up_to_date(text, results, run_name, order))
    return conclude(results, may_skip=os.environ.get("CI") != "true")


def conclude(results: Sequence[Result], *, may_skip: bool) -> int:
    """Says what failed, and why; the exit status."""
    bad = [result.id for result in results if not result.is_good]
    skipped = [f"{result.id} ({result.skipped})" for result in results if result.skipped is not None]
    if bad:
        print(f"BREACHES in {', '.join(bad)}")
    if skipped:
        consequence = "" if may_skip else ", and with CI=true that is a failure"
        print(f"skipped{consequence}: {', '.join(skipped)}")
    return 1 if bad or (skipped and not may_skip) else 0


def proofs(arguments: argparse.Namespace, options: Options) -> int:
    """Takes safeties out and prints who noticed; the exit status."""
    try:
        safeties = proof.choose(arguments.sabotage)
    except ValueError:
        names = ", ".join(f'"{safety.value}"' for safety in Safety)
        sys.exit(f"no safety is called so; all, or one of {names}")
    found = asyncio.run(run_proofs(safeties, options))
    table = proof.format_proofs(found)
    print(f"\n{table}\n")
    if arguments.write_docs:
        write_document("proof", lambda _: table)
    return 1 if any(item.caught_by is None for item in found) else 0


def main() -> int:
    """Runs what was asked for."""
    arguments = read_arguments()
    if arguments.list:
        for scenario in choose(arguments.ids):
            print(f"{scenario.id} {scenario.title}: {scenario.repetitions}, short {scenario.short}")
        return 0
    options = Options(
        seed=int(time.time()) if arguments.seed is None else arguments.seed,
        is_short=arguments.short,
        repetitions=arguments.repetitions,
        binaries=find_binaries(os.environ.get("LOCAL_POSTGRES", "")),
        keeps=arguments.keep,
    )
    return campaign(arguments, options) if arguments.sabotage is None else proofs(arguments, options)


if __name__ == "__main__":
    sys.exit(main())
