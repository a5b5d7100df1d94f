"""Training begins with the policy and the data that the settings describe, or is refused."""

import copy
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from tests.data.recordings import record
from tests.factory import command, make_batch
from tests.harness import read_rows
from vla_mini import config
from vla_mini.action.bins import BinsHead
from vla_mini.collection import collect
from vla_mini.data.lerobot.writer import DatasetWriter, encode_episode
from vla_mini.data.reader import read_dataset
from vla_mini.evaluation.open_loop_texts import headline, table
from vla_mini.policy import Policy
from vla_mini.setup.demonstrations import fit_environment, must_collect, training_demonstrations
from vla_mini.setup.policy import data_module, notes_on, untrained_policy
from vla_mini.training.callbacks import BestPolicy
from vla_mini.training.module import PolicyModule

# Each setting that is about the policy as a whole or about its data, at another value than its default.
OTHERS = ["history=2", "execute=3", "ensemble=0.25", "ablate=[state]", "insulate=true", "data.horizon=5", "data.batch_size=4"]
OTHERS += ["auxiliary.keyframe.state=[y]", "augmentation=default", "freeze=[vision]", "seed=7"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy_pick"
    collect("vla_mini/ToyPick-v0", root, episodes=6, validation_episodes=2, seed=0, num_workers=1)
    return root


@pytest.fixture(scope="module")
def demonstrations(root):
    return read_dataset(root)


@pytest.fixture(scope="module")
def settings():
    return config.load("train", ["experiment=toy_pick_smoke", *OTHERS])


@pytest.fixture(scope="module")
def policy(settings, demonstrations):
    return untrained_policy(settings, demonstrations)


def changed(settings, **changes):
    return settings.model_copy(update=changes)


def test_the_policy_is_as_the_settings_describe(policy, demonstrations):
    assert (policy.history, policy.acting, policy.ablate) == (2, (3, 0.25, "letterbox"), ("state",))
    assert policy.horizon == 5 and isinstance(policy.backbone_action, BinsHead)
    assert policy.auxiliary["keyframe"].settings["state"] == ["y"]
    assert {name.partition(".")[0] for name, p in policy.named_parameters() if not p.requires_grad} == {"vision"}
    assert policy.source == {"env": "vla_mini/ToyPick-v0", "dataset": demonstrations.fingerprint}


def test_the_seed_draws_the_weights(settings, policy, demonstrations):
    again, other = (untrained_policy(changed(settings, seed=seed), demonstrations) for seed in (7, 8))
    weight = policy.action.state_dict()["layers.0.weight"]
    assert torch.equal(weight, again.action.state_dict()["layers.0.weight"])
    assert not torch.equal(weight, other.action.state_dict()["layers.0.weight"])


def test_the_data_are_as_the_settings_describe(settings, policy, demonstrations):
    batch = next(iter(data_module(settings, demonstrations, policy).train_dataloader()))
    assert batch.observation.images.shape[:2] == (4, 2) and batch.actions.shape == (4, 5, 4)
    assert {name: target.shape for name, target in batch.targets.items()} == {"keyframe": (4, 1), "has_keyframe": (4,)}
    assert [tensor.shape for tensor in batch[1:3]] == [tensor.shape for tensor in make_batch(policy)[1:3]]
    with torch.no_grad():
        policy.loss(batch)  # which refuses what does not fit


def test_augmentation_is_handed_over(settings, policy, demonstrations):
    trainer = SimpleNamespace(training=True, global_rank=0, world_size=1, fit_loop=SimpleNamespace(total_batch_idx=0))
    for augmentation, changes in ((settings.augmentation, True), (None, False)):
        data = data_module(changed(settings, augmentation=augmentation), demonstrations, policy)
        batch = next(iter(data.train_dataloader()))
        data.trainer = trainer
        assert torch.equal(data.on_after_batch_transfer(batch, 0).observation.images, batch.observation.images) is not changes


def test_the_order_is_the_seeds(settings, policy, demonstrations):
    data = (data_module(changed(settings, seed=seed), demonstrations, policy) for seed in (7, 7, 8))
    first, again, other = (next(iter(each.train_dataloader())).actions for each in data)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_auxiliary_losses_may_not_share_a_target(settings, demonstrations):
    """`auxiliary=[keyframe,other]` may name a loss twice, with targets that would overwrite each other."""
    keyframe = settings.auxiliary["keyframe"]
    twice = changed(settings, auxiliary={"keyframe": keyframe, "second": keyframe})
    with pytest.raises(
        ValueError, match=r"auxiliary\.second: another auxiliary loss has targets of the name '(has_)?keyframe'"
    ):
        data_module(twice, demonstrations, untrained_policy(twice, demonstrations))


@pytest.mark.parametrize(
    ("feature", "value"), [("cameras", ("wrist",)), ("image_size", (32, 32)), ("action", ("dx", "dy", "dz", "grip"))]
)
def test_a_dataset_that_does_not_fit_the_environment_is_refused(settings, demonstrations, feature, value):
    features = demonstrations.features._replace(**{feature: value})
    other = demonstrations._replace(features=features)
    with pytest.raises(
        ValueError, match=f"env=vla_mini/ToyPick-v0 does not fit the dataset .*: {feature} .*env=none"
    ) as refused:
        untrained_policy(settings, other)
    assert "\n" not in str(refused.value)


def test_a_recording_of_the_environment_may_name_things_otherwise(settings, demonstrations, monkeypatch):
    features = demonstrations.features._replace(state=("a", "b", "c", "d"), action=("e", "f", "g", "h"), fps=99)
    recorded = demonstrations._replace(features=features)
    monkeypatch.setattr("vla_mini.setup.demonstrations.read_demonstrations", lambda **_: recorded)
    same = changed(settings, data=settings.data.model_copy(update={"recorded_in_env": True}))
    assert training_demonstrations(same).features == demonstrations.features
    assert training_demonstrations(settings).features == features
    recorded = recorded._replace(features=features._replace(action=("e", "f", "g")))
    with pytest.raises(ValueError, match=r"data\.recorded_in_env=true: action is \['e', 'f', 'g'\], but of .* it is \['dx', "):
        training_demonstrations(same)
    with pytest.raises(ValueError, match=r"data\.recorded_in_env=true with env=none: name the environment"):
        config.load("train", ["env=none", "data.root=DIR", "data.recorded_in_env=true"])


def test_without_an_environment_a_dataset_is_trained_on_and_validated(root, demonstrations, tmp_path, monkeypatch, capsys):
    """The policy with the lowest validation loss is kept. Nothing is collected, and no environment is made."""
    monkeypatch.setattr("vla_mini.envs.make", lambda env_id: pytest.fail("an environment was made"))
    arguments = ["experiment=toy_pick_smoke", "env=none", f"hydra.run.dir={tmp_path / 'run'}"]
    assert command("train", *arguments, f"data.root={tmp_path / 'missing'}") == 2
    assert "missing" in capsys.readouterr().err
    assert command("train", *arguments, f"data.root={root}") == 0
    rows = {int(row["step"]) + 1: row["validation/loss"] for row in read_rows(tmp_path / "run") if row["validation/loss"]}
    out = capsys.readouterr().out
    assert list(rows) == [2, 4] and f"step 4: validation loss {float(rows[4]):.4g}" in out
    metrics = json.loads((tmp_path / "run" / "evaluation" / "open_loop.json").read_text())
    assert metrics["episodes"] == [6, 7] and metrics["num_frames"] == metrics["of_frames"] > 10
    assert "open-loop error" in (tmp_path / "run" / "report.html").read_text()
    shown = table(metrics).splitlines()
    assert out.splitlines()[-1 - len(shown) : -1] == shown and f"; {headline(metrics)}; trained " in out.splitlines()[-1]
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    best = checkpoint["callbacks"]["BestPolicy"]["best"]
    assert best["score"] == -min(map(float, rows.values())) and rows[best["step"]] == min(rows.values(), key=float)
    assert Policy.from_pretrained(tmp_path / "run" / "policy").source == {"dataset": demonstrations.fingerprint}


def test_the_policy_that_is_saved_is_the_one_that_was_validated(root, tmp_path, monkeypatch):
    """Also where a validation lies within an accumulated step, after which the weights are others."""
    validated, original = [], BestPolicy.on_validation_end

    def on_validation_end(self, trainer, module):
        module.validation_loss = 0.0 if module.step.window else 1.0  # the first one within a step is the best
        validated.append((module.validation_loss, copy.deepcopy(module.policy_for_evaluation.state_dict())))
        original(self, trainer, module)

    monkeypatch.setattr(BestPolicy, "on_validation_end", on_validation_end)
    arguments = ["experiment=toy_pick_smoke", "env=none", f"data.root={root}", f"hydra.run.dir={tmp_path / 'run'}"]
    arguments += ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3", "trainer.num_sanity_val_steps=0"]
    assert command("train", *arguments) == 0
    weights = next(weights for loss, weights in validated if loss == 0.0)
    saved = Policy.from_pretrained(tmp_path / "run" / "policy").state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in saved.items())


