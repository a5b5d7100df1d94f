"""Healthy runs pass every check of data and policy; each planted fault fails the check that is to find it, by name."""

import time
from functools import partial

import numpy as np
import pytest
import torch

from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.data.statistics import training_statistics
from vla_mini.doctor import data, learning, machine, replay, running
from vla_mini.doctor.examine import examine, some_samples
from vla_mini.doctor.finding import Finding, checked, describe, summary
from vla_mini.training.setup import augmentation
from vla_mini.types import Context


def failing(findings) -> dict[str, str]:
    """What was measured by each check that did not pass."""
    return {name: finding.measured for name, finding in findings.items() if finding.status in ("warn", "fail")}


@pytest.mark.parametrize(
    "variant", [[], ["vision=patch", "vision.width=32"], ["action=flow"], ["action=bins"], ["action=fast"]], ids=str
)
def test_the_healthy_pass(run, diagnose, variant):
    findings = diagnose(run(*variant))
    assert failing(findings) == {}
    assert {"replay", "labels", "one batch", "inputs"} <= {name for name, f in findings.items() if f.status == "pass"}


@pytest.mark.slow
@pytest.mark.parametrize("variant", [[], ["vision=patch"], ["action=flow"], ["action=bins"]], ids=str)
def test_the_healthy_pass_as_large_as_they_are(run, tmp_path_factory, variant):
    """As scripts/doctor.py would look at experiment=toy_pick, with the demonstrations that it collects for the time being."""
    folder = tmp_path_factory.mktemp("large") / "data"
    collect("vla_mini/ToyPick-v0", folder, episodes=64, validation_episodes=2, num_workers=1)
    healthy = run("experiment=toy_pick", *variant, small=[], data=read_dataset(folder))
    findings = list(examine(healthy.settings, healthy.demonstrations, healthy.policy, healthy.windows, healthy.held_out))
    assert [finding for finding in findings if finding.status == "fail"] == []


def test_two_cameras_are_healthy_too(run, diagnose, two_cameras):
    assert failing(diagnose(run("env.id=vla_mini_tests/TwoCameras-v0", data=two_cameras))) == {}


# ---- faults of the demonstrations: what is replaced, the checks that may fail, what the first of them says


def flipped_sign(d):
    return {"actions": d.actions * np.float32([1, -1, 1, 1])}


def shifted(d, by):
    return {"actions": np.concatenate([np.roll(d.actions[a:b], by, axis=0) for a, b in spans(d)])}


def of_another_episode(d):
    parts = [d.actions[a:b] for a, b in spans(d)]
    others = parts[1:] + parts[:1]
    return {"actions": np.concatenate([np.resize(o, p.shape) for p, o in zip(parts, others, strict=True)])}


def told_another(d):
    tasks = [d.task_index[a] for a, _ in spans(d)]
    lengths = d.episode_ends - d.episode_starts
    return {"task_index": np.repeat(np.roll(tasks, 1), lengths)}


def constant(d):
    actions, moments = d.actions.copy(), d.statistics.action
    actions[:, 2] = 0.25
    flat = {name: np.where(np.arange(4) == 2, 0 if name == "std" else 0.25, getattr(moments, name)) for name in MOMENTS}
    action = moments._replace(**{name: value.astype(np.float32) for name, value in flat.items()}, quantiles=None)
    return {"actions": actions, "statistics": d.statistics._replace(action=action)}


def stale(d):
    state = d.statistics.state
    return {"statistics": d.statistics._replace(state=state._replace(mean=state.mean + 0.3, std=2 * state.std))}


def in_degrees(d):
    states = 57.3 * d.states
    return {"states": states, "statistics": training_statistics(states, d.actions)}


def spans(d):
    return list(zip(d.episode_starts, d.episode_ends, strict=True))


