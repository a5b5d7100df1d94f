"""scripts/gradients.py end to end, in this process, on an untrained policy; and what bad input gets: one line, exit code 2."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from tests.factory import FEATURES, ROOT, command, make_policy
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset

FEW = ["samples=6", "scenes=2", "grid=4"]
PICTURES = {"flow", "norms", "samples", "graph", "jacobian"}  # and one of each scene


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


@pytest.fixture(scope="module")
def results(policy, data):
    assert command("gradients", f"policy={policy}", f"data={data}", *FEW) == 0
    (folder,) = (policy.parent / "gradients").iterdir()
    assert {path.name for path in folder.iterdir()} == {"gradients.html", "gradients.json", "figures"}
    return folder


def test_json_holds_the_names_that_stay(results, data):
    found = json.loads((results / "gradients.json").read_text())
    components = {"vision", "language", "trunk", "action", "auxiliary", "projection", "state"}
    assert found["components"].keys() == components
    for flow in found["components"].values():
        assert {"grad_norm", "weight_norm", "vanishing", "exploding"} <= flow.keys() and flow["grad_norm"] > 0
    assert len(found["sensitivity"]) == 2 * 2
    for entry in found["sensitivity"]:
        assert {"scene", "instruction", "on_target", "on_others"} <= entry.keys()
        assert entry["on_target"] > 0 and entry["on_others"] > 0
        (own,) = [thing["sensitivity"] for thing in entry["objects"] if thing["named"]]
        others = [thing["sensitivity"] for thing in entry["objects"] if not thing["named"]]
        assert own == entry["on_target"] and min(others) <= entry["on_others"] <= max(others)
        words = zip(entry["words"][1:], entry["instruction"].split(), strict=True)
        assert all(shown in (word, "[UNK]") for (shown, _), word in words)
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


def test_page_is_whole_and_fetches_nothing(results):
    html = (results / "gradients.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert not re.search(r"https?://|url\((?!#)|@import", html)
    assert all(source.startswith(("data:image/", "#")) for source in re.findall(r'(?:src|href)="([^"]*)"', html))
    found = json.loads((results / "gradients.json").read_text())
    assert html.count("where it looks:") == len(found["sensitivity"]) == len(re.findall("a pixel of the named", html))
    words = " ".join(re.sub("<[^>]*>", " ", html).split())
    assert words.count("(one by one: ") == sum(len(entry["objects"]) > 2 for entry in found["sensitivity"])
    for name in ("projection.language", "trunk.word_keys", "vanishing", "inference_mode", "by torch.func.jacrev"):
        assert name in html
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)]
    ids = [element.get("id") for drawing in drawings for element in drawing.iter() if element.get("id")]
    assert len(drawings) == 4 + 2 + 1 and len(ids) == len(set(ids))  # plots, scenes, the loudest samples
    texts = [text.text for drawing in drawings for text in drawing.iter("text")]
    for name in ("pixels", "words", "state values", "vision", "language", "state", "trunk", "action", "loss"):
        assert name in texts


def test_each_picture_is_a_file_of_its_own(results):
    pictures = {path.name: path for path in (results / "figures").iterdir()}
    assert pictures.keys() == {f"{name}.svg" for name in PICTURES | {"scene_0", "scene_1"}}
    for name, path in pictures.items():
        text = path.read_text(encoding="utf-8")
        drawing = ElementTree.fromstring(text)
        left, top, width, height = map(float, drawing.get("viewBox").split())
        assert left < 0 and top < 0 and width / height == pytest.approx(960 / int(drawing.get("height")), rel=1e-2)
        assert "var(" not in text and "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', ""), name
        assert len(text) < 150_000


def test_an_untrained_policy_of_an_experiment(data, tmp_path):
    own = [f"data={data}", f"output={tmp_path / 'out'}", *FEW, "seed=1"]
    assert command("gradients", "experiment=toy_pick_smoke", "action=bins", "vision.width=16", "freeze=[vision]", *own) == 0
    found = json.loads((tmp_path / "out" / "gradients.json").read_text())
    assert "vision" not in found["components"]  # frozen
    assert [layer["weight_norm"] > 0 for layer in found["depth"] if layer["name"] == "action.layers.4"] == [True]
    assert found["seed"] == 1


def test_a_policy_without_an_environment_looks_at_its_data(data, tmp_path):
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


def test_bad_input_is_one_clear_line(refusal, policy, data, tmp_path):
    assert "policy=DIR" in refusal() and "experiment=NAME" in refusal()
    assert "policy=DIR" in refusal("experiment=toy_pick", f"policy={policy}")
    assert "no such folder" in refusal("policy=nowhere")
    assert "no saved policy" in refusal(f"policy={policy.parent}")
    assert "no LeRobot dataset" in refusal(f"policy={policy}", f"data={tmp_path}")
    for zero in ("samples=0", "scenes=0", "grid=0"):
        assert "at least 1" in refusal(f"policy={policy}", zero)
    assert "grid=65" in refusal(f"policy={policy}", f"data={data}", "grid=65")
    assert "'grip'" in refusal(f"policy={policy}", f"data={data}", "keyframe.closes=grip")
    assert "'toy_pick'" in refusal("experiment=toy_pik")
    assert "'vision'" in refusal("experiment=toy_pick", "vison=patch")
    assert "'optimizer'" in refusal("experiment=toy_pick", "optimzer.lr=1")


@pytest.mark.parametrize(("source", "says"), [({}, "give data=DIR"), ({"env": "Nowhere-v0"}, "env='Nowhere-v0' is not known")])
def test_a_policy_without_data_or_of_an_unknown_environment_is_refused(refusal, data, tmp_path, source, says):
    policy = make_policy()
    policy.source = source
    policy.save_pretrained(tmp_path / "policy")
    assert says in refusal(f"policy={tmp_path / 'policy'}", *([f"data={data}"] if source else []))


def test_data_of_other_sizes_is_refused(refusal, data, tmp_path):
    for features, words in (
        (FEATURES._replace(image_size=(32, 32)), "its image_size is (64, 64)"),
        (FEATURES._replace(state=("x", "y")), "its state is"),
        (FEATURES._replace(action=("dx", "dy")), "its action is"),
        (FEATURES._replace(cameras=("wrist",)), "its cameras is"),
    ):
        make_policy(features=features).save_pretrained(tmp_path / "policy")
        assert words in refusal(f"policy={tmp_path / 'policy'}", f"data={data}")


@pytest.mark.slow
def test_a_trained_policy_looks_at_what_is_named_and_an_untrained_one_does_not(tmp_path):
    """150 steps from 2,000 demonstrations are enough; in processes of their own, as a user starts them."""

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
