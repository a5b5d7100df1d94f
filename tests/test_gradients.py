"""scripts/gradients.py from end to end, in this process, on an untrained policy; and wrong input: one line, exit code 2.

For the page and its figures see tests/reports/."""

import json
import os
import subprocess
import sys

import pytest

from tests.factory import FEATURES, ROOT, command, make_policy
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset

FEW = ["samples=6", "scenes=2", "grid=4"]
PICTURES = {"flow", "norms", "samples", "graph", "jacobian"}  # in figures/, and one of each scene


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four episodes of toy_pick."""
    folder = tmp_path_factory.mktemp("demonstrations") / "data"
    collect("vla_mini/ToyPick-v0", folder, episodes=4, num_workers=1)
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "policy"
    make_policy().save_pretrained(folder)
    return folder


def test_gradients_json_has_the_promised_names_and_consistent_numbers(policy, data):
    assert command("gradients", f"policy={policy}", f"data={data}", *FEW) == 0
    (folder,) = (policy.parent / "gradients").iterdir()
    assert {path.name for path in folder.iterdir()} == {"gradients.html", "gradients.json", "figures"}
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{name}.svg" for name in PICTURES | {"scene_0", "scene_1"}
    }
    found = json.loads((folder / "gradients.json").read_text())
    components = {"vision", "language", "trunk", "action", "auxiliary", "projection", "state"}
    assert found["components"].keys() == components
    for flow in found["components"].values():
        assert {"grad_norm", "weight_norm", "vanishing", "exploding"} <= flow.keys() and flow["grad_norm"] > 0
    assert len(found["sensitivity"]) == 2 * 2
    for entry in found["sensitivity"]:
        assert {"scene", "instruction", "on_target", "on_others"} <= entry.keys()
        assert entry["on_target"] > 0 and entry["on_others"] > 0
        (own,) = [each["sensitivity"] for each in entry["objects"] if each["named"]]
        others = [each["sensitivity"] for each in entry["objects"] if not each["named"]]
        assert own == entry["on_target"] and min(others) <= entry["on_others"] <= max(others)
        words = zip(entry["words"][1:], entry["instruction"].split(), strict=True)
        assert all(token in (word, "[UNK]") for (token, _), word in words)
    jacobian = found["jacobian"]
    assert (jacobian["rows"], jacobian["columns"]) == (8 * 4, 4 + 3 * 4 * 4)
    assert sum(jacobian["row_blocks"].values()) == jacobian["rows"]
    assert sum(jacobian["column_blocks"].values()) == jacobian["columns"]
    assert jacobian["max_abs_difference"] < 1e-5 and jacobian["jacrev_seconds"] > 0 and jacobian["vjp_seconds"] > 0
    assert len(found["per_sample"]["norms"]) == 6
    assert found["per_sample"]["mean_minus_batch_max_abs"] < 1e-5 and "gradient_noise_scale" in found["per_sample"]
    assert found["inference"]["grad"]["saved_bytes"] > 0 == found["inference"]["inference_mode"]["saved_bytes"]
    assert found["inference"]["equal_outputs"] is True and found["inference"]["no_grad"]["milliseconds"] > 0
    assert found["graph"]["num_nodes"] == sum(found["graph"]["by_kind"].values())
    share = sum(entry["on_target"] > entry["on_others"] for entry in found["sensitivity"]) / 4
    assert (found["num_pairs"], found["on_target_share"]) == (4, share)


def test_an_untrained_policy_of_an_experiment(data, tmp_path):
    own = [f"data={data}", f"output={tmp_path / 'out'}", *FEW, "seed=1"]
    assert command("gradients", "experiment=toy_pick_smoke", "action=bins", "vision.width=16", "freeze=[vision]", *own) == 0
    found = json.loads((tmp_path / "out" / "gradients.json").read_text())
    assert "vision" not in found["components"]  # frozen
    assert [layer["weight_norm"] > 0 for layer in found["depth"] if layer["name"] == "action.layers.4"] == [True]
    assert found["seed"] == 1


def test_without_an_environment_the_scenes_are_those_of_the_data(data, tmp_path):
    policy = make_policy(auxiliary="none")
    policy.source = {}
    policy.save_pretrained(tmp_path / "policy")
    assert command("gradients", f"policy={tmp_path / 'policy'}", f"data={data}", f"output={tmp_path / 'out'}", *FEW) == 0
    found = json.loads((tmp_path / "out" / "gradients.json").read_text())
    assert found["on_target_share"] is None and len(found["sensitivity"]) == 4
    assert found["sensitivity"][0]["instruction"] in read_dataset(data).tasks
    assert found["sensitivity"][0]["instruction"] != found["sensitivity"][1]["instruction"]


@pytest.fixture
def refusal(policy, capsys, tmp_path, monkeypatch):
    """The one line on stderr with which the command refuses its arguments, before it writes anything."""
    monkeypatch.chdir(tmp_path)

    def files():
        return sorted([*tmp_path.rglob("*"), *policy.parent.rglob("*")])

    def run(*arguments):
        before = files()
        assert command("gradients", *map(str, arguments)) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("gradients: "), (out, err)
        assert files() == before, "something was written"
        return err

    return run


def test_wrong_arguments_are_refused_in_one_line(refusal, policy, data, tmp_path):
    assert "policy=DIR" in refusal() and "experiment=NAME" in refusal()
    assert "policy=DIR" in refusal("experiment=toy_pick", f"policy={policy}")
    assert "no such folder" in refusal("policy=nowhere")
    assert "not a saved policy" in refusal(f"policy={policy.parent}")
    assert "no LeRobot dataset" in refusal(f"policy={policy}", f"data={tmp_path}")
    for zero in ("samples=0", "scenes=0", "grid=0"):
        assert "at least 1" in refusal(f"policy={policy}", zero)
    assert "grid=65" in refusal(f"policy={policy}", f"data={data}", "grid=65")
    assert "'grip'" in refusal("experiment=toy_pick_smoke", f"data={data}", "auxiliary.keyframe.closes=grip")
    assert "'toy_pick'" in refusal("experiment=toy_pik")
    assert "'vision'" in refusal("experiment=toy_pick", "vison=patch")
    assert "'optimizer'" in refusal("experiment=toy_pick", "optimzer.lr=1")


@pytest.mark.parametrize(
    ("source", "message"), [({}, "give data=DIR"), ({"env": "Nowhere-v0"}, "env='Nowhere-v0' is not known")]
)
def test_a_policy_without_data_or_of_an_unknown_environment_is_refused(refusal, data, tmp_path, source, message):
    policy = make_policy()
    policy.source = source
    policy.save_pretrained(tmp_path / "policy")
    assert message in refusal(f"policy={tmp_path / 'policy'}", *([f"data={data}"] if source else []))


def test_data_with_other_features_is_refused(refusal, data, tmp_path):
    for features, message in (
        (FEATURES._replace(image_size=(32, 32)), "image_size"),
        (FEATURES._replace(state=("x", "y")), "state"),
        (FEATURES._replace(action=("dx", "close")), "action"),
        (FEATURES._replace(cameras=("wrist",)), "cameras"),
    ):
        make_policy(features=features).save_pretrained(tmp_path / "policy")
        assert message in refusal(f"policy={tmp_path / 'policy'}", f"data={data}").partition(f"{data}")[2]


@pytest.mark.slow
def test_a_trained_policy_depends_on_the_named_object_and_an_untrained_one_does_not(tmp_path):
    """150 steps with 2,000 demonstrations are enough; in separate processes, as a user runs the commands."""

    def run(name, *arguments):
        command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
        subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=True)

    short = ["trainer.max_steps=150", "evaluation.every_n_steps=0", "evaluation.episodes=1"]
    run("train", "experiment=toy_pick", "data.root=data", "data.episodes=2000", "hydra.run.dir=run", *short)
    run("gradients", "policy=run/policy", "data=data", "output=trained")
    run("gradients", "experiment=toy_pick", "data=data", "output=untrained")
    trained, untrained = (json.loads((tmp_path / name / "gradients.json").read_text()) for name in ("trained", "untrained"))
    assert trained["num_pairs"] == untrained["num_pairs"] == 100
    assert trained["on_target_share"] >= 0.8 > untrained["on_target_share"]
    assert trained["seconds"] < 60
