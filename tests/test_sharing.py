"""Pushing a policy to the hub and loading it from there, with the real client and a local server."""

import pytest
import torch

from tests.factory import make_observation, make_policy
from tests.hub_server import serve
from vla_mini.policy import Policy


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The repository's files on a local server, the only hub that the client is configured for; the client's cache is empty."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve() as (address, files):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        yield files


def test_a_pushed_policy_can_be_loaded_by_its_id(hub, tmp_path):
    policy = make_policy()
    assert policy.push_to_hub("user/name", token="hf_secret").endswith("/user/name")
    policy.save_pretrained(tmp_path / "policy")
    written = {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()}
    assert {name: data for name, data in hub.items() if name != "README.md"} == written
    card = hub["README.md"].decode()
    assert card.startswith("---\nlibrary_name: vla-mini") and 'Policy.from_pretrained("user/name")' in card
    assert "x, y, height, closed" in card and "| action | RegressionHead |" in card

    loaded = Policy.from_pretrained("user/name")
    observation = make_observation(policy)
    assert torch.equal(loaded.act(observation), policy.act(observation))
    assert not list(tmp_path.glob("cache/**/README.md"))  # only the needed files are downloaded


def test_altered_files_are_refused(hub):
    make_policy().push_to_hub("user/name", token="hf_secret")
    hub["model.safetensors"] = hub["model.safetensors"][:-1] + b"x"
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        Policy.from_pretrained("user/name")


def test_a_mistyped_path_is_not_downloaded_from_the_hub(hub, tmp_path):
    """Where `user/` is a folder, user/name is a path in it and no hub id."""
    make_policy().push_to_hub("user/name", token="hf_secret")
    (tmp_path / "user").mkdir()
    with pytest.raises(ValueError, match="policy=user/name: there is no such folder, and it is not a hub id"):
        Policy.from_pretrained("user/name")


@pytest.mark.parametrize(("repo", "token", "message"), [("user/name", "hf_wrong", "401"), ("a/b/c", "hf_secret", "a/b/c")])
def test_a_refused_push_is_reported_in_one_line(hub, repo, token, message):
    with pytest.raises(ValueError, match=f"push_to_hub\\('{repo}'\\): .*{message}") as refused:
        make_policy().push_to_hub(repo, token=token)
    assert "\n" not in str(refused.value) and not hub


def test_without_network_a_push_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"push_to_hub\('user/name'\): the hub, https://.*, cannot be reached"):
        make_policy().push_to_hub("user/name")


def test_an_unknown_id_is_refused(hub):
    with pytest.raises(ValueError, match="policy=user/nothing: there is no such folder, and the hub has no such model"):
        Policy.from_pretrained("user/nothing")
