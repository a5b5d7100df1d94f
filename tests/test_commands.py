"""Each command end to end on toy_pick_smoke, in this process, and the refusal of bad input: one line, exit code 2, no files."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import vla_mini
from tests.factory import command, make_policy
from vla_mini.acting import observe
from vla_mini.envs import make


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Smoke(NamedTuple):
    place: Path
    printed: str
    cpu_seconds: float  # of this process and those that it started, so that a busy machine makes no difference


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Smoke:
    """The smoke experiment, run once in an empty working directory, collecting first."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(place)
        before = sum(os.times()[:4])
        several = ["evaluation.episodes=2", "evaluation.selection_episodes=2"]
        assert command("train", "experiment=toy_pick_smoke", "logger=wandb", *several) == 0
    return Smoke(place, printed.getvalue(), sum(os.times()[:4]) - before)


@pytest.fixture(scope="module")
def place(smoke) -> Path:
    return smoke.place


@pytest.fixture(autouse=True)
def here(request, monkeypatch):
    if "place" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("place"))


RUN, POLICY = "runs/toy_pick_smoke/latest", "runs/toy_pick_smoke/latest/policy"


def test_a_run_leaves_all_that_it_promises(place):
    run = place / RUN
    wanted = "config.yaml metrics.csv checkpoints/last.ckpt policy/config.json policy/model.safetensors policy/manifest.json"
    wanted += " policy/tokenizer.json evaluation/metrics.json report.html"
    assert [name for name in wanted.split() if not (run / name).is_file()] == []
    assert list((run / "evaluation" / "videos").glob("*.gif"))
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["episodes"] == 2 and set(metrics["splits"]) == {"seen", "held_out_pairs", "held_out_phrasings"}
    assert set(metrics["grounding"]) == {"swapped", "blank"}
    source = json.loads((run / "policy" / "config.json").read_text())["source"]
    assert source["env"] == "vla_mini/ToyPick-v0" and len(source["dataset"]) == 64


def test_its_last_line_holds_success_time_and_report(smoke):
    line = smoke.printed.splitlines()[-1]
    found = re.fullmatch(
        r"success ([\d.]+)% \(95 % interval ([\d.]+)% to ([\d.]+)%\), wrong object ([\d.]+)%; "
        r"trained \d+ s, evaluated \d+ s; (\S+/report\.html)",
        line,
    )
    assert found, line
    metrics = json.loads((smoke.place / RUN / "evaluation" / "metrics.json").read_text())
    figures = [metrics["success_rate"], *metrics["success_ci95"], metrics["wrong_object_rate"]]
    assert [float(figure) for figure in found.groups()[:4]] == pytest.approx([100 * figure for figure in figures], abs=0.05)
    assert (smoke.place / found[5]).samefile(smoke.place / RUN / "report.html")


def test_a_run_shows_its_batch_once(smoke):
    for row in ("images +16 x 1 x 3 x 64 x 64 +uint8", "tokens +16 x \\d+ +int64", "actions +16 x 8 x 4 +float32"):
        assert len(re.findall(rf"{row} +\S+$", smoke.printed, re.MULTILINE)) == 1


def test_the_smoke_experiment_takes_less_than_half_a_minute_of_two_cores(smoke):
    assert smoke.cpu_seconds < 2 * 30


def test_an_insulated_policy_is_trained_saved_and_acts(place, tmp_path):
    short = ["trainer.max_steps=2", "evaluation.every_n_steps=0", "evaluation.episodes=1", f"hydra.run.dir={tmp_path / 'run'}"]
    assert command("train", "experiment=toy_pick_smoke", "insulate=true", *short) == 0
    policy = vla_mini.Policy.from_pretrained(tmp_path / "run" / "policy")
    assert type(policy.backbone_action).__name__ == "BinsHead"
    (row, *_) = csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines())
    assert {"train/backbone_action", "gradients/backbone_action"} <= row.keys()


