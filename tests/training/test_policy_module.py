"""The optimizer of a policy, what is printed about it, and validation."""

import lightning
import pytest
import torch

from tests.factory import make_batch, make_policy, mean_loss, spec
from tests.harness import SGD, fit, optimizer_settings
from vla_mini.finetuning.freezing import freeze
from vla_mini.training.module import Summary, build_optimizer, check_optimizer, describe_batch, describe_parameters


def test_weight_decay_spares_all_but_the_weights_of_layers():
    policy = make_policy()
    layers, rest = build_optimizer(policy, optimizer_settings(SGD | {"weight_decay": 0.1})).param_groups
    assert layers["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    names = {parameter: name for name, parameter in policy.named_parameters()}
    assert {"vision.stem.weight", "action.layers.0.weight"} <= {names[p] for p in layers["params"]}
    assert {"language.table.weight", "vision.stem.bias", "trunk.slots"} <= {names[p] for p in rest["params"]}
    assert len(layers["params"]) + len(rest["params"]) == len(names)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("multipliers", [{}, {"vision": 0.1, "state": 3.0}, {name: 0.5 for name in make_policy().components()}])
def test_every_parameter_is_in_one_group(optimizer, multipliers):
    """Frozen ones, too: they may be unfrozen later."""
    policy = make_policy()
    freeze(policy, ["language"])
    settings = spec("optimizer", optimizer)
    groups = build_optimizer(policy, optimizer_settings(settings), multipliers).param_groups
    held = [parameter for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(policy.parameters())
    layers, rest = settings["lr"], settings.get("adam_lr", settings["lr"])
    for group in groups:
        rate = (layers if group["layers"] else rest) * multipliers.get(group["component"], 1.0)
        assert group["initial_lr"] == group["lr"] == rate


@pytest.mark.parametrize(("name", "message"), [("LBFGS", "per-parameter options"), ("SparseAdam", "dense gradients")])
def test_an_optimizer_that_cannot_step_as_training_asks_is_refused(name, message):
    with pytest.raises(ValueError, match=f"optimizer: {name} cannot train like this: .*{message}"):
        check_optimizer(optimizer_settings({"_target_": f"torch.optim.{name}", "lr": 1.0}), device=torch.device("cpu"))


def test_validation_is_the_mean_over_all_valid_actions():
    """Of batches with unequal numbers of them."""
    policy = make_policy()
    batches = [make_batch(policy, size, seed=size) for size in (2, 7)]
    module = fit(policy, batches[:1], optimizer=SGD | {"lr": 0.0}, validate=batches).module
    with torch.no_grad():
        sums = [(policy.loss(batch)[0].sum(), (~batch.is_pad).sum()) for batch in batches]
    assert module.validation_loss == pytest.approx((sum(s for s, _ in sums) / sum(n for _, n in sums)).item(), rel=1e-6)
    assert module.validation_loss != pytest.approx(sum(mean_loss(policy, batch).item() for batch in batches) / 2, rel=1e-3)


def test_the_summary_names_every_tensor_and_component():
    policy = make_policy()
    text = describe_batch(make_batch(policy, 4))
    assert "observation.images" in text and "4 x 1 x 3 x 64 x 64" in text and "uint8" in text and "cpu" in text
    freeze(policy, ["vision"])
    line = next(line for line in describe_parameters(policy).splitlines() if line.split()[0] == "vision")
    assert int(line.split()[1].replace(",", "")) > 0 and line.split()[2] == "0"


def test_the_summary_is_printed_once_and_the_callbacks_after_it_are_called(capsys):
    class Count(lightning.Callback):
        calls = 0

        def on_train_batch_start(self, *_):
            self.calls += 1

    policy = make_policy()
    count = Count()
    fit(policy, [make_batch(policy)] * 2, callbacks=[Summary(), count])
    assert capsys.readouterr().out.count("precision: ") == 1
    assert count.calls == 2
