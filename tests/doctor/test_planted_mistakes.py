"""Healthy runs pass every check of data, policy and learning; each planted mistake fails the check that has to find it."""

import numpy as np
import pytest
import torch

from tests.doctor.helpers import findings_of, not_passed, replace_method
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.data.statistics import training_statistics
from vla_mini.doctor import learning
from vla_mini.doctor.checks import run_checks
from vla_mini.types import Context


@pytest.mark.parametrize(
    "variant",
    [[], ["vision=patch", "vision.width=32", "action=flow", "action.hidden=128"], ["action=bins"], ["action=fast"]],
    ids=str,
)
def test_healthy_runs_pass(make_run, variant):
    findings = findings_of(make_run(*variant))
    assert not_passed(findings) == {}
    assert {"replay", "labels", "one batch", "inputs"} <= {name for name, f in findings.items() if f.status == "pass"}


@pytest.mark.slow
@pytest.mark.parametrize("variant", [[], ["vision=patch"], ["action=flow"], ["action=bins"]], ids=str)
def test_healthy_runs_of_full_size_pass(make_run, tmp_path_factory, variant):
    """As scripts/doctor.py checks experiment=toy_pick, with as many demonstrations as it collects where they are missing."""
    folder = tmp_path_factory.mktemp("large") / "data"
    collect("vla_mini/ToyPick-v0", folder, episodes=64, validation_episodes=2, num_workers=1)
    run = make_run("experiment=toy_pick", *variant, small=[], data=read_dataset(folder))
    assert [finding for finding in run_checks(run) if finding.status == "fail"] == []


def test_healthy_runs_with_two_cameras_pass(make_run, two_cameras):
    assert not_passed(findings_of(make_run("env.id=vla_mini_tests/TwoCameras-v0", data=two_cameras))) == {}


# ---- mistakes in the demonstrations: the fields that are replaced, the checks that may not pass, what the first one measures


def spans(data):
    return list(zip(data.episode_starts, data.episode_ends, strict=True))


def shifted_actions(data, by):
    return {"actions": np.concatenate([np.roll(data.actions[start:end], by, axis=0) for start, end in spans(data)])}


def actions_of_other_episodes(data):
    parts = [data.actions[start:end] for start, end in spans(data)]
    others = parts[1:] + parts[:1]
    return {"actions": np.concatenate([np.resize(other, own.shape) for other, own in zip(others, parts, strict=True)])}


def instructions_of_other_episodes(data):
    tasks = [data.task_index[start] for start, _ in spans(data)]
    return {"task_index": np.repeat(np.roll(tasks, 1), data.episode_ends - data.episode_starts)}


def constant_action(data):
    actions, found = data.actions.copy(), data.statistics.action
    actions[:, 2] = 0.25
    constant = {name: 0 if name == "std" else 0.25 for name in found._fields}
    flat = {name: np.where(np.arange(4) == 2, constant[name], values) for name, values in found._asdict().items()}
    action = found._replace(**{name: values.astype(np.float32) for name, values in flat.items()})
    return {"actions": actions, "statistics": data.statistics._replace(action=action)}


def old_statistics(data):
    state = data.statistics.state
    return {"statistics": data.statistics._replace(state=state._replace(mean=state.mean + 0.3, std=2 * state.std))}


def states_in_degrees(data):
    states = 57.3 * data.states
    return {"states": states, "statistics": training_statistics(states, data.actions)}