def test_the_curves_hold_losses_success_and_gradients(place):
    header, *rows = (place / RUN / "metrics.csv").read_text().splitlines()
    names = {"train/loss", "train/action", "train/keyframe", "validation/loss", "selection/success_rate", "learning_rate"}
    names |= {f"gradients/{part}" for part in ("vision", "language", "state", "trunk", "action")}
    assert names <= set(header.split(","))
    for name in names:
        column = header.split(",").index(name)
        assert any(row.split(",")[column] for row in rows), name


def test_evaluate_twice_gives_the_same_figures_in_new_folders(place, capsys):
    for _ in range(2):
        assert command("evaluate", f"policy={POLICY}", "episodes=2") == 0
    assert "success" in capsys.readouterr().out
    first, second = sorted((place / RUN / "evaluations").iterdir())
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (first, second))
    assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_evaluate_changes_how_a_policy_acts(place, tmp_path, capsys):
    videos = {}
    for name, acting in (("saved", []), ("execute", ["execute=8"]), ("ensemble", ["execute=1", "ensemble=0.1"])):
        assert command("evaluate", f"policy={POLICY}", "episodes=2", f"output={tmp_path / name}", *acting) == 0
        videos[name] = files(tmp_path / name / "videos")
    assert videos["execute"] != videos["saved"] != videos["ensemble"]
    capsys.readouterr()
    for setting, says in (
        ("execute=9", "execute=9"),
        ("num_steps=3", "num_steps=3"),
        ("ensemble=0.1 execute=8", "ensemble=0.1"),
    ):
        bad("evaluate", f"policy={POLICY}", "episodes=2", *setting.split(), says=says, capsys=capsys)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_run_without_an_environment_trains_validates_and_reports(place, tmp_path, capsys, steps):
    smoke = ["experiment=toy_pick_smoke", "env=none", "data.root=data/toy_pick_16_seed0", "data.episodes=null"]
    assert command("train", *smoke, f"trainer.max_steps={steps}", f"hydra.run.dir={tmp_path / 'run'}") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    error = r"error [\d.]+ of a standard deviation \(mean action [\d.]+, hold [\d.]+, nearest frame [\d.]+\)"
    loss = r"validation loss [\d.]+ after step \d+ \(.*\)"
    assert re.fullmatch(rf"{loss}; {error}; trained \d+ s; \S+/report\.html", last), last
    assert (tmp_path / "run" / "report.html").is_file()
    assert {path.name for path in (tmp_path / "run" / "evaluation").iterdir()} == {"open_loop.json", "open_loop"}
    policy = vla_mini.Policy.from_pretrained(tmp_path / "run" / "policy")
    assert "env" not in policy.source
    bad("evaluate", f"policy={tmp_path / 'run' / 'policy'}", says="env=none", capsys=capsys)


@pytest.fixture
def scene(tmp_path) -> tuple[Path, dict]:
    observation, _ = make("vla_mini/ToyPick-v0").reset(seed=1)
    Image.fromarray(observation["images"]["top"]).save(tmp_path / "scene (1), 장면.png")
    return tmp_path / "scene (1), 장면.png", observation


def infer(capsys, **settings) -> dict:
    assert command("infer", f"policy={POLICY}", *(f"{key}={value}" for key, value in settings.items())) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_infer_prints_the_first_chunk_of_a_controller(tmp_path, scene, capsys):
    """Of the same seed, also from a head that samples; whichever of its actions would be executed."""
    path, observation = scene
    policy = make_policy(action="flow")
    policy.save_pretrained(tmp_path / "policy")
    controller = vla_mini.Controller(policy, seed=3, execute=8)
    chunk = [controller.step(observation) for _ in range(8)]
    state = "[" + ",".join(map(str, observation["state"])) + "]"
    given = [f"policy={tmp_path / 'policy'}", f"image={path}", f"instruction={observation['instruction']}", f"state={state}"]
    for mode in ("grad", "no_grad"):
        assert command("infer", *given, "seed=3", f"mode={mode}") == 0
        torch.testing.assert_close(torch.tensor(json.loads(capsys.readouterr().out)["actions"]), torch.tensor(np.stack(chunk)))