MOMENTS = ("min", "max", "mean", "std", "q01", "q99")
DATA_FAULTS = {
    "swapped channels": (lambda d: {"frames": d.frames[:, :, ::-1]}, ["images"], "red and blue are swapped"),
    "mirrored images": (lambda d: {"frames": d.frames[..., ::-1]}, ["images"], "mirrored"),
    "images of another time": (lambda d: {"frames": np.roll(d.frames, 1, axis=0)}, ["images"], "255 levels"),
    "black images": (lambda d: {"frames": d.frames // 255}, ["pixels", "images", "vision input"], "'top' shows nothing"),
    "shifted actions": (lambda d: shifted(d, 1), ["labels"], "one frame too late"),
    "actions too early": (lambda d: shifted(d, -1), ["labels"], "one frame too early"),
    "flipped sign": (flipped_sign, ["labels"], "the sign of action 2 of 4 is flipped"),
    "swapped actions": (lambda d: {"actions": d.actions[:, [1, 0, 2, 3]]}, ["labels"], "actions 1 and 2 are swapped"),
    "labels of another episode": (of_another_episode, ["labels"], "those of other episodes"),
    "instructions of another episode": (told_another, ["instructions"], "one says"),
    "states in other units": (in_degrees, ["replay"], "0 of "),
    "stale statistics": (stale, ["normalization"], "state std 0.5"),
    "a constant action": (constant, ["spread", "labels"], "action 'dz' hardly varies"),
}


@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_faults_of_the_data_are_found(run, diagnose, demonstrations, fault):
    plant, checks, words = DATA_FAULTS[fault]
    found = failing(diagnose(run(data=demonstrations._replace(**plant(demonstrations))), learns=False))
    assert checks[0] in found and words in found[checks[0]], found
    assert found.keys() <= set(checks), found


def test_swapped_cameras_are_found(run, diagnose, two_cameras):
    swapped = two_cameras._replace(frames=two_cameras.frames[:, ::-1])
    found = failing(diagnose(run("env.id=vla_mini_tests/TwoCameras-v0", data=swapped), learns=False))
    assert found.keys() == {"images"} and "the cameras are swapped" in found["images"]


def test_what_is_no_number_is_found_and_named(demonstrations):
    states = demonstrations.states.copy()
    frame = int(demonstrations.episode_starts[3]) + 2
    states[frame, 1] = np.nan
    found = data.numbers(demonstrations._replace(states=states))
    assert found.status == "fail" and f"state 'y', episode 3, frame {frame}" in found.measured
    assert data.numbers(demonstrations).status == "pass"


def test_an_outlier_squeezes_the_rest(demonstrations):
    moments = demonstrations.statistics.action
    action = moments._replace(max=np.float32([1000, 1, 1, 1]))
    found = data.spread(demonstrations._replace(statistics=demonstrations.statistics._replace(action=action)))
    assert found.status == "warn" and "action 'dx' has outliers" in found.measured


def test_the_end_of_the_data_is_replayed_too(run, diagnose, demonstrations, monkeypatch):
    late = slice(int(demonstrations.episode_starts[14]), int(demonstrations.episode_ends[15]))
    actions = demonstrations.actions.copy()
    actions[late] = -actions[late]
    monkeypatch.setattr(replay.replay, "__kwdefaults__", {"episodes": 2})  # at each place, as if there were many
    found = failing(diagnose(run(data=demonstrations._replace(actions=actions)), learns=False))
    assert found.keys() == {"labels"}


def test_an_environment_that_raises_is_a_finding(run, diagnose, monkeypatch):
    monkeypatch.setattr(replay, "play", lambda *_, **__: 1 / 0)
    found = diagnose(run(), learns=False)
    assert found["replay"].status == "fail" and "ZeroDivisionError" in found["replay"].measured
    assert found["windows"].status == "pass"


def test_samples_that_cannot_be_drawn_are_a_finding(run, monkeypatch):
    ill = run()

    @patched(monkeypatch, ill.windows, "__getitems__")
    def broken(original, indices):
        raise IndexError("no such frame")

    findings = examine(ill.settings, ill.demonstrations, ill.policy, ill.windows, ill.held_out)
    found = {finding.check: finding for finding in findings}
    assert found["samples"].status == found["one batch"].status == "fail" and "no such frame" in found["samples"].measured
    assert "speed" in found


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("colour.hue=0.5", "blue becomes"),
        ("shift.padding=40", "images move by up to"),
        ("flip={_target_:torchvision.transforms.v2.RandomHorizontalFlip}", "images move by up to 5"),
    ],
)
def test_augmentation_that_lies_is_found(run, demonstrations, settings, says):
    def found(*arguments):
        ill = run("augmentation=default", *arguments)
        return data.augmentation(augmentation(ill.settings, (64, 64)), demonstrations)

    assert found().status == "pass"
    lie = found(f"augmentation.transforms.{settings}")
    assert lie.status == ("fail" if "hue" in settings else "warn") and says in lie.measured