DATA_MISTAKES = {
    "swapped channels": (lambda d: {"frames": d.frames[:, :, ::-1]}, ["images"], "red and blue are swapped"),
    "mirrored images": (lambda d: {"frames": d.frames[..., ::-1]}, ["images"], "mirrored"),
    "images of another time": (lambda d: {"frames": np.roll(d.frames, 1, axis=0)}, ["images"], "one frame too late"),
    "black images": (lambda d: {"frames": d.frames // 255}, ["pixels", "images", "vision input"], "'top' shows nothing"),
    "late actions": (lambda d: shifted_actions(d, 1), ["labels"], "one frame too late"),
    "early actions": (lambda d: shifted_actions(d, -1), ["labels"], "one frame too early"),
    "flipped sign": (
        lambda d: {"actions": d.actions * np.float32([1, -1, 1, 1])},
        ["labels"],
        "the sign of action 2 of 4 is flipped",
    ),
    "swapped actions": (lambda d: {"actions": d.actions[:, [1, 0, 2, 3]]}, ["labels"], "actions 1 and 2 are swapped"),
    "scaled actions": (lambda d: {"actions": 0.1 * d.actions}, ["labels", "normalization"], "0.1 times too large"),
    "actions of other episodes": (actions_of_other_episodes, ["labels"], "those of other episodes"),
    "instructions of other episodes": (instructions_of_other_episodes, ["instructions"], "one has"),
    "states in degrees": (states_in_degrees, ["replay"], "0 of "),
    "old statistics": (old_statistics, ["normalization"], "state std 1"),
    "a constant action": (constant_action, ["still", "labels"], "do not move in the training split: action 'dz'"),
}


@pytest.mark.parametrize("mistake", DATA_MISTAKES)
def test_mistakes_in_the_data_are_found(make_run, demonstrations, mistake):
    plant, checks, text = DATA_MISTAKES[mistake]
    found = not_passed(findings_of(make_run(data=demonstrations._replace(**plant(demonstrations))), learning=False))
    assert checks[0] in found and text in found[checks[0]], found
    assert found.keys() <= set(checks), found


def test_swapped_cameras_are_found(make_run, two_cameras):
    swapped = two_cameras._replace(frames=two_cameras.frames[:, ::-1])
    found = not_passed(findings_of(make_run("env.id=vla_mini_tests/TwoCameras-v0", data=swapped), learning=False))
    assert found.keys() == {"images"} and "the cameras are swapped" in found["images"]


# ---- mistakes in samples, policy and settings: what plants them, the checks that may not pass, what the first one measures


def chunks_one_step_late(run, monkeypatch):
    @replace_method(monkeypatch, run.train_dataset, "__getitems__")
    def late(original, indices):
        batch = original(indices)
        return batch._replace(actions=batch.actions.roll(-1, 1))


def chunks_without_padding(run, monkeypatch):
    @replace_method(monkeypatch, run.train_dataset, "__getitems__")
    def unpadded(original, indices):
        batch = original(indices)
        return batch._replace(is_pad=torch.zeros_like(batch.is_pad))


def shuffled_instructions(run, _):
    run.train_dataset._tokens = np.roll(run.train_dataset._tokens, 1, axis=0)
    run.train_dataset._token_mask = np.roll(run.train_dataset._token_mask, 1, axis=0)


def unnormalised_state(run, _):
    run.policy.normalization.state_mean.zero_()
    run.policy.normalization.state_std.fill_(1)


def pixels_divided_twice(run, monkeypatch):
    @replace_method(monkeypatch, run.policy, "prepare")
    def twice(original, observation):
        images, *others = original(observation)
        return images / 255, *others


def acting_normalises_twice(run, monkeypatch):
    @replace_method(monkeypatch, run.policy, "act")
    def normalised_before(original, observation, *others):
        return original(observation._replace(state=run.policy.normalization.state(observation.state)), *others)


def acting_in_reverse_order(run, monkeypatch):
    @replace_method(monkeypatch, run.policy, "act")
    def reversed_chunk(original, *arguments):
        return original(*arguments).flip(1)


def learning_in_reverse_order(run, monkeypatch):
    @replace_method(monkeypatch, run.policy.action, "loss")
    def reversed_chunk(original, context, actions, is_pad):
        return original(context, actions.flip(1), is_pad)


def counted_padding(run, monkeypatch):
    @replace_method(monkeypatch, run.policy, "loss")
    def counted(original, batch):
        return original(batch._replace(is_pad=torch.zeros_like(batch.is_pad)))


def frozen_head(run, _):
    run.policy.action.requires_grad_(False)


def detached_backbone(run, _):
    def detach(_module, _inputs, context):
        return Context(context.tokens.detach(), context.mask, context.attention.detach())

    run.policy.trunk.register_forward_hook(detach)


def dead_relu(run, _):
    torch.nn.init.constant_(run.policy.action.layers[0].bias, -1000)


def unused_instruction(run, _):
    run.policy.language.register_forward_hook(lambda *call: torch.zeros_like(call[2]))


def large_initial_output(run, _):
    with torch.no_grad():
        run.policy.action.layers[-1].weight *= 100


def nothing(*_):
    """The settings are the mistake."""


LEARNING = ["one batch", "acting", "inputs"]
RUN_MISTAKES = {
    "chunks one step late": (chunks_one_step_late, ["chunks", "validation"], "actions", []),
    "chunks without padding": (chunks_without_padding, ["chunks", "validation"], "padding", []),
    "shuffled instructions": (shuffled_instructions, ["chunks"], "instruction", []),
    "instructions cut off": (nothing, ["tokens", "gradients"], "1 of them distinct", ["language.max_words=1"]),
    "unnormalised state": (unnormalised_state, ["normalization"], "errors: state mean", []),
    "pixels divided twice": (pixels_divided_twice, ["vision input"], "input is 0.0", []),
    "acting normalises twice": (acting_normalises_twice, ["acting path"], "act differs by", []),
    "acting in reverse order": (acting_in_reverse_order, ["acting path"], "act differs by", []),
    "learning in reverse order": (learning_in_reverse_order, ["acting"], "in reverse order", []),
    "counted padding": (counted_padding, ["padding", "first loss"], "actions are padding", []),
    "frozen head": (frozen_head, ["gradients"], "action is frozen", []),
    "detached backbone": (detached_backbone, ["gradients"], "no finite gradient reaches vision", ["auxiliary=none"]),
    "dead ReLU": (dead_relu, ["dead units", "gradients"], "100% of the units behind action.layers.0", []),
    "unused instruction": (unused_instruction, ["inputs", "gradients", *LEARNING], "not used at all: instruction", []),
    "large initial output": (large_initial_output, ["first loss"], "of the expected 3.045", ["action=bins"]),
    "learning rate of zero": (nothing, LEARNING, "(100%)", ["optimizer.lr=1e-9", "optimizer.adam_lr=1e-9"]),
    "learning rate too high": (nothing, LEARNING, "the loss", ["optimizer.lr=1e6", "optimizer.adam_lr=1e6"]),
}


@pytest.mark.parametrize("mistake", RUN_MISTAKES)
def test_mistakes_in_the_run_are_found(make_run, monkeypatch, mistake):
    monkeypatch.setattr(learning, "MAX_STEPS", 40)
    plant, checks, text, settings = RUN_MISTAKES[mistake]
    run = make_run(*settings)
    plant(run, monkeypatch)
    findings = findings_of(run, learning=checks[0] in LEARNING)
    found = not_passed(findings)
    assert findings[checks[0]].status == "fail" and text in found[checks[0]], found
    assert found.keys() <= set(checks), found
