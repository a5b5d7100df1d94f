"""One command from its arguments to its exit code.

    0 done · 2 refused before work started (a user's mistake: one line on stderr) · 1 failed while working
    130 interrupted (SIGINT) · 143 terminated (SIGTERM)

Work starts when the command makes its output folder (folders.new_folder), which is why this does not use hydra.main:
that makes a folder before anything is checked, and answers every mistake with a traceback and exit code 1.
"""

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vla_mini.config import folders, processes
from vla_mini.config.check import conform
from vla_mini.config.compose import compose, escape
from vla_mini.config.help import help_text
from vla_mini.config.resume import compose_resumed, resumed_folder
from vla_mini.config.variants import refuse_decided, refuse_unfair

Main = Callable[[Any], None]


def main(name: str) -> Callable[[Main], Callable[[], None]]:
    """Decorate the `main(cfg) -> None` of scripts/<name>.py: it then reads sys.argv, and ends the process."""

    def decorate(function: Main) -> Callable[[], None]:
        @functools.wraps(function)
        def command() -> None:
            sys.exit(run(name, sys.argv[1:], function))

        return command

    return decorate


def load(name: str, arguments: Sequence[str] = ()) -> Any:
    """The config of a command: composed, checked, resolved, a read-only DictConfig. ValueError for any mistake."""
    from omegaconf import OmegaConf

    from vla_mini.config.contradictions import refuse_contradictions
    from vla_mini.config.schemas import SCHEMAS

    folder = resumed_folder(arguments) if name == "train" else None
    composed = compose_resumed(folder, arguments) if folder else compose(name, list(arguments))
    checked = conform(composed.settings, SCHEMAS[name])
    refuse_contradictions(checked)
    if composed.training is not None:
        checked["training"] = conform(composed.training, SCHEMAS["train"])
        refuse_contradictions(checked["training"])
    if name == "compare":
        refuse_decided(checked["variants"], selections=checked["budget"]["selections"])
        steps, seconds = checked["budget"]["steps"], checked["budget"]["seconds"]
        budget = [f"trainer.max_steps={steps}"] if steps else []
        settings = {variant: _settings_of(variant, [*given, *budget]) for variant, given in checked["variants"].items()}
        refuse_unfair(settings, seconds=seconds)
    if composed.run_dir is not None:
        checked["run_dir"] = os.environ[processes.RUN_DIR] if processes.rank() else composed.run_dir
    cfg = OmegaConf.create(escape(checked))
    OmegaConf.set_struct(cfg, True)
    OmegaConf.set_readonly(cfg, True)
    return cfg


def _settings_of(variant: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What train.py would make of the arguments of a comparison's variant."""
    from omegaconf import OmegaConf

    try:
        return OmegaConf.to_container(load("train", arguments))
    except ValueError as error:
        raise ValueError(f"variant {variant}: {error}") from error


def run(name: str, arguments: Sequence[str], function: Main) -> int:
    """Run one command, report how it ended, and return its exit code."""
    folders.begin()
    with _signals() as received:
        try:
            if not _answer_flags(name, list(arguments), _purpose(function)):
                cfg = load(name, arguments)
                processes.check_processes(cfg, arguments)
                function(cfg)
            code = 0
        except BaseException as error:  # all, since the process ends here
            code = _report(name, error, received)
            folders.remove_empty_folders()
    return 128 + received[0] if received else code


def _purpose(function: Main) -> str:
    """The first line of the docstring, of the function or else of its script."""
    text = function.__doc__ or sys.modules[function.__module__].__doc__ or ""
    return text.strip().partition("\n")[0]


def _answer_flags(name: str, arguments: list[str], purpose: str) -> bool:
    """`--help` and `--cfg job`; True if there was such a flag. Others are refused."""
    if "--help" in arguments or "-h" in arguments:
        print(help_text(name, purpose))
        return True
    flags = [argument for argument in arguments if argument.startswith("-")]
    if not flags:
        return False
    arguments = [part for argument in arguments for part in (argument.split("=") if argument in flags else [argument])]
    for flag in ("--cfg", "-c"):
        if flag in arguments and arguments[arguments.index(flag) + 1 :][:1] == ["job"]:
            from omegaconf import OmegaConf

            at = arguments.index(flag)
            composed = compose(name, arguments[:at] + arguments[at + 2 :], resolve=False)
            shown = composed.settings | ({"training": composed.training} if composed.training else {})
            print(OmegaConf.to_yaml(OmegaConf.create(shown)), end="")
            return True
    raise ValueError(f"unknown flag {flags[0]!r}: there are --help and --cfg job; settings are key=value, without dashes")


def _report(name: str, error: BaseException, received: list[int]) -> int:
    """Say on stderr how the command ended; its exit code."""
    if isinstance(error, SystemExit) and not received:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if received:
        _say(f"{name}: stopped by {signal.Signals(received[0]).name}")
        return 128 + received[0]
    refused = isinstance(error, (ValueError, OSError)) and not folders.work_has_started()
    if not refused or os.environ.get("HYDRA_FULL_ERROR") == "1":
        dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
        _say(dim + "".join(traceback.format_exception(error)).rstrip() + plain)
    _say(f"{name}: {one_line(error)}")
    return 2 if refused else 1


def one_line(error: BaseException) -> str:
    """What went wrong, in one line: with the file for the operating system's errors, with the type for our own."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT unwind the command like exceptions. They are also noted, for libraries that catch those.

    A run's further processes leave it to the first to say so and to end them: Ctrl-C reaches all of a terminal's, a scheduler's
    SIGTERM all of a job's.
    """
    received: list[int] = []

    def unwind(number: int, _frame: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    handlers = {signal.SIGINT: unwind, signal.SIGTERM: unwind}
    if processes.rank():
        handlers = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
