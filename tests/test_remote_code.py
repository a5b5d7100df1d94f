"""A policy with a model that comes with code of its own: no command runs it without trust_remote_code=true."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.factory import command, make_policy

# It creates a file when it is run.
CODE = """
from pathlib import Path
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

Path({trace!r}).touch()


class Config(PretrainedConfig):
    model_type = "mine"


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.stem = nn.Conv2d(3, 16, kernel_size=16, stride=16)
        self.post_init()

    def forward(self, pixel_values, interpolate_pos_encoding=False):
        return BaseModelOutput(last_hidden_state=self.stem(pixel_values).flatten(2).transpose(1, 2))
"""
TARGET = {"_target_": "vla_mini.vision.huggingface.HuggingFaceVision", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.fixture
def trace(tmp_path, monkeypatch) -> Path:
    """The file that the model's code creates. The working directory holds the model `mine` and a policy with this model."""
    from safetensors.torch import save_file
    from torch import nn
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/mine.py").write_text(CODE.format(trace=str(tmp_path / "trace")))
    code = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    config = {"model_type": "mine", "auto_map": code, "image_size": 64, "patch_size": 16}
    Path("mine/config.json").write_text(json.dumps(config))
    weights = {f"stem.{name}": weight for name, weight in nn.Conv2d(3, 16, 16).state_dict().items()}
    save_file(weights, "mine/model.safetensors", {"format": "pt"})
    make_policy(vision=TARGET | {"path": "mine", "trust_remote_code": True}).save_pretrained("policy")
    Image.new("RGB", (64, 64)).save("scene.png")
    assert (tmp_path / "trace").exists()
    (tmp_path / "trace").unlink()
    for module in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[module]
    return tmp_path / "trace"


COMMANDS = {
    "infer": ["image=scene.png", "instruction=go", "state=[0,0,0.5,0]"],
    "evaluate": ["episodes=1", "output=evaluation"],
    "gradients": ["data=nowhere"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_without_trust_no_command_runs_the_code(trace, capsys, name):
    assert command(name, "policy=policy", *COMMANDS[name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    assert "vision needs code of 'mine', which is run only with trust_remote_code=true" in err
    assert not trace.exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_with_trust_every_command_continues(trace, capsys, name):
    code = command(name, "policy=policy", "trust_remote_code=true", *COMMANDS[name])
    assert trace.exists()
    if name == "gradients":  # stops at the data, which is missing
        assert code == 2 and "nowhere holds no LeRobot dataset" in capsys.readouterr().err
    else:
        assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize("part", ["vision", "language"])
def test_without_trust_training_does_not_run_the_code(trace, capsys, part):
    small = [
        "experiment=toy_pick_smoke",
        "data.episodes=2",
        "data.validation_episodes=1",
        "data.root=data",
        "data.batch_size=4",
    ]
    assert command("train", *small, f"{part}=huggingface", f"{part}.path=mine", "hydra.run.dir=run") == 2
    assert "which is run only with trust_remote_code=true" in capsys.readouterr().err
    assert not trace.exists() and not Path("run").exists()
