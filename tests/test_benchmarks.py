"""The parts of the benchmarks, with made-up figures, small processes and short trainings; nothing here measures speed."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import (
    _machine,
    dataset,
    environment,
    export,
    frozen_language,
    gpu,
    inference,
    latency,
    long_run,
    main_job,
    planted_faults,
    synonyms,
    time_to_success,
    training_speed,
    trust,
)
from tests.factory import DEFAULTS, VARIANTS, make_observation, make_policy
from tests.language.test_huggingface_language import save_pretrained
from vla_mini.acting import Controller
from vla_mini.collection import collect
from vla_mini.envs.toy_pick import phrasings, scene


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    """A few demonstrations of toy_pick."""
    root = tmp_path_factory.mktemp("benchmarks") / "data"
    collect("vla_mini/ToyPick-v0", root, episodes=8, validation_episodes=1, num_workers=1)
    return root


def test_arguments_have_their_defaults_types(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", "seeds=[0,2]", "target=1", "trainer.max_steps=4"])
    arguments = _machine.read_arguments(seeds=[0], target=0.95, episodes=200, others=[])
    assert arguments == {"seeds": [0, 2], "target": 1.0, "episodes": 200, "others": ["trainer.max_steps=4"]}


@pytest.mark.parametrize(("argument", "hint"), [("episode=3", "episodes"), ("episodes=many", "episodes=200")])
def test_mistaken_arguments_are_refused(monkeypatch, argument, hint):
    monkeypatch.setattr(sys, "argv", ["benchmark", argument])
    with pytest.raises(SystemExit, match=hint):
        _machine.read_arguments(episodes=200)


def test_late_chunks_are_executed_and_their_borders_measured():
    actions = np.float32([[0, 0], [1, 0], [2, 0], [2, 2]])  # straight on, then a turn
    np.testing.assert_allclose(latency.second_differences(actions), [0, 1.5])
    policy = make_policy(action="flow")
    for settings in latency.WAYS.values():
        found = latency.play(Controller(policy, execute=3, delay=2, **settings), episodes=1, seed=1)
        assert found["steps"] > 20 and found["border_jump"] > 0 and found["other_jump"] > 0
        assert found["success_interval"][0] <= found["success"] <= found["success_interval"][1]


def test_exports_are_compared_with_the_policy(tmp_path):
    pytest.importorskip("onnxscript", reason="the package onnxscript is missing: pip install 'vla-mini[onnx]'")
    found = export.measure(make_policy(), tmp_path, episodes=2, repeats=2, seed=1)
    assert list(found) == ["torch", "fp32", "fp16", "int8"]
    assert all(each["milliseconds"] > 0 and 0 <= each["success"] <= 1 for each in found.values())
    assert found["fp32"]["error"] < found["fp16"]["error"] and found["int8"]["megabytes"] < found["fp32"]["megabytes"]


GRANDCHILD = """
import pathlib, time
held = b"x" * (32 << 20)
pathlib.Path("ready").touch()
while not pathlib.Path("measured").exists():
    time.sleep(0.01)
"""
CHILD = f"""
import subprocess, sys
held = b"x" * (48 << 20)
subprocess.run([sys.executable, "-c", {GRANDCHILD!r}], start_new_session=True)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from Linux's /proc")
def test_memory_is_that_of_a_process_and_its_descendants(monkeypatch, tmp_path):
    """The grandchild is in a session of its own; the memory of this process is not counted."""
    find_family = main_job.family

    def family(leader):
        if (tmp_path / "ready").exists():
            waiting.append(leader)
        if len(waiting) > 1:  # both processes have been measured once while they held all of their memory
            (tmp_path / "measured").touch()
        return find_family(leader)

    waiting = []
    monkeypatch.setattr(main_job, "SAMPLE_SECONDS", 0.02)
    monkeypatch.setattr(main_job, "family", family)
    ours = b"x" * (200 << 20)
    child = subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=True, cwd=tmp_path)
    peak = max(used for _, used in main_job.watch(child)) / 2**20
    assert child.returncode == 0 and len(ours) and 80 < peak < 130


def test_phases_are_read_from_the_files(tmp_path):
    ends = {"data/meta/info.json": 30, "config.yaml": 31, "checkpoints/last.ckpt": 70}
    ends |= {"evaluation/metrics.json": 90, "report.html": 92}
    for name, end in ends.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (end, end))
    spent = main_job.phases(10.0, 93.0, data=tmp_path / "data", run=tmp_path)
    seconds = {name: last - first for name, (first, last) in spent.items()}
    assert seconds == {"collecting": 20, "decoding": 1, "training": 39, "evaluating": 20, "report": 2, "exiting": 1}


