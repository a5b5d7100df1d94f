"""A policy that observes two frames, from training to the pictures of its gradients, by the commands alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vla_mini
from tests.factory import command
from vla_mini.acting import observe
from vla_mini.envs import make

SMALL = ["experiment=toy_pick_smoke", "trainer.max_steps=2", "data.episodes=4", "data.validation_episodes=1"]
SMALL += ["data.root=data", "data.batch_size=8", "evaluation.episodes=1", "evaluation.selection_episodes=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command("train", *SMALL, "history=2", "hydra.run.dir=run") == 0
    return folder


@pytest.fixture
def frames(folder, monkeypatch) -> list[dict]:
    """Two frames of an episode, the newest first, also as image files in the working directory."""
    monkeypatch.chdir(folder)
    env = make("vla_mini/ToyPick-v0")
    first, _ = env.reset(seed=1)
    second, *_ = env.step(np.float32([1, -1, -1, 1]))
    for name, frame in (("now", second), ("before", first)):
        Image.fromarray(frame["images"]["top"]).save(f"{name}.png")
    return [second, first]


def infer(images: str, states: list) -> int:
    state = "[" + ",".join(str(value) for state in states for value in state) + "]"
    return command("infer", "policy=run/policy", f"image={images}", "instruction=lift the red cube", f"state={state}")


def test_the_trained_policy_takes_both_frames(folder):
    policy = vla_mini.Policy.from_pretrained(folder / "run/policy")
    assert policy.history == 2 and json.loads((folder / "run/policy/config.json").read_text())["history"] == 2
    assert policy.camera_embedding.weight.shape[0] == 2 and policy.state.in_features == 8


def test_infer_takes_as_many_frames_as_there_are(frames, capsys):
    policy = vla_mini.Policy.from_pretrained("run/policy")
    now, before = (frame | {"instruction": "lift the red cube"} for frame in frames)
    for images, given in (("[now.png,before.png]", [now, before]), ("now.png", [now])):
        assert infer(images, [frame["state"] for frame in given]) == 0
        actions = torch.tensor(json.loads(capsys.readouterr().out)["actions"])
        torch.testing.assert_close(actions, policy.act(observe(policy, given[:1], past=[given[1:]]))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "num_states", "message"),
    [
        ("[now.png,before.png,now.png]", 3, "1 camera(s) in each of 1 to 2 frames, the newest first: top"),
        ("[now.png,before.png]", 1, "x, y, height, closed for each of 2 frames"),
        ("now.png", 2, "x, y, height, closed for each of 1 frames"),
    ],
)
def test_infer_refuses_other_numbers_of_frames(frames, capsys, images, num_states, message):
    assert infer(images, [[0, 0, 0.5, 0]] * num_states) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err, err


def test_gradients_show_the_newest_frame_and_all_columns(frames):
    few = ["samples=8", "scenes=1", "grid=2", "output=gradients"]
    assert command("gradients", "policy=run/policy", "data=data", *few) == 0
    found = json.loads(Path("gradients/gradients.json").read_text())
    assert found["jacobian"]["columns"] == 2 * 4 + 2 * 3 * 2 * 2
    assert list(found["jacobian"]["column_blocks"])[::3] == ["state", "top, blue", "top, 1 before, blue"]
    assert list(found["sensitivity"][0]["state"]) == ["x", "y", "height", "closed"]
    assert found["sensitivity"][0]["on_target"] > 0


def test_a_history_longer_than_an_episode_is_refused_before_work(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert command("train", *SMALL, "history=1000000000", "hydra.run.dir=other") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "history=1000000000 must be 1 to" in err and sorted(folder.rglob("*")) == before
