"""Check a composed config against types: dataclasses for plain nodes, constructor signatures for nodes with `_target_`.

    conform({"lr": 1, ...}, Annotated[dict, Target("torch.optim")], "optimizer") -> the same, with what was an int for a
    float made one; ValueError in one line, with the offending value and the nearest valid name, for anything else.

Annotations understood: None, bool, int, float, str, Path, Literal, lists, tuples, dicts, unions, dataclasses, and
`Annotated` with the marks `AtLeast` and `Target` below. All else (a Tensor, a Callable) cannot be written in YAML.
"""

import collections.abc
import dataclasses
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from numbers import Number
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vla_mini.config.compose import did_you_mean

MISSING = "???"  # as Hydra writes it
_LISTS = (list, set, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_NAMES = {int: "an integer", float: "a number", Number: "a number", bool: "true or false", str: "text", Path: "a path"}


class AtLeast(NamedTuple):
    """Mark of a number that may not be smaller."""

    minimum: float


class Target(NamedTuple):
    """Mark of a node with `_target_`: a class defined in a module of the package `home`, and its arguments.

    With `base`, a class of a library instead: one that `home` itself exports, and that is derived from its `base`.
    `also` names modules of our own that define more of them.
    `instead` names other annotations for arguments whose own are too open, or lack a value that training/ understands;
    `given`, arguments that the program hands over.
    """

    home: str
    base: str | None = None
    also: tuple[str, ...] = ()
    instead: tuple[tuple[str, Any], ...] = ()
    given: tuple[str, ...] = ()


def conform(value: Any, kind: Any, path: str = "") -> Any:
    """`value` as something of `kind`; `path` is the dotted key it stands under."""
    if isinstance(value, str) and value == MISSING:
        raise ValueError(f"{path} is required: give {path}=VALUE")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _conform_marked(value, arguments[0], kind.__metadata__, path)
    if origin in (typing.Union, types.UnionType):
        return _conform_union(value, arguments, path)
    if dataclasses.is_dataclass(kind):
        return _conform_node(value, kind, path)
    if kind is Any or kind is inspect.Parameter.empty or isinstance(kind, typing.TypeVar):
        return value
    if kind in (None, type(None)) and value is None:
        return None
    if kind in (float, Number) and type(value) in (int, float) and not math.isnan(value):
        return float(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    if kind is Path and type(value) is str:
        return value
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in arguments):
        return value
    if isinstance(value, list):
        if kind in _LISTS or origin in _LISTS or kind is tuple:
            return [conform(item, (*arguments, Any)[0], f"{path}[{i}]") for i, item in enumerate(value)]
        if origin is tuple:
            if arguments[-1] is Ellipsis:
                return [conform(item, arguments[0], f"{path}[{i}]") for i, item in enumerate(value)]
            if len(arguments) == len(value):
                return [conform(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True))]
    if isinstance(value, dict) and (kind in _DICTS or origin in _DICTS):
        if arguments and typing.get_origin(arguments[0]) is Literal:
            check_keys(value, typing.get_args(arguments[0]), path)
        return {key: conform(item, (*arguments, Any, Any)[1], f"{path}.{key}") for key, item in value.items()}
    near = get_close_matches(value, map(str, arguments), n=1) if origin is Literal and isinstance(value, str) else []
    raise ValueError(f"{path}={show(value)} is not {name_of(kind)}" + "".join(f": did you mean {n!r}?" for n in near))


def name_of(kind: Any) -> str:
    """An annotation in words: `int | None` -> "an integer or null"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        if _has_target(kind):
            return "a group of settings"
        return name_of(arguments[0]) + "".join(f" of at least {m.minimum}" for m in arguments if isinstance(m, AtLeast))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(name_of(argument) for argument in arguments if _is_yaml(argument)))
    if origin is Literal:
        return " or ".join(map(str, arguments)) if len(arguments) == 1 else f"one of {', '.join(map(str, arguments))}"
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} values ({', '.join(name_of(argument) for argument in arguments)})"
    if kind in _LISTS or origin in (*_LISTS, tuple) or kind is tuple:
        return f"a list (each {name_of(arguments[0])})" if arguments else "a list"
    if kind in _DICTS or origin in _DICTS or dataclasses.is_dataclass(kind):
        return "a group of settings"
    if kind in (None, type(None)):
        return "null"
    return _NAMES.get(kind, f"a setting (it is {getattr(kind, '__name__', kind)}, made by the program)")


def show(value: Any) -> str:
    """A value as one writes it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, str) else str(value)


def check_keys(node: dict, allowed: Sequence[str], path: str, elsewhere: Sequence[str] = ()) -> None:
    """Refuse keys that are not `allowed`; `elsewhere`, the dotted keys of the whole config, tells where one belongs."""
    for key in node:
        if key in allowed:
            continue
        full = f"{path}.{key}" if path else str(key)
        misplaced = [other for other in elsewhere if other.rpartition(".")[2] == key and other != full]
        hint = f"did you mean {misplaced[0]!r}?" if misplaced else did_you_mean(str(key), list(allowed))
        raise ValueError(f"unknown key {full!r} (={show(node[key])}): {hint}")


def dotted_keys(node: dict, prefix: str = "") -> list[str]:
    """All keys within, as written on the command line: ["seed", "optimizer", "optimizer.lr", ...]."""
    keys = []
    for key, value in node.items():
        keys.append(f"{prefix}{key}")
        keys += dotted_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else []
    return keys


def _conform_marked(value: Any, kind: Any, marks: tuple, path: str) -> Any:
    for mark in marks:
        if isinstance(mark, Target):
            return _conform_target(value, mark, path)
    value = conform(value, kind, path)
    for mark in marks:
        if isinstance(mark, AtLeast) and value < mark.minimum:
            raise ValueError(f"{path}={show(value)} is not {name_of(typing.Annotated[kind, *marks])}")
    return value


