"""The campaign's command: `python -m tests.campaign [IDS...]`; see `--help`, and `tests.campaign`.

Exit status: 0 nothing found; 1 a breach, a failure, or, with CI in the environment, a scenario that was skipped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from deploy.local.postgres_binaries import find_binaries
from tests.campaign.result import Result, format_bounds, format_table
from tests.campaign.scenario import Scenario, all_scenarios
from tests.campaign.staging import SETTINGS, Options, make_server, stage

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- campaign:begin -->", "<!-- campaign:end -->"
_SHOWN = 10


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign", description="Real faults, and a judge that can object."
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="scenarios (b01 ...); all by default")
    parser.add_argument("--short", action="store_true", help="the shortened campaign, as in CI")
    parser.add_argument("--seed", type=int, default=None, help="of all random choices; printed if not given")
    parser.add_argument(
        "--repetitions", "--steps", type=int, default=None, help="of the fault, in each scenario"
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="where the results go")
    parser.add_argument("--write-docs", action="store_true", help=f"puts the table into docs/{DOCUMENT.name}")
    parser.add_argument(
        "--keep", action="store_true", help="keeps the logs of scenarios without a breach too"
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


async def run(scenarios: list[Scenario], options: Options) -> list[Result]:
    """Stages them, one after the other, and says what comes of each."""
    results = []
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        server = make_server(Path(folder) / "postgres", options.binaries, SETTINGS)
        await asyncio.to_thread(server.start)
        try:
            for scenario in scenarios:
                print(f"{scenario.id} {scenario.title}", flush=True)
                missing = scenario.missing()
                if missing is not None:
                    results.append(Result(scenario.id, scenario.title, skipped=missing))
                    print(f"    SKIPPED: {missing}", flush=True)
                    continue
                results.append(await stage(scenario, server, options))
                tell(results[-1])
        finally:
            await asyncio.to_thread(server.close)
    return results


def tell(result: Result) -> None:
    """What a scenario came to, as it goes."""
    print(f"    {result.seconds:.0f} s, {result.faults} faults", flush=True)
    for name, times in result.times.items():
        print(
            f"    {name}: median {statistics.median(times):.3f} s, worst {max(times):.3f} s, n={len(times)}"
        )
    for report in result.bounds:
        print(f"    {report}")
    for objection in result.objections[:_SHOWN]:
        print(f"    BREACH {objection}")
    if len(result.objections) > _SHOWN:
        print(f"    ... and {len(result.objections) - _SHOWN} more", flush=True)


def write_document(results: list[Result], heading: str) -> None:
    """Replaces what stands between the markers of docs/reliability.md."""
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = f"{heading}\n\n{format_table(results)}\n\n{format_bounds(results)}"
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


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
        "bounds": [str(report) for report in result.bounds],
        "took_seconds": round(result.seconds, 1),
    }


def main() -> int:
    """Runs the campaign."""
    arguments = read_arguments()
    scenarios = choose(arguments.ids)
    if arguments.list:
        for scenario in scenarios:
            print(f"{scenario.id} {scenario.title}: {scenario.repetitions}, short {scenario.short}")
        return 0
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    options = Options(
        seed=seed,
        is_short=arguments.short,
        repetitions=arguments.repetitions,
        binaries=find_binaries(os.environ.get("LOCAL_POSTGRES", "")),
        keeps=arguments.keep,
    )
    kind = "short" if options.is_short else "long"
    print(f"{kind} campaign of {len(scenarios)} scenarios, seed {seed}", flush=True)
    begin = time.monotonic()
    results = asyncio.run(run(scenarios, options))
    minutes = (time.monotonic() - begin) / 60
    print(f"\n{format_table(results)}\n\n{format_bounds(results)}\n\n{minutes:.1f} minutes, seed {seed}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([as_json(result) for result in results], indent=1))
    if arguments.write_docs:
        write_document(results, f"{kind.capitalize()} campaign, {minutes:.0f} minutes, seed {seed}.")
    bad = [result.id for result in results if not result.is_good]
    skipped = [result.id for result in results if result.skipped is not None]
    if bad:
        print(f"BREACHES in {', '.join(bad)}")
    if skipped:
        print(f"skipped: {', '.join(skipped)}")
    return 1 if bad or (skipped and os.environ.get("CI") == "true") else 0


if __name__ == "__main__":
    sys.exit(main())
