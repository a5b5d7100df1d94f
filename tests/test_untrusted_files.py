"""Malicious files with right checksums: each is refused in one line, and none of their code is run.

For checkpoints see tests/training/test_checkpoints.py."""

import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.factory import command, make_policy
from vla_mini.utils import files, hub

CODE = "from pathlib import Path\n\nPath({trace!r}).touch()\n\n\nclass Tokenizer:\n    pass\n"
BERT = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class Malicious:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {Path.cwd()}/trace",)


@pytest.fixture(autouse=True)
def no_code_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("trace").exists()


def sign(folder: Path) -> None:
    """Write a manifest with the checksums of the files as they are now."""
    others = [path for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    files.write_manifest(folder, "manifest.json", files.digests(folder, others))


def refusal(capsys, *arguments: str) -> str:
    assert command(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    return err


def os_system_as_a_part(folder):
    config = json.loads((folder / "config.json").read_text())
    config["parts"]["vision"] = {"_target_": "os.system", "command": f"touch {Path.cwd()}/trace"}
    (folder / "config.json").write_text(json.dumps(config))


def pickle_as_weights(folder):
    torch.save({"weights": Malicious()}, folder / "model.safetensors")


def foreign_code(folder):
    """A model that needs code, in a config that does not say so."""
    Path("mine").mkdir()
    Path("mine/mine.py").write_text(CODE.format(trace=str(Path.cwd() / "trace")))
    needed = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Tokenizer", "AutoModel": "mine.Tokenizer"}}
    Path("mine/config.json").write_text(json.dumps(needed))
    (folder / "vision_model.json").write_text(json.dumps({"config": needed, "processor": {}}))
    config = json.loads((folder / "config.json").read_text())
    config["parts"]["vision"] = {"_target_": "vla_mini.vision.huggingface.HuggingFaceVision", "path": "mine"}
    (folder / "config.json").write_text(json.dumps(config))


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def missing_adapters(folder):
    config = json.loads((folder / "config.json").read_text()) | {"lora": {"layers": ["state"], "rank": 8}}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (os_system_as_a_part, "_target_='os.system' is not a class of vla_mini/vision/"),
        (pickle_as_weights, "the weights in policy do not fit its config.json"),
        (foreign_code, "it needs code that comes with it, which is run only with trust_remote_code=true"),
        (no_tokenizer, "policy/tokenizer.json is missing"),
        (missing_adapters, "policy/adapters.safetensors is missing"),
    ],
)
def test_a_malicious_policy_is_refused(capsys, damage, message):
    folder = Path("policy")
    make_policy().save_pretrained(folder)
    damage(folder)
    sign(folder)
    assert message in refusal(capsys, "evaluate", "policy=policy", "episodes=1", "output=evaluation")


def test_a_malicious_tokenizer_is_refused(capsys):
    hub.make(BERT)[0].save_pretrained("mine")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))).save_pretrained("mine")
    Path("mine/mine.py").write_text(CODE.format(trace=str(Path.cwd() / "trace")))
    config = json.loads(Path("mine/tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "mine.Tokenizer"]}}
    Path("mine/tokenizer_config.json").write_text(json.dumps(config))
    capsys.readouterr()
    small = ["experiment=toy_pick_smoke", "data.episodes=1", "data.validation_episodes=1", "data.batch_size=1"]
    assert "mine" in refusal(capsys, "train", *small, "language=huggingface", "language.path=mine", "hydra.run.dir=run")
