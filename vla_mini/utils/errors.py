"""Error messages of one line: nearest names, values as a user writes them, and exceptions of libraries as `ValueError`.

word + choices ──did_you_mean──▶ text        pydantic's ValidationError ──validation_message──▶ text
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

MAX_CHOICES = 12  # so many names are listed where none is near

# What pydantic's types of error mean: "x=1 is not ...".
EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a number",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a group of settings",
    "model_type": "a group of settings",
    "bool_type": "true or false",
    "string_type": "text",
    "none_required": "null",
    "greater_than_equal": "{number} of at least {ge:g}",
    "greater_than": "{number} above {gt:g}",
    "less_than_equal": "{number} of at most {le:g}",
    "less_than": "{number} below {lt:g}",
    "too_long": "a list of {max_length} values",
    "too_short": "a list of at least {min_length} values",
}


def did_you_mean(word: str, choices: Iterable[str], *, prefix: str = "") -> str:
    """The end of an error message: the nearest of `choices`, or all of them where none is near.

    - prefix: written before the nearest one, for the last part of a dotted key
    """
    choices = list(map(str, choices))
    by_lower_case = {choice.lower(): choice for choice in choices}
    near = get_close_matches(str(word).lower(), by_lower_case, n=1)
    if near:
        return f"did you mean {prefix + by_lower_case[near[0]]!r}?"
    shown = [*choices[:MAX_CHOICES], "..."] if len(choices) > MAX_CHOICES else choices
    return f"choose from: {', '.join(shown)}" if shown else "there is none to choose from"


def one_line(text: object) -> str:
    """`str(text)` with each run of white space replaced by one blank."""
    return " ".join(str(text).split())


@contextmanager
def as_value_error(prefix: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an exception of these `kinds` (default: any) into `ValueError("prefix: its message in one line")`."""
    try:
        yield
    except Exception as error:
        if kinds and not isinstance(error, kinds):
            raise
        raise ValueError(f"{prefix}: {one_line(error) or type(error).__name__}") from error


@contextmanager
def in_one_line() -> Iterator[None]:
    """Make the message of a ValueError, which may quote what a file holds, one line."""
    try:
        yield
    except ValueError as error:
        if len(str(error).splitlines()) < 2:
            raise
        raise ValueError(one_line(error)) from error


def show(value: Any) -> str:
    """A value as one writes it on the command line, with quotation marks around text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {show(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(show, value))}]"
    return repr(value)


def validation_message(error: ValidationError, *, value: Any, prefix: str = "", full_keys: Collection[str] = ()) -> str:
    """The first mistake that pydantic found, in one line: the whole dotted key, its value, what it has to be, the nearest key.

    - value: what was validated
    - prefix: the dotted key of `value` itself
    - full_keys: dotted keys of the whole settings, to say where a key belongs that stands in the wrong place
    """
    errors = error.errors(include_url=False)
    paths = [_path(value, details) for details in errors]
    # Each alternative of a union reports an error of its own; the one that got furthest into the value is about its mistake.
    path = max((path for path in paths if path[: len(paths[0])] == paths[0]), key=len)
    same = [details for details, other in zip(errors, paths, strict=True) if other == path]
    first, key = same[0], _dotted(prefix, path)
    match first["type"]:
        case "value_error":  # of our own validators, whose messages begin with a key of their node
            return one_line(_dotted(key, [first["ctx"]["error"]]))
        case "unknown_key":  # (schema.py)
            return _unknown_key(key, **first["ctx"], elsewhere=full_keys)
        case "missing" if isinstance(first["input"], Mapping):
            return f"{key} is required: give {key}=VALUE"
        case "literal_error" if first["loc"][-1] == "[key]":
            return _unknown_key(_dotted(prefix, path[:-1]), path[-1], _choices(first))
    expected = " or ".join(dict.fromkeys(_expected(details, same) for details in same))
    choices = [choice for details in same if details["type"] == "literal_error" for choice in _choices(details)]
    near = get_close_matches(str(first["input"]), choices, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return one_line(f"{key}={show(first['input'])} is not {expected}{hint}")


def _path(value: Any, details: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The part of pydantic's location that leads into `value`, or to a key that it lacks; the rest names a union's choices."""
    path: list[str | int] = []
    for step in details["loc"]:
        steps = value if isinstance(value, Mapping) else range(len(value)) if isinstance(value, list | tuple) else ()
        if step in steps:
            value = value[step]
            path.append(step)
    if details["type"] == "missing" and isinstance(value, Mapping):
        path.append(details["loc"][-1])
    return tuple(path)


def _dotted(prefix: str, path: Sequence[object]) -> str:
    """`optimizer`, ("betas", 0) -> `optimizer.betas[0]`."""
    return (prefix + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)).removeprefix(".")


def _unknown_key(node: str, name: str, names: Collection[str], *, value: str = "", elsewhere: Collection[str] = ()) -> str:
    """The message for a key that the dotted key `node` does not have; its `names` are nearer than those `elsewhere`."""
    full = _dotted(node, [name])
    misplaced = [other for other in elsewhere if other.rpartition(".")[2] == name and other != full]
    if not node:
        names = [*names, *(other for other in elsewhere if "." not in other and other not in (*names, name))]
    hint = did_you_mean(name, names, prefix=f"{node}." if node else "")
    if misplaced and (not node or hint.startswith("choose")):
        hint = f"did you mean {misplaced[0]!r}?"
    return one_line(f"unknown key {full!r}{f' (={value})' if value else ''}: {hint}")


def _expected(details: Mapping[str, Any], same: Sequence[Mapping[str, Any]]) -> str:
    """What a value had to be, in words."""
    context = details.get("ctx", {})
    if details["type"] == "literal_error":
        choices = _choices(details)
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if details["type"] == "missing":  # of a tuple, one error for each value that is missing
        return f"a list of {1 + max(other['loc'][-1] for other in same)} values"
    if details["type"] == "greater_than" and isinstance(context["gt"], int):
        return f"an integer of at least {context['gt'] + 1}"
    number = "an integer" if any(type(bound) is int for bound in context.values()) else "a number"
    return EXPECTED.get(details["type"], f"right: {details['msg']}").format(number=number, **context)


def _choices(details: Mapping[str, Any]) -> list[str]:
    """The values of a Literal, which pydantic gives as text: "'a', 'b' or 'c'"."""
    words = [word.strip("'") for word in re.split(r", | or ", details["ctx"]["expected"])]
    return [{"True": "true", "False": "false", "None": "null"}.get(word, word) for word in words]
