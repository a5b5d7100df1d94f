"""Single checks, what they do where they are not possible, and how findings are printed."""

import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.doctor.helpers import findings_of, not_passed, replace_method
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.doctor import data, learning, machine, replay
from vla_mini.doctor.checks import check_execution, draw_samples, run_checks
from vla_mini.doctor.finding import CannotCheckError, Finding, describe, run_check, summary
from vla_mini.setup.policy import augmentation


def test_values_that_are_not_finite_are_named_and_end_the_checks(make_run, demonstrations):
    states = demonstrations.states.copy()
    frame = int(demonstrations.episode_starts[3]) + 2
    states[frame, 1] = np.nan
    run = make_run()._replace(demonstrations=demonstrations._replace(states=states))
    *_, found, last = run_checks(run)
    assert found.status == "fail" and f"state 'y', episode 3, frame {frame}" in found.measured
    assert (last.check, last.status) == ("other checks", "skip")
    assert data.finite_values(demonstrations).status == "pass"


def test_the_end_of_the_data_is_replayed(make_run, demonstrations, monkeypatch):
    late = slice(int(demonstrations.episode_starts[14]), int(demonstrations.episode_ends[15]))
    actions = demonstrations.actions.copy()
    actions[late] = -actions[late]
    monkeypatch.setattr(replay.replay, "__kwdefaults__", {"episodes": 2})  # as if there were many episodes
    found = not_passed(findings_of(make_run(data=demonstrations._replace(actions=actions)), learning=False))
    assert found.keys() == {"labels"}


def test_an_environment_that_raises_is_a_finding(make_run, monkeypatch):
    monkeypatch.setattr(replay, "play", lambda *_, **__: 1 / 0)
    found = findings_of(make_run(), learning=False)
    assert found["replay"].status == "fail" and "ZeroDivisionError" in found["replay"].measured
    assert "labels" not in found and found["chunks"].status == "pass"


def test_samples_that_cannot_be_drawn_are_a_finding(make_run, monkeypatch):
    run = make_run()

    @replace_method(monkeypatch, run.train_dataset, "__getitems__")
    def broken(original, indices):
        raise IndexError("no such frame")

    found = {finding.check: finding for finding in run_checks(run)}
    assert found["vision input"].status == found["one batch"].status == "fail"
    assert "no such frame" in found["vision input"].measured and "gradients" not in found and "speed" in found


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("colour.hue=0.5", "blue becomes"),
        ("shift.padding=40", r"images move by up to (1[1-9]|[2-9]\d|100)%"),
        ("flip={_target_:torchvision.transforms.v2.RandomHorizontalFlip}", "images move by up to 5"),
        ("shift.padding=63", "images move by up to 100%"),  # out of the image
    ],
)
def test_augmentation_that_changes_the_meaning_is_found(make_run, demonstrations, settings, text):
    def found(*arguments):
        run = make_run("augmentation=default", *arguments)
        return data.augmentation(augmentation(run.settings, (64, 64)), demonstrations)

    assert found().status == "pass"
    finding = found(f"augmentation.transforms.{settings}")
    assert finding.status == ("fail" if "hue" in settings else "warn") and re.search(text, finding.measured)


def test_the_validation_split_is_checked(make_run, demonstrations):
    run = make_run()
    found = data.validation(run.validation_dataset, demonstrations, run.policy)
    assert found.status == "pass" and "2 episodes, none of them trained on" in found.measured
    run.validation_dataset._tokens = np.roll(run.validation_dataset._tokens, 1, axis=0)
    assert "instruction" in data.validation(run.validation_dataset, demonstrations, run.policy).measured
    leaking = demonstrations._replace(splits={"train": (0, 17), "validation": (16, 18)})
    measured = data.validation(run.validation_dataset, leaking, run.policy).measured
    assert "1 of 2 validation episodes are also in the training split" in measured


