"""The command line of the exercises: list, start, check, solution."""

import sys

from vla_mini.exercises.catalogue import EXERCISES, FOLDER, Exercise, find
from vla_mini.exercises.judge import NOT_JUDGED, PASSED, judge_file
from vla_mini.utils.errors import did_you_mean
from vla_mini.utils.files import digest, write_text

PROGRAM = "python -m vla_mini.exercises"
HELP = f"""\
usage: {PROGRAM} [start | check | solution EXERCISE]

Twelve short exercises on gradients, from easy to hard. EXERCISE is a number or a name.

  {PROGRAM}              lists them: not begun, open or passed
  {PROGRAM} start 4      writes a file with a gap to fill, or with a mistake to fix
  {PROGRAM} check 4      judges it, and says what is wrong and where to look
  {PROGRAM} solution 4   prints a solution with its derivation

The files are in the folder {FOLDER} of the working directory; none is ever overwritten. What they print, check shows.
Exit codes of check: 0 passed, 1 not right yet, 2 nothing could be judged."""


def main(arguments: list[str]) -> int:
    """Run the command that the arguments name, and return the exit code."""
    try:
        match arguments:
            case [] | ["list"]:
                return show_list()
            case [*_, "-h" | "--help"]:
                print(HELP)
                return 0
            case [command, *_] if command not in COMMANDS:
                raise ValueError(f"there is no command {command!r}; {did_you_mean(command, ['list', *COMMANDS])}")
            case [command, wanted]:
                return COMMANDS[command](find(wanted))
            case [command, *_]:
                raise ValueError(f"{command} takes one exercise, such as: {PROGRAM} {command} 1")
    except (ValueError, OSError) as error:
        print(f"exercises: {error}", file=sys.stderr)
        return NOT_JUDGED
    except KeyboardInterrupt:
        return 130


def show_list() -> int:
    rows = [("", "exercise", "state", "read first", "")]
    rows += [(str(each.number), each.name, each.state(), each.sections, each.title) for each in EXERCISES]
    for number, name, state, sections, title in rows:
        print(f"{number:>2}  {name:13} {state:10} {sections:11} {title}".rstrip())
    print("\nread first: the sections of docs/autograd.md")
    following = next((each for each in EXERCISES if each.state() != "passed"), None)
    if following:
        print(f"next: {PROGRAM} {'start' if following.state() == 'not begun' else 'check'} {following.number}")
    return 0


def start(exercise: Exercise) -> int:
    if exercise.path.exists():
        raise ValueError(f"{exercise.path} is there already: delete or rename it to begin anew")
    FOLDER.mkdir(exist_ok=True)
    write_text(exercise.path, exercise.task())
    print(f"{exercise.path}: {exercise.title}")
    print(f"then: {PROGRAM} check {exercise.number}")
    return 0


def check(exercise: Exercise) -> int:
    checksum = digest(exercise.path) if exercise.path.is_file() else ""  # of what is judged
    verdict = judge_file(exercise)
    if verdict.code != PASSED:
        print(verdict.message, file=sys.stderr)
        return verdict.code
    exercise.remember_passed(checksum)
    print(f"{exercise.path}: passed ({verdict.message})")
    print(f"a worked solution: {PROGRAM} solution {exercise.number}")
    return 0


def solution(exercise: Exercise) -> int:
    print(exercise.solution(), end="")
    return 0


COMMANDS = {"start": start, "check": check, "solution": solution}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
