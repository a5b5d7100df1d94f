"""Training in stages: what is frozen until a step does not change until then, and is trained as usual from there on."""

import lightning
import pytest
import torch

from tests.factory import make_batch, make_policy
from tests.harness import ADAMW, fit
from vla_mini.finetuning.freezing import check_stages, freeze
from vla_mini.finetuning.unfreezing import Unfreezing
from vla_mini.training.monitor import GradientMonitor

BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


class Observe(lightning.Callback):
    """Collects what `function(trainer, policy)` returns after each micro-batch."""

    def __init__(self, function):
        self.function, self.seen = function, []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(self.function(trainer, module.policy))


def in_groups(policy, parameters):
    """As training does it: the weights of layers decay, nothing else does."""
    layers = {module.weight for module in policy.modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}
    decaying, rest = ([p for p in parameters if (p in layers) == decays] for decays in (True, False))
    return [{"params": decaying, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]


def test_stages_are_those_that_one_would_write_by_hand():
    """AdamW, whose momentum and decay would show a parameter that was updated too early. Windows of two micro-batches."""
    policy, by_hand = make_policy(dtype=torch.float64), make_policy(dtype=torch.float64)
    batches = [make_batch(policy, seed=seed) for seed in range(8)]
    callbacks, monitor = [Unfreezing(policy, {"vision": 1, "trunk.queries": 3})], GradientMonitor(every_n_steps=1)
    arguments = {"optimizer": ADAMW, "accumulate_grad_batches": 2, "precision": "64-true"}
    fit(policy, batches, callbacks=callbacks, monitor=monitor, **arguments)

    later = {1: list(by_hand.vision.parameters()), 3: list(by_hand.trunk.queries.parameters())}
    frozen = {parameter for parameters in later.values() for parameter in parameters}
    at_once = [parameter for parameter in by_hand.parameters() if parameter not in frozen]
    optimizer = torch.optim.AdamW(in_groups(by_hand, at_once), lr=1e-2)
    for step in range(4):
        for group in in_groups(by_hand, later.get(step, [])):
            optimizer.add_param_group(group)
        by_hand.zero_grad()
        window = batches[2 * step : 2 * step + 2]
        count = sum((~batch.is_pad).sum() for batch in window)
        (sum(by_hand.loss(batch)[0].sum() for batch in window) / count).backward()
        optimizer.step()
    for (name, ours), theirs in zip(policy.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_modes_come_back_and_the_optimizer_holds_all_from_the_start():
    policy = make_policy().train()
    policy.trunk.positional_embedding.eval()  # as a pretrained part may be
    modes = Observe(
        lambda _, policy: (policy.trunk.training, policy.trunk.positional_embedding.training, policy.action.training)
    )
    held = Observe(lambda trainer, _: sum(len(group["params"]) for group in trainer.optimizers[0].param_groups))
    fit(policy, [make_batch(policy)] * 3, callbacks=[Unfreezing(policy, {"trunk": 2}), modes, held])
    assert modes.seen == [(False, False, True), (False, False, True), (True, False, True)]
    assert held.seen == [len(list(policy.parameters()))] * 3


def test_a_part_within_a_part_stays_frozen_until_its_own_step():
    policy, untouched = make_policy().train(), make_policy()
    fit(policy, [make_batch(policy)] * 2, callbacks=[Unfreezing(policy, {"trunk": 1, "trunk.queries": 5})])
    assert torch.equal(policy.trunk.queries.weight, untouched.trunk.queries.weight) and not policy.trunk.queries.training
    assert not torch.equal(policy.trunk.values.weight, untouched.trunk.values.weight) and policy.trunk.training


def test_cached_word_vectors_are_dropped_when_their_encoder_is_trained():
    language = {"_target_": "vla_mini.language.huggingface.HuggingFaceLanguage", "frozen": False, "config": BERT}
    policy = make_policy(language=language).train()
    before = policy.language.model.embeddings.word_embeddings.weight.detach().clone()
    cached = Observe(lambda _, policy: len(policy.language._cache))
    modes = Observe(lambda _, policy: policy.language.model.training)
    fit(policy, [make_batch(policy)] * 3, callbacks=[Unfreezing(policy, {"language": 2}), cached, modes], optimizer=ADAMW)
    assert cached.seen == [3, 3, 0]  # word vectors, of the three instructions
    assert modes.seen == [False, False, True]
    assert not torch.equal(policy.language.model.embeddings.word_embeddings.weight, before)
    assert not policy.language.model.pooler.dense.weight.requires_grad  # what is never trained stays as it is


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"visoin": 3}, "unfreeze_at: the policy has no part 'visoin'; did you mean 'vision'"),
        ({"vision": 3, "normalization": 3}, "unfreeze_at.normalization: nothing in it is trainable"),
        (
            dict.fromkeys(["vision", "language", "trunk", "action", "auxiliary", "projection", "state"], 3),
            "nothing is trainable from the start",
        ),
    ],
)
def test_stages_that_cannot_be_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        check_stages(make_policy(), steps)


def test_parts_that_are_frozen_for_good_cannot_be_unfrozen():
    frozen = {"_target_": "vla_mini.language.huggingface.HuggingFaceLanguage", "config": BERT}
    policy = make_policy(language=frozen)
    freeze(policy, ["vision"])
    for name in ("language", "vision.blocks"):
        with pytest.raises(ValueError, match=f"unfreeze_at.{name}: nothing in it is trainable; see freeze, lora"):
            check_stages(policy, {name: 3})
