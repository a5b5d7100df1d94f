"""What is no answer gets one line: broken files, code that raises, does not end or ends the process; and the command line."""

import pytest

from vla_mini.exercises.__main__ import main
from vla_mini.exercises.catalogue import FOLDER, find
from vla_mini.exercises.judge import NOT_JUDGED, PASSED, WRONG, judge, judge_file

LINEAR = find("linear")
HEAD = "def linear_backward(x, weight, bias, grad_y):\n"
FILE = "exercises/01_linear.py"

# Source -> exit code, message.
NO_ANSWERS = {
    f"{HEAD}    grad = = 3\n": (NOT_JUDGED, f"{FILE}, line 2: invalid syntax, in 'grad = = 3'"),
    f"{HEAD}  x\n    y\n": (NOT_JUDGED, f"{FILE}, line 3: unexpected indent, in 'y'"),
    "\0": (NOT_JUDGED, f"{FILE}: source code string cannot contain null bytes"),
    "": (NOT_JUDGED, f"{FILE} has no function linear_backward"),
    "linear_backward = 3\n": (NOT_JUDGED, f"{FILE} has no function linear_backward"),
    "def linear_backwards(x):\n    return x\n": (
        NOT_JUDGED,
        f"{FILE} has no function linear_backward; it defines linear_backwards",
    ),
    "def linear_backward(x, weight):\n    return x\n": (
        NOT_JUDGED,
        f"{FILE}: linear_backward(x, weight) has to take (x, weight, bias, grad_y)",
    ),
    "import nothing\n": (NOT_JUDGED, f"{FILE}, line 1: ModuleNotFoundError: No module named 'nothing', in 'import nothing'"),
    f"import sys\n{HEAD}    sys.exit(0)\n": (WRONG, f"{FILE}, line 3: SystemExit: 0, in 'sys.exit(0)'"),
    f"{HEAD}    return help_me(x)\ndef help_me(x):\n    return x.no\n": (
        WRONG,
        f"{FILE}, line 4: AttributeError: 'Tensor' object has no attribute 'no', in 'return x.no'; "
        "in the case b=3 m=5 d=7 o=11 (seed 0)",
    ),
    f"{HEAD}    raise NotImplementedError\n": (WRONG, f"{FILE}, line 2: still to be written"),
}


@pytest.mark.parametrize("source", NO_ANSWERS, ids=range(len(NO_ANSWERS)))
def test_what_is_no_answer_gets_one_line(source):
    assert tuple(judge(LINEAR, source.encode())) == NO_ANSWERS[source]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(source: str) -> None:
    FOLDER.mkdir()
    LINEAR.path.write_text(source)


def test_a_loop_that_does_not_end_is_stopped(folder):
    write("while True:\n    pass\n")
    code, message = judge_file(LINEAR, limit=0.5)
    assert code == WRONG
    assert message.startswith(f"{FILE} was stopped after 0.5 s, in line ") and message.endswith("a loop that does not end?")


def test_code_that_ends_the_process_is_told_from_a_right_answer(folder):
    write(f"import os\n{HEAD}    os._exit(0)\n")
    expected = (NOT_JUDGED, f"{FILE} ended the process with exit code 0 before it was judged")
    assert tuple(judge_file(LINEAR)) == expected


def test_from_the_list_to_a_passed_exercise(folder, capsys):
    def run(*arguments: str) -> tuple[int, str]:
        code, (out, err) = main(list(arguments)), capsys.readouterr()
        return code, out + err

    code, shown = run()
    assert code == 0 and shown.count("not begun") == 12 and shown.endswith("next: python -m vla_mini.exercises start 1\n")
    assert not list(folder.iterdir())
    assert run("check", "1") == (2, f"{FILE} does not exist: python -m vla_mini.exercises start 1 writes it\n")
    assert run("start", "linear")[0] == 0
    assert LINEAR.path.read_text() == LINEAR.task() and LINEAR.state() == "open"
    assert run("start", FILE)[0] == 2 and LINEAR.path.read_text() == LINEAR.task()

    # A thread that does not end, and a print of the student's.
    code, solution = run("solution", "1")
    thread = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    LINEAR.path.write_text(solution + thread)
    code, shown = run("check", "1")
    assert code == PASSED and shown.startswith(f"{FILE}: passed (6 cases: ")
    assert LINEAR.state() == "passed" and " 1  linear        passed " in run()[1]
    LINEAR.path.write_text(solution + "\n")
    assert LINEAR.state() == "open"  # changed since it passed
    LINEAR.path.write_text("def")
    assert run("check", "1") == (2, f"{FILE}, line 1: invalid syntax, in 'def'\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("start liner", "there is no exercise 'liner'; did you mean 'linear'?"),
        ("check 13", "there is no exercise 13; choose a number from 1 to 12"),
        ("solutoin 1", "there is no command 'solutoin'; did you mean 'solution'?"),
        ("check", "check takes one exercise, such as: python -m vla_mini.exercises check 1"),
    ],
)
def test_a_mistyped_command_gets_one_line(folder, capsys, arguments, message):
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err == f"exercises: {message}\n"
    assert not list(folder.iterdir())


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"vla_mini.exercises {command} 4 " in shown for command in ("start", "check", "solution"))


def test_folders_in_the_way_get_one_line(folder, capsys):
    LINEAR.path.mkdir(parents=True)
    assert tuple(judge_file(LINEAR)) == (NOT_JUDGED, f"{FILE} is not a file")
    assert main(["start", "1"]) == 2
    LINEAR.path.rmdir()
    FOLDER.rmdir()
    FOLDER.write_text("")
    assert main(["start", "1"]) == 2 and len(capsys.readouterr().err.splitlines()) == 2
