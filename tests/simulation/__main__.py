"""python -m tests.simulation: many seeds, and what becomes of the promises; a failing one is made smaller and shown.

--seeds N       that many seeds, from --first on; exit 1 if one breaks a promise
--seed N        one seed, with its whole history
--jobs N        processes, default as many as there are cores
--keep          do not make failing plans smaller
--proofs        takes out each safety in turn, and prints by which of the seeds that was caught first (docs/reliability.md)
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.simulation.checker import MAX_ATTEMPTS, Report
from tests.simulation.plan import make_plan
from tests.simulation.sabotage import Safety, first_objection
from tests.simulation.shrink import shrink
from tests.simulation.simulate import simulate, simulate_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--proofs", action="store_true")
    asked = parser.parse_args()
    if asked.seed is not None:
        return _show(asked.seed)
    if asked.proofs:
        return _prove(range(asked.first, asked.first + asked.seeds))
    return _run_many(range(asked.first, asked.first + asked.seeds), asked.jobs, keep=asked.keep)


def _show(seed: int) -> int:
    report, story = simulate(make_plan(seed))
    print(story)
    print(report)
    return bool(report.breaches)


def _prove(seeds: range) -> int:
    print("| without | first caught by | breach |\n| --- | --- | --- |")
    missed = 0
    for safety in Safety:
        found = first_objection(safety, seeds)
        missed += found is None
        caught = "nobody | -" if found is None else f"seed {found[0]} | {found[1]}"
        print(f"| {safety.value} | {caught} |", flush=True)
    return bool(missed)


def _run_many(seeds: Iterable[int], jobs: int, *, keep: bool) -> int:
    begin = time.monotonic()
    failed: list[Report] = []
    reports: list[Report] = []
    cpu_seconds = 0.0
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(simulate_seed, seed) for seed in seeds]):
            report, seconds = future.result()
            reports.append(report)
            cpu_seconds += seconds
            if report.breaches:
                failed.append(report)
                print(f"seed {report.seed}: {'; '.join(report.breaches[:3])}", flush=True)
    _print_summary(reports, cpu_seconds, time.monotonic() - begin)
    if failed and not keep:
        _explain(min(failed, key=lambda report: report.seed))
    return bool(failed)


def _print_summary(reports: list[Report], cpu_seconds: float, wall_seconds: float) -> None:
    minutes = sum(report.simulated_seconds for report in reports) / 60
    print(
        f"{len(reports)} seeds, {minutes:.0f} simulated minutes in {wall_seconds:.0f} s"
        f" ({minutes / cpu_seconds:.1f} a second of CPU): {sum(r.sent for r in reports)} updates sent,"
        f" {sum(r.expired for r in reports)} expired at Telegram ({sum(r.unanswered for r in reports)} of them stored and"
        f" handled, their 200 was lost), {sum(r.taken for r in reports)} answered 200: {sum(r.done for r in reports)} done,"
        f" {sum(r.dead for r in reports)} dead by their handlers' fault, {sum(r.innocent for r in reports)} dead since their"
        f" end could not be committed {MAX_ATTEMPTS} times, {sum(r.forgotten for r in reports)} forgotten by a failover;"
        f" {sum(r.rerun for r in reports)} run again, {sum(r.terms for r in reports)} terms,"
        f" {sum(r.claims for r in reports)} claims of ownership"
    )
    for limit_seconds in sorted({report.limit_seconds for report in reports}):
        alike = [report for report in reports if report.limit_seconds == limit_seconds]
        found = [report.recovery_seconds for report in alike if report.recovery_seconds is not None]
        if found:
            print(
                f"recovery from the end of the last fault, where everything has {limit_seconds:g} s: {len(found)} seeds of"
                f" {len(alike)}, median {statistics.median(found):.0f} s, worst {max(found):.0f} s"
            )
    print(f"{sum(bool(report.breaches) for report in reports)} seeds broke a promise")


def _explain(report: Report) -> None:
    letter = report.breaches[0][0]
    print(f"\nmaking seed {report.seed} smaller (breach {letter})", flush=True)
    small = shrink(make_plan(report.seed), letter)
    found, story = simulate(small)
    print(story)
    print(f"\n{small}\n" + "\n".join(found.breaches))


if __name__ == "__main__":
    sys.exit(main())
