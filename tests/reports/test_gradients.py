"""gradients.json, the page and the figures, of an untrained policy on a few samples."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from tests.factory import make_batch, make_policy
from tests.reports.helpers import check_self_contained, drawings, texts
from vla_mini.acting import observe
from vla_mini.autograd.flow import gradient_flow
from vla_mini.autograd.graph import trace_graph
from vla_mini.autograd.inference import compare_modes
from vla_mini.autograd.jacobian import jacobian
from vla_mini.autograd.per_sample import per_sample
from vla_mini.autograd.saliency import data_scenes, env_scenes, saliency
from vla_mini.reports.gradients import Findings, describe, write_report

FIGURES = {"flow", "norms", "samples", "graph", "jacobian", "scene_0", "scene_1"}
INF = float("inf")
INSTRUCTIONS = ["pick up the <red> cube", "grab the blue ball", "lift it"]


def find(policy, batch, scenes) -> Findings:
    return Findings(
        saliencies=saliency(policy, scenes, observe(policy, [scene.observation for scene in scenes])),
        flow=gradient_flow(policy, batch),
        per_sample=per_sample(policy, batch),
        graph=trace_graph(policy, batch),
        jacobian=jacobian(policy, batch.observation, grid=4),
        modes=compare_modes(policy, batch.observation, repeats=2),
    )


def write(folder, policy, findings, batch) -> dict:
    folder.mkdir()
    results = describe(findings, policy) | {"policy": "a policy", "seed": 0, "seconds": 1.5}
    assert write_report(folder, findings, results, batch=batch, instructions=INSTRUCTIONS) == folder / "gradients.html"
    assert {path.name for path in folder.iterdir()} == {"gradients.html", "gradients.json", "figures"}
    return json.loads((folder / "gradients.json").read_text())


@pytest.fixture(scope="module")
def inputs():
    policy = make_policy()
    batch = make_batch(policy, 3)
    return policy, batch, find(policy, batch, env_scenes("vla_mini/ToyPick-v0", scenes=2))


@pytest.fixture(scope="module")
def report(tmp_path_factory, inputs):
    policy, batch, findings = inputs
    folder = tmp_path_factory.mktemp("report") / "gradients"
    return folder, write(folder, policy, findings, batch)


def test_json_holds_the_findings_under_the_promised_names(report, inputs):
    (_, results), (policy, _, findings) = report, inputs
    promised = {"components", "sensitivity", "jacobian", "per_sample", "inference", "graph"}
    assert promised | {"env", "samples", "thresholds", "depth", "num_pairs", "on_target_share"} <= results.keys()
    assert results["components"].keys() == policy.components().keys()
    assert results["num_pairs"] == len(results["sensitivity"]) == 4
    above = sum(entry["on_target"] > entry["on_others"] for entry in results["sensitivity"])
    assert results["on_target_share"] == above / 4
    matrix = results["jacobian"]
    assert (matrix["rows"], matrix["columns"]) == tuple(findings.jacobian.matrix.shape)
    assert sum(matrix["row_blocks"].values()) == matrix["rows"]
    assert sum(matrix["column_blocks"].values()) == matrix["columns"]
    assert results["per_sample"]["norms"] == findings.per_sample.norms
    assert results["inference"]["equal_outputs"] is True and results["inference"]["grad"]["saved_bytes"] > 0


def test_page_is_complete_and_self_contained(report, inputs):
    (folder, _), (_, _, findings) = report, inputs
    html = (folder / "gradients.html").read_text(encoding="utf-8")
    check_self_contained(html)
    for words in ("gradients · a policy", "vanishing", "inference_mode", "by torch.func.jacrev", "AccumulateGrad"):
        assert words in html
    pictures = drawings(html)
    assert len(pictures) == len(FIGURES)
    words = [word for picture in pictures for word in texts(picture)]
    assert {"pixels", "words", "state values", "vision", "trunk", "loss", "projection.language"} <= set(words)
    notes = " ".join(" ".join(texts(picture)) for picture in pictures[:2])
    assert notes.count("a pixel of the named") == 4
    assert notes.count("one by one") == sum(len(one.objects) > 2 for one in findings.saliencies)


def test_each_figure_is_a_file_of_its_own(report):
    folder, _ = report
    files = {path.stem: path.read_text(encoding="utf-8") for path in (folder / "figures").iterdir()}
    assert files.keys() == FIGURES
    for name, text in files.items():
        drawing = ElementTree.fromstring(text)
        left, top, width, height = map(float, drawing.get("viewBox").split())
        assert left < 0 and top < 0 and width / height == pytest.approx(960 / int(drawing.get("height")), rel=1e-2)
        assert "var(" not in text and "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', ""), name
        assert len(text) < 150_000


def test_without_masks_and_with_values_that_are_not_finite(tmp_path, inputs):
    policy, batch, findings = inputs
    scenes = data_scenes(batch.observation, INSTRUCTIONS, features=policy.features, scenes=1)
    found = saliency(policy, scenes, observe(policy, [scene.observation for scene in scenes]))
    samples = findings.per_sample._replace(gradient_noise_scale=None, norms=[1.0, INF, 2.0], mean_minus_batch_max_abs=INF)
    matrix = findings.jacobian._replace(matrix=torch.zeros_like(findings.jacobian.matrix))
    findings = findings._replace(saliencies=found, per_sample=samples, jacobian=matrix)
    results = write(tmp_path / "gradients", policy, findings, batch)
    assert results["on_target_share"] is None and results["per_sample"]["norms"] == [1.0, None, 2.0]
    assert results["per_sample"]["mean_minus_batch_max_abs"] is None
    html = (tmp_path / "gradients/gradients.html").read_text(encoding="utf-8")
    assert "It is not known where the objects are" in html and "a pixel of the named" not in html
    assert "&lt;red&gt;" in html
