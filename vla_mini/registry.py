"""Class path and settings -> part, from an allow-list. Used by training and by `Policy.from_pretrained` alike.

A part is described by a plain mapping, `{"_target_": "vla_mini.vision.conv.ConvVision", "width": 64}`. Only classes that are
defined in the variant folders, or that the caller hands over, are built: a description from elsewhere runs no code.
"""

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vla_mini.parts import KINDS, FitData, Part
from vla_mini.utils.errors import did_you_mean, validation_message
from vla_mini.utils.schema import settings_model

PACKAGE = Path(__file__).parent


def variants(kind: str) -> list[str]:
    """The names of the modules in `vla_mini/<kind>/`."""
    return sorted(path.stem for path in (PACKAGE / kind).glob("*.py") if not path.stem.startswith("_"))


def class_path(cls: type) -> str:
    """What `_target_` says of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def resolve(target: Any, kind: str, *, classes: Sequence[type] = ()) -> type[Part]:
    """The class of a path: one of `classes`, or one that is defined in a module of `vla_mini/<kind>/`; else ValueError, which
    begins with `_target_`."""
    for candidate in classes:
        if target == class_path(candidate):
            return candidate
    modules = [f"vla_mini.{kind}.{variant}" for variant in variants(kind)]
    module, _, name = str(target).rpartition(".")
    if module not in modules:
        mistake = f"={target!r} is not a class of vla_mini/{kind}/" if target else " is missing"
        raise ValueError(f"_target_{mistake}: {did_you_mean(module, modules)}")
    found = vars(importlib.import_module(module))
    # A class that the module only imported is not one that it defines.
    names = [key for key, value in found.items() if inspect.isclass(value) and value.__module__ == module]
    if name not in names or not issubclass(found[name], KINDS[kind]):
        hint = did_you_mean(name, names)
        raise ValueError(f"_target_={target!r} is not a {KINDS[kind].__name__} class of {module}: {hint}")
    return found[name]


def describe(part: Part) -> dict[str, Any]:
    """The mapping that `build` builds `part` from."""
    return {"_target_": class_path(type(part)), **part.settings}


def build(
    kind: str,
    settings: Mapping[str, Any],
    spec: Any,
    *,
    name: str | None = None,
    classes: Sequence[type] = (),
    data: FitData | None = None,
    assets: Path | None = None,
) -> Part:
    """The part of `settings`, ready for use: constructed, then fitted to `data` or to the `assets` in a saved policy's folder.

    - name: the dotted key of the settings, for messages; None: `kind`
    - classes: further classes that `_target_` may name

    Raises ValueError for settings that the constructor does not have, or of another type or out of bounds.
    """
    key = name or kind
    names = {"_target_"}
    try:
        cls = resolve(settings.get("_target_"), kind, classes=classes)
        model = settings_model(cls)
        names |= {field.alias for field in model.model_fields.values()}
        part = cls(spec, **model.model_validate(dict(settings)).arguments())
        part.fit(data) if assets is None else part.load_assets(assets)
    except ValidationError as error:
        raise ValueError(validation_message(error, value=settings, prefix=key)) from None
    except ValueError as error:  # a part names its settings without knowing their key
        if re.split("[ =.]", str(error))[0] in names:
            raise ValueError(f"{key}.{error}") from error
        raise
    return part
