"""A command from its arguments to its exit code.

    0 success · 2 refused before work started (a user's mistake: one line on stderr) · 1 failed while working
    130 interrupted (SIGINT) · 143 terminated (SIGTERM)

Work starts when the command makes its output folder (folders.new_folder). `hydra.main` is not used: it makes a folder before
anything is checked, and reports every mistake with a traceback and exit code 1.
"""

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from vla_mini.commands import processes
from vla_mini.config import folders
from vla_mini.config.compose import compose, compose_run, dotted, key_of, model_of, split
from vla_mini.config.sources import groups_of, use_config_dir
from vla_mini.utils.errors import one_line, validation_message

Main = Callable[[Any], None]  # takes the settings of its command

# How settings that are not one number or text are written.
EXAMPLES = {
    "data.exclude_episodes": "data.exclude_episodes=[3,17]",
    "data.cameras": "data.cameras={top: observation.images.top}",
    "data.image_size": "data.image_size=[96,96]",
    "data.roots": "data.roots={my/a: 0.7, my/b: 0.3}",
}

_given: set[str] = set()  # keys of the command's arguments


def main(name: str) -> Callable[[Main], Callable[[], None]]:
    """Decorate the `main(settings)` of scripts/<name>.py: called without arguments, it reads sys.argv and ends the process."""

    def decorate(function: Main) -> Callable[[], None]:
        @functools.wraps(function)
        def command() -> None:
            sys.exit(run(name, sys.argv[1:], function))

        return command

    return decorate


def load(name: str, arguments: Sequence[str] = ()) -> Any:
    """The settings of a command: composed, resolved, validated, frozen. ValueError, in one line, for any mistake."""
    settings = validate(name, compose_command(name, arguments))
    if name == "compare":
        from vla_mini.config.variants import check_variants

        check_variants(settings, functools.partial(load, "train"))
    return settings


def compose_command(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The settings of a command, not yet validated, with those of train.py (`training`) where it begins as train.py does."""
    if name == "train":
        composed = compose_run(arguments) if "resume" in map(key_of, arguments) else compose(name, arguments)
        return composed | ({"run_dir": run_dir} if (run_dir := processes.joined_run()) else {})
    if name == "compare":
        from vla_mini.config.variants import compose_comparison

        return compose_comparison(arguments)
    own, training = split(name, arguments)
    return compose(name, own) | ({"training": compose("train", training)} if training else {})


def validate(name: str, composed: Mapping[str, Any]) -> Any:
    """The settings of a command as its model. ValueError, in one line, for the first mistake."""
    if isinstance(composed.get("training"), Mapping):
        composed = {**composed, "training": validate("train", composed["training"])}
    plugins = composed.get("plugins")
    if isinstance(plugins, list) and (plugins or "vla_mini.registry" in sys.modules):  # which imports torch
        from vla_mini.registry import use_plugins

        use_plugins([str(package) for package in plugins])
    try:
        return model_of(name).model_validate(composed)
    except ValidationError as error:
        keys = [*groups_of(name), *dict(dotted(composed))]
        message = validation_message(error, value=composed, full_keys=keys)
        example = EXAMPLES.get(message.partition("=")[0])
        raise ValueError(f"{message}; for example {example}" if example else message) from None


def is_given(key: str) -> bool:
    """Whether the command that runs was given the setting `key`, or one below it, on the command line."""
    return any(f"{given}.".startswith(f"{key}.") for given in _given)


def run(name: str, arguments: Sequence[str], function: Main) -> int:
    """Run a command, report how it ended, and return its exit code."""
    folders.begin()
    with _signals() as received:
        try:
            as_given, arguments = list(arguments), _take_config_dir(arguments)
            _given.clear()
            _given.update(map(key_of, arguments))
            if any(argument.startswith("-") for argument in arguments):
                _answer_flag(name, list(arguments), function)
            else:
                function(_load_in_all(arguments, as_given) if name == "train" else load(name, arguments))
            code = 0
        except BaseException as error:  # any kind, since the process ends here
            code = _report(name, error, received)
            folders.remove_empty_folders()
    return 128 + received[0] if received else code


def _load_in_all(arguments: Sequence[str], as_given: Sequence[str]) -> Any:
    """The settings of train.py, whose process may be one of several: what is wrong with them is said by the first alone.

    - as_given: with `--config-dir`
    """
    if processes.rank():
        processes.join()
        return load("train", arguments)
    settings = load("train", arguments)
    nodes, devices = settings.trainer.num_nodes, settings.trainer.devices
    processes.check_processes(as_given, devices=devices, nodes=nodes)
    processes.join()
    return settings


def _take_config_dir(arguments: Sequence[str]) -> list[str]:
    """Look for configs where `--config-dir DIR` says; the other arguments. ValueError where the folder is missing."""
    rest = [
        word
        for argument in arguments
        for word in (argument.split("=", 1) if argument.startswith("--config-dir=") else [argument])
    ]
    if "--config-dir" not in rest:
        use_config_dir(None)
        return rest
    index = rest.index("--config-dir")
    if len(rest) < index + 2:
        raise ValueError("--config-dir needs a folder: --config-dir DIR")
    use_config_dir(rest[index + 1])
    return rest[:index] + rest[index + 2 :]


def _answer_flag(name: str, arguments: list[str], function: Main) -> None:
    """Print what `--help` or `--cfg job` asks for. ValueError for other flags."""
    flag = next(argument for argument in arguments if argument.startswith("-"))
    words = [*flag.split("="), *arguments[arguments.index(flag) + 1 :]]
    if {"--help", "-h"} & set(arguments):
        from vla_mini.config.help import group_text, help_text

        groups = [argument for argument in arguments if argument in groups_of(name)]
        text = function.__doc__ or sys.modules[function.__module__].__doc__ or ""
        print(group_text(groups[0]) if groups else help_text(name, text))
    elif words[0] in ("--cfg", "-c") and words[1:2] == ["job"]:
        import yaml

        composed = compose_command(name, [argument for argument in arguments if argument not in (flag, "job")])
        print(yaml.safe_dump(composed, sort_keys=False, allow_unicode=True), end="")
    else:
        raise ValueError(
            f"unknown flag {flag!r}: there are --help, --cfg job and --config-dir DIR; settings are key=value, without dashes"
        )


def _report(name: str, error: BaseException, received: list[int]) -> int:
    """Write to stderr how the command ended; its exit code."""
    if isinstance(error, BrokenPipeError):  # who read the output has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    if isinstance(error, SystemExit) and not received:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if received:
        print(f"{name}: stopped by {signal.Signals(received[0]).name}", file=sys.stderr, flush=True)
        return 128 + received[0]
    expected = isinstance(error, (ValueError, OSError))
    refused = expected and not folders.work_has_started()
    if not refused or os.environ.get("HYDRA_FULL_ERROR") == "1":
        dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
        print(dim + "".join(traceback.format_exception(error)).rstrip() + plain, file=sys.stderr)
    message = one_line(error) if expected and str(error) else ": ".join(filter(None, [type(error).__name__, one_line(error)]))
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    return 2 if refused else 1


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Turn SIGTERM and SIGINT into exceptions. They are also recorded, for libraries that catch those.

    Ctrl-C reaches all processes of a terminal, a scheduler's SIGTERM all of a job: the further processes of a run ignore both,
    and the first one reports and ends them.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    handler = signal.SIG_IGN if processes.joined_run() else interrupt
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
