"""`python -m bench`: see --help."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Protocol, cast

import uvloop

from bench import report
from bench.bed import LOAD_CORE, SERVER_CORE, Bed, make_bed
from bench.figures import Figure, Series
from bench.options import Options

USUAL_PARTS = ("throughput", "start", "latency", "scale")
PARTS = (*USUAL_PARTS, "soak", "growth")


def main() -> None:
    """Measures, prints the table, and writes what came out. Exit status 1 where a target was not met."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="How fast it is, beside its peers.")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; the last two only if said"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each is measured, in turns (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of load in a round (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the soak (%(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="only whether it works; the numbers mean nothing"
    )
    parser.add_argument(
        "--only", default="", help="throughput: these contenders alone, e.g. ours,run_webhook"
    )
    parser.add_argument(
        "--json", type=Path, default=report.RESULTS, help="where the results go (%(default)s)"
    )
    parser.add_argument("--write-docs", action="store_true", help="also into docs/performance.md, with plots")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not {SERVER_CORE, LOAD_CORE} <= (cores := os.sched_getaffinity(0)):
        parser.error(
            f"the cores {SERVER_CORE} and {LOAD_CORE} are needed, one for the servers and one for the load; there are "
            f"{sorted(cores)}: use a machine with two, without taskset or a cpuset"
        )
    options = Options(
        rounds=given.rounds,
        seconds=given.seconds,
        minutes=given.minutes,
        quick=given.quick,
        only=frozenset(filter(None, given.only.split(","))),
    )
    commit = report.present_commit()  # before hours in which somebody may go on working
    measured: report.Results = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        for part in given.parts or USUAL_PARTS:
            print(f"== {part}", flush=True)
            figures, series = runner.run(_measure(Path(folder) / part, part, options))
            measured |= report.as_results(figures, commit)
            if not options.quick and not options.only:
                # After each: what was measured stays when a later part fails.
                report.write(measured, series, given.json, write_docs=given.write_docs)
            report.print_table(measured)
    if not options.quick and not all(result["met"] for result in measured.values()):
        sys.exit(1)


async def _measure(folder: Path, part: str, options: Options) -> tuple[list[Figure], list[Series]]:
    # Only what is asked for is imported: plots and parts that are not run may need what is not installed.
    module: _Part = cast(_Part, importlib.import_module(f"bench.{part}"))
    # Each on a fresh Postgres: what one leaves behind is nothing to the next.
    async with make_bed(folder, settings=getattr(module, "POSTGRES_SETTINGS", None)) as bed:
        return await module.measure(bed, options)


class _Part(Protocol):
    """What each part's module has; and POSTGRES_SETTINGS where it needs some."""

    async def measure(self, bed: Bed, options: Options) -> tuple[list[Figure], list[Series]]:
        """Measures."""


if __name__ == "__main__":
    main()
