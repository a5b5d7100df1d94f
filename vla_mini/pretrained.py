"""Policy <-> folder <-> hub: config.json, model.safetensors, the parts' assets (tokenizers), and manifest.json with the SHA-256
of each file; with adapters.safetensors, where low-rank adapters are kept separate from the weights.

A folder from elsewhere runs no code: only vla_mini's own classes are built (registry.py) and only safetensors are read.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vla_mini.commands import command_line
from vla_mini.normalization import NormalizationSettings
from vla_mini.parts import ActingDefaults, Part
from vla_mini.registry import describe
from vla_mini.utils import download, files, hub, lora
from vla_mini.utils.errors import as_value_error, one_line
from vla_mini.utils.features import Features, FeatureStatistics, Statistics, Units

FORMAT = "vla-mini-2"
CONFIG, WEIGHTS, ADAPTERS, MANIFEST = "config.json", "model.safetensors", "adapters.safetensors", "manifest.json"
FILES = ["*.json", "*.safetensors"]  # what is downloaded from the hub

MODEL_CARD = """---
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

Inputs: images of {cameras} ({size} pixels), the state ({state}) and an instruction. Output: {policy.horizon} actions
({action}), {policy.features.fps} a second.

| part | class |
|---|---|
{parts}

`manifest.json` holds the SHA-256 of every file, and each is checked when the policy is loaded.
"""


class PretrainedMixin:
    """Saving and loading, for `Policy`, whose attributes it reads."""

    SINGLE_PARTS: ClassVar = ("vision", "language", "trunk", "action", "backbone_action")

    def parts(self) -> Iterator[tuple[str, Part]]:
        """All parts by name, `auxiliary.<name>` among them."""
        for name in self.SINGLE_PARTS:
            if (part := getattr(self, name)) is not None:
                yield name, part
        yield from ((f"auxiliary.{name}", part) for name, part in self.auxiliary.items())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors, the parts' assets and manifest.json to `folder`, replacing what was there only
        once the new one is complete.

        Low-rank adapters are merged into the weights, or written to adapters.safetensors (`lora.save`).
        """
        separate = self.lora is not None and self.lora["save"] == "separate"
        weights = {WEIGHTS: lora.plain_weights(self, merged=not separate)}
        weights |= {ADAPTERS: lora.adapters(self)} if separate else {}
        described = {name: describe(part) for name, part in self.parts()}
        auxiliary = {name: described[f"auxiliary.{name}"] for name in self.auxiliary}
        config = {
            "format": FORMAT,
            "parts": {name: described.get(name) for name in self.SINGLE_PARTS} | {"auxiliary": auxiliary},
            "features": self.features._asdict(),
            "horizon": self.horizon,
            "history": self.history,
            "acting": self.acting._asdict(),
            "units": {name: units._asdict() for name, units in self.units.items()},
            "normalization": self.normalization.settings._asdict(),
            "ablate": self.ablate,
            "source": self.source,
            "lora": self.lora if separate else None,
        }
        with files.replacing_folder(Path(folder)) as temporary:
            files.write_json(temporary / CONFIG, config)
            for file, tensors in weights.items():
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / file)
            for _, part in self.parts():
                part.save_assets(temporary)
            files.write_manifest(temporary, MANIFEST, files.digests(temporary, sorted(temporary.iterdir())))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, classes: Sequence[type] = (), trust_remote_code: bool = False, setting: str = "policy"
    ) -> "PretrainedMixin":
        """The policy that `save_pretrained` wrote, in eval mode.

        - source: a folder; where there is no such folder, a hub id (owner/name)
        - classes: those of the parts that are not vla_mini's own
        - trust_remote_code: has to be True again for a policy with a model whose code came with it
        - setting: what the user gave `source` as, for messages

        Raises ValueError, naming the file, where one is missing, altered or does not fit.
        """
        folder = locate(source, setting=setting)
        config = read_config(folder)
        parts = {name: config["parts"].get(name) for name in cls.SINGLE_PARTS} | (config["parts"].get("auxiliary") or {})
        for name, part in parts.items():
            if part and part.get("trust_remote_code") and not trust_remote_code:
                needed = f"{name} needs code of {part['path']!r}, which is run only with trust_remote_code=true"
                raise ValueError(f"{folder}: {needed}")
        features = Features(**_tuples(config["features"]))
        policy = cls(
            config["parts"],
            features=features,
            statistics=unit_statistics(features),
            horizon=config["horizon"],
            assets=folder,
            history=config["history"],
            normalization=NormalizationSettings(**_tuples(config.get("normalization", {}))),
            acting=ActingDefaults(**config["acting"]),
            units={name: Units(**units) for name, units in config.get("units", {}).items()},
            ablate=config["ablate"],
            source=config["source"],
            classes=classes,
        )
        with as_value_error(f"the weights in {folder} do not fit its {CONFIG}", SafetensorError, RuntimeError):
            policy.load_state_dict(load_file(folder / WEIGHTS))
            if config["lora"]:
                lora.inject(policy, **config["lora"])
                lora.load_adapters(policy, load_file(folder / ADAPTERS))
        return policy.eval()

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes, with a model card, to the Hugging Face hub; the address of the repository.

        - repo_id: owner/name; created where it is missing
        - private: whether only its owner has access to a new one; None: as the owner's settings say
        - token: of the hub; None: the one of `hf auth login`, or of HF_TOKEN

        Raises ValueError where the hub cannot be reached or refuses.
        """
        from huggingface_hub import CommitOperationAdd, HfApi, constants

        if constants.HF_HUB_OFFLINE or download.why_unreachable(constants.ENDPOINT):
            raise ValueError(f"push_to_hub({repo_id!r}): the hub, {constants.ENDPOINT}, cannot be reached")
        api = HfApi(endpoint=constants.ENDPOINT, token=token)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "policy"
            self.save_pretrained(folder)
            files.write_text(folder / "README.md", self.model_card(repo_id))
            try:
                address = api.create_repo(repo_id, private=private, exist_ok=True)
                # One commit, which upload_folder may split: a manifest never lies beside another policy's weights.
                operations = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
                api.create_commit(address.repo_id, operations, commit_message="Upload a policy")
            except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
                raise ValueError(f"push_to_hub({repo_id!r}): {one_line(error)[:300]}") from error
        return str(address)

    def model_card(self, repo_id: str) -> str:
        """The README.md of the policy's repository on the hub."""
        return MODEL_CARD.format(
            name=repo_id.rpartition("/")[2],
            repo_id=repo_id,
            parameters=sum(parameter.numel() for parameter in self.parameters()),
            env=self.source.get("env", "its own environment"),
            cameras=", ".join(self.features.cameras),
            size=" x ".join(map(str, self.features.image_size)),
            state=", ".join(self.features.state),
            action=", ".join(self.features.action),
            policy=self,
            parts="\n".join(f"| {name} | {type(part).__name__} |" for name, part in self.parts()),
        )


