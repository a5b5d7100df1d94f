"""Command line + configs/<command>.yaml -> plain, resolved settings, by Hydra's compose API. The only module that uses Hydra.

    ["experiment=toy_pick", "action=flow", "optimizer.lr=1e-3"]  ──compose──▶  {"seed": 0, "action": {...}, ...}

Hydra never parses free text and paths, in whose values it would find sweeps and function calls: they are set afterwards.
Settings are forced in (`++`) whether they exist or not, so that a mistyped key on the command line and one in a YAML file,
which Hydra merges silently, are both found when the settings are validated.
With resume=RUN_DIR the settings are those in the run's config.yaml, and only some of them may change (`compose_run`).
"""

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args, get_origin, get_type_hints

from vla_mini import settings
from vla_mini.config import folders
from vla_mini.config.sources import configs_folder, groups_of, known_keys, read_command, search_users_folders, variant_files
from vla_mini.utils.errors import did_you_mean, one_line
from vla_mini.utils.schema import ObjectSettings, StrictModel

SAMPLES = ("data.batch_size", "trainer.devices", "trainer.num_nodes")  # whose product a resumed run keeps
RUN_DIR = "hydra.run.dir"  # how users of Hydra know the setting run_dir
# Hydra's own groups, for its command line, which nothing here uses: reading them takes a third of the time of composing.
UNUSED = ("hydra_logging", "job_logging", "launcher", "sweeper", "output", "help", "hydra_help")