def test_the_validation_split_is_looked_at(run, demonstrations):
    healthy = run()
    found = data.validation(healthy.held_out, demonstrations, healthy.policy)
    assert found.status == "pass" and "2 episodes, none of them trained on" in found.measured
    healthy.held_out._tokens = np.roll(healthy.held_out._tokens, 1, axis=0)
    assert "instruction" in data.validation(healthy.held_out, demonstrations, healthy.policy).measured
    leaking = demonstrations._replace(splits={"train": (0, 17), "validation": (16, 18)})
    assert (
        "1 of 2 validation episodes are in the training data"
        in data.validation(healthy.held_out, leaking, healthy.policy).measured
    )


def test_multipliers_of_the_learning_rate_are_kept(run):
    stepper = learning.Stepper((healthy := run("schedule.multipliers.vision=0.5")).policy, healthy.settings)
    rates = {group["component"]: group["lr"] for group in stepper.optimizer.param_groups if not group["layers"]}
    assert rates["vision"] == 0.5 * rates[None]


# ---- faults of the windows, the policy and the settings: what is done to the run, the checks that may fail, what is said


def patched(monkeypatch, part, name):
    """Decorates a function that stands in for a method of the part's class, and gets that method as its first argument."""

    def decorate(function):
        original = getattr(type(part), name)
        stand_in = lambda self, *arguments, **named: function(partial(original, self), *arguments, **named)  # noqa: E731
        monkeypatch.setattr(type(part), name, stand_in)

    return decorate


def cut_one_late(run, monkeypatch):
    @patched(monkeypatch, run.windows, "__getitems__")
    def late(original, indices):
        batch = original(indices)
        return batch._replace(actions=batch.actions.roll(-1, 1))


def never_padded(run, monkeypatch):
    @patched(monkeypatch, run.windows, "__getitems__")
    def unpadded(original, indices):
        batch = original(indices)
        return batch._replace(is_pad=torch.zeros_like(batch.is_pad))


def shuffled_words(run, _):
    run.windows._tokens = np.roll(run.windows._tokens, 1, axis=0)
    run.windows._token_mask = np.roll(run.windows._token_mask, 1, axis=0)


def unnormalised_state(run, _):
    run.policy.normalization.state_mean.zero_()
    run.policy.normalization.state_std.fill_(1)


def scaled_twice(run, monkeypatch):
    @patched(monkeypatch, run.policy, "prepare")
    def twice(original, observation):
        images, *rest = original(observation)
        return images / 255, *rest


def acts_on_other_states(run, monkeypatch):
    @patched(monkeypatch, run.policy, "act")
    def normalised_before(original, observation, *rest):
        return original(observation._replace(state=run.policy.normalization.state(observation.state)), *rest)


def acts_backwards(run, monkeypatch):
    @patched(monkeypatch, run.policy, "act")
    def backwards(original, *arguments):
        return original(*arguments).flip(1)


def learns_backwards(run, monkeypatch):
    @patched(monkeypatch, run.policy.action, "loss")
    def backwards(original, context, actions, is_pad):
        return original(context, actions.flip(1), is_pad)


def counts_padding(run, monkeypatch):
    @patched(monkeypatch, run.policy, "loss")
    def counted(original, batch):
        return original(batch._replace(is_pad=torch.zeros_like(batch.is_pad)))


