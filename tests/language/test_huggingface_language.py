"""A frozen encoder encodes each instruction once; a trained one is trained; a saved one needs nothing but its own folder."""

import copy
import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.factory import command, make_batch, make_observation, make_policy, mean_loss, spec
from vla_mini import testing
from vla_mini.policy import Policy
from vla_mini.utils import hub

CONFIG = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TASKS = ("pick up the red cube", "grab the blue ball", "lift the")
TARGET = {"_target_": "vla_mini.language.huggingface.HuggingFaceLanguage"}


def make(**settings):
    """The encoder, fitted as in a policy; its vocabulary is that of testing.TASKS."""
    return make_policy(language=TARGET | settings).language


@pytest.fixture
def language():
    return make(config=CONFIG)


@pytest.fixture
def calls(language):
    """The batch sizes of the model's calls."""
    sizes = []
    language.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return sizes


def save_pretrained(folder, *, start: bool, tasks=TASKS) -> None:
    """A model with a tokenizer of its own, of the words in `tasks`, with or without a special token at the start."""
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", *sorted({word for task in tasks for word in task.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    model, _ = hub.make(CONFIG | {"vocab_size": len(words)})
    model.save_pretrained(folder)


def test_a_trained_model_uses_dropout_and_a_frozen_one_does_not(tmp_path):
    save_pretrained(tmp_path, start=True)
    for frozen in (True, False):
        language = make(path=str(tmp_path), frozen=frozen).train()
        assert torch.equal(*(language(*language.tokenize([*TASKS])) for _ in range(2))) == frozen
        language.eval()
        assert torch.equal(*(language(*language.tokenize([*TASKS])) for _ in range(2)))


@pytest.mark.filterwarnings("ignore")  # Lightning's warnings about such a small run
def test_the_synonyms_experiment_runs_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(tmp_path / "encoder", start=True)
    small = ["data.episodes=8", "data.validation_episodes=1", "data.batch_size=8", "trainer.max_steps=2"]
    small += ["evaluation.episodes=1", "evaluation.every_n_steps=0", "hydra.run.dir=run"]
    assert command("train", "experiment=toy_pick_synonyms", "language.path=encoder", *small) == 0
    splits = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["splits"]
    assert {"synonyms", "synonyms_colours", "synonyms_shapes", "synonyms_verbs"} <= splits.keys()
    assert Policy.from_pretrained("run/policy").language.noise == 2.0


def test_each_distinct_instruction_is_encoded_once(language, calls):
    first = language(*language.tokenize([TASKS[0], TASKS[1], TASKS[0]]))
    assert calls == [1, 1]
    again = language(*language.tokenize([TASKS[1], TASKS[2]]))
    assert calls == [1, 1, 1]
    assert torch.equal(again[0], first[1][: again.shape[1]])  # padded differently, bit-equal
    language(*language.tokenize(["", *TASKS]))
    assert calls == [1, 1, 1, 1]


def test_the_cache_holds_what_the_model_computes(language):
    tokens, mask = language.tokenize([*TASKS, ""])
    torch.testing.assert_close(language(tokens, mask), language.encode(tokens, mask), rtol=1e-4, atol=1e-5)
    assert (language(tokens, mask)[~mask] == 0).all()
    assert mask.any(dim=1).all()  # even of the empty one


def test_a_frozen_model_has_no_dropout_and_no_graph(language, calls):
    tokens, mask = language.tokenize(list(TASKS))
    acting = language(tokens, mask).clone()
    language._cache.clear()
    training = language.train()(tokens, mask)
    assert torch.equal(acting, training) and not training.requires_grad


def test_bf16_training_and_fp32_acting_get_the_same_vectors(language):
    tokens, mask = language.tokenize(list(TASKS))
    with torch.autocast("cpu", torch.bfloat16):
        training = language(tokens, mask)
    language._cache.clear()
    assert torch.equal(training, language(tokens, mask))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.double(),
        lambda model: model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()}),
        lambda model: [torch.nn.init.normal_(parameter) for parameter in model.parameters()],
        lambda model: [setattr(parameter, "data", parameter.data + 0.1) for parameter in model.parameters()],
    ],
    ids=["converted", "loaded", "changed in place", "replaced"],
)
def test_the_cache_is_emptied_when_the_weights_change(language, change):
    tokens, mask = language.tokenize(list(TASKS))
    language(tokens, mask)
    change(language.model)
    torch.testing.assert_close(language(tokens, mask), language.encode(tokens, mask), rtol=1e-4, atol=1e-5)