def test_gradients_are_clipped_as_in_training(make_run):
    run = make_run("trainer.gradient_clip_val=1e-4", "trainer.gradient_clip_algorithm=value")
    learning.Steps(run.policy, run.settings).step(draw_samples(run))
    largest = [float(parameter.grad.abs().max()) for parameter in run.policy.parameters() if parameter.grad is not None]
    assert max(largest) == pytest.approx(1e-4) and sorted(largest)[len(largest) // 2] == pytest.approx(1e-4)


def test_the_learning_rate_has_its_multipliers_and_its_warmup(make_run):
    run = make_run("schedule.multipliers.vision=0.5")
    training = learning.Steps(run.policy, run.settings, warmup_steps=4)
    batch, rates = draw_samples(run), []
    for _ in range(5):
        training.step(batch)
        rates.append({group["component"]: group["lr"] for group in training.optimizer.param_groups if not group["layers"]})
    assert [rate["vision"] for rate in rates] == [0.5 * rate[None] for rate in rates]
    peak = rates[-1][None]
    assert [rate[None] for rate in rates] == pytest.approx([peak / 4, peak / 2, 3 * peak / 4, peak, peak])


def test_a_dataset_that_was_not_collected_like_this_is_not_replayed(make_run, two_cameras):
    found = findings_of(make_run("data.seed=7"), learning=False)
    assert found["replay"].status == "skip" and "not collected with" in found["replay"].measured
    assert not_passed(found) == {} and "labels" not in found


def test_without_an_environment_some_checks_are_skipped_with_the_reason(make_run, two_cameras):
    run = make_run("env=none", data=two_cameras)
    found = findings_of(run, learning=False)
    loop, speed = check_execution(run)
    assert found["replay"].status == loop.status == "skip" and "env=none" in found["replay"].measured
    assert "env=none" in loop.measured and not_passed(found) == {} and speed.status in ("pass", "warn")


def test_a_dataset_of_another_action_noise_begins_with_the_same_frames(tmp_path):
    collect("vla_mini/ToyPick-v0", tmp_path / "data", episodes=8, validation_episodes=1, action_noise=0.5, num_workers=1)
    calm = read_dataset(tmp_path / "data", cache=tmp_path)
    pairs = replay.replay(calm, "vla_mini/ToyPick-v0", seed=0)
    findings = [check(pairs) for check in (replay.states, replay.images, replay.instructions, replay.labels)]
    assert [finding.status for finding in findings] == ["warn", "pass", "pass", "pass"]
    backwards = replay.replay(calm._replace(actions=-calm.actions), "vla_mini/ToyPick-v0", seed=0)
    assert "the sign of all actions" in replay.labels(backwards).measured


def test_packages_disk_and_threads(tmp_path, monkeypatch):
    assert machine.packages().status == "pass"
    (tmp_path / "mine-1.dist-info").mkdir()
    required = ["torch<2", "no-such-package>=1", "numpy", 'other>=1; extra == "more"']
    lines = ["Metadata-Version: 2.4", "Name: mine", "Version: 1", "Requires-Python: >=4"]
    lines += [f"Requires-Dist: {each}" for each in required]
    (tmp_path / "mine-1.dist-info" / "METADATA").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    found = machine.packages("mine")
    assert found.status == "fail" and all(name in found.measured for name in ("python", "torch", "no-such-package missing"))
    assert "numpy" not in found.measured and "other" not in found.measured
    free = {"pass": 10**11, "warn": 4 * 10**9, "fail": 10**9}
    for status, num_bytes in free.items():
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _, free=num_bytes: SimpleNamespace(free=free))
        assert machine.disk(tmp_path / "a" / "b", num_parameters=10**8).status == status
    before = torch.get_num_threads()
    torch.set_num_threads(64)
    try:
        assert machine.cores(precision="32-true", accelerator="cpu").status == "warn"
    finally:
        torch.set_num_threads(before)


def test_speed_is_measured_and_slow_loading_is_found(make_run, monkeypatch):
    run = make_run()
    found = machine.speed(run.policy, run.train_dataset, run.settings, seconds=0.2)
    assert 0 < found.value < 1 and found.status in ("pass", "warn")

    @replace_method(monkeypatch, run.train_dataset, "__getitems__")
    def slow(original, indices):
        time.sleep(0.5)
        return original(indices)

    assert "loading takes" in machine.speed(run.policy, run.train_dataset, run.settings, seconds=0.0).measured


def test_a_checked_run_stays_as_it_is(make_run, monkeypatch):
    monkeypatch.setattr(learning, "MAX_STEPS", 20)
    run = make_run("freeze=[vision]")
    before = {name: value.clone() for name, value in run.policy.state_dict().items()}
    modes = [module.training for module in run.policy.modules()]
    findings_of(run)
    assert all(torch.equal(value, before[name]) for name, value in run.policy.state_dict().items())
    assert all(parameter.grad is None for parameter in run.policy.parameters())
    assert [module.training for module in run.policy.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in run.policy.modules())


def test_counterfactuals_differ_in_their_instruction_alone(make_run):
    run = make_run()
    batch = draw_samples(run)
    both = learning.with_counterfactuals(batch)
    extra = len(both.actions) - len(batch.actions)
    assert extra == len(batch.actions) // 2 and both.is_pad.any()
    added = slice(len(batch.actions), None)
    assert torch.equal(both.observation.images[added], batch.observation.images[:extra])
    assert torch.equal(both.observation.state[added], batch.observation.state[:extra])
    assert (both.observation.tokens[added] != batch.observation.tokens[:extra]).any(dim=1).all()
    assert batch.targets["has_keyframe"].any() and not any(target[added].any() for target in both.targets.values())
    tokens = batch.observation.tokens[:1].expand_as(batch.observation.tokens)
    same = batch.observation._replace(tokens=tokens, token_mask=torch.ones_like(batch.observation.token_mask))
    assert len(learning.with_counterfactuals(batch._replace(observation=same)).actions) == len(batch.actions)


def test_exceptions_are_findings():
    def broken():
        raise RuntimeError("shapes\ndo not fit")

    def impossible():
        raise CannotCheckError("no environment")

    found = run_check("acting", broken)
    assert (found.check, found.status, found.measured) == ("acting", "fail", "RuntimeError: shapes do not fit")
    assert run_check("replay", impossible) == Finding("skip", "no environment", check="replay")


def test_findings_as_text():
    good, bad = Finding("pass", "0.0", check="images"), Finding("fail", "3 %", "all", "collect again", check="labels")
    assert describe(good) == "pass  images          0.0"
    assert describe(bad).splitlines()[1:] == [f"{'':<22}expected: all", f"{'':<22}do: collect again"]
    assert summary([good, bad, good]) == "2 pass, 1 fail: labels"
