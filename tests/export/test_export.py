"""Exported policies: the same actions as in torch for every part, in closed loop, by every command; mistakes in one line."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.factory import FEATURES, OTHERS, command, make_observation, make_policy, spec
from vla_mini.acting import Controller, step_together
from vla_mini.envs import make
from vla_mini.export import ExportedPolicy, load_policy
from vla_mini.export.onnx import OBSERVATIONS, TOLERANCE, export, largest_error, random_observations
from vla_mini.export.runtime import FILES
from vla_mini.serving.server import PolicyServer

pytest.importorskip("onnxscript", reason="the package onnxscript is missing: pip install 'vla-mini[onnx]'")

VARIANTS = [(kind, name) for kind, name in OTHERS if kind != "auxiliary" and name != "fast"]


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A policy that samples, in torch and exported; and the folder of each."""
    folder = tmp_path_factory.mktemp("exported")
    policy = make_policy(action=spec("action", "flow") | {"num_steps": 3, "hidden": 32})
    policy.save_pretrained(folder / "policy")
    export(policy, folder / "exported")
    return policy, ExportedPolicy(folder / "exported"), folder


def check(policy, folder):
    """The graph's actions are the policy's, for one observation and for several, with sentences of any length."""
    written = export(policy, folder / "exported")
    assert written.error < TOLERANCE and written.megabytes == pytest.approx(
        (folder / "exported/policy.onnx").stat().st_size / 1e6
    )
    exported = ExportedPolicy(folder / "exported")
    for size in (1, 5):
        observation = make_observation(policy, size)
        expected, found = (each.act(observation, torch.Generator().manual_seed(3)) for each in (policy, exported))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    moved = make_observation(policy, 5, seed=9)  # which only an input of the graph can tell apart
    assert (exported.act(moved, torch.Generator().manual_seed(3)) - found).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "name"), [("trunk", "query"), *VARIANTS], ids=lambda value: value)
def test_every_part_can_be_exported(kind, name, tmp_path):
    check(make_policy(**{kind: name}), tmp_path)


def test_the_graph_gives_the_attention_maps_of_the_trunk(policies):
    policy, exported, _ = policies
    observation = make_observation(policy, 3)
    inputs = {name: tensor.numpy() for name, tensor in observation._asdict().items()}
    (found,) = exported._session.run(["attention"], inputs | {"noise": np.zeros((3, policy.horizon, 4), np.float32)})
    with torch.no_grad():
        images, words, mask, state = policy.prepare(observation)
        expected = policy.context(images, words, state, mask).attention.exp()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape == (3, 4, 256) and abs(found[0] - found[1]).max() > 1e-3


def test_cameras_history_and_words_can_be_exported(tmp_path):
    two = FEATURES._replace(cameras=("top", "wrist"))
    trunk = spec("trunk", "query") | {"words": True, "film": 1}
    check(make_policy(features=two, history=2, trunk=trunk, ablate=["instruction"]), tmp_path)


def test_a_head_without_a_fixed_number_of_steps_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_policy(action="fast").save_pretrained("policy")
    assert command("export", "policy=policy", "output=exported") == 2
    assert "action=fast cannot be exported" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_what_differs_from_the_policy_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("vla_mini.export.onnx.largest_error", lambda *_: 2 * TOLERANCE)
    with pytest.raises(ValueError, match=r"actions differ from the policy's by 0\.0002"):
        export(make_policy(), tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_the_comparison_notices_another_policy(policies):
    policy, exported, _ = policies
    assert largest_error(policy, exported) < TOLERANCE
    assert (
        largest_error(
            make_policy(action=policy.action.settings | {"_target_": spec("action", "flow")["_target_"]}, seed=1), exported
        )
        > 0.01
    )
    observation = random_observations(policy, OBSERVATIONS)
    assert len(observation.state) == 100 and observation.token_mask.sum(dim=1).unique().tolist() == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("dtype", "share", "error"), [("fp16", 0.7, 0.02), ("int8", 0.6, 1.0)])
def test_smaller_weights(policies, tmp_path, dtype, share, error):
    policy, _, folder = policies
    written = export(policy, tmp_path / "exported", dtype=dtype)
    whole = (folder / "exported/policy.onnx").stat().st_size
    assert 1e-6 * share * whole > written.megabytes and 1e-6 < written.error < error
    assert json.loads((tmp_path / "exported/policy.json").read_text())["dtype"] == dtype


