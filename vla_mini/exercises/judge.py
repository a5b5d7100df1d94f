"""Judge a student's file: its text and the exercise's check -> a verdict in words.

`judge_file` runs the student's code in a process of its own with a time limit, so that an infinite loop or a call of exit ends
that process alone. What the code prints is shown. `judge` is the same within this process.
"""

import faulthandler
import importlib
import inspect
import re
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import NamedTuple

from vla_mini.exercises.catalogue import Exercise, find
from vla_mini.utils.errors import one_line
from vla_mini.utils.files import read_json, write_json

LIMIT = 20.0  # seconds for a student's code; the right answers take less than one
PASSED, WRONG, NOT_JUDGED = 0, 1, 2  # the exit codes of the command, too


class Verdict(NamedTuple):
    code: int
    message: str


def judge_file(exercise: Exercise, *, limit: float = LIMIT) -> Verdict:
    """The verdict on `exercise.path`, from another process, which is ended after `limit` seconds of the student's code."""
    if not exercise.path.is_file():
        start = f"python -m vla_mini.exercises start {exercise.number}"
        return Verdict(NOT_JUDGED, f"{exercise.path} does not exist: {start} writes it")
    with tempfile.TemporaryDirectory() as folder:
        report, watchdog = Path(folder, "report.json"), Path(folder, "watchdog.txt")
        command = [sys.executable, "-m", "vla_mini.exercises.judge", exercise.name, str(report), str(watchdog), str(limit)]
        code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
        if report.is_file():
            return Verdict(*read_json(report))
        if stopped := watchdog.read_text(encoding="utf-8", errors="replace") if watchdog.is_file() else "":
            line = re.search(rf'File "{re.escape(str(exercise.path))}", line (\d+)', stopped)
            place = f", in line {line[1]}" if line else ""
            return Verdict(WRONG, f"{exercise.path} was stopped after {limit:g} s{place}: is there a loop that does not end?")
    return Verdict(NOT_JUDGED, f"{exercise.path} ended the judge's process (exit code {code}): does it call exit?")


def judge(exercise: Exercise, source: bytes) -> Verdict:
    """The verdict on a student's file that holds `source`."""
    path = str(exercise.path)
    module = types.ModuleType(exercise.path.stem)
    try:
        code = compile(source, path, "exec")
    except SyntaxError as error:
        line = f": {error.text.strip()}" if error.text else ""
        return Verdict(NOT_JUDGED, f"{path}, line {error.lineno}: {error.msg}{line}")
    except ValueError as error:  # null bytes
        return Verdict(NOT_JUDGED, f"{path}: {one_line(error)}")
    from vla_mini.exercises.compare import WrongAnswerError  # imports torch, as the exercises do

    check = importlib.import_module(f"vla_mini.exercises.tasks.{exercise.name}")
    try:
        exec(code, vars(module))
    except BaseException as error:
        return Verdict(NOT_JUDGED, _own_line(error, path, source))
    solve, wanted = getattr(module, exercise.function, None), inspect.signature(getattr(check, exercise.function))
    if not inspect.isfunction(solve):
        names = re.findall(r"^def (\w+)", source.decode(errors="replace"), re.MULTILINE)
        defined = f"; it defines {', '.join(names)}" if names else ""
        return Verdict(NOT_JUDGED, f"{path} has no function {exercise.function}{defined}")
    if list(inspect.signature(solve).parameters) != list(wanted.parameters):
        shown = f"{exercise.function}({', '.join(inspect.signature(solve).parameters)})"
        return Verdict(NOT_JUDGED, f"{path}: {shown} has to take ({', '.join(wanted.parameters)})")
    try:
        return Verdict(PASSED, check.check(solve))
    except WrongAnswerError as error:
        indented = str(error).replace("\n", "\n  ")
        return Verdict(WRONG, f"{path} is not right yet\n  {indented}")
    except BaseException as error:
        return Verdict(WRONG, _own_line(error, path, source))


def _own_line(error: BaseException, path: str, source: bytes) -> str:
    """The student's innermost line, and what went wrong in it. Without one the mistake is ours: raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if not frames or isinstance(error, KeyboardInterrupt):
        raise error
    line = source.decode(errors="replace").splitlines()[frames[-1].lineno - 1].strip()
    if isinstance(error, NotImplementedError):
        return f"{path}, line {frames[-1].lineno}: {one_line(error) or 'still to be written'}"
    message = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
    message = "; ".join([message, *getattr(error, "__notes__", [])])
    return f"{path}, line {frames[-1].lineno}: {message}, in: {line}"


def main() -> None:
    """In the process of its own: name of the exercise, file for the verdict, file for the watchdog, limit in seconds."""
    name, report, watchdog, limit = sys.argv[1:]
    exercise = find(name)
    importlib.import_module(f"vla_mini.exercises.tasks.{name}")  # with torch, before the time is counted
    with open(watchdog, "w") as file:
        faulthandler.dump_traceback_later(float(limit), exit=True, file=file)
        try:
            verdict = judge(exercise, exercise.path.read_bytes())
        except KeyboardInterrupt:
            sys.exit(130)
        faulthandler.cancel_dump_traceback_later()
    write_json(Path(report), verdict)


if __name__ == "__main__":
    main()
