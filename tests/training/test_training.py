"""The Lightning module and its callbacks, run by a real Trainer on a few small batches."""

from pathlib import Path

import pytest
import torch

from tests.factory import CONFIGS, command, make_batch, make_policy, mean_loss, spec
from tests.harness import SGD, fit, keeping
from vla_mini.autograd.norms import components
from vla_mini.testing import split
from vla_mini.training.checkpoints import numbered
from vla_mini.training.freezing import freeze
from vla_mini.training.loggers import build_loggers
from vla_mini.training.module import PolicyModule, build_optimizer, check_optimizer
from vla_mini.training.precision import choose_precision
from vla_mini.training.selection import BestPolicy, evaluating
from vla_mini.training.summary import Summary, describe_batch, describe_parameters
from vla_mini.training.window import Stopwatch


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [("64-true", torch.float64, 1e-12), ("32-true", torch.float32, 1e-6), ("bf16-mixed", torch.float32, 5e-3)],
)
def test_a_window_is_the_one_big_batch(precision, dtype, tolerance):
    """Unequal masks, and a last window that is shorter than the others (Lightning's own means are wrong for both)."""
    policy = make_policy(dtype=dtype)
    batch = make_batch(policy, 20)
    parts = split(batch, [3, 5, 4, 2, 6])
    windows = [split(batch, [12, 8])[0], split(batch, [12, 8])[1]]
    record = fit(make_policy(dtype=dtype), parts, optimizer=SGD | {"lr": 0.0}, accumulate_grad_batches=3, precision=precision)
    assert len(record.gradients) == 2
    for window, gradients in zip(windows, record.gradients, strict=True):
        policy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = mean_loss(policy, window)
        loss.backward()
        expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
        got = torch.cat([gradients[name].flatten() for name, _ in policy.named_parameters()])
        assert (got - expected).norm() / expected.norm() < tolerance


def test_an_sgd_step_is_weight_minus_rate_times_gradient():
    policy = make_policy()
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    record = fit(policy, [make_batch(policy)], optimizer=SGD | {"lr": 0.1}, gradient_clip_val=None)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * record.gradients[0][name])