@pytest.mark.parametrize(
    "setting",
    [
        "trainer.limit_val_batches=0",
        "evaluation.every_n_steps=0",
        "trainer.limit_val_batches=0 trainer.log_every_n_steps=1000",  # nothing is logged at all
    ],
)
def test_without_a_choice_the_last_policy_is_saved(root, tmp_path, capsys, setting):
    arguments = ["experiment=toy_pick_smoke", "env=none", f"data.root={root}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert command("train", *arguments, *setting.split()) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("the last policy was saved; error ")


def test_overfitting_draws_the_same_batch_each_epoch(root, tmp_path, monkeypatch):
    seen, original = [], PolicyModule.training_step

    def training_step(self, batch, *arguments):
        seen.append(batch.actions)
        return original(self, batch, *arguments)

    monkeypatch.setattr(PolicyModule, "training_step", training_step)
    arguments = ["experiment=toy_pick_smoke", "env=none", f"data.root={root}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert (
        command(
            "train",
            *arguments,
            "trainer.log_every_n_steps=1",
            "trainer.overfit_batches=1",
            "trainer.max_steps=3",
            "trainer.val_check_interval=null",
        )
        == 0
    )
    assert len(seen) == 3 and torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


@pytest.fixture
def other_root(root, demonstrations, tmp_path):
    """A dataset as of toy_pick, but for another name of its camera."""
    features = demonstrations.features._replace(cameras=("wrist",))
    with DatasetWriter(tmp_path / "other", features=features, robot_type="arm") as writer:
        for start, end in zip(demonstrations.episode_starts, demonstrations.episode_ends, strict=True):
            images = {"wrist": np.asarray(demonstrations.frames[start:end, 0]).transpose(0, 2, 3, 1)}
            states, actions = demonstrations.states[start:end], demonstrations.actions[start:end]
            writer.add_episode(encode_episode(images, states=states, actions=actions, task="pick up the red cube"))
        writer.finish(splits={})
    return tmp_path / "other"


def test_a_dataset_that_is_not_the_default_environments_is_trained_on_without_one(other_root, tmp_path, capsys):
    arguments = ["experiment=toy_pick_smoke", f"data.root={other_root}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert command("train", *arguments, "env=toy_pick") == 2  # named by the user: refused, with advice
    assert "env=none to train without one" in capsys.readouterr().err
    assert command("train", *arguments) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("the dataset is not one of vla_mini/ToyPick-v0: training without an environment (env=none")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["env"]["id"] is None
    assert (tmp_path / "run" / "evaluation" / "open_loop.json").is_file()
    assert Policy.from_pretrained(tmp_path / "run" / "policy").source.keys() == {"dataset"}


def test_the_environment_stays_where_the_dataset_fits_or_the_user_says_so(settings, root, other_root):
    def at(path):
        return settings.model_copy(update={"data": settings.data.model_copy(update={"root": str(path)})})

    assert fit_environment(at(root), lambda key: False) == (at(root), [])
    assert fit_environment(at(other_root), lambda key: key == "env") == (at(other_root), [])
    changed, (note, _) = fit_environment(at(other_root), lambda key: False)
    assert changed.env.id is None and changed.auxiliary == {} and "env=none" in note
    assert fit_environment(at(other_root), lambda key: key == "auxiliary")[0].auxiliary == settings.auxiliary


def test_any_recording_trains_without_naming_an_experiment(tmp_path):
    root = record(tmp_path / "DIR", lengths=(20, 30, 25))
    small = ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "data.batch_size=8"]
    small += [f"hydra.run.dir={tmp_path / 'run'}"]
    assert command("train", f"data.root={root}", *small) == 0
    assert (tmp_path / "run" / "evaluation" / "open_loop.json").is_file()


@pytest.mark.parametrize(
    ("given", "collects"),
    [
        (["data.root=owner/demos"], False),
        (["data.root=owner/demos", "data.episodes=4"], True),
        (["data.root=owner/demos", "env=toy_pick"], True),
        (["data.root=demos"], True),
        (["data.root=owner/demos", "env=toy_pick", "data.revision=main"], False),
        ([], True),
    ],
)
def test_what_may_be_on_the_hub_is_not_collected(tmp_path, monkeypatch, given, collects):
    monkeypatch.chdir(tmp_path)
    settings, keys = config.load("train", given), {argument.partition("=")[0] for argument in given}
    assert must_collect(settings, keys.__contains__) == collects


def test_instructions_that_are_cut_or_become_equal_are_said(demonstrations, settings):
    tasks = ("pick up the red cube", "Pick up the RED cube", "pick " * 40, "pick " * 39 + "cube")
    policy = untrained_policy(settings, demonstrations)
    notes = list(notes_on(policy, demonstrations._replace(tasks=tasks, notes=())))
    assert notes[0].startswith("2 instructions are longer than the tokenizer's limit, and are cut, such as 'pick pick")
    assert notes[1].startswith("2 instructions become the tokens of another one, such as 'Pick up the RED cube' those of 'pick")


def test_relative_actions_are_named(demonstrations, settings):
    features = demonstrations.features._replace(action=("x", "y", "dz", "close"))
    data = settings.data.model_copy(update={"actions": "relative"})
    settings = settings.model_copy(update={"data": data, "env": config.load("train", ["env=none"]).env, "auxiliary": {}})
    settings = settings.model_copy(update={"ablate": ()})
    named = demonstrations._replace(features=features, notes=())
    assert next(notes_on(untrained_policy(settings, named), named)) == (
        "2 of 4 actions are relative to the state; absolute: dz, close"
    )


def test_a_head_that_cannot_reach_all_actions_is_refused(root, tmp_path, capsys):
    arguments = ["experiment=toy_pick_smoke", f"data.root={root}", f"hydra.run.dir={tmp_path / 'run'}"]
    for head in ("action=diffusion", "action=bins"):
        assert command("train", *arguments, head, "data.normalization.action=mean_std") == 2
        assert "data.normalization.action=mean_std: " in capsys.readouterr().err
    assert command("train", *arguments, "action=bins", "action.spacing=quantile", "data.normalization.action=mean_std") == 0


def test_what_is_ignored_is_said(settings, demonstrations, root, tmp_path, monkeypatch, capsys):
    noted = demonstrations._replace(notes=("ignored: depth", "another"))
    monkeypatch.setattr("vla_mini.setup.demonstrations.read_demonstrations", lambda *_, **__: noted)
    arguments = ["experiment=toy_pick_smoke", "env=none", f"data.root={root}"]
    no_checks = SimpleNamespace(TrainingRun=lambda *_: None, run_checks=lambda _: [])
    monkeypatch.setitem(sys.modules, "vla_mini.doctor.checks", no_checks)
    assert command("doctor", *arguments) == 0
    assert capsys.readouterr().out.splitlines()[:2] == list(noted.notes)
    assert command("train", *arguments, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert capsys.readouterr().out.splitlines()[:2] == list(noted.notes)