def test_a_controller_acts_as_with_the_policy_itself(policies):
    policy, exported, _ = policies
    envs = [make("vla_mini/ToyPick-v0") for _ in range(2)]
    observations = [env.reset(seed=seed)[0] for seed, env in enumerate(envs)]
    ours, theirs = ([Controller(each, execute=2, seed=seed) for seed in range(2)] for each in (policy, exported))
    for _ in range(6):
        expected, found = step_together(ours, observations), step_together(theirs, observations)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        observations = [env.step(np.clip(action, -1, 1))[0] for env, action in zip(envs, expected, strict=True)]
    with pytest.raises(ValueError, match=r"rtc=true is for policies with a head that denoises, .* not exported"):
        Controller(exported, rtc=True)


def test_observations_that_do_not_fit_are_refused(policies):
    policy, exported, _ = policies
    observation = make_observation(policy)
    with pytest.raises(ValueError, match=r"observation\.state is"):
        exported.act(observation._replace(state=observation.state[:, :3]))
    assert exported.unknown_words("pick up the xyzzy") == policy.unknown_words("pick up the xyzzy") != []


def test_commands_take_an_exported_policy(policies, tmp_path, monkeypatch, capsys):
    _, exported, folder = policies
    monkeypatch.chdir(tmp_path)
    few = ["episodes=2", "check_episodes=0", "output=evaluated"]
    assert command("evaluate", f"policy={folder}/exported", *few) == 0
    assert json.loads((tmp_path / "evaluated/metrics.json").read_text())["episodes"] == 2
    Image.new("RGB", (64, 64)).save("scene.png")
    arguments = ["image=scene.png", "instruction=pick up the red cube", "state=[0,0,0.8,0]"]
    answers = []
    for name in ("policy", "exported"):
        capsys.readouterr()
        assert command("infer", f"policy={folder}/{name}", *arguments) == 0
        answers.append(json.loads(capsys.readouterr().out))
    np.testing.assert_allclose(answers[0]["actions"], answers[1]["actions"], rtol=1e-4, atol=1e-4)
    assert answers[1]["saved_bytes"] == 0 and not answers[1]["requires_grad"]
    assert command("infer", f"policy={folder}/exported", *arguments, "mode=grad") == 2
    assert "mode=grad: an exported policy is no graph of autograd" in capsys.readouterr().err
    assert command("evaluate", f"policy={folder}/exported", "num_steps=2") == 2
    assert "num_steps=2: those of an exported policy are fixed" in capsys.readouterr().err
    assert PolicyServer(exported).metadata["actions_shape"] == [exported.horizon, 4]


def test_a_damaged_export_is_refused_and_named(policies, tmp_path):
    _, _, folder = policies
    for file, message in (
        ("policy.onnx", "policy.onnx is damaged"),
        ("tokenizer.json", "tokenizer.json is damaged"),
        ("policy.json", "policy.json is damaged"),
    ):
        copy = tmp_path / file
        copy.mkdir()
        for path in (folder / "exported").iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        (copy / file).write_bytes((copy / file).read_bytes()[:-1] + b"?")
        with pytest.raises(ValueError, match=message):
            load_policy(copy)
    for file in FILES:
        (folder / "exported" / file).rename(tmp_path / "kept")
        with pytest.raises(ValueError, match=f"exported/{file} is missing"):
            load_policy(folder / "exported")
        (tmp_path / "kept").rename(folder / "exported" / file)


def test_an_existing_folder_is_left_alone(policies, capsys):
    _, _, folder = policies
    assert command("export", f"policy={folder}/policy", f"output={folder}/exported") == 2
    assert "exists already: name a new folder" in capsys.readouterr().err
    assert command("export", f"policy={folder}/exported", "output=again") == 2
    assert "is an exported policy already: give the one that it was made of" in capsys.readouterr().err


def test_a_missing_package_is_named(policies, monkeypatch):
    _, _, folder = policies
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"the package onnxruntime is missing: pip install 'vla-mini\[onnx\]'"):
        load_policy(folder / "exported")