def locate(source: str | Path, *, setting: str = "policy") -> Path:
    """The folder of a saved policy: `source` itself, or the one that the files of a hub id were downloaded to."""
    return Path(source) if Path(source).is_dir() else hub.fetch(source, files=FILES, setting=setting)


def fingerprint(source: str | Path) -> str:
    """What distinguishes a saved policy from all others: the SHA-256 of its manifest, which holds those of its files."""
    return files.digest(locate(source) / MANIFEST)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a saved policy whose files are all as they were written; else ValueError, naming the file."""
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder / MANIFEST} is missing: {folder} is not a saved policy")
    found = files.digests(folder, (path for path in sorted(folder.iterdir()) if path.is_file()))
    files.check_manifest(folder, MANIFEST, found, required=(CONFIG, WEIGHTS))
    config = files.read_json(folder / CONFIG)
    if config.get("format") == "vla-mini-1":
        command = f"{command_line('convert')} policy={folder} output=DIR"
        raise ValueError(f"{folder} was saved by vla-mini 0.1: convert it with `{command}`")
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG}: format {config.get('format')!r} is not {FORMAT!r}")
    files.check_manifest(folder, MANIFEST, found, required=[ADAPTERS] if config["lora"] else [])
    return config


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """The lists of JSON as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def unit_statistics(features: Features) -> Statistics:
    """Placeholders for the saved statistics, which are loaded with the weights."""
    sizes, values = (features.state_size, features.action_size), (-1, 1, 0, 1, -1, 1)
    return Statistics(*(FeatureStatistics(*(np.full(size, value, np.float32) for value in values)) for size in sizes))
