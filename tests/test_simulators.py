"""The simulators' experiments from one command to a report, on a few steps: collected or recorded demonstrations, training,
evaluation by tasks and groups, videos."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from tests.envs.helpers import why_missing
from tests.factory import command
from vla_mini.data.lerobot.writer import DatasetWriter, encode_episode
from vla_mini.envs import get_spec, make

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.skipif(bool(why_missing("metaworld")), reason=why_missing("metaworld"))
def test_meta_world_trains_and_is_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("train", "experiment=metaworld_smoke", "hydra.run.dir=run") == 0
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert metrics["tasks"]["drawer-close"]["episodes"] == 1 and list(metrics["grounding"]) == ["blank"]
    assert "drawer-close" in (tmp_path / "run/report.html").read_text()
    few = ["episodes=1", "check_episodes=0", "output=more"]
    assert command("evaluate", "policy=run/policy", "env=metaworld_mt10", *few) == 0
    metrics = json.loads((tmp_path / "more/metrics.json").read_text())
    assert len(metrics["tasks"]) == 10 and list(metrics["groups"]) == ["easy", "medium", "hard"]
    assert len(list((tmp_path / "more/videos").glob("*.gif"))) == 10
    assert "mean of groups" in capsys.readouterr().out
    assert command("evaluate", "policy=run/policy", "env=toy_pick", "episodes=1") == 2
    assert "env=vla_mini/ToyPick-v0 does not fit the policy run/policy: cameras is ['top']" in capsys.readouterr().err


@pytest.mark.skipif(bool(why_missing("libero")), reason=why_missing("libero"))
def test_libero_trains_and_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "LIVING_ROOM_SCENE1_pick_up_the_ketchup_and_put_it_in_the_basket"
    few = [
        f"env.task={name}",
        "data.episodes=1",
        "data.validation_episodes=1",
        "evaluation.episodes=1",
        "evaluation.check_episodes=1",
    ]
    steps = ["trainer.max_steps=2", "trainer.val_check_interval=1", "trainer.log_every_n_steps=1", "data.batch_size=4"]
    assert command("train", "experiment=libero_living_room", *few, *steps, "hydra.run.dir=run") == 0
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert metrics["tasks"][name]["episodes"] == 1 and list(metrics["grounding"]) == ["blank"]


@pytest.mark.skipif(bool(why_missing("libero")), reason=why_missing("libero"))
def test_human_demonstrations_of_libero_are_trained_on(tmp_path, monkeypatch, capsys):
    """In the layout of the hub's datasets, with their names and their frames per second, which are not the environment's."""
    monkeypatch.chdir(tmp_path)
    env = make("vla_mini/LiberoSpatial-v0?image_size=64&wrist=true")
    spec, generator = env.unwrapped.env_spec, np.random.default_rng(0)
    motors = ("x", "y", "z", "roll", "pitch", "yaw", "gripper", "gripper_right")
    features = spec.features._replace(state=motors, action=motors[:7], fps=10)
    with DatasetWriter("recorded", features=features, robot_type="panda") as writer:
        for _ in range(3):
            observations = [env.reset(seed=0, options={"render_every": 1000})[0]]
            actions = generator.uniform(-1, 1, (20, 7)).astype(np.float32)
            observations += [env.step(action)[0] for action in actions[:-1]]
            images = {camera: np.stack([each["images"][camera] for each in observations]) for camera in features.cameras}
            states = np.stack([each["state"] for each in observations])
            writer.add_episode(encode_episode(images, states=states, actions=actions, task=observations[0]["instruction"]))
        writer.finish(splits={"train": (0, 2), "validation": (2, 3)})
    env.close()
    few = ["evaluation.episodes=1", "evaluation.check_episodes=0", f"env.task={next(iter(spec.tasks))}", "env.image_size=32"]
    steps = ["trainer.max_steps=2", "trainer.val_check_interval=1", "trainer.log_every_n_steps=1", "data.batch_size=4"]
    arguments = ["train", "experiment=libero_human", "data.root=recorded", *few, *steps]
    assert command(*arguments, "hydra.run.dir=run") == 0
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert metrics["episodes"] == 1
    saved = json.loads((tmp_path / "run/policy/config.json").read_text())["features"]
    assert (saved["state"], saved["action"], saved["fps"]) == (
        list(spec.features.state),
        list(spec.features.action),
        spec.features.fps,
    )
    assert command(*arguments, "data.recorded_in_env=false", "hydra.run.dir=other") == 2
    assert "does not fit the dataset recorded: state is" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(find_spec("gym_pusht") is None, reason="the package gym-pusht is missing")
def test_pusht_trains_on_recordings_and_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env, generator, spec = make("vla_mini/PushT-v0"), np.random.default_rng(0), get_spec("vla_mini/PushT-v0")
    with DatasetWriter("recorded", features=spec.features, robot_type="pusht") as writer:
        for episode in range(3):
            observations = [env.reset(seed=episode)[0]]
            actions = generator.uniform(0, 512, (20, 2)).astype(np.float32)
            observations += [env.step(action)[0] for action in actions[:-1]]
            images = {"image": np.stack([observation["images"]["image"] for observation in observations])}
            states = np.stack([observation["state"] for observation in observations])
            writer.add_episode(encode_episode(images, states=states, actions=actions, task=observations[0]["instruction"]))
        writer.finish(splits={"train": (0, 2), "validation": (2, 3)})
    steps = ["trainer.max_steps=2", "trainer.val_check_interval=1", "trainer.log_every_n_steps=1", "data.batch_size=4"]
    assert command("train", "experiment=pusht", "data.root=recorded", *steps, "evaluation.episodes=2", "hydra.run.dir=run") == 0
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert 0 <= metrics["final_coverage_rate"] <= metrics["max_coverage_rate"] <= 1 and metrics["episodes"] == 2
    assert all("coverage" not in path.name for path in (tmp_path / "run/evaluation/videos").iterdir())
