"""Judge a student's file: its text and the exercise's check -> a verdict in words.

`judge_file` runs the student's code in a process of its own with a time limit, so that an infinite loop or a call of exit ends
that process alone. What the code prints is shown. `judge` is the same within this process.
"""

import faulthandler
import importlib
import inspect
import os
import re
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Callable
from functools import partial
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
    path = exercise.path
    if not path.is_file():
        start = f"python -m vla_mini.exercises start {exercise.number}"
        return Verdict(NOT_JUDGED, f"{path} is not a file" if path.exists() else f"{path} does not exist: {start} writes it")
    with tempfile.TemporaryDirectory() as folder:
        report, stack = Path(folder, "report.json"), Path(folder, "stack.txt")
        command = [sys.executable, "-m", "vla_mini.exercises.judge", exercise.name, str(report), str(stack), str(limit)]
        code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
        if report.is_file():
            return Verdict(*read_json(report))
        if stopped := stack.read_text(encoding="utf-8", errors="replace"):
            line = re.search(rf'File "{re.escape(str(path))}", line (\d+)', stopped)
            place = f", in line {line[1]}" if line else ""
            return Verdict(WRONG, f"{path} was stopped after {limit:g} s{place}: is there a loop that does not end?")
    return Verdict(NOT_JUDGED, f"{path} ended the process with exit code {code} before it was judged")


def judge(exercise: Exercise, source: bytes, *, watch: Callable[[], None] = lambda: None) -> Verdict:
    """The verdict on a student's file that holds `source`.

    - watch: called before the student's code runs for the first time
    """
    path = str(exercise.path)
    try:
        code = compile(source, path, "exec")
    except SyntaxError as error:
        at, line = f", line {error.lineno}" if error.lineno else "", f", in {error.text.strip()!r}" if error.text else ""
        return Verdict(NOT_JUDGED, f"{path}{at}: {one_line(error.msg)}{line}")
    except ValueError as error:  # null bytes, in Python before 3.11.4
        return Verdict(NOT_JUDGED, f"{path}: {one_line(error)}")
    from vla_mini.exercises.compare import WrongAnswerError  # imports torch, as the exercises do

    check, module = importlib.import_module(f"vla_mini.exercises.tasks.{exercise.name}"), types.ModuleType(exercise.path.stem)
    watch()
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
    number = frames[-1].lineno
    if isinstance(error, NotImplementedError):
        return f"{path}, line {number}: {one_line(error) or 'still to be written'}"
    line = source.decode(errors="replace").splitlines()[number - 1].strip()
    message = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
    return "; ".join([f"{path}, line {number}: {message}, in {line!r}", *getattr(error, "__notes__", [])])


def main(name: str, report: str, stack: str, limit: str) -> None:
    """In the process of its own: write the verdict to the file `report` or, at the `limit`, where the code was to `stack`."""
    exercise = find(name)
    with open(stack, "w") as file:
        watch = partial(faulthandler.dump_traceback_later, float(limit), exit=True, file=file)
        write_json(Path(report), judge(exercise, exercise.path.read_bytes(), watch=watch))
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads of the student's


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