def metrics(episodes: int, seen: float, *, two_words: int) -> dict:
    def split(rate: float) -> dict:
        both = {"episodes": two_words, "success_rate": rate}
        return {"episodes": episodes, "success_rate": rate, "wrong_object_rate": 1 - rate, "two_words": both}

    check = {"episodes": episodes, "success_rate": seen, "original_object_rate": 0.5, "chance_rate": 0.375}
    splits = {"seen": split(seen), "held_out_pairs": split(0.5), "held_out_phrasings": split(seen)}
    return {"splits": splits, "grounding": {"swapped": check, "blank": check}}


def test_rates_are_pooled_episode_by_episode():
    pooled = main_job.pool([metrics(100, 1.0, two_words=10), metrics(300, 0.8, two_words=10)])
    assert pooled["seen"] == pytest.approx(0.85) and pooled["seen, each seed"] == [1.0, 0.8]
    assert pooled["seen, the worst seed"] == 0.8 and pooled["seen, two words needed"] == pytest.approx(0.9)
    assert pooled["wrong object"] == pytest.approx(0.15) and pooled["held_out_pairs"] == 0.5
    assert pooled["swapped"] == pytest.approx(0.85) and pooled["blank above chance"] == pytest.approx(0.125)
    low, high = pooled["seen, 95 % interval"]
    assert low < 0.85 < high
    assert set(main_job.AT_LEAST) <= pooled.keys()
    assert main_job.compared("swapped", 0.85)[3] == "missed" and main_job.compared("wrong object", 0.02)[3] == ""


def test_a_seed_that_never_succeeds_is_the_worst():
    runs = [{"seconds": seconds} for seconds in (20.0, None, 40.0)]
    figures = time_to_success.summarize(runs, [{"bfloat16": 500.0}, {"bfloat16": 1000.0}, {"bfloat16": 900.0}])
    assert figures["seconds_median"] == 40.0 and figures["teraflop_equivalents_median"] == pytest.approx(36.0)
    assert figures["seconds_worst"] is None and figures["teraflop_equivalents_worst"] is None


def test_inference_saves_nothing_without_a_graph():
    policy = make_policy()
    figures = inference.measure(policy, make_observation(policy, 1), repeats=5)
    assert figures["grad_saved_bytes"] > 1000
    assert figures["no_grad_saved_bytes"] == figures["inference_mode_saved_bytes"] == 0
    assert 0 < figures["act_milliseconds_median"] <= figures["act_milliseconds_p95"]


def test_every_variant_is_measured_in_some_policy():
    chosen = inference.choices({group: DEFAULTS[group] for group in inference.GROUPS})
    data = inference.some_demonstrations()
    for group in inference.GROUPS:
        assert {parts[group] for parts in chosen} == set(VARIANTS[group])
    assert all(parts.keys() == set(inference.GROUPS) for parts in chosen)
    for parts in chosen:
        if sum(name != DEFAULTS[group] for group, name in parts.items()) == 1:
            policy, observation = inference.untrained(parts, data)
            assert policy.act(observation).shape == (1, 8, 4)


def test_operations_fall_into_their_categories():
    def event(name: str, parent: SimpleNamespace | None = None) -> SimpleNamespace:
        return SimpleNamespace(name=name, cpu_parent=parent)

    forward, optimizer = event("forward"), event("optimizer")
    names = ["aten::mkldnn_convolution", "aten::native_layer_norm", "aten::copy_", "aten::mul", "autograd::engine::x"]
    assert [training_speed.category_of(event(name, forward)) for name in names] == [
        *training_speed.CATEGORIES,
        training_speed.OVERHEAD,
    ]
    assert training_speed.category_of(event("aten::mm", event("aten::matmul", optimizer))) == "optimizer"


@pytest.mark.filterwarnings("ignore")  # Lightning's warnings about such a small run
def test_both_loops_train_the_same(tmp_path, demonstrations):
    settings = [
        f"data.root={demonstrations}",
        "data.batch_size=16",
        "trainer.precision=32-true",
        "trainer.log_every_n_steps=1",
    ]
    figures = training_speed.measure(tmp_path, 2, 2, settings)
    assert figures["lightning_loss"] == pytest.approx(figures["bare_loss"], rel=1e-3)
    # About two thirds of the arithmetic are the 3x3 convolutions: forward, and backward by images and by weights.
    convolutions = 3 * 2 * 16 * 2 * (16 * 16 * 64) * (64 * 9) / 1e9
    assert convolutions < figures["step_gigaflops"] < 2 * convolutions
    assert all(milliseconds >= 0 for milliseconds in figures["profile_milliseconds_per_step"].values())
    assert {"convolutions and matrix products", "optimizer"} <= figures["profile_milliseconds_per_step"].keys()