def test_clipping_bounds_the_step():
    policy = make_policy()
    before = torch.cat([p.detach().flatten().clone() for p in policy.parameters()])
    record = fit(policy, [make_batch(policy)], gradient_clip_val=0.01)
    norm = torch.cat([g.flatten() for g in record.gradients[0].values()]).norm()
    moved = (torch.cat([p.detach().flatten() for p in policy.parameters()]) - before).norm()
    assert norm > 0.1  # before clipping, as callbacks see it
    torch.testing.assert_close(moved, torch.tensor(0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml")))
def test_the_optimizers_of_configs_reduce_the_loss(name):
    policy = make_policy()
    batch = make_batch(policy)
    before = mean_loss(policy, batch).item()
    fit(policy, [batch] * 10, optimizer=spec("optimizer", name), gradient_clip_val=1.0)
    assert mean_loss(policy, batch).item() < before


def test_deterministic_asks_torch_for_it_and_says_what_it_costs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(Summary, "on_train_batch_end", lambda *_: seen.append(asked()), raising=False)
    asked = torch.are_deterministic_algorithms_enabled
    try:
        assert command("train", "experiment=toy_pick_smoke", "deterministic=true", "evaluation.episodes=1") == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [True] * 4
    assert "deterministic=true: no cost on CPUs; on GPUs slower kernels" in capsys.readouterr().out


def test_weight_decay_spares_all_but_the_weights_of_layers():
    module = PolicyModule(make_policy(), optimizer=SGD)
    layers, rest = build_optimizer(SGD | {"weight_decay": 0.1}, module._parameter_groups()).param_groups
    assert layers["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    names = {parameter: name for name, parameter in module.policy.named_parameters()}
    assert {"vision.stem.weight", "action.layers.0.weight"} <= {names[p] for p in layers["params"]}
    assert {"language.table.weight", "vision.stem.bias", "trunk.slots"} <= {names[p] for p in rest["params"]}
    assert len(layers["params"]) + len(rest["params"]) == len(names)


@pytest.mark.parametrize(("name", "says"), [("LBFGS", "per-parameter options"), ("SparseAdam", "dense gradients")])
def test_an_optimizer_that_cannot_step_as_training_asks_is_refused(name, says):
    with pytest.raises(ValueError, match=f"optimizer: {name} cannot train so: .*{says}"):
        check_optimizer({"_target_": f"torch.optim.{name}", "lr": 1.0}, device=torch.device("cpu"))


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("multipliers", [{}, {"vision": 0.1, "state": 3.0}, {name: 0.5 for name in components(make_policy())}])
def test_every_parameter_is_in_one_group(optimizer, multipliers):
    """Frozen ones, too: they may learn later."""
    policy = make_policy()
    freeze(policy, ["language"])
    module = PolicyModule(policy, optimizer=spec("optimizer", optimizer), multipliers=multipliers, decay="constant")
    groups = module.configure_optimizers()["optimizer"].param_groups
    held = [parameter for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(policy.parameters())
    layers, rest = (spec("optimizer", optimizer).get(name, 0.1) for name in ("lr", "adam_lr"))
    for group in groups:
        assert group["initial_lr"] == (layers if group["layers"] else rest) * multipliers.get(group["component"], 1.0)


def test_each_component_learns_at_its_own_rate(tmp_path):
    """By hand: weight - rate x schedule x multiplier x gradient, on the first of two steps of warm-up."""
    policy = make_policy()
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    multipliers = {"vision": 0.1, "trunk": 4.0}
    arguments = {"optimizer": SGD | {"lr": 0.1}, "multipliers": multipliers, "warmup_steps": 2}
    loggers = build_loggers({"csv": True}, run_dir=tmp_path, config={})
    record = fit(policy, [make_batch(policy)], logger=loggers, log_every_n_steps=1, **arguments)
    for name, parameter in policy.named_parameters():
        rate = 0.1 * 0.5 * multipliers.get(name.split(".")[0], 1.0)
        torch.testing.assert_close(parameter.detach(), before[name] - rate * record.gradients[0][name])
    header, row, *_ = (line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    logged = dict(zip(header, row, strict=True))
    rates = {"learning_rate": 0.1, "learning_rate/vision": 0.01, "learning_rate/trunk": 0.4}
    assert {name: float(logged[name]) for name in rates} == pytest.approx(rates)


def test_warm_up_and_cosine(monkeypatch):
    module = PolicyModule(make_policy(), optimizer=SGD, warmup_steps=10)
    module._trainer = type("Trainer", (), {"max_steps": 100})()
    factors = [module._learning_rate_factor(step) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(factors[10], rel=0.05)
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[100] == pytest.approx(0)


def test_mixed_precision_keeps_parameters_and_gradients_in_fp32():
    policy = make_policy()
    record = fit(policy, [make_batch(policy)], precision="bf16-mixed")
    assert record.dtypes == {torch.bfloat16}
    assert {p.dtype for p in policy.parameters()} == {g.dtype for g in record.gradients[0].values()} == {torch.float32}


def test_frozen_parts_stay_in_eval_mode_through_training_and_selection(tmp_path):
    policy = make_policy().train()
    freeze(policy, ["vision", "projection.language"])
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    best = best_policy(tmp_path, every_n_steps=1)
    record = fit(policy, [make_batch(policy)], steps=2, callbacks=[best])
    frozen = ("vision.", "projection.language.")
    assert not [name for name in record.gradients[0] if name.startswith(frozen)]
    for name, tensor in policy.state_dict().items():
        assert not name.startswith(frozen) or torch.equal(tensor, before[name])
    assert not policy.vision.training and not policy.projection["language"].training and policy.trunk.training


def test_freezing_the_unknown_is_refused():
    with pytest.raises(ValueError, match="no part 'visoin'; did you mean 'vision'"):
        freeze(make_policy(), ["visoin"])
    policy = make_policy()
    with pytest.raises(ValueError, match="nothing is left that learns"):
        freeze(policy, list(components(policy)))


def best_policy(folder: Path, **arguments) -> BestPolicy:
    defaults = {"episodes": 2, "every_n_steps": 0, "seed": 0, "env_id": "vla_mini/ToyPick-v0"}
    return BestPolicy(folder / "policy", stopwatch=Stopwatch(), **(defaults | arguments))


def test_the_best_policy_is_kept_and_ties_go_to_the_earlier(tmp_path, monkeypatch):
    rates = iter([0.5, 1.0, 1.0, 0.0])
    saved = []

    def rollout(policy, *_, episodes, **__):
        from vla_mini.evaluation.rollout import EpisodeResult

        wins = round(next(rates) * len(episodes))
        return [EpisodeResult(i, "", 1, i < wins, False, -1, 0, False, 2) for i in episodes]

    # The environment is too slow a judge for four policies that differ by one step each.
    monkeypatch.setattr("vla_mini.training.selection.rollout", rollout)
    monkeypatch.setattr("vla_mini.policy.Policy.save_pretrained", lambda self, folder: saved.append(best._played_at))
    best = best_policy(tmp_path, every_n_steps=1, episodes=4)
    policy = make_policy()
    fit(policy, [make_batch(policy)] * 4, steps=4, **keeping(best, tmp_path))
    assert saved == [1, 2] and best.best["success_rate"] == 1.0 and best.best["step"] == 2
    assert [step for step, _ in numbered(tmp_path)] == [4, 2]  # the newest, and the best


def test_without_selection_the_last_policy_is_saved(tmp_path):
    policy = make_policy()
    fit(policy, [make_batch(policy)], **keeping(best_policy(tmp_path), tmp_path))
    loaded = type(policy).from_pretrained(tmp_path / "policy")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in policy.state_dict().items())


def test_evaluating_restores_every_mode():
    policy = make_policy().train()
    policy.vision.eval()
    with evaluating(policy):
        assert not any(module.training for module in policy.modules())
    assert policy.trunk.training and not policy.vision.training


def test_precision_is_what_the_hardware_does(monkeypatch):
    assert choose_precision("32-true") == "32-true"
    for capable, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capable=capable: {"avx512_bf16": capable})
        assert choose_precision("auto", accelerator="cpu") == expected


def test_the_summary_names_every_tensor_and_component():
    policy = make_policy()
    text = describe_batch(make_batch(policy, 4))
    assert "observation.images" in text and "4 x 1 x 3 x 64 x 64" in text and "uint8" in text and "cpu" in text
    freeze(policy, ["vision"])
    line = next(line for line in describe_parameters(policy).splitlines() if line.split()[0] == "vision")
    assert int(line.split()[1].replace(",", "")) > 0 and line.split()[2] == "0"