def _conform_union(value: Any, kinds: tuple, path: str) -> Any:
    nodes = [kind for kind in kinds if dataclasses.is_dataclass(kind) or _has_target(kind)]
    if type(None) in kinds and (value is None or (nodes and value in ({}, {"_target_": None}))):  # `auxiliary: none`
        return None
    if len(nodes) == 1 and isinstance(value, dict):
        return conform(value, nodes[0], path)  # so that the message names what is wrong within
    for kind in sorted(kinds, key=lambda kind: kind is not type(value)):  # 1 is an int before it is a float
        try:
            return conform(value, kind, path)
        except ValueError:
            continue
    raise ValueError(f"{path}={show(value)} is not {name_of(typing.Union[kinds])}")  # noqa: UP007 (built at run time)


def _conform_node(value: Any, schema: type, path: str) -> dict[str, Any]:
    """A plain node: each field of the dataclass `schema`, typed; fields with a default may be left out."""
    if not isinstance(value, dict):
        raise ValueError(f"{path}={show(value)} is not a group of settings")
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema, include_extras=True)
    check_keys(value, list(fields), path, elsewhere=() if path else dotted_keys(value))
    result = {}
    for name in sorted(fields, key=lambda name: _has_target(hints[name])):  # first what needs no import of torch
        field, full = fields[name], f"{path}.{name}" if path else name
        if name in value:
            result[name] = conform(value[name], hints[name], full)
        elif field.default is not dataclasses.MISSING:
            result[name] = field.default
        else:
            raise ValueError(f"{full} is required: give {full}=VALUE")
    return {name: result[name] for name in fields}


def _conform_target(node: Any, target: Target, path: str) -> dict[str, Any]:
    """A node with `_target_`: the constructor's signature is the schema."""
    if not isinstance(node, dict):
        raise ValueError(f"{path}={show(node)} is not a group of settings")
    if not isinstance(node.get("_target_"), str):
        raise ValueError(f"{path}._target_={show(node.get('_target_'))} names no class of {target.home}")
    kind = _find_class(node["_target_"], target, path)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    hints = _hints(kind)
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    facts = _facts().union(target.given)
    for key in arguments.keys() & parameters.keys() & facts:
        raise ValueError(f"{path}.{key}={show(arguments[key])} is no setting: it follows from the data and other settings")
    settings = [key for key in parameters if key not in facts and _is_yaml(hints.get(key, Any))]
    check_keys(node, [*settings, "_target_"], path)
    for key in settings:
        if key not in arguments and parameters[key].default is inspect.Parameter.empty:
            raise ValueError(f"{path}.{key} is required: give {path}.{key}=VALUE")
    hints |= dict(target.instead)
    checked = {key: conform(value, hints.get(key, Any), f"{path}.{key}") for key, value in arguments.items()}
    return {"_target_": node["_target_"], **checked}


def _find_class(name: str, target: Target, path: str) -> type:
    """The class `name`, where `target` allows it to be. Nothing else is imported."""
    module_name, _, class_name = name.rpartition(".")
    where, home = f"{path}._target_={name!r}", import_module(target.home)
    modules = [target.home, *target.also]
    if target.base is None:
        modules = [f"{target.home}.{module.name}" for module in pkgutil.iter_modules(home.__path__)]
        modules = [module for module in modules if not module.rpartition(".")[2].startswith("_")]
    if module_name not in modules:
        raise ValueError(f"{where} lies in no part of {target.home}: {did_you_mean(module_name, modules)}")
    module = import_module(module_name)
    classes = {key: value for key, value in vars(module).items() if isinstance(value, type) and not key.startswith("_")}
    if target.base is not None:
        classes = {key: value for key, value in classes.items() if issubclass(value, getattr(home, target.base))}
    else:
        classes = {key: value for key, value in classes.items() if value.__module__ == module_name}
    if class_name not in classes:
        raise ValueError(f"{where} is no class of {module_name}: {did_you_mean(class_name, list(classes))}")
    return classes[class_name]


def _has_target(kind: Any) -> bool:
    """Whether an annotation, or one of a union's, bears the mark `Target`."""
    return isinstance(kind, Target) or any(map(_has_target, (*typing.get_args(kind), *getattr(kind, "__metadata__", ()))))


def _hints(kind: type) -> dict[str, Any]:
    """The annotations of a constructor; those that cannot be resolved (forward references) are taken as anything."""
    try:
        return typing.get_type_hints(inspect.unwrap(kind.__init__), include_extras=True)
    except NameError:
        return {}


def _is_yaml(kind: Any) -> bool:
    """Whether a value of this annotation can be written in YAML at all."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_yaml(argument) for argument in arguments if argument is not type(None))
    if origin is typing.Annotated:
        return _is_yaml(arguments[0])
    if origin in (*_LISTS, tuple):
        return _is_yaml(arguments[0])
    plain = (None, type(None), bool, int, float, Number, str, Path, Any, tuple, inspect.Parameter.empty, *_LISTS, *_DICTS)
    known = kind in plain or origin in (Literal, *_DICTS) or isinstance(kind, typing.TypeVar)
    return known or dataclasses.is_dataclass(kind)


def _facts() -> frozenset[str]:
    """Constructor arguments that the program hands over: facts about the data, and what parts say of one another."""
    from vla_mini.build import FACTS  # imports torch, which --help does without

    return FACTS | _HANDED_OVER


# What Lightning's Trainer and torch's optimizers get from training/, never from YAML.
_HANDED_OVER = frozenset(
    {"params", "logger", "callbacks", "plugins", "default_root_dir", "deterministic"}
    | {"enable_checkpointing", "enable_model_summary"}
)
