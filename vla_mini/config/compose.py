"""Command line + configs/<command>.yaml -> one resolved, plain dict, through Hydra's compose API.

What is free text (an instruction, a path) never meets Hydra's grammar, in which a comma is a sweep and a parenthesis a
function: it is set afterwards, as a literal. Settings are forced in (`++`), known or not, so that a mistyped key on the
command line and one in a YAML file, which Hydra merges silently, meet the same check (check.py).
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

# Settings whose value is taken as it stands, whatever characters it holds.
TEXTS = {"instruction", "logger.project", "logger.name"}
PATHS = {
    *{"policy", "output", "image", "resume", "init_from", "data.root", "vision.path", "language.path"},
    *{"hydra.run.dir"},
}  # `null` means none
PATHS_OF = {"gradients": {"data", "experiment"}, "doctor": {"experiment"}}  # in train.py these are groups
TEXTS_IN = {"compare": {"variants", "parameters"}}  # nodes of which each setting is text
PATH_LISTS = {"image"}  # may also be [a,b]


class Composed(NamedTuple):
    settings: dict[str, Any]  # resolved, not yet checked
    run_dir: str | None  # `hydra.run.dir`, for commands that have one
    training: dict[str, Any] | None = None  # what train.py would be told, for commands that begin where it begins


class Overrides(NamedTuple):
    literals: dict[str, str | list[str] | None]  # free text, by key
    groups: dict[str, str]  # group=variant
    settings: list[str]  # key=value, in Hydra's grammar


def configs_folder() -> Path:
    """The repository's configs/, beside the package: an editable install is the supported way."""
    folder = Path(__file__).resolve().parents[2] / "configs"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: vla-mini runs from a checkout, installed by `pip install -e .` at its top"
        )
    return folder


def command_text(name: str) -> str:
    """configs/<name>.yaml as it is written."""
    path = configs_folder() / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    return path.read_text(encoding="utf-8")


def read_command(name: str) -> dict[str, Any]:
    """configs/<name>.yaml, nothing composed."""
    import yaml

    try:
        return yaml.safe_load(command_text(name)) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"configs/{name}.yaml is no YAML: {' '.join(str(error).split())}") from error


def groups_of(name: str) -> dict[str, list[str]]:
    """The groups that a command's defaults list names, each with its variants: {"vision": ["conv", "patch"], ...}."""
    defaults = read_command(name).get("defaults", [])
    groups = [key.removeprefix("override /") for entry in defaults if isinstance(entry, dict) for key in entry]
    return {group: sorted(path.stem for path in (configs_folder() / group).glob("*.yaml")) for group in groups}


def did_you_mean(word: str, names: list[str]) -> str:
    """The end of an error message: the nearest of `names`, or all of them where none is near."""
    by_lower_case = {name.lower(): name for name in names}
    near = get_close_matches(word.lower(), by_lower_case, n=1)
    if near:
        return f"did you mean {by_lower_case[near[0]]!r}?"
    some = [*names[:12], "..."] if len(names) > 12 else names
    return f"choose from: {', '.join(some)}" if some else "there is none to choose from"


def sort_overrides(name: str, arguments: list[str]) -> Overrides:
    """Sort `key=value` arguments into free text, choices of a variant, and settings for Hydra to read."""
    groups = groups_of(name)
    literal_keys = TEXTS | PATHS | PATHS_OF.get(name, set())
    overrides = Overrides({}, {}, [])
    for argument in arguments:
        key, equals, value = argument.partition("=")
        key = key.removeprefix("+").removeprefix("+")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            raise ValueError(f"{argument!r} is not of the form key=value (see --help)")
        if key in literal_keys or (key.partition(".")[0] in TEXTS_IN.get(name, ()) and "." in key):
            overrides.literals[key] = _literal(key, value)
        elif key in groups:
            for variant in value.strip("[]").split(","):
                if variant.strip() not in groups[key]:
                    raise ValueError(f"{key}={value} names no variant: {did_you_mean(variant.strip(), groups[key])}")
            overrides.groups[key] = value
        elif _is_meant_for_a_group(key, name):
            raise ValueError(f"{argument}: {name}.py has no {key!r}: {did_you_mean(key, known_keys(name))}")
        elif key.split(".")[0] == "hydra":
            raise ValueError(f"{argument}: unknown key {key!r}: did you mean 'hydra.run.dir'?")
        else:
            overrides.settings.append(_readable(key, value))
    return overrides


def _literal(key: str, value: str) -> str | list[str] | None:
    if value == "null" and key not in TEXTS:
        return None
    if key in PATH_LISTS and value.startswith("[") and value.endswith("]"):
        return [path.strip() for path in value[1:-1].split(",")]
    return value


def _is_meant_for_a_group(key: str, name: str) -> bool:
    """Whether an unknown key is a group of another command's, or looks like one of this command's."""
    unknown = "." not in key and key not in known_keys(name)
    return unknown and ((configs_folder() / key).is_dir() or bool(get_close_matches(key, groups_of(name), n=1)))