def test_infer_prints_what_act_returns(place, scene, capsys):
    path, observation = scene
    state = "[" + ",".join(map(str, observation["state"])) + "]"
    answers = {
        mode: infer(capsys, image=path, instruction=observation["instruction"], state=state, mode=mode)
        for mode in ("grad", "no_grad", "inference_mode")
    }
    policy = vla_mini.Policy.from_pretrained(place / POLICY)
    expected = policy.act(observe(policy, [observation]))[0]
    for mode, answer in answers.items():
        torch.testing.assert_close(torch.tensor(answer["actions"]), expected, rtol=1e-5, atol=1e-6)
        assert answer["mode"] == mode and answer["action_names"] == ["dx", "dy", "dz", "close"]
        assert answer["requires_grad"] == (mode == "grad") and answer["milliseconds"] > 0
        assert (answer["saved_bytes"] > 0) == (mode == "grad")


@pytest.mark.parametrize("instruction", ["빨간 큐브를 집어", "pick up, the 'red' (or \"blue\") cube = ${seed} \\"])
def test_infer_takes_any_text(place, scene, capsys, instruction):
    answer = infer(capsys, image=scene[0], instruction=instruction, state="[0,0,0.5,0]")
    assert answer["instruction"] == instruction and np.shape(answer["actions"]) == (8, 4)