def dotted(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys within, as they are written on the command line (seed, optimizer, optimizer.lr, ...), with their values."""
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")


def model_of(name: str) -> type[StrictModel]:
    """The settings of a command as a type."""
    if name == "train":
        return settings.TrainSettings
    from vla_mini.config import command_settings

    return command_settings.COMMANDS[name]


def key_of(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+")


def type_of(kind: Any, names: Sequence[str]) -> Any:
    """The annotation of the setting `names` below the type `kind`; None where that is unknown. Parts are not imported."""
    if not names:
        return kind
    if inspect.isclass(kind) and issubclass(kind, ObjectSettings):
        return settings.Path | None if names[-1] == "path" else None
    if inspect.isclass(kind) and issubclass(kind, StrictModel):
        return type_of(get_type_hints(kind, include_extras=True).get(names[0]), names[1:])
    if get_origin(kind) is dict:
        return type_of(get_args(kind)[1], names[1:])
    return next(filter(None, (type_of(choice, names) for choice in get_args(kind))), None)


def is_text(kind: Any) -> bool:
    """Whether an annotation is one of free text or a path. A group of texts by name is none: `{a: b}` has to be parsed."""
    return settings.AS_WRITTEN in get_args(kind) or (get_origin(kind) is not dict and any(map(is_text, get_args(kind))))


def sort_arguments(name: str, arguments: Sequence[str]) -> tuple[dict[str, str | None], dict[str, str]]:
    """Texts by key, which Hydra must not parse, and its overrides by key; where a key is given twice, the last one counts.

    ValueError for an argument of another form, a variant that does not exist, or a value that Hydra cannot parse.
    """
    groups, texts, overrides = groups_of(name), {}, {}
    for argument in arguments:
        key, value = key_of(argument), argument.partition("=")[2]
        if "=" not in argument or not re.fullmatch(r"\w+(\.\w+)*", key):
            raise ValueError(f"{argument!r} is not of the form key=value (see --help)")
        if key == RUN_DIR and name == "train":
            key = "run_dir"
        kind = type_of(model_of(name), key.split("."))
        if key not in groups and inspect.isclass(kind) and issubclass(kind, settings.Reading):  # data=DIR
            key, kind = f"{key}.root", settings.Path
        if is_text(kind):
            texts[key] = None if value == "null" and type(None) in get_args(kind) else value
        elif key in groups:
            chosen = [variant.strip() for variant in value.strip("[]").split(",")]
            for variant in chosen:
                if variant not in groups[key]:
                    raise ValueError(f"{argument} names no variant: {did_you_mean(variant, groups[key])}")
            if "none" in chosen and len(chosen) > 1:
                raise ValueError(f"{argument}: none stands alone")
            overrides[key] = f"{key}={value}"
        elif key.startswith("hydra.") or variant_files(key):
            names = [*known_keys(name), *([RUN_DIR] if name == "train" else [])]
            raise ValueError(f"{argument}: {name}.py has no {key!r}: {did_you_mean(key, names)}")
        else:
            overrides[key] = f"++{key}={value}"
            parse_values(overrides[key])
    return texts, overrides


def parse_values(override: str, *, several: bool = False) -> list[str]:
    """The value of `++key=value` as Hydra reads it, or the values of a sweep, where there may be `several`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, _, value = override.lstrip("+").partition("=")
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ValueError(f"cannot read the value of {key}={value}: quote it as {key}='\"...\"'") from error
    if not parsed.is_sweep_override():
        return [value]
    if not several:
        raise ValueError(f"{key}={value} has several values: give one, or a list as {key}=[{value}]")
    return list(parsed.sweep_string_iterator())


def compose(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The settings of a command, resolved and not yet validated. ValueError, in one line, for all that Hydra refuses."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    texts, overrides = sort_arguments(name, arguments)
    _refuse_second_config(arguments)
    with _hydra_errors():
        search_users_folders()
        with initialize_config_dir(str(configs_folder()), version_base="1.3"):
            own = [f"~hydra/{group}" for group in UNUSED]
            config = hydra_compose(name, [*overrides.values(), *own], return_hydra_config=True)
        choices = config.hydra.runtime.choices
        for group in {"experiment", "study"} & set(choices) & set(config):  # where Hydra puts a file without a header
            raise ValueError(f"configs/{group}/{choices[group]}.yaml must begin with the line '# @package _global_'")
        with open_dict(config):
            for key, text in texts.items():
                escaped = text and re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", text)  # else `${` is a reference
                OmegaConf.update(config, key, escaped, force_add=True)
            HydraConfig.instance().set_config(config)  # for ${hydra:...}
            del config["hydra"]
        return OmegaConf.to_container(config, resolve=True)


@contextmanager
def _hydra_errors() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise into ValueError, in the words of the command line."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
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
        before, mixed, after = one_line(f"{message}{reason}").partition("Cannot merge DictConfig with ListConfig")
        if mixed and reason:
            expected = "a list" if "object_type=list" in after else "a group of settings"
            raise ValueError(f"{before.removeprefix('cannot set ').removesuffix(': ')} is not {expected}") from error
        raise ValueError(f"{before}a list where a group of settings is needed, or the reverse" if mixed else before) from error
    finally:
        HydraConfig.instance().cfg = None  # else Lightning would add hydra.* to the arguments of the processes that it starts


def _refuse_second_config(arguments: Sequence[str]) -> None:
    """ValueError for vision.config.* or language.config.* beside a path: a pretrained model has its own config."""
    given = {key_of(argument): argument.partition("=")[2] for argument in arguments}
    for key, value in given.items():
        part = key.partition(".")[0]
        path = given.get(f"{part}.path", "null")
        if key.startswith(("vision.config", "language.config")) and path not in ("", "null"):
            raise ValueError(f"{key}={value}: {part}.path={path} has its own config; leave one out")


def compose_run(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings of the run that `resume=` names, with the changes in other arguments. ValueError for any other change."""
    resume = [argument for argument in arguments if key_of(argument) == "resume"][-1].partition("=")[2]
    if resume == "null":
        return compose("train", arguments)
    folder = folders.run_to_resume(resume)
    changes = [argument for argument in arguments if key_of(argument) != "resume"]
    for argument in changes:
        if not {key_of(argument), key_of(argument).partition(".")[0]} & set(settings.CHANGEABLE_ON_RESUME):
            changeable = ", ".join(settings.CHANGEABLE_ON_RESUME)
            raise ValueError(f"{argument} with resume=: only {changeable} may change when a run is resumed")
    resumed = folders.saved_settings(folder) | {"resume": str(folder), "run_dir": str(folder)}
    before, was_sharded = _samples(resumed), dict(dotted(resumed)).get("trainer.strategy") == "fsdp"
    changed = compose("train", changes) if changes else {}
    for key in {key_of(argument) for argument in changes}:
        node, _, leaf = key.partition(".")
        if key in settings.CHANGEABLE_ON_RESUME and leaf:
            resumed[node][leaf] = changed[node][leaf]
        else:
            resumed[node] = changed[node]
    strategy = dict(dotted(resumed)).get("trainer.strategy")
    if was_sharded != (strategy == "fsdp"):
        raise ValueError(f"trainer.strategy={strategy} with resume=: the checkpoints of fsdp are other files")
    if (samples := _samples(resumed)) != before:
        given = " ".join(f"{key}={value}" for key, value in dotted(resumed) if key in SAMPLES)
        raise ValueError(f"{given} with resume=: a step would have {samples} samples instead of {before}")
    return resumed


def _samples(run: Mapping[str, Any]) -> int:
    """Of a step, in all processes; 0 where that cannot be said, which validation refuses."""
    numbers = dict.fromkeys(SAMPLES, 1) | {key: value for key, value in dotted(run) if key in SAMPLES}
    return math.prod(numbers.values()) if all(isinstance(number, int) for number in numbers.values()) else 0


def split(name: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of a command that begins as train.py does -> its own, and those for train.py.

    The second list is empty where the command has no experiment, neither given nor by default. ValueError for a key that
    neither of the two knows.
    """
    command, own_keys, training_keys = read_command(name), known_keys(name), known_keys("train")
    keys = [key_of(argument) for argument in arguments]
    default = command.get("experiment")
    if name != "compare" and not default and "experiment" not in keys:
        return list(arguments), []
    own, training = [], []
    for argument, key in zip(arguments, keys, strict=True):
        node = key.partition(".")[0]
        # An argument without a key is refused as one of the command's own.
        is_own = key in own_keys or isinstance(command.get(node), dict) or "=" not in argument
        if not is_own and node not in (*training_keys, "hydra"):
            raise ValueError(f"unknown key {key!r}: {did_you_mean(key, [*own_keys, *training_keys])}")
        if is_own:
            own.append(argument)
        if not is_own or (name != "compare" and key in ("experiment", "plugins", "seed")):
            training.append(argument)
    if default and "experiment" not in keys:
        training = [f"experiment={default}", *training]
    return own, training
