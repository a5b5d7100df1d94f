"""How many planted faults the tests catch: 40 faults, one at a time, in a copy of the package.

    python benchmarks/planted_faults.py [checkout=DIR] [faults=["name", ...]] [stages=["mirror","suite"]] [baseline=1]
        [workers=2] [limit=1800] [output=benchmarks/results/planted_faults.json]

Each fault of planted_faults.yaml replaces a text that occurs exactly once in one file. First run the test files that mirror
that file (stage `mirror`), then, if all of them pass, the whole suite until its first failure (stage `suite`). A test that
does not end within `limit` seconds counts as failed. `baseline=1` runs the suite once without a fault, and leaves out what
fails there. `checkout` is any checkout of this repository, with the code of before the redesign (`old`) or after it (`new`).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml

from benchmarks._machine import print_table, read_arguments, save

FAULTS = Path(__file__).with_suffix(".yaml")
LEFT_OUT = {".git", ".venv", "runs", "outputs", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", ".cache"}


class Fault(NamedTuple):
    """A search and replacement of exact text in one file, by its path within the checkout."""

    name: str
    file: str
    find: str
    replace: str


def main() -> None:
    arguments = read_arguments(
        checkout=str(Path(__file__).parents[1]),
        faults=[],
        stages=["mirror", "suite"],
        baseline=1,
        workers=2,
        limit=1800,
        output="benchmarks/results/planted_faults.json",
    )
    checkout = Path(arguments["checkout"]).resolve()
    version, faults = read_faults(checkout)
    if unknown := set(arguments["faults"]) - {fault.name for fault in faults}:
        raise SystemExit(f"faults: there is no fault {unknown.pop()!r} in {FAULTS.name}")
    faults = [fault for fault in faults if not arguments["faults"] or fault.name in arguments["faults"]]
    with TemporaryDirectory() as folder:
        tests = Tests(copy(checkout, Path(folder) / "copy"), workers=arguments["workers"], limit=arguments["limit"])
        if arguments["baseline"]:
            tests.leave_out_failing()
        results = [check(tests, fault, arguments["stages"]) for fault in faults]
    print_table(
        [(result["fault"], result["seconds"], result["caught_by"] or "NOT CAUGHT") for result in results],
        header=("fault", "seconds", "caught by"),
    )
    caught = sum(result["caught_by"] is not None for result in results)
    print(f"\n{caught} of {len(results)} faults caught in {checkout} ({version})")
    figures = {"version": version, "failing_without_a_fault": tests.failing, "faults": len(results), "caught": caught}
    save(figures | {"results": results}, arguments["output"])


def read_faults(checkout: Path) -> tuple[str, list[Fault]]:
    """("old" or "new", its faults). Asserts that each text to find is in its file exactly once."""
    version = "old" if (checkout / "vla_mini/data/windows.py").exists() else "new"
    entries = yaml.safe_load(FAULTS.read_text(encoding="utf-8"))
    faults = [Fault(name, **texts[version]) for name, texts in entries.items() if version in texts]
    for fault in faults:
        count = (checkout / fault.file).read_text(encoding="utf-8").count(fault.find)
        assert count == 1, f"{fault.name}: its text occurs {count} times in {fault.file}"
        assert fault.find != fault.replace, fault.name
    return version, faults


def copy(checkout: Path, to: Path) -> Path:
    """A copy of the checkout without environments, runs and datasets."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        datasets = set(names) - {"README.md"} if Path(folder) == checkout / "data" else set()
        return (LEFT_OUT & set(names)) | datasets

    return Path(shutil.copytree(checkout, to, ignore=left_out, symlinks=True))


def check(tests: "Tests", fault: Fault, stages: list[str]) -> dict[str, Any]:
    """Plant the fault, run the tests until one fails, and take the fault out again."""
    path = tests.root / fault.file
    text, start, caught, stage = path.read_text(encoding="utf-8"), time.perf_counter(), None, None
    rewrite(path, text.replace(fault.find, fault.replace))
    try:
        for stage in stages:
            files = mirroring(tests.root, fault.file) if stage == "mirror" else []
            if (files or stage == "suite") and (caught := tests.first_failure(files)):
                break
    finally:
        rewrite(path, text)
    seconds = time.perf_counter() - start
    print(f"{fault.name}: {caught or 'NOT CAUGHT'} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    return {"fault": fault.name, "file": fault.file, "caught_by": caught, "stage": caught and stage, "seconds": seconds}


def rewrite(path: Path, text: str) -> None:
    """Replace the content of a file, and make it newer: Python recognises an outdated bytecode file by size and time alone."""
    modified = path.stat().st_mtime
    path.write_text(text, encoding="utf-8")
    os.utime(path, (modified + 10, modified + 10))


def mirroring(root: Path, file: str) -> list[str]:
    """The test files that mirror a file of the package: those named after it, then those of its folder."""
    path = Path(file).relative_to("vla_mini")
    folder = root / "tests" / (path.parts[0] if len(path.parts) > 1 else "")
    names = [path.stem.strip("_"), *reversed(path.parts[:-1])]
    found = [found for name in names for found in sorted((root / "tests").rglob(f"test_*{name}*.py"))]
    if len(path.parts) > 1:
        found += sorted(folder.glob("test_*.py"))
    return [str(path.relative_to(root)) for path in dict.fromkeys(found)]


class Tests:
    """The test suite of the copy `root`, by pytest in a process of its own, with the copy's package."""

    def __init__(self, root: Path, *, workers: int, limit: float) -> None:
        self.root, self.workers, self.limit = root, workers, limit
        self.failing: list[str] = []  # without any fault

    def leave_out_failing(self) -> None:
        self.failing = self._run([], stop=False)
        print(f"without a fault, {len(self.failing)} tests fail: {', '.join(self.failing)}", file=sys.stderr, flush=True)

    def first_failure(self, files: list[str]) -> str | None:
        """The first test that fails in these files, or in the whole suite for none; None where all pass."""
        return next(iter(self._run(files, stop=True)), None)

    def _run(self, files: list[str], *, stop: bool) -> list[str]:
        """The tests that fail."""
        command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", *(["-x"] if stop else []), *files]
        command += [f"--deselect={name}" for name in self.failing]
        command += ["-n", str(self.workers)] if not files and self.workers > 1 else []
        settings = {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=self.limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return [f"a test that does not end within {self.limit:.0f} s"]
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+(?:\[.*?\])?)(?: - .*)?$", output, re.MULTILINE)
        if process.returncode not in (0, 5) and not failed:  # 5: no test was found
            failed = [f"pytest itself: {output.strip().splitlines()[-1:]}"]
        return failed


if __name__ == "__main__":
    main()
