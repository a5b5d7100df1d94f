"""Policies that vla-mini 0.1 saved act the same after scripts/convert.py. tests/fixtures/ holds three, and how they acted."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.factory import command
from vla_mini import Observation, Policy
from vla_mini.utils import files

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("name", ["regression", "diffusion", "fast"])
def test_a_converted_policy_acts_the_same(tmp_path, name):
    old, new = FIXTURES / f"policy_v1_{name}", tmp_path / "new"
    with pytest.raises(ValueError, match=r"saved by vla-mini 0\.1: convert it with `python scripts/convert\.py policy="):
        Policy.from_pretrained(old)
    assert command("convert", f"policy={old}", f"output={new}") == 0
    recorded = load_file(FIXTURES / f"policy_v1_{name}_acts.safetensors")
    actions = recorded.pop("actions")

    def weights(folder):  # without those of the keyframe loss, which only training uses
        named = load_file(folder / "model.safetensors").items()
        return sorted(tensor.flatten().tolist() for name, tensor in named if not name.startswith("auxiliary"))

    assert weights(new) == weights(old)  # bit for bit, under other names
    acted = Policy.from_pretrained(new).act(Observation(**recorded), torch.Generator().manual_seed(0))
    # Up to rounding: another processor than the one that recorded them adds in another order.
    torch.testing.assert_close(acted, actions, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_converted_is_refused_in_one_line(tmp_path, capsys):
    old = FIXTURES / "policy_v1_regression"
    assert command("convert", f"policy={old}", f"output={tmp_path}") == 2
    assert "exists already" in capsys.readouterr().err
    assert command("convert", f"policy={tmp_path / 'none'}", f"output={tmp_path / 'new'}") == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert command("convert", f"policy={old}", f"output={tmp_path / 'new'}") == 0
    assert command("convert", f"policy={tmp_path / 'new'}", f"output={tmp_path / 'newer'}") == 2
    assert "only 'vla-mini-1' is converted" in capsys.readouterr().err


def test_a_policy_that_needs_code_is_converted_only_with_trust_and_a_failure_leaves_nothing(tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(FIXTURES / "policy_v1_fast", old)
    config = files.read_json(old / "config.json")
    config["parts"]["vision"] |= {"path": "owner/model", "trust_remote_code": True}
    (old / "config.json").write_text(json.dumps(config))
    manifest = files.read_json(old / "manifest.json")
    files.write_manifest(old, "manifest.json", files.digests(old, [old / name for name in manifest]))
    assert command("convert", f"policy={old}", f"output={new}") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f"{old}: vision needs code of 'owner/model', which is run only with trust_remote_code=true" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    assert command("convert", f"policy={old}", f"output={new}", "trust_remote_code=true") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
