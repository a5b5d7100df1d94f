"""Open-loop errors against a plain loop, baselines against values computed by hand, and what other words change."""

import itertools
import json

import numpy as np
import pytest
import torch

from tests.data.conftest import FEATURES as MADE_UP
from tests.data.conftest import make_truth, write
from tests.factory import make_policy
from tests.table_policy import ENDS, FEATURES, HORIZON, LENGTHS, TASKS, TablePolicy, demonstrations, recorded_chunks
from vla_mini.data.frames import StreamedFrames
from vla_mini.data.reader import read_dataset
from vla_mini.data.statistics import training_statistics
from vla_mini.evaluation.looks import looks
from vla_mini.evaluation.open_loop import evaluate_open_loop
from vla_mini.evaluation.open_loop_texts import headline, table, verdict, verdict_on_words


@pytest.mark.parametrize("batch_size", [3, 64])
def test_errors_are_those_of_a_plain_loop(batch_size):
    data = demonstrations()
    chunks = np.random.default_rng(1).standard_normal((len(data.actions), HORIZON, 2)).astype(np.float32)
    metrics = evaluate_open_loop(TablePolicy(chunks), data, batch_size=batch_size)
    std = data.actions[: ENDS[1]].std(axis=0)
    differences: list[list[np.ndarray]] = [[] for _ in range(HORIZON)]
    for start, end in zip(data.episode_starts[2:], data.episode_ends[2:], strict=True):
        for frame in range(start, end):
            for step in range(min(HORIZON, end - frame)):
                differences[step].append(np.abs(chunks[frame, step] - data.actions[frame + step]))
    every = np.concatenate(differences)
    found = metrics["errors"]["policy"]
    assert found["raw"] == pytest.approx(every.mean(), rel=1e-4)
    assert found["std"] == pytest.approx((every / std).mean(), rel=1e-4)
    assert list(found["by_joint"]["raw"]) == list(found["by_joint"]["std"]) == ["x", "grip"]
    np.testing.assert_allclose([*found["by_joint"]["raw"].values()], every.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose([*found["by_joint"]["std"].values()], (every / std).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["by_step"]["raw"], [np.mean(step) for step in differences], rtol=1e-4)
    np.testing.assert_allclose(found["by_step"]["std"], [np.mean(step / std) for step in differences], rtol=1e-4)
    assert metrics["words"]["own"]["loss"] == pytest.approx(every.mean(), rel=1e-4)
    assert (metrics["episodes"], metrics["num_frames"], metrics["of_frames"]) == ([5, 6], 10, 10)
    assert json.loads(json.dumps(metrics)) == metrics


def test_a_policy_that_repeats_the_recording_makes_no_error():
    data = demonstrations()
    metrics = evaluate_open_loop(TablePolicy(recorded_chunks(data)), data)
    assert metrics["errors"]["policy"]["std"] == metrics["errors"]["policy"]["raw"] == 0
    assert "closer to the recorded actions than all baselines: the mean action, holding still and" in verdict(metrics)
    assert headline(metrics).startswith("error 0.00 of a standard deviation (mean action ")
    assert [line.split()[0] for line in table(metrics).splitlines()[2:5]] == ["policy", "mean", "hold"]
    for trace, episode in zip(metrics["traces"], (2, 3), strict=True):  # of both tasks
        part = slice(data.episode_starts[episode], data.episode_ends[episode])
        assert (trace["episode"], trace["task"]) == (data.episode_index[episode], TASKS[episode % 2])
        for joint, values in trace["joints"].items():
            actions = data.actions[part, FEATURES.action.index(joint)]
            np.testing.assert_allclose(values["recorded"], actions, rtol=1e-4)
            np.testing.assert_allclose(values["predicted"], actions, rtol=1e-4)


def test_the_second_episode_that_is_drawn_is_of_another_task():
    data = demonstrations(splits={"train": (0, 1), "validation": (1, 4)})
    data = data._replace(task_index=np.repeat([0, 0, 0, 1], LENGTHS))
    metrics = evaluate_open_loop(TablePolicy(recorded_chunks(data)), data)
    assert [trace["episode"] for trace in metrics["traces"]] == [data.episode_index[1], data.episode_index[3]]
    same = data._replace(task_index=np.zeros_like(data.task_index))
    metrics = evaluate_open_loop(TablePolicy(recorded_chunks(data)), same)
    assert [trace["episode"] for trace in metrics["traces"]] == [data.episode_index[1], data.episode_index[2]]


@pytest.mark.parametrize("relative", [(), ("x",)])
def test_baselines_are_those_computed_by_hand(relative):
    """The validation frames are nearly training frames, in another order."""
    data, twins = demonstrations(), np.arange(10)[::-1]
    data.frames[ENDS[1] :] = data.frames[twins]
    data.states[ENDS[1] :] = data.states[twins] + np.float32([0, 0.05])
    policy = TablePolicy(recorded_chunks(data), relative=relative)
    policy.predict = lambda images, words, state, noise=None, word_mask=None, prefix=None: torch.zeros(len(state), HORIZON, 2)
    metrics = evaluate_open_loop(policy, data)
    mean = data.actions[: ENDS[1]].mean(axis=0)
    sums = dict.fromkeys(("mean_action", "hold", "nearest_frame"), 0.0)
    count = 0
    for start, end in zip(data.episode_starts[2:], data.episode_ends[2:], strict=True):
        for frame in range(start, end):
            near = twins[frame - ENDS[1]]
            near_end = data.episode_ends[np.searchsorted(data.episode_ends, near, side="right")]
            grip = data.actions[frame - 1, 1] if frame > start else mean[1]
            for step in range(min(HORIZON, end - frame)):
                action, count = data.actions[frame + step], count + 1
                sums["mean_action"] += np.abs(action - mean)
                sums["hold"] += np.abs(action - [data.states[frame, 1], grip])
                done = data.actions[min(near + step, near_end - 1)].copy()
                if relative:
                    done[0] += data.states[frame, 1] - data.states[near, 1]
                sums["nearest_frame"] += np.abs(action - done)
    for name, total in sums.items():
        errors = metrics["errors"][name]["by_joint"]["raw"]
        np.testing.assert_allclose([*errors.values()], total / count, rtol=1e-4, err_msg=name)
    assert [joint["hold"] for joint in metrics["joints"].values()] == ["state", "last action"]
    assert metrics["joints"]["x"]["predicted"] == ("relative" if relative else "absolute")
    assert metrics["joints"]["grip"]["predicted"] == "absolute"


def test_state_and_pixels_both_decide_what_is_near():
    """All images are equal here, so that the state alone does: the nearest frame is that of the nearest number."""
    data = demonstrations()
    data = data._replace(frames=np.zeros_like(data.frames))
    data.states[:, 1] = 0
    metrics = evaluate_open_loop(TablePolicy(recorded_chunks(data)), data)
    last = data.actions[ENDS[1] - 1]  # of the last training episode, which repeats
    expected = [
        np.abs(data.actions[f : min(f + HORIZON, e)] - last) for s, e in itertools.pairwise(ENDS[1:]) for f in range(s, e)
    ]
    assert metrics["errors"]["nearest_frame"]["raw"] == pytest.approx(np.concatenate(expected).mean(), rel=1e-4)


def test_other_words_change_what_a_listening_policy_predicts_and_not_a_deaf_one():
    data = demonstrations()
    recorded = recorded_chunks(data)
    deaf = evaluate_open_loop(TablePolicy(recorded), data)
    assert all(entry == {"error": 0, "loss": 0, "change": 0} for entry in deaf["words"].values())
    assert list(deaf["words"]) == ["own", "swapped", "blank"] and "little or no use of the words" in verdict_on_words(deaf)
    tasks = data.task_index[:, None, None]
    listening = evaluate_open_loop(TablePolicy(recorded - tasks, listens=1.0), data)["words"]
    assert listening["own"]["error"] == pytest.approx(0, abs=1e-6)
    assert listening["swapped"]["loss"] == pytest.approx(1, rel=1e-4)  # task 0 for 1, and 1 for 0
    scale = (1 / data.actions[: ENDS[1]].std(axis=0)).mean()
    assert listening["swapped"]["error"] == listening["swapped"]["change"] == pytest.approx(scale, rel=1e-4)
    assert listening["blank"]["error"] > listening["swapped"]["error"]
    assert "the policy uses the words" in verdict_on_words({"words": listening})


def test_with_one_task_there_is_no_other_sentence():
    data = demonstrations(tasks=TASKS[:1])
    metrics = evaluate_open_loop(TablePolicy(recorded_chunks(data)), data)
    assert list(metrics["words"]) == ["own", "blank"]
    assert verdict_on_words(metrics).startswith("All episodes have one sentence")


def test_a_policy_that_is_worse_than_holding_the_state_may_be_told_of_relative_actions():
    data = demonstrations()
    data.actions[:, 0] = data.states[:, 1] = np.linspace(0, 1, len(data.actions))
    metrics = evaluate_open_loop(TablePolicy(recorded_chunks(data) + 9), data)
    assert "no closer to the recorded actions than any of the baselines" in verdict(
        metrics
    ) and "data.actions=relative" in verdict(metrics)
    metrics = evaluate_open_loop(TablePolicy(recorded_chunks(data) + 9, relative=("x",)), data)
    assert "data.actions=relative" not in verdict(metrics)


def test_frames_are_bounded_and_evenly_spaced():
    data = demonstrations()
    metrics = evaluate_open_loop(TablePolicy(recorded_chunks(data)), data, num_frames=4, num_training_frames=5)
    assert (metrics["num_frames"], metrics["of_frames"], metrics["num_training_frames"]) == (4, 10, 5)
    used = [ENDS[1] + number for number in (0, 3, 6, 9)]
    mean = data.actions[: ENDS[1]].mean(axis=0)
    ends = data.episode_ends[np.searchsorted(data.episode_ends, used, side="right")]
    parts = [np.abs(data.actions[frame : min(frame + HORIZON, end)] - mean) for frame, end in zip(used, ends, strict=True)]
    assert metrics["errors"]["mean_action"]["raw"] == pytest.approx(np.concatenate(parts).mean(), rel=1e-4)


def test_what_has_no_error_is_null():
    """A joint that stands still in training, and steps that are longer than the validation episodes."""
    data = demonstrations(splits={"train": (0, 3), "validation": (3, 4)})  # three frames: no fourth step
    data.actions[:, 1] = 0.5
    statistics = training_statistics(data.states[: ENDS[2]], data.actions[: ENDS[2]])
    data = data._replace(statistics=statistics)
    found = evaluate_open_loop(TablePolicy(recorded_chunks(data) + 1), data)["errors"]["policy"]
    assert found["by_joint"]["std"]["grip"] is None and found["by_joint"]["raw"]["grip"] == pytest.approx(1)
    assert found["std"] == found["by_joint"]["std"]["x"] == pytest.approx(1 / statistics.action.std[0], rel=1e-4)
    assert found["by_step"]["std"][3] is None and None not in found["by_step"]["std"][:3]


@pytest.fixture
def root(tmp_path):
    features = MADE_UP._replace(image_size=(8, 12))
    return write(tmp_path / "dataset", make_truth(features, lengths=(12, 9, 11, 10)), features=features)


def test_a_sampling_policy_gives_the_same_figures_again_also_from_streamed_frames(root):
    data = read_dataset(root)
    streamed = read_dataset(root, cache="none")
    assert isinstance(streamed.frames, StreamedFrames)
    policy = make_policy(features=data.features, history=2, action="flow", auxiliary=None)
    first, again, third = ({**evaluate_open_loop(policy, each), "seconds": 0} for each in (data, data, streamed))
    assert first == again == third
    other = evaluate_open_loop(policy, data, seed=1)
    assert other["errors"]["policy"] != first["errors"]["policy"] and other["errors"]["hold"] == first["errors"]["hold"]
    assert first["words"]["own"] | {"change": 0} == first["words"]["own"]


@pytest.mark.parametrize("trunk", ["query", "joint"])
def test_looks_are_of_frames_of_the_first_validation_episode(root, trunk):
    data = read_dataset(root)
    policy = make_policy(features=data.features, history=2, trunk=trunk, auxiliary=None)
    found = looks(policy, data, num_frames=3)
    first = data.episode_starts[data.splits["validation"][0]]
    length = data.episode_ends[data.splits["validation"][0]] - first
    assert [look.frame for look in found] == [0, round((length - 1) / 2), length - 1]
    for look in found:
        np.testing.assert_array_equal(look.images, data.frames[first + look.frame].transpose(0, 2, 3, 1))
        assert look.attention.shape == look.sensitivity.shape == look.images.shape[:3] == (2, 8, 12)
        assert look.attention.min() >= 0 and look.sensitivity.min() >= 0 < look.sensitivity.max()
