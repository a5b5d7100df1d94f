"""docs/real_data.md works: its commands run one after another on a recording, and so does its Python."""

import json
import re
import shlex
from functools import partial
from pathlib import Path

import pytest

from tests.data.recordings import record
from tests.factory import ROOT, command
from vla_mini import config
from vla_mini.evaluation import open_loop

PAGE = (ROOT / "docs/real_data.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
SMALL = [
    "trainer.max_steps=3",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=3",
    "data.batch_size=8",
    "data.image_size=[32,32]",
]
DATASETS = ROOT.parent / "shared" / "datasets"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the dataset DIR, in which the page's commands run."""
    folder = tmp_path_factory.mktemp("real")
    record(folder / "DIR", version="v2.1", video="libx264", lengths=(20, 30, 25, 24), size=(64, 96))
    return folder


@pytest.mark.parametrize("line", COMMANDS, ids=range(len(COMMANDS)))
def test_commands_run(folder, monkeypatch, line):
    monkeypatch.chdir(folder)
    _, script, *arguments = shlex.split(line)
    name = Path(script).stem
    if "vision.path=MODEL" in arguments:  # the user's own weights: only the settings are checked
        settings = config.load(name, arguments)
        assert settings.vision.arguments()["path"] == "MODEL" and settings.data.image_size is None
        return
    small = [] if name == "browse" else SMALL
    # So few frames of so odd pictures make some checks fail (1); nothing is refused (2).
    assert command(name, *arguments, *small) in ((0,) if name == "train" else (0, 1))


def test_the_run_says_how_far_its_actions_are_from_the_recorded_ones(folder):
    run = folder / "runs/real/latest"
    found = json.loads((run / "evaluation/open_loop.json").read_text())
    assert found["num_frames"] == found["of_frames"] > 20 and (run / "report.html").is_file()


def test_python_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["action"].shape == (3,)


@pytest.mark.parametrize("name", ["g1_yellow_bottle", "gr1_pick_place_sim", "pusht"])
def test_real_recordings_train(tmp_path, monkeypatch, name):
    """With the default settings but for the steps; their frames are decoded when needed, since few are."""
    if not (DATASETS / name).is_dir():
        pytest.skip(f"the dataset {name} is not here")
    monkeypatch.chdir(tmp_path)
    few = partial(open_loop.evaluate_open_loop, num_frames=16, num_training_frames=16)
    monkeypatch.setattr(open_loop, "evaluate_open_loop", few)
    steps = ["trainer.max_steps=2", "trainer.limit_val_batches=1", "data.cache=none", "data.num_workers=0"]
    assert command("train", "experiment=real", f"data.root={DATASETS / name}", *steps) == 0