def frozen_head(run, _):
    run.policy.action.requires_grad_(False)


def detached(run, _):
    run.policy.trunk.register_forward_hook(lambda *call: Context(*(tensor.detach() for tensor in call[2])))


def dead_units(run, _):
    torch.nn.init.constant_(run.policy.action.layers[0].bias, -1000)


def deaf(run, _):
    run.policy.language.register_forward_hook(lambda *call: torch.zeros_like(call[2]))


def sure_from_the_start(run, _):
    with torch.no_grad():
        run.policy.action.layers[-1].weight *= 100


def never_moves(run, _):
    run.settings["optimizer"] |= {"lr": 1e-9, "adam_lr": 1e-9}


def diverges(run, _):
    run.settings["optimizer"] |= {"lr": 1e6, "adam_lr": 1e6}


LEARNING = ["one batch", "acting", "inputs"]
RUN_FAULTS = {
    "windows one step late": (cut_one_late, ["windows"], "actions", []),
    "windows without padding": (never_padded, ["windows"], "padding", []),
    "shuffled words": (shuffled_words, ["windows"], "instruction", []),
    "words cut off": (lambda run, _: None, ["words", "gradients"], "1 of them distinct", ["language.max_words=1"]),
    "unnormalised state": (unnormalised_state, ["normalization"], "off by: state mean", []),
    "images scaled twice": (scaled_twice, ["vision input", *LEARNING], "to 0.00392", []),
    "acting normalises differently": (acts_on_other_states, ["acting path", *LEARNING], "context differs by", []),
    "acting in reverse order": (acts_backwards, ["acting path", "acting"], "act from the head's prediction by", []),
    "learning in reverse order": (learns_backwards, ["acting"], "reverse order", []),
    "padding counted": (counts_padding, ["padding", "first loss"], "actions are padding", []),
    "frozen head": (frozen_head, ["gradients", *LEARNING], "action is frozen", []),
    "detached backbone": (detached, ["gradients", *LEARNING], "no gradient reaches vision", ["auxiliary=none"]),
    "dead ReLU": (dead_units, ["units", "gradients", *LEARNING], "behind action.layers.0 100% never fire", []),
    "deaf to words": (deaf, ["inputs", "gradients", *LEARNING], "words not used at all", []),
    "sure from the start": (sure_from_the_start, ["first loss", *LEARNING], "of the expected 3.045", ["action=bins"]),
    "learning rate of zero": (never_moves, LEARNING, "(100%)", []),
    "learning rate too high": (diverges, LEARNING, "loss", []),
}


@pytest.mark.parametrize("fault", RUN_FAULTS)
def test_faults_of_the_run_are_found(run, diagnose, monkeypatch, fault):
    plant, checks, words, settings = RUN_FAULTS[fault]
    ill = run(*settings)
    plant(ill, monkeypatch)
    findings = diagnose(ill, learns=not set(LEARNING).isdisjoint(checks))
    found = failing(findings)
    assert findings[checks[0]].status == "fail" and words in found[checks[0]], found
    assert found.keys() <= set(checks), found


# ---- what stands around the checks


def test_a_dataset_from_elsewhere_is_not_replayed(run, diagnose, two_cameras):
    elsewhere = run(data=two_cameras)
    found = diagnose(elsewhere, learns=False)
    assert found["replay"].status == "skip" and "its cameras is ('top', 'opposite')" in found["replay"].measured
    assert failing(found) == {} and "labels" not in found
    assert "collected elsewhere" in diagnose(run("data.seed=7"), learns=False)["replay"].measured
    closed = running.closed_loop(elsewhere.policy, elsewhere.settings["env"]["id"])
    assert closed.status == "fail" and "camera 'opposite' is missing" in closed.measured