def test_vectors_cached_under_inference_mode_can_be_used_in_training():
    policy = make_policy(language="huggingface").train()
    batch = make_batch(policy)
    with torch.inference_mode():
        policy.act(batch.observation)
    mean_loss(policy, batch).backward()
    assert policy.projection["language"].weight.grad.abs().max() > 0


def test_gradients_reach_a_model_that_is_not_frozen():
    policy = make_policy(language=spec("language", "huggingface") | {"frozen": False})
    reason = "a key's bias adds the same score to every token, which the softmax cancels"
    exceptions = {name: reason for name, _ in policy.named_parameters() if name.endswith(("word_keys.bias", "key.bias"))}
    testing.assert_gradients_reach(policy, make_batch(policy, 8), except_for=exceptions)
    trainable = {name for name, parameter in policy.language.named_parameters() if parameter.requires_grad}
    assert trainable and not [name for name in trainable if "pooler" in name]


def test_a_model_that_is_unfrozen_is_called_again(language, calls):
    tokens, mask = language.tokenize(list(TASKS))
    language(tokens, mask)
    language.model.requires_grad_(True)
    assert language(tokens, mask).requires_grad and calls == [1, 1, 1, 3]


@pytest.mark.parametrize("start", [True, False])
def test_a_saved_policy_does_not_need_the_folder(start, tmp_path):
    save_pretrained(tmp_path / "bert", start=start)
    policy = make_policy(language=TARGET | {"path": str(tmp_path / "bert")})
    assert policy.language.tokens_of("pick up") == ["[CLS]", "pick", "up"]
    assert policy.tokenize([""])[1].all()
    policy.save_pretrained(tmp_path / "policy")
    shutil.rmtree(tmp_path / "bert")
    loaded = Policy.from_pretrained(tmp_path / "policy")
    observation = make_observation(policy)
    assert torch.equal(loaded.tokenize(list(TASKS))[0], policy.tokenize(list(TASKS))[0])
    torch.testing.assert_close(loaded.act(observation), policy.act(observation), rtol=0, atol=0)


def test_the_saved_tokenizer_is_used_even_if_that_of_the_path_has_changed(tmp_path):
    """Otherwise loaded weights could meet the vocabulary of another encoder of the same sizes."""
    save_pretrained(tmp_path / "bert", start=True)
    policy = make_policy(language=TARGET | {"path": str(tmp_path / "bert")})
    policy.save_pretrained(tmp_path / "policy")
    words = tmp_path / "bert" / "tokenizer.json"
    words.write_text(words.read_text().replace('"red"', '"?"').replace('"up"', '"red"').replace('"?"', '"up"'))
    loaded = Policy.from_pretrained(tmp_path / "policy")
    assert torch.equal(loaded.tokenize(["pick up the red"])[0], policy.tokenize(["pick up the red"])[0])
    assert loaded.language.unknown_words("the crimson cube") == ["crimson"]


def test_noise_is_added_in_training_to_words_alone(language):
    """It is scaled by the vectors; padding stays zero, and the cache unchanged."""
    tokens, mask = language.tokenize(list(TASKS))
    plain = language(tokens, mask)
    language.noise = 0.5
    assert torch.equal(language(tokens, mask), plain)
    noisy = language.train()(tokens, mask)
    assert (noisy[~mask] == 0).all() and not mask.all()
    share = (noisy - plain)[mask].square().mean(dim=-1).sqrt() / plain[mask].square().mean(dim=-1).sqrt()
    assert 0.3 < share.mean() < 0.7
    assert torch.equal(language.eval()(tokens, mask), plain)


def test_vectors_of_a_pretrained_model_are_those_of_transformers(tmp_path):
    from transformers import AutoModel, AutoTokenizer

    save_pretrained(tmp_path, start=True)
    language = make(path=str(tmp_path))
    inputs = AutoTokenizer.from_pretrained(tmp_path)(list(TASKS), return_tensors="pt", padding=True)
    tokens, mask = language.tokenize(list(TASKS))
    assert torch.equal(tokens, inputs["input_ids"]) and torch.equal(mask.long(), inputs["attention_mask"])
    expected = AutoModel.from_pretrained(tmp_path)(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(language(tokens, mask), expected * mask[..., None], rtol=1e-4, atol=1e-5)


def test_a_copy_has_a_cache_of_its_own(language):
    tokens, mask = language.tokenize(list(TASKS))
    language(tokens, mask)
    other = copy.deepcopy(language).double()
    assert other(tokens, mask).dtype == torch.float64 and language(tokens, mask).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "path=null, config=null: give a path .* or a config"),
        ({"config": CONFIG | {"vocab_size": 4}}, "config.vocab_size=4 is too small"),
        ({"config": CONFIG, "max_words": 600}, "config.max_position_embeddings=512 is too small: 600"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
