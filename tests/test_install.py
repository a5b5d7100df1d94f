"""The wheel, installed in a folder without a checkout: the command `vla-mini`, configs of one's own, a plugin's action head."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.factory import ROOT, command
from vla_mini import registry

HEAD = """
from vla_mini.action.regression import RegressionHead


class MyHead(RegressionHead):
    pass


class NoPart:
    pass
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"]))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package `my_heads` that is installed beside vla-mini, and not yet imported."""
    package = tmp_path / "plugins" / "my_heads"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(HEAD)
    (package / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(package.parent)
    yield package
    registry.use_plugins([])
    sys.modules.pop("my_heads", None)


def vla_mini(installed, folder, *arguments, also=()):
    """`vla-mini` with these arguments, run in `folder`."""
    path = os.pathsep.join(map(str, (installed, *also)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", "from vla_mini.commands import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_what_commands_need(installed):
    for folder in ("configs", "scripts"):
        ours, theirs = (
            sorted(path.relative_to(root / folder) for path in (root / folder).rglob("*.*"))
            for root in (ROOT, installed / "vla_mini")
        )
        assert [path for path in theirs if "__pycache__" not in path.parts] == [
            path for path in ours if "__pycache__" not in path.parts
        ]
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "vla-mini = vla_mini.commands:main" in entry_points.read_text()


def test_the_overview_names_each_command_and_a_typo_the_nearest(installed, tmp_path):
    shown = vla_mini(installed, tmp_path, "--help")
    assert shown.returncode == 0
    for script in (ROOT / "scripts").glob("*.py"):
        assert f"\n  {script.stem} " in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) < 150
    typo = vla_mini(installed, tmp_path, "trian")
    assert (typo.returncode, typo.stderr) == (2, "vla-mini: 'trian' is no command; did you mean 'train'?\n")
    usage = vla_mini(installed, tmp_path, "train", "--help").stdout
    assert "usage: vla-mini train [group=variant] [key=value]" in usage and "python scripts" not in usage


def test_a_run_in_any_folder_with_configs_and_a_head_of_ones_own(installed, plugin, tmp_path):
    (tmp_path / "configs/experiment").mkdir(parents=True)
    mine = "# @package _global_\ndefaults:\n  - toy_pick_smoke\n\nplugins: [my_heads]\naction:\n  _target_: my_heads.MyHead\n"
    (tmp_path / "configs/experiment/mine.yaml").write_text(mine)
    also = [plugin.parent]
    trained = vla_mini(installed, tmp_path, "train", "experiment=mine", "hydra.run.dir=run", also=also)
    assert trained.returncode == 0, trained.stderr
    policy = ["evaluate", "policy=run/policy", "episodes=1", "check_episodes=0", "output=evaluated"]
    refused = vla_mini(installed, tmp_path, *policy, also=also)
    assert refused.returncode == 2 and "give plugins=[my_heads]" in refused.stderr and refused.stderr.count("\n") == 1
    allowed = vla_mini(installed, tmp_path, *policy, "plugins=[my_heads]", also=also)
    assert allowed.returncode == 0, allowed.stderr
    assert (tmp_path / "evaluated/metrics.json").is_file()
    checked = vla_mini(installed, tmp_path, "doctor", "experiment=mine", also=also)
    assert "packages" in checked.stdout and "FileNotFoundError" not in checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["plugins=[no_such_package]"],
            "plugins=[no_such_package] cannot be imported: No module named 'no_such_package'; install it",
        ),
        (["plugins=[my_heads]", "action._target_=my_heads.NoPart"], "action._target_=my_heads.NoPart is not derived from"),
        (["plugins=[my_heads]", "action._target_=my_heads.Missing"], "action._target_=my_heads.Missing is no class"),
        (["plugins=[my_heads]", "action._target_=my_heads.more.Head"], "action._target_=my_heads.more.Head: No module named"),
        (
            ["plugins=[my_heads]", "action._target_=my_heads.broken.Head"],
            "action._target_=my_heads.broken.Head: division by zero",
        ),
        (["action._target_=my_heads.MyHead"], "for a class of your own give plugins=[my_heads]"),
        (["plugins=my_heads"], "plugins='my_heads' is not a list"),
    ],
    ids=["missing package", "no part", "no class", "missing module", "broken module", "not allowed", "no list"],
)
def test_a_plugin_that_cannot_be_used_is_refused(plugin, arguments, message, capsys):
    assert command("train", "experiment=toy_pick_smoke", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert "my_heads" not in sys.modules or "plugins=[my_heads]" in arguments  # nothing runs that is not named


def test_a_folder_of_configs_is_searched_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, hidden in (("configs", 16), ("given", 32), ("with space", 48)):
        (tmp_path / name / "action").mkdir(parents=True)
        text = f"_target_: vla_mini.action.regression.RegressionHead\nhidden: {hidden}\n"
        (tmp_path / name / "action/regression.yaml").write_text(text)

    def hidden(*arguments):
        assert command("train", *arguments, "--cfg", "job") == 0
        return capsys.readouterr().out.partition("RegressionHead\n  hidden: ")[2].partition("\n")[0]

    assert hidden() == "16"
    assert hidden("--config-dir", "given") == hidden("--config-dir=given") == "32"
    assert hidden("--config-dir", "with space") == "48"
    (tmp_path / "configs/train.yaml").write_text("of: another program\n")
    assert hidden() == "256"
    for arguments, message in (
        (["--config-dir", "configs"], "train.yaml in it cannot replace vla-mini's: only groups can be added"),
        (["--config-dir", "missing"], "--config-dir missing: there is no such folder"),
        (["--config-dir"], "--config-dir needs a folder: --config-dir DIR"),
    ):
        assert command("train", *arguments) == 2
        assert message in capsys.readouterr().err
    assert not Path("runs").exists()