def _readable(key: str, value: str) -> str:
    """`++key=value`, if Hydra's grammar can read it as one value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    setting = f"++{key}={value}"
    try:
        override = OverridesParser.create().parse_override(setting)
    except HydraException as error:
        raise ValueError(f"cannot read the value of {key}={value}: quote it as {key}='\"...\"'") from error
    if override.is_sweep_override():
        raise ValueError(f"{key}={value} has several values: give one, or a list as {key}=[{value}]")
    return setting


def known_keys(name: str) -> list[str]:
    command = read_command(name)
    return [*groups_of(name), *(key for key in command if key not in ("defaults", "hydra"))]


def escape(value: Any) -> Any:
    r"""Make literals of all strings within: OmegaConf reads `${` as a reference unless it is written `\${`."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", value)
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape(item) for item in value]
    return value


def compose(name: str, arguments: list[str], *, resolve: bool = True) -> Composed:
    """Compose configs/<name>.yaml with `arguments`. ValueError, in one line, for all that Hydra refuses.

    A command with an `experiment` of its own begins where train.py would: `training` holds the settings of that.
    """
    own, training = split(name, arguments)
    if name == "compare":
        from vla_mini.config.variants import expand, refuse_base

        refuse_base(own)
        settings = _compose(name, own, resolve=resolve).settings
        folder = settings["name"] or sort_overrides(name, own).groups.get("study", "comparison")
        return Composed(settings | {"variants": expand(settings, training), "name": folder}, None)
    composed = _compose(name, own, resolve=resolve)
    return composed._replace(training=_compose("train", training, resolve=resolve).settings) if training else composed


def split(name: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """A command's arguments -> its own and, where it trains variants or has an experiment, given or by default, those for
    train.py. ValueError for a key that neither knows."""
    command, own_keys = read_command(name), known_keys(name)
    keys = [argument.partition("=")[0].lstrip("+") for argument in arguments]
    begins = "experiment" in command and (command["experiment"] or "experiment" in keys)
    if name != "compare" and not begins:
        return arguments, []
    own, training = [], []
    for argument, key in zip(arguments, keys, strict=True):
        node = key.partition(".")[0]
        # What is of no form at all is refused as the command's own.
        is_own = key in own_keys or isinstance(command.get(node), dict) or "=" not in argument
        if not is_own and node not in (*known_keys("train"), "hydra"):
            raise ValueError(f"unknown key {key!r}: {did_you_mean(key, [*own_keys, *known_keys('train')])}")
        if is_own:
            own.append(argument)
        if not is_own or (begins and key in ("experiment", "seed")):
            training.append(argument)
    if begins and "experiment" not in keys:
        training = [f"experiment={command['experiment']}", *training]
    return own, training


def _compose(name: str, arguments: list[str], *, resolve: bool) -> Composed:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
    from yaml import YAMLError

    literals, groups, settings = sort_overrides(name, arguments)
    _refuse_second_config(literals, settings)
    choices = [f"{group}={variant}" for group, variant in groups.items()]
    try:
        with initialize_config_dir(str(configs_folder()), version_base="1.3"):
            cfg = hydra_compose(name, [*choices, *settings], return_hydra_config=True)
        for group in ("experiment", "study"):
            _check_package(group, cfg.hydra.runtime.choices.get(group))
        with open_dict(cfg):
            for key, text in literals.items():
                OmegaConf.update(cfg, key, escape(text), force_add=True)
        HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
        run_dir = str(cfg.hydra.run.dir) if "hydra" in read_command(name) else None
        if run_dir is None and "hydra.run.dir" in literals:
            raise ValueError(f"hydra.run.dir={literals['hydra.run.dir']}: {name}.py has no run folder (see --help)")
        with open_dict(cfg):
            cfg.pop("hydra")
        return Composed(OmegaConf.to_container(cfg, resolve=resolve), run_dir)
    except MissingConfigException as error:
        group, _, variant = str(error.missing_cfg_file).rpartition("/")
        options = [str(option).rpartition("/")[2] for option in error.options or []]
        raise ValueError(f"{group}={variant} names no variant: {did_you_mean(variant, options)}") from error
    except InterpolationToMissingValueError as error:
        missing = str(error).partition("mandatory value: ")[2].partition("\n")[0]
        raise ValueError(f"{missing} is required: give {missing}=VALUE") from error
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        message = str(error).replace("Error merging override ++", "cannot set ")
        reason = f": {error.__cause__}" if message.startswith("cannot set") else ""
        raise ValueError(" ".join(f"{message}{reason}".split())) from error
    finally:
        HydraConfig.instance().cfg = None  # or Lightning would add hydra.* to the arguments of the processes that it starts


def _refuse_second_config(literals: Mapping[str, Any], settings: Sequence[str]) -> None:
    """ValueError for vision.config.* or language.config.* beside a path: what is pretrained has a config of its own."""
    for part in ("vision", "language"):
        path = literals.get(f"{part}.path")
        for setting in settings if path else ():
            if setting.startswith(f"++{part}.config"):
                raise ValueError(
                    f"{setting.lstrip('+')}: the model of {part}.path={path} has a config of its own; leave one out"
                )


def _check_package(group: str, choice: str | None) -> None:
    """Without its first line an experiment's settings would land under `experiment:`, and change nothing."""
    if choice is None:
        return
    path = configs_folder() / group / f"{choice}.yaml"
    header = re.match(r"(\s*(#.*)?\n)*", path.read_text(encoding="utf-8") + "\n")
    if not re.search(r"^\s*#\s*@package\s+_global_\s*$", header[0], flags=re.MULTILINE):
        raise ValueError(f"configs/{group}/{path.name} must begin with the line '# @package _global_'")