def bad(name: str, *arguments: str, says: str, capsys) -> None:
    """The command is refused with one line that says so, and nothing in the working directory changes."""
    before = files(Path.cwd())
    assert command(name, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err, err
    assert files(Path.cwd()) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"policy": "runs/nowhere"}, "policy=runs/nowhere: there is no such folder"),
        ({"policy": "runs"}, "is not a saved policy"),
        ({"image": "nowhere.png"}, "nowhere.png: No such file"),
        ({"image": RUN + "/metrics.csv"}, "is not an image"),
        ({"image": "depth.png"}, "image=depth.png: its image cannot be decoded: it is an image of 16 or 32 bits a pixel"),
        ({"state": "[0,0,0]"}, "state"),
        ({"instruction": " "}, "instruction"),
        ({"mode": "fast"}, "mode='fast'"),
    ],
)
def test_infer_refuses(place, scene, capsys, change, says):
    Image.new("I;16", (64, 64)).save("depth.png")
    good = {"policy": POLICY, "image": scene[0], "instruction": "go", "state": "[0,0,0.5,0]"}
    bad("infer", *(f"{key}={value}" for key, value in (good | change).items()), says=says, capsys=capsys)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("model.safetensors", lambda data: data[:-100], "model.safetensors is damaged"),
        ("model.safetensors", lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "model.safetensors is damaged"),
        ("config.json", lambda data: data.replace(b'"width": 64', b'"width": 32', 1), "config.json is damaged"),
        ("tokenizer.json", lambda data: None, "tokenizer.json is missing"),
        ("manifest.json", lambda data: None, "manifest.json is missing"),
    ],
)
def test_a_damaged_policy_is_refused_and_named(place, tmp_path, capsys, name, damage, says):
    shutil.copytree(place / POLICY, tmp_path / "policy")
    path = tmp_path / "policy" / name
    data = damage(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    bad("evaluate", f"policy={tmp_path / 'policy'}", "episodes=1", says=says, capsys=capsys)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("evaluate", [f"policy={POLICY}", "episodes=0"], "episodes"),
        ("evaluate", [f"policy={POLICY}", "output=/proc/nowhere"], "/proc/nowhere"),
        ("collect", ["output=new", "episodes=0"], "episodes"),
        ("collect", ["output=/proc/nowhere", "episodes=2"], "/proc/nowhere"),
        ("collect", ["output=runs", "episodes=2"], "runs"),
        ("train", ["experiment=toy_pick_smoke", "freeze=[visoin]"], "did you mean 'vision'?"),
        ("train", ["experiment=toy_pick_smoke", "vision=patch", "vision.patch_size=7"], "patch_size=7"),
        ("train", ["experiment=toy_pick_smoke", "data.root=nowhere", "data.episodes=null"], "nowhere"),
        ("train", ["experiment=toy_pick_smoke", "hydra.run.dir=runs"], "runs exists already"),
        ("train", ["experiment=toy_pick_smoke", "data.batch_size=100000"], "batch_size=100000"),
        ("train", ["experiment=toy_pick_smoke", "execute=9"], "execute"),
        ("train", ["experiment=toy_pick_smoke", "insulate=true", "action=bins"], "insulate=true"),
        ("train", ["experiment=toy_pick_smoke", "auxiliary.keyframe.state=[x,z,w]"], "auxiliary.keyframe.state"),
        ("train", ["experiment=toy_pick_smoke", "env=none", "data.root=nowhere"], "nowhere"),
        ("collect", ["env=none", "output=new"], "env=none"),
        ("train", ["experiment=toy_pick_smoke", "compile=defualt"], "'defualt' is not one of none, default, reduce-overhead"),
        (
            "train",
            ["experiment=toy_pick_smoke", "compile_dynamic=false"],
            "compile_dynamic=false is for torch.compile",
        ),
        ("train", ["experiment=toy_pick_smoke", "compile=reduce-overhead", "trainer.accelerator=cpu"], "needs CUDA graphs"),
        (
            "train",
            ["experiment=toy_pick_smoke", "compile=max-autotune", "trainer.accumulate_grad_batches=2"],
            "compile=max-autotune with trainer.accumulate_grad_batches=2",
        ),
        pytest.param(
            "train",
            ["experiment=toy_pick_smoke", "trainer.accelerator=gpu"],
            "trainer.accelerator=gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
        ("train", ["experiment=toy_pick_smoke", "trainer.devices=2"], "trainer.devices"),
        ("train", ["experiment=toy_pick_smoke", "trainer.num_nodes=2"], "trainer.num_nodes=2: start this command on every"),
        ("train", ["experiment=toy_pick_smoke", "optimizer.lr=-1"], "optimizer.lr=-1"),
        ("train", ["experiment=toy_pick_smoke", "trainer.enable_checkpointing=true"], "enable_checkpointing"),
    ],
)
def test_refused_before_work_starts(place, capsys, name, arguments, says):
    bad(name, *arguments, says=says, capsys=capsys)


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("freeze=[vision.stme]", "did you mean 'vision.stem'?"),
        ("auxiliary.keyframe.closes=clos", "did you mean 'close'?"),
    ],
)
def test_what_only_a_built_policy_can_tell_is_refused_before_collecting(tmp_path, monkeypatch, capsys, mistake, says):
    monkeypatch.chdir(tmp_path)
    bad("train", "experiment=toy_pick_smoke", mistake, says=says, capsys=capsys)


def test_wandb_holds_what_the_csv_holds(place):
    """Read back from the file of the offline run, by W&B's own reader."""
    (file,) = (place / RUN).glob("wandb/offline-run-*/*.wandb")
    reader = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(file)]
    records = map(json.loads, subprocess.run(reader, capture_output=True, check=True).stdout.splitlines())
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    losses = {row["trainer/global_step"]: row["train/loss"] for row in history if "train/loss" in row}
    rows = list(csv.DictReader((place / RUN / "metrics.csv").read_text().splitlines()))
    assert losses == pytest.approx({int(row["step"]): float(row["train/loss"]) for row in rows if row["train/loss"]})
    logged = set().union(*history)
    assert {"gradients/vision", "selection/success_rate", "validation/loss", "evaluation/seen"} <= logged
    assert {"gradients/vision.stem.weight.bins", "gradients/action.layers.0.weight.bins"} <= logged