def test_the_cost_of_a_frozen_encoder_is_measured(tmp_path, demonstrations):
    save_pretrained(tmp_path / "encoder", start=True)
    others = [f"data.root={demonstrations}", "data.batch_size=8", "vision.width=16"]
    figures = frozen_language.measure(str(tmp_path / "encoder"), 3, 1, others)
    spent = figures["milliseconds_per_step"]
    assert figures["cost"] > 0.5 and all(milliseconds > 1 for milliseconds in spent.values())
    assert figures["profile_milliseconds_per_step"].keys() == spent.keys() == {"table", "encoder"}


def test_comparing_words_finds_known_words_and_guesses_unknown_ones(tmp_path, monkeypatch):
    torch.manual_seed(0)
    tasks = [s.format(colour=c, shape=o) for s in phrasings.TRAINING for c in phrasings.COLOURS for o in phrasings.SHAPES]
    save_pretrained(tmp_path, start=True, tasks=tasks)
    guessed = synonyms.compare_words(str(tmp_path), episodes=40, seed=0)
    assert guessed.keys() == {"synonyms", "synonyms_colours", "synonyms_shapes"}
    assert all(rate < 0.6 for rate in guessed["synonyms"].values())
    monkeypatch.setattr(scene, "SYNONYMS", {word: (word,) for word in scene.SYNONYMS})
    monkeypatch.setattr(scene, "SYNONYM_VERBS", phrasings.TRAINING)
    known = synonyms.compare_words(str(tmp_path), episodes=40, seed=0)
    assert all(rates["word by word"] == 1 and rates["as a whole"] >= 0.8 for rates in known.values()), known


@pytest.mark.filterwarnings("ignore")  # Lightning's warnings about such a small run
def test_the_gpus_measurement_also_runs_on_a_cpu(tmp_path, demonstrations):
    others = [f"data.root={demonstrations}", "data.batch_size=16", "trainer.log_every_n_steps=1"]
    figures = gpu.measure(tmp_path, mode="none", precision="32-true", steps=2, others=others, accelerator="cpu")
    assert figures["samples_per_second"] > 0 and figures["compile_seconds"] is None and figures["loss"] > 0
    assert set(gpu.COLUMNS) - {"over_eager"} <= figures.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_gpus_benchmark_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="needs a CUDA device, and torch finds none here"):
        gpu.main()


def test_memory_and_disk_are_measured_during_a_long_run(tmp_path):
    others = ["data.episodes=8", "data.batch_size=4", "trainer.log_every_n_steps=1"]
    found = long_run.measure(tmp_path, steps=4, every=2, others=others)
    assert [measured["steps"] for measured in found] == [2, 4]
    assert all(
        measured["memory_megabytes"] > 1 and measured["disk_megabytes"] > 0 < measured["steps_per_second"] for measured in found
    )


def test_the_cost_of_safety_is_measured(tmp_path):
    others = ["experiment=toy_pick_smoke", "data.episodes=8", "data.batch_size=4", f"data.root={tmp_path}/data"]
    figures = trust.measure(tmp_path, 1, others)
    assert trust.MOST.keys() <= figures.keys() and figures["saves"] >= 1
    assert 0 < figures["saving_seconds"] < figures["training_seconds"]


def test_the_dataset_benchmark_measures_every_way_of_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "BATCH_SIZE", 16)
    figures = dataset.measure(tmp_path, 8, 1)
    assert figures["frames"] > 8 and all(figure > 0 for figure in figures.values())


def test_the_environment_benchmark_counts_successes():
    frames_per_second, success_rate = environment.play(environment.make("vla_mini/ToyPick-v0"), episodes=3)
    assert frames_per_second > 0 and success_rate == 1


def test_each_planted_fault_fits_the_code():
    version, faults = planted_faults.read_faults(
        Path(__file__).parents[1]
    )  # asserts that each text is in its file exactly once
    assert version == "new" and len(faults) == 40


def test_a_planted_fault_is_found_by_the_test_that_it_breaks(tmp_path):
    (tmp_path / "vla_mini").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "vla_mini" / "__init__.py").touch()
    (tmp_path / "vla_mini" / "sum.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tests" / "test_sum.py").write_text(
        "from vla_mini.sum import add\n\n\ndef test_it_adds():\n    assert add(1, 2) == 3\n\n\n"
        "def test_it_is_broken():\n    assert False\n"
    )
    tests = planted_faults.Tests(tmp_path, workers=1, limit=600)
    tests.leave_out_failing()
    assert tests.failing == ["tests/test_sum.py::test_it_is_broken"]
    for replace, stage, caught in (("a - b", "mirror", "tests/test_sum.py::test_it_adds"), ("b + a", "suite", None)):
        fault = planted_faults.Fault("a fault", "vla_mini/sum.py", "a + b", replace)
        assert planted_faults.check(tests, fault, [stage])["caught_by"] == caught
    assert "a + b" in (tmp_path / "vla_mini" / "sum.py").read_text()
