"""Where configs are: vla-mini's own configs/, and a person's own folders, whose variants are added to them and come first."""

from functools import cache
from pathlib import Path
from typing import Any

from vla_mini.commands import shipped
from vla_mini.utils.errors import as_value_error

_config_dir: list[Path] = []  # the user's own, by --config-dir; one at most


def use_config_dir(folder: str | None) -> None:
    """Look for variants, experiments and studies in `folder`, too, and there first. ValueError where there is no such folder,
    and where it has a train.yaml or another command's, which cannot be replaced."""
    _config_dir.clear()
    if folder is not None:
        if not Path(folder).is_dir():
            raise ValueError(f"--config-dir {folder}: there is no such folder")
        for command in configs_folder().glob("*.yaml"):
            if (Path(folder) / command.name).is_file() and not Path(folder).samefile(configs_folder()):
                raise ValueError(
                    f"--config-dir {folder}: {command.name} in it cannot replace vla-mini's: only groups can be added"
                )
        _config_dir.append(Path(folder).resolve())


def config_dir_arguments() -> list[str]:
    """What makes another command look in the same folders."""
    return [argument for folder in _config_dir for argument in ("--config-dir", str(folder))]


def configs_folder() -> Path:
    """vla-mini's own configs/."""
    folder = shipped("configs")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: install vla-mini again, or in its checkout by `pip install -e .`")
    return folder


def config_folders() -> list[Path]:
    """Where configs are looked for; the first that has one counts: the user's own (--config-dir, and configs/ in the current
    folder), then vla-mini's. Another program's configs/, with a train.yaml of its own, is left alone."""
    here = Path("configs").resolve()
    here_too = here.is_dir() and not any((here / command.name).is_file() for command in configs_folder().glob("*.yaml"))
    return [*_config_dir, *([here] if here_too else []), configs_folder()]


def variant_files(group: str) -> dict[str, Path]:
    """The variants of a group by name, each with its file."""
    found = {path.stem: path for folder in reversed(config_folders()) for path in (folder / group).glob("*.yaml")}
    return dict(sorted(found.items()))


def read_command(name: str) -> dict[str, Any]:
    """The content of configs/<name>.yaml."""
    return dict(_parse_yaml(name, (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8")))


@cache
def _parse_yaml(name: str, text: str) -> dict[str, Any]:
    import yaml

    with as_value_error(f"configs/{name}.yaml is no YAML", yaml.YAMLError):
        return yaml.safe_load(text) or {}


def groups_of(name: str) -> dict[str, list[str]]:
    """The groups in a command's defaults list, each with its variants: {"vision": ["conv", "patch"], ...}."""
    groups = [key for entry in read_command(name).get("defaults", []) if isinstance(entry, dict) for key in entry]
    return {group: list(variant_files(group)) for group in groups}


def known_keys(name: str) -> list[str]:
    """What a command's arguments may begin with: its groups and its settings."""
    return list(dict.fromkeys([*groups_of(name), *(key for key in read_command(name) if key != "defaults")]))


@cache
def search_users_folders() -> None:
    """Let Hydra look for variants in the user's folders before it does in vla-mini's."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class UsersFolders(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in reversed(config_folders()[:-1]):
                search_path.prepend("the user's configs", f"file://{folder}")

    Plugins.instance().register(UsersFolders)