def test_a_dataset_of_another_disturbance_has_its_first_frames_in_common(tmp_path):
    collect("vla_mini/ToyPick-v0", tmp_path / "data", episodes=8, validation_episodes=1, disturbance=0.5, num_workers=1)
    calm = read_dataset(tmp_path / "data", cache=tmp_path)
    pairs = replay.replay(calm, "vla_mini/ToyPick-v0", seed=0)
    findings = [check(pairs) for check in (replay.states, replay.images, replay.instructions, replay.labels)]
    assert [finding.status for finding in findings] == ["warn", "pass", "pass", "pass"]
    backwards = replay.replay(calm._replace(actions=-calm.actions), "vla_mini/ToyPick-v0", seed=0)
    assert "the sign of all actions" in replay.labels(backwards).measured


def test_the_machine_is_looked_at(tmp_path):
    assert machine.packages().status == "pass"
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nrequires-python = ">=4"\ndependencies = ["torch<2", "no-such-package>=1", "numpy"]\n')
    found = machine.packages(project)
    assert found.status == "fail" and all(name in found.measured for name in ("python", "torch", "no-such-package"))
    assert "numpy" not in found.measured
    how = {"num_parameters": 10**8}
    free = {"pass": 10**11, "warn": 4 * 10**9, "fail": 10**9}
    assert all(machine.disk(tmp_path / "a" / "b", free_bytes=free[status], **how).status == status for status in free)
    before = torch.get_num_threads()
    torch.set_num_threads(64)
    try:
        assert machine.cores(precision="32-true", accelerator="cpu").status == "warn"
    finally:
        torch.set_num_threads(before)


def test_speed_is_measured_and_slow_loading_is_found(run, monkeypatch):
    healthy = run()
    found = running.speed(healthy.policy, healthy.windows, healthy.settings, seconds=0.2)
    assert 0 < found.value < 1 and found.status in ("pass", "warn") and "loading takes" not in found.measured

    @patched(monkeypatch, healthy.windows, "__getitems__")
    def slow(original, indices):
        time.sleep(0.5)
        return original(indices)

    assert "loading takes" in running.speed(healthy.policy, healthy.windows, healthy.settings, seconds=0.0).measured


def test_what_is_looked_at_stays_as_it_is(run, diagnose):
    healthy = run("freeze=[vision]")
    before = {name: value.clone() for name, value in healthy.policy.state_dict().items()}
    modes = [module.training for module in healthy.policy.modules()]
    diagnose(healthy)
    assert all(torch.equal(value, before[name]) for name, value in healthy.policy.state_dict().items())
    assert all(parameter.grad is None for parameter in healthy.policy.parameters())
    assert [module.training for module in healthy.policy.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in healthy.policy.modules())


def test_twins_differ_in_their_words_alone(run):
    healthy = run()
    batch = some_samples(healthy.windows, healthy.policy)
    both = learning.with_twins(batch)
    extra = len(both.actions) - len(batch.actions)
    assert extra == len(batch.actions) // 2 and both.is_pad.any()
    twins = slice(len(batch.actions), None)
    assert torch.equal(both.observation.images[twins], batch.observation.images[:extra])
    assert torch.equal(both.observation.state[twins], batch.observation.state[:extra])
    assert (both.observation.tokens[twins] != batch.observation.tokens[:extra]).any(dim=1).all()
    assert not both.has_keyframe[twins].any()
    said = batch.observation.tokens[:1].expand_as(batch.observation.tokens)
    alike = batch.observation._replace(tokens=said, token_mask=torch.ones_like(batch.observation.token_mask))
    assert len(learning.with_twins(batch._replace(observation=alike)).actions) == len(batch.actions)


def test_a_check_that_cannot_be_made_is_a_finding():
    def broken():
        raise RuntimeError("shapes\ndo not fit")

    found = checked("acting", broken)
    assert found.status == "fail" and found.measured == "RuntimeError: shapes do not fit"


def test_findings_as_text():
    good, bad = Finding("images", "pass", "0.0 levels"), Finding("labels", "fail", "3 %", "all", "collect anew")
    assert describe(good) == "pass  images          0.0 levels"
    assert describe(bad).splitlines()[1:] == [f"{'':<22}expected: all", f"{'':<22}do: collect anew"]
    assert summary([good, bad, good]) == "2 pass, 1 fail: labels"
