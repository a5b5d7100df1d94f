"""A constructor's signature -> a pydantic model of the settings that YAML may give it.

    class FlowHead: def __init__(self, spec, *, hidden: PositiveInt = 256, ...)  ──settings_model──▶  ObjectSettings(hidden=...)

Only what can be written in YAML is a setting: numbers, text, true and false, null, lists and groups of these.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from numbers import Number
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, create_model, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from vla_mini.utils.errors import did_you_mean, show

LISTS = (list, set, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
UNIONS = (typing.Union, types.UnionType)
# What can be written in YAML as it stands, or as another type.
PLAIN = {kind: kind for kind in (bool, int, float, str, type(None), Any)} | {None: type(None), Number: int | float, Path: str}

# A list of YAML becomes a tuple, its items stay strict.
FROM_LIST = Strict(False)
MISSING = "???"  # what Hydra writes for a value that the user has to give


class StrictModel(BaseModel):
    """Settings as they are written: an int may stand for a float, and a list for a tuple; nothing else is converted."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        """Refuse them before anything else is looked at, with the names that there are (pydantic's own error lacks these)."""
        if isinstance(values, Mapping):
            names = [field.alias or name for name, field in cls.model_fields.items()]
            for key in values:
                if key not in names:
                    context = {"name": str(key), "names": names, "value": show(values[key])}
                    raise PydanticCustomError("unknown_key", "unknown key", context)
            return {key: value for key, value in values.items() if value != MISSING}
        return values

    @model_validator(mode="after")
    def _refuse_contradictions(self):
        for contradiction in self.contradictions():
            raise ValueError(contradiction)
        return self

    def contradictions(self) -> Iterator[str]:
        """Messages about settings that are right by themselves and wrong together. Each begins with a key of this node."""
        return iter(())


class ObjectSettings(StrictModel):
    """The settings of an object: the path of its class, and the arguments of its constructor as attributes by name."""

    target: str = Field(alias="_target_")

    @model_serializer
    def as_dict(self) -> dict[str, Any]:
        """`_target_` and the settings that were given, by name."""
        fields = type(self).model_fields
        return {field.alias: getattr(self, name) for name, field in fields.items() if name in self.model_fields_set}

    def arguments(self) -> dict[str, Any]:
        """The settings that were given: keyword arguments of the constructor."""
        return {name: value for name, value in self.as_dict().items() if name != "_target_"}


RESERVED = {*dir(ObjectSettings), *ObjectSettings.model_fields}


@cache
def settings_model(
    constructor: type, *, overrides: tuple[tuple[str, Any], ...] = (), exclude: tuple[str, ...] = ()
) -> type[ObjectSettings]:
    """The settings of `constructor`: the arguments that can be written in YAML, without the `spec` that parts get by position.

    - overrides: (name, annotation) pairs to use instead of the constructor's own, where those are too open
    - exclude: arguments that are handed over by the program, and no settings
    """
    _, *parameters = inspect.signature(constructor.__init__).parameters.values()
    if parameters and all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[1:]):
        parameters = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    try:
        hints = typing.get_type_hints(inspect.unwrap(constructor.__init__), include_extras=True) | dict(overrides)
    except NameError:  # forward references that cannot be resolved: any value is allowed
        hints = dict(overrides)
    fields: dict[str, Any] = {}
    for parameter in parameters:
        name, annotation = parameter.name, yaml_type(hints.get(parameter.name, Any))
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if not variadic and name not in exclude and annotation is not None:
            default = ... if parameter.default is parameter.empty else parameter.default
            # Each model has attributes of its own, such as `target`; a setting of the same name is the attribute `target_`.
            fields[f"{name}_" if name in RESERVED else name] = (annotation, Field(default, alias=name))
    return create_model(constructor.__name__, __base__=ObjectSettings, **fields)


def object_settings(find_class: Callable[[Any], type], **schema: Any) -> Any:
    """The type of a node with `_target_`: `find_class` gives the class of that name, or raises ValueError."""

    def validate(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        return settings_model(find_class(node.get("_target_")), **schema).model_validate(node)

    return Annotated[ObjectSettings, BeforeValidator(validate)]


def library_class(target: Any, *, package: str, base: str, also: Sequence[str] = ()) -> type:
    """The class `target` of a library: one that `package` exports, or a module of `also`, and that is derived from its `base`.
    ValueError for any other name; nothing else is imported."""
    module, _, name = str(target).rpartition(".")
    if module not in (package, *also):
        raise ValueError(f"_target_={show(target)} is not in {package}: {did_you_mean(module, (package, *also))}")
    base_class = vars(import_module(package))[base]
    members = vars(import_module(module)).items()
    classes = {key: item for key, item in members if isinstance(item, type) and issubclass(item, base_class)}
    if name not in classes:
        raise ValueError(f"_target_={show(target)} is not a class of {base}: {did_you_mean(name, classes)}")
    return classes[name]


def yaml_type(annotation: Any) -> Any:
    """The part of an annotation that can be written in YAML, for pydantic; None where nothing of it can."""
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is Literal:
        return annotation
    if isinstance(annotation, typing.TypeVar):
        return Any
    kinds = [kind if kind is Ellipsis else yaml_type(kind) for kind in (arguments[:1] if origin is Annotated else arguments)]
    if origin in UNIONS:  # Where null alone is left, the argument is an object that the program makes.
        kinds = [kind for kind in kinds if kind is not None]
        return typing.Union[tuple(kinds)] if set(kinds) - {type(None)} else None  # noqa: UP007 (built at run time)
    if None in kinds:
        return None
    if origin is Annotated:
        return Annotated[kinds[0], *annotation.__metadata__]
    if origin is tuple:
        return Annotated[tuple[*kinds] if kinds else tuple, FROM_LIST]
    if origin in LISTS:
        return list[*kinds] if kinds else list
    if origin in DICTS:
        return dict[*kinds] if kinds else dict
    return PLAIN.get(annotation) if isinstance(annotation, collections.abc.Hashable) else None
