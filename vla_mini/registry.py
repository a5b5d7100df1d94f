"""Class path and settings -> part, from an allow-list. Used by training and by `Policy.from_pretrained`.

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
from vla_mini.utils.errors import as_value_error, did_you_mean, validation_message
from vla_mini.utils.schema import settings_model

PACKAGE = Path(__file__).parent
_plugins: list[str] = []  # packages whose classes `_target_` may name, too


def use_plugins(packages: Sequence[str]) -> None:
    """Allow parts that are defined in these packages, and no others beside vla_mini's own. They are imported, which runs their
    code. ValueError where one cannot be."""
    _plugins.clear()
    for package in packages:
        with as_value_error(f"plugins=[{package}] cannot be imported", Exception):
            try:
                importlib.import_module(package)
            except ModuleNotFoundError as error:
                hint = "; install it, or name the folder that it is in by PYTHONPATH" if error.name == package else ""
                raise ImportError(f"{error}{hint}") from error
        _plugins.append(package)


def variants(kind: str) -> list[str]:
    """The names of the modules in `vla_mini/<kind>/`."""
    return sorted(path.stem for path in (PACKAGE / kind).glob("*.py") if not path.stem.startswith("_"))


def class_path(cls: type) -> str:
    """What `_target_` says of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def resolve(target: Any, kind: str, *, classes: Sequence[type] = ()) -> type[Part]:
    """The class of a path: one of `classes`, one that is defined in a module of `vla_mini/<kind>/`, or one of a plugin; else
    ValueError, which begins with `_target_`."""
    modules = [f"vla_mini.{kind}.{variant}" for variant in variants(kind)]
    module, _, name = str(target).rpartition(".")
    known = {class_path(cls): cls for cls in classes} | (_defined_in(module, kind) if module in modules else {})
    if str(target) in known:
        return known[target]
    if any(f"{module}.".startswith(f"{plugin}.") for plugin in _plugins):
        return _plugin_class(module, name, kind)
    paths = {path.rpartition(".")[2]: path for module in modules for path in _defined_in(module, kind)}
    mistake = f"={target!r} is not a class of vla_mini/{kind}/" if target else " is missing"
    own = module.partition(".")[0]
    mistake += f"; for a class of your own give plugins=[{own}]" if own not in ("", "vla_mini") else ""
    mistake += ": there is no auxiliary loss of that name here" if kind == "auxiliary" and not target else ""
    raise ValueError(f"_target_{mistake}; {did_you_mean(paths.get(name, str(target)), paths.values())}")


def _plugin_class(module: str, name: str, kind: str) -> type[Part]:
    with as_value_error(f"_target_={module}.{name}", Exception):  # whatever the module raises
        found = getattr(importlib.import_module(module), name, None)
    if not inspect.isclass(found) or not issubclass(found, KINDS[kind]):
        wrong = "is no class" if not inspect.isclass(found) else f"is not derived from vla_mini.parts.{KINDS[kind].__name__}"
        raise ValueError(f"_target_={module}.{name} {wrong}")
    return found


def _defined_in(module: str, kind: str) -> dict[str, type[Part]]:
    """The parts of that kind by class path, without the classes that the module only imported."""
    classes = filter(inspect.isclass, vars(importlib.import_module(module)).values())
    return {class_path(cls): cls for cls in classes if cls.__module__ == module and issubclass(cls, KINDS[kind])}


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

    Raises ValueError for settings that the constructor does not have, or of another type or out of bounds, and for a part that
    lacks an attribute of its contract. Its messages begin with the key of the setting that they are about, or of the part.
    """
    key = name or kind
    names = {"_target_"}
    try:
        cls = resolve(settings.get("_target_"), kind, classes=classes)
        model = settings_model(cls)
        names |= {field.alias for field in model.model_fields.values()}
        part = cls(spec, **model.model_validate(dict(settings)).arguments())
        part.fit(data) if assets is None else part.load_assets(assets)
        if missing := ", ".join(sorted(KINDS[kind].__annotations__.keys() - set(dir(part)))):
            raise ValueError(f"{cls.__name__} does not set {missing}, which vla_mini.parts.{KINDS[kind].__name__} asks for")
    except ValidationError as error:
        raise ValueError(validation_message(error, value=settings, prefix=key)) from None
    except ValueError as error:  # a part does not know its own key: its message may begin with a setting
        about_a_setting = re.match(r"\w*", str(error))[0] in names
        raise ValueError(f"{key}{'.' if about_a_setting else ': '}{error}") from error
    return part
