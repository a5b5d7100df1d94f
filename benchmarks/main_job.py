"""The main job as a user runs it, from collecting demonstrations to the report: seconds of each phase, peak memory, success.

python benchmarks/main_job.py [seeds=[0]] [output=benchmarks/results/main_job.json] [key=value ...]

Runs scripts/train.py experiment=toy_pick, once for each training seed, in a temporary folder. All other arguments are passed
on to it. Memory is anonymous and shared memory (RssAnon + RssShmem of Linux's /proc), summed over all processes of the job.
The rates of the seeds are averaged, weighted by their episodes.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks._machine import print_table, read_arguments, save
from vla_mini.evaluation.metrics import wilson

TRAIN = Path(__file__).parents[1] / "scripts" / "train.py"
SAMPLE_SECONDS = 0.1

# Name -> target: lower bounds of success rates, upper bounds of everything else.
AT_LEAST = {
    "seen": 0.95,
    "seen, the worst seed": 0.93,
    "seen, two words needed": 0.90,
    "held_out_pairs": 0.85,
    "held_out_phrasings": 0.90,
    "swapped": 0.90,
}
AT_MOST = {"wrong object": 0.03, "blank above chance": 0.10, "seconds, the slowest": 300.0, "peak memory, GB": 2.5}


def main() -> None:
    arguments = read_arguments(seeds=[0], output="benchmarks/results/main_job.json", others=[])
    jobs = []
    for seed in arguments["seeds"]:
        print(f"seed {seed}: the main job runs", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            jobs.append({"seed": seed} | run_job(Path(folder), [f"seed={seed}", *arguments["others"]]))
    pooled = pool([job["metrics"] for job in jobs])
    pooled["seconds, the slowest"] = max(job["seconds"] for job in jobs)
    pooled["peak memory, GB"] = max(job["peak_bytes"] for job in jobs) / 1e9
    print_phases(jobs)
    print_table([compared(name, value) for name, value in pooled.items()], header=("", "measured", "target", ""))
    targets = {"at_least": AT_LEAST, "at_most": AT_MOST}
    save({"figures": pooled, "targets": targets, "jobs": jobs, "arguments": arguments["others"]}, arguments["output"])


def run_job(folder: Path, settings: list[str]) -> dict[str, Any]:
    """One main job, without demonstrations, within `folder`: its phases, its memory, its metrics.json."""
    data, run = folder / "data" / "demonstrations", folder / "run"
    command = [sys.executable, TRAIN, "experiment=toy_pick", f"data.root={data}", f"hydra.run.dir={run}", *settings]
    start = time.time()
    with (folder / "log.txt").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            samples = watch(child)
        finally:
            child.terminate()  # after an interrupt, which does not reach its session
    end = time.time()
    if child.returncode:
        raise SystemExit(f"{(folder / 'log.txt').read_text()[-3000:]}\nthe main job ended with exit code {child.returncode}")
    marks = phases(start, end, data=data, run=run)
    return {
        "seconds": end - start,
        "peak_bytes": max(used for _, used in samples),
        "phases": {
            name: {"seconds": last - first, "peak_bytes": max((u for t, u in samples if first <= t <= last), default=None)}
            for name, (first, last) in marks.items()
        },
        "metrics": json.loads((run / "evaluation" / "metrics.json").read_text()),
    }


def phases(start: float, end: float, *, data: Path, run: Path) -> dict[str, tuple[float, float]]:
    """When each phase began and ended, by the modification times of the files that are written at its end."""
    marks = {
        "collecting": data / "meta" / "info.json",
        "decoding": run / "config.yaml",
        "training": run / "checkpoints" / "last.ckpt",
        "evaluating": run / "evaluation" / "metrics.json",
        "report": run / "report.html",
    }
    times = [start, *(path.stat().st_mtime for path in marks.values()), end]
    return dict(zip([*marks, "exiting"], pairwise(times), strict=True))


def watch(child: subprocess.Popen) -> list[tuple[float, int]]:
    """(time, bytes in use) of a process and its descendants, until it ends. It is the leader of a session of its own."""
    samples = []
    while True:
        samples.append((time.time(), sum(memory(pid) for pid in family(child.pid))))
        try:
            child.wait(SAMPLE_SECONDS)
            return samples
        except subprocess.TimeoutExpired:
            continue


def family(leader: int) -> set[int]:
    """The processes of the session that `leader` leads, and their descendants in sessions of their own."""
    parents: dict[int, int] = {}
    members = {leader}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()  # the name before may hold brackets
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(fields[1])
        if int(fields[3]) == leader:
            members.add(int(folder.name))
    while children := {child for child, parent in parents.items() if parent in members} - members:
        members |= children
    return members


def memory(pid: int) -> int:
    """Anonymous and shared bytes of a process, without pages of mapped files; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    kilobytes = [line.split()[1] for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    return 1024 * sum(map(int, kilobytes))


def pool(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The rates of several evaluation/metrics.json as one, each weighted by its episodes."""
    seen = [each["splits"]["seen"] for each in metrics]
    blank = [each["grounding"]["blank"] for each in metrics]
    rates = [split["success_rate"] for split in seen]
    episodes = sum(split["episodes"] for split in seen)
    return {
        "seen": weighted(seen, "success_rate"),
        "seen, 95 % interval": wilson(round(weighted(seen, "success_rate") * episodes), episodes),
        "seen, the worst seed": min(rates),
        "seen, each seed": rates,
        "seen, two words needed": weighted([split["two_words"] for split in seen], "success_rate"),
        "wrong object": weighted(seen, "wrong_object_rate"),
        "held_out_pairs": weighted([each["splits"]["held_out_pairs"] for each in metrics], "success_rate"),
        "held_out_phrasings": weighted([each["splits"]["held_out_phrasings"] for each in metrics], "success_rate"),
        "swapped": weighted([each["grounding"]["swapped"] for each in metrics], "success_rate"),
        "blank above chance": weighted(blank, "original_object_rate") - weighted(blank, "chance_rate"),
    }


def weighted(parts: Iterable[dict[str, Any]], rate: str) -> float:
    parts = list(parts)
    episodes = sum(part["episodes"] for part in parts)
    return sum(part["episodes"] * part[rate] for part in parts) / max(1, episodes)


def compared(name: str, value: Any) -> tuple[str, str, str, str]:
    """A row of the table: name, figure, target, and "missed" where it is."""
    rate = not name.startswith(("seconds", "peak"))

    def text(number: float) -> str:
        return f"{number:.1%}" if rate else f"{number:,.1f}"

    measured = " ".join(map(text, value)) if isinstance(value, list | tuple) else text(value)
    if name in AT_LEAST:
        return name, measured, f"at least {text(AT_LEAST[name])}", "" if value >= AT_LEAST[name] else "missed"
    if name in AT_MOST:
        return name, measured, f"at most {text(AT_MOST[name])}", "" if value <= AT_MOST[name] else "missed"
    return name, measured, "", ""


def print_phases(jobs: list[dict[str, Any]]) -> None:
    """Print a row for each phase, a pair of columns for each seed."""
    header = ["", *(f"seed {job['seed']}, {unit}" for job in jobs for unit in ("s", "GB"))]
    rows = []
    for name in jobs[0]["phases"]:
        cells = [(job["phases"][name]["seconds"], job["phases"][name]["peak_bytes"]) for job in jobs]
        rows.append((name, *(cell for spent, peak in cells for cell in (spent, peak and peak / 1e9))))
    rows.append(("total", *(cell for job in jobs for cell in (job["seconds"], job["peak_bytes"] / 1e9))))
    print_table(rows, header=tuple(header))
    print()


if __name__ == "__main__":
    main()
