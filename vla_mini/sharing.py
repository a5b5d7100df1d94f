"""Policy -> Hugging Face hub: what `save_pretrained` writes, and a model card. `Policy.from_pretrained(id)` is the way back."""

import tempfile
from pathlib import Path

from vla_mini import hub
from vla_mini.policy import Policy
from vla_mini.pretrained import PARTS

CARD = """---
library_name: vla-mini
pipeline_tag: robotics
tags: [vla-mini, robotics, vision-language-action]
---

# {name}

A Vision-Language-Action policy with {parameters:,} parameters, trained with vla-mini for {env}.

```python
import vla_mini

policy = vla_mini.Policy.from_pretrained("{repo_id}")
```

It sees {cameras} ({height} x {width} pixels), feels {state}, and answers an instruction with {horizon} actions ({action}),
{fps} a second.

| part | class |
|---|---|
{parts}

`manifest.json` holds the SHA-256 of every file, and each is checked when the policy is loaded.
"""


def push(policy: Policy, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload `policy` to the hub; the address of the repository. ValueError where that fails."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    if not hub.answers():
        raise ValueError(f"push_to_hub({repo_id!r}): the hub, {constants.ENDPOINT}, cannot be reached")
    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = prepare(policy, Path(temporary) / "policy", repo_id=repo_id)
        try:
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            # One commit, which upload_folder may split: no manifest stands beside another policy's weights.
            files = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
            api.create_commit(address.repo_id, files, commit_message="Upload a policy")
        except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
            raise ValueError(f"push_to_hub({repo_id!r}): {' '.join(str(error).split())[:300]}") from error
    return str(address)


def prepare(policy: Policy, folder: Path, *, repo_id: str) -> Path:
    """A folder with all that is uploaded."""
    policy.save_pretrained(folder)
    (folder / "README.md").write_text(card(policy, repo_id), encoding="utf-8")
    return folder


def card(policy: Policy, repo_id: str) -> str:
    features = policy.features
    parts = {name: getattr(policy, name) for name in PARTS}
    height, width = features.image_size
    return CARD.format(
        name=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        env=policy.source.get("env", "its own environment"),
        cameras=", ".join(features.cameras),
        height=height,
        width=width,
        state=", ".join(features.state),
        action=", ".join(features.action),
        horizon=policy.action.horizon,
        fps=features.fps,
        parts="\n".join(f"| {name} | {type(part).__name__} |" for name, part in parts.items() if part is not None),
    )
