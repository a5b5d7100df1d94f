"""Files from a stranger who knows how, with checksums that are right: each is refused in one line, and nothing in it is run.

For checkpoints see tests/training/test_checkpoints.py."""

import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.factory import command, make_policy
from vla_mini import files, hub

CODE = "from pathlib import Path\n\nPath({trace!r}).touch()\n\n\nclass Tokenizer:\n    pass\n"
BERT = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {Path.cwd()}/trace",)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("trace").exists()


def signed(folder: Path) -> None:
    others = [path for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    (folder / "manifest.json").write_text(files.manifest_text(files.digests(folder, others)))


def refusal(capsys, *arguments: str) -> str:
    assert command(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    return err


def system_as_a_part(folder):
    config = json.loads((folder / "config.json").read_text())
    config["parts"]["vision"] = {"_target_": "os.system", "command": f"touch {Path.cwd()}/trace"}
    (folder / "config.json").write_text(json.dumps(config))


def pickle_as_weights(folder):
    torch.save({"bomb": Bomb()}, folder / "model.safetensors")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def adapters_that_are_not_there(folder):
    config = json.loads((folder / "config.json").read_text()) | {"lora": {"rank": 8}}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (system_as_a_part, "_target_='os.system' is not a class of vla_mini/vision/"),
        (pickle_as_weights, "the weights in policy do not fit its config.json"),
        (no_tokenizer, "policy/tokenizer.json is missing"),
        (adapters_that_are_not_there, "policy/adapters.safetensors is missing"),
    ],
)
def test_a_policy(capsys, spoil, says):
    folder = Path("policy")
    make_policy().save_pretrained(folder)
    spoil(folder)
    signed(folder)
    assert says in refusal(capsys, "evaluate", "policy=policy", "episodes=1", "output=evaluation")


def test_a_tokenizer(capsys):
    hub.make(BERT)[0].save_pretrained("mine")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))).save_pretrained("mine")
    Path("mine/mine.py").write_text(CODE.format(trace=str(Path.cwd() / "trace")))
    described = json.loads(Path("mine/tokenizer_config.json").read_text())
    described |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "mine.Tokenizer"]}}
    Path("mine/tokenizer_config.json").write_text(json.dumps(described))
    capsys.readouterr()
    small = ["experiment=toy_pick_smoke", "data.episodes=1", "data.validation_episodes=1", "data.batch_size=1"]
    assert "mine" in refusal(capsys, "train", *small, "language=huggingface", "language.path=mine", "hydra.run.dir=run")
