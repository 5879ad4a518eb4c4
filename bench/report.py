"""The table, results.json, and docs/performance.md with its plots.

Printed is what this run has measured. What an earlier one measured of other figures stays in the files, with when that was, of
which commit, and on what machine. In docs/performance.md only what stands between the markers is written.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.figures import TARGETS, Figure, Series

_ROOT = Path(__file__).resolve().parents[1]
RESULTS = _ROOT / "bench" / "results.json"
PAGE = _ROOT / "docs" / "performance.md"
PLOTS = PAGE.parent / "performance"

Results = dict[str, dict[str, Any]]


def as_results(figures: Sequence[Figure], commit: str) -> Results:
    """What results.json has of figures of that commit, by name.

    Raises:
        KeyError: one has no target.
    """
    targets = {target.name: target for target in TARGETS}
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    machine = f"{platform.python_implementation()} {platform.python_version()}, {_processor()}"
    return {
        figure.name: {
            "value": _rounded(figure.value),
            "target": targets[figure.name].value,
            "met": targets[figure.name].is_met(figure.value),
            "rounds": [_rounded(value) for value in figure.rounds],
            "beside": figure.beside,
            "measured": now,
            "commit": commit,
            "machine": machine,
        }
        for figure in figures
    }


def present_commit() -> str:
    """Of the code as it is now, "+" behind it where files differ from it; empty outside of a clone.

    What a run writes itself makes no difference.
    """
    written = (RESULTS, PAGE, PLOTS)
    paths = [".", *(f":!{path.relative_to(_ROOT)}" for path in written)]
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        return commit + "+" * bool(_git("status", "--porcelain", "--", *paths))
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def print_table(results: Results) -> None:
    """In the order of the targets."""
    rows = [target for target in TARGETS if target.name in results]
    for target in rows:
        result = results[target.name]
        met = "met" if result["met"] else "NOT MET"
        print(
            f"{target.text:<82} {result['value']:>9g}  {target.better.value} {target.value:<5g} {met}",
            flush=True,
        )


def write(measured: Results, series: Sequence[Series], path: Path, *, write_docs: bool) -> None:
    """Writes what was measured.

    Args:
        measured: in this run.
        series: the same.
        path: of results.json; what it has of other figures stays.
        write_docs: also draw the plots, and write docs/performance.md.
    """
    results: Results = json.loads(path.read_text()) if path.exists() else {}
    results |= measured
    path.write_text(json.dumps(results, indent=2) + "\n")
    if write_docs:
        _draw(series)
        _write_page(results)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _draw(series: Sequence[Series]) -> None:
    if not series:
        return
    # Only here: who measures need not have it.
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "bench"  # the same picture, the same file
    from matplotlib import pyplot as plt

    PLOTS.mkdir(parents=True, exist_ok=True)
    by_plot: dict[str, list[Series]] = defaultdict(list)
    for line in series:
        by_plot[line.plot].append(line)
    for plot, lines in by_plot.items():
        figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
        largest = 0.0
        for line in lines:
            xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
            largest = max(largest, *xs, 0.0)
            axes.plot(xs, ys, marker="o" if len(xs) < 50 else None, markersize=4, label=line.label)
        axes.set(xlabel=lines[0].x, ylabel=lines[0].y)
        if _spans_magnitudes([x for line in lines for x, _ in line.points]):
            axes.set_xscale("symlog", linthresh=min(x for line in lines for x, _ in line.points if x > 0))
            axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        figure.savefig(PLOTS / f"{plot}.svg", metadata={"Date": None})
        plt.close(figure)


def _spans_magnitudes(xs: Sequence[float]) -> bool:
    positive = [x for x in xs if x > 0]
    return bool(positive) and max(positive) / min(positive) >= 200


def _write_page(results: Results) -> None:
    page = PAGE.read_text()
    page = _between(page, "table", _table(results))
    page = _between(page, "rates", _rates(results))
    plots = sorted(PLOTS.glob("*.svg"))
    page = _between(page, "plots", "\n".join(f"![{_title(p)}](performance/{p.name})" for p in plots))
    PAGE.write_text(page)


def _title(path: Path) -> str:
    return path.stem.replace("_", ", ")


def _between(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}: written by make bench -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{PAGE.name} lacks the markers {begin} and {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def _table(results: Results) -> str:
    lines = [
        "| what | reached | target | | by rate | measured, of commit |",
        "|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        cells = [target.text]
        if (result := results.get(target.name)) is None:
            cells += ["not measured", "", "", "", ""]
        else:
            cells += [f"{result['value']:g}", f"{target.better.value} {target.value:g}", _word(result["met"])]
            cells += [_by_rate(result["beside"]), f"{result['measured'][:10]}, {result['commit']}"]
        lines.append(f"| {' | '.join(cells)} |")
    machines = dict.fromkeys(result["machine"] for result in results.values())
    return "\n".join([*lines, "", f"Measured on: {'; '.join(machines)}."])


def _by_rate(beside: dict[str, Any]) -> str:
    """The worse ratio of the rates, where the CPU decides."""
    if beside.get("decides") != "CPU":
        return ""
    return f"{min(value['rate ratio'] for key, value in beside.items() if key.endswith(' connections')):g}"


def _word(met: bool) -> str:
    return "met" if met else "**not met**"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    return next(
        (s.partition(":")[2].strip() for s in text.splitlines() if s.startswith("model name")), "a processor"
    )


def _rates(results: Results) -> str:
    """The rates and costs that stand beside the ratios."""
    lines = [
        "| what | connections | ratio of rates | of CPU | ours, updates/s | CPU-s for 1,000 | peer, updates/s | the same |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        beside = results.get(target.name, {}).get("beside", {})
        for key, value in beside.items():
            if not key.endswith(" connections"):
                continue
            ours, peer = value["ours"], value["peer"]
            rate, cost = "updates a second", "CPU-seconds for 1,000"
            lines.append(
                f"| {target.name} | {key.partition(' ')[0]} | {value['rate ratio']:g} | {value['CPU ratio']:g} "
                f"| {ours[rate]:,} | {ours[cost]:.3f} | {peer[rate]:,} | {peer[cost]:.3f} |"
            )
    return "\n".join(lines)
