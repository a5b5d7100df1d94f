"""Policy <-> folder: config.json, model.safetensors, tokenizers' files, and manifest.json with the SHA-256 of each; with
adapters.safetensors, where low-rank adapters are kept apart from the weights.

A folder from a stranger runs no code: only vla_mini's own classes are built (see build.py) and only safetensors are read.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vla_mini import files, hub, lora
from vla_mini.build import build_policy, describe
from vla_mini.features import Features, Moments, Statistics
from vla_mini.policy import Policy

PARTS = ("vision", "language", "trunk", "action", "auxiliary", "backbone_action")
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
ADAPTERS, MANIFEST = "adapters.safetensors", "manifest.json"
FILES = ["*.json", "*.safetensors"]  # what is fetched from the hub


@runtime_checkable
class Tokenizes(Protocol):
    """A head with a tokenizer of its own: it writes it beside the weights, and finds it there by its argument `folder`."""

    def save_tokenizer(self, folder: str | Path) -> None: ...


def save(policy: Policy, folder: Path) -> None:
    """Write `policy` to `folder`, replacing what stood there only once the new one is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    apart = policy.lora is not None and policy.lora["save"] == "apart"
    weights = {WEIGHTS: lora.plain_weights(policy, merged=not apart)} | ({ADAPTERS: lora.adapters(policy)} if apart else {})
    try:
        config = {
            "format": "vla-mini-1",
            "parts": {name: part and describe(part) for name in PARTS for part in [getattr(policy, name)]},
            "features": policy.features._asdict(),
            "horizon": policy.action.horizon,
            "history": policy.history,
            "execute": policy.execute,
            "ensemble": policy.ensemble,
            "blind": policy.blind,
            "keyframe": policy.keyframe,
            "source": policy.source,
            "lora": policy.lora if apart else None,
        }
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        for file, tensors in weights.items():
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / file)
        policy.language.save_tokenizer(partial)
        if isinstance(policy.action, Tokenizes):
            policy.action.save_tokenizer(partial)
        digests = files.digests(partial, sorted(partial.iterdir()))
        (partial / MANIFEST).write_text(files.manifest_text(digests))
        for path in [*partial.iterdir(), partial]:
            files.sync(path)
        partial.chmod(0o755)
        _replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(
    source: str | Path, *, classes: Sequence[type] = (), trust_remote_code: bool = False, setting: str = "policy"
) -> Policy:
    """The policy in a folder, or of a hub id, in eval mode; ValueError naming the file where one is missing, altered or does
    not fit. `setting` is what the user gave it as."""
    folder = locate(source, setting=setting)
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder / MANIFEST} is missing: {folder} is no saved policy")
    found = files.digests(folder, (path for path in sorted(folder.iterdir()) if path.is_file()))
    files.check_manifest(folder, MANIFEST, found, required=(CONFIG, WEIGHTS))
    config = _read_json(folder / CONFIG)
    if config.get("format") != "vla-mini-1":
        raise ValueError(f"{folder / CONFIG}: format {config.get('format')!r} is not 'vla-mini-1'")
    ours = config["parts"]["language"]["_target_"].startswith("vla_mini.")  # others may keep their words elsewhere
    required = [TOKENIZER] * ours + [ADAPTERS] * bool(config.get("lora"))
    files.check_manifest(folder, MANIFEST, found, required=required)
    for name, part in config["parts"].items():  # our own parts save no path but to foreign code
        if not trust_remote_code and part and part["_target_"].startswith("vla_mini.") and part.get("path"):
            raise ValueError(f"{folder}: {name} needs code of {part['path']!r}, which is run only with trust_remote_code=true")
    features = _features(config["features"])
    policy = build_policy(
        config["parts"],
        features=features,
        statistics=unit_statistics(features),
        horizon=config["horizon"],
        folder=folder,
        history=config.get("history", 1),
        keyframe=config["keyframe"],
        execute=config["execute"],
        ensemble=config.get("ensemble"),
        blind=config.get("blind", ()),
        source=config["source"],
        classes=classes,
    )
    try:
        policy.load_state_dict(load_file(folder / WEIGHTS))
        if config.get("lora"):
            lora.inject(policy, **config["lora"])
            lora.load_adapters(policy, load_file(folder / ADAPTERS))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights in {folder} do not fit its {CONFIG}: {' '.join(str(error).split())[:300]}") from error
    return policy.eval()


def locate(source: str | Path, *, setting: str = "policy") -> Path:
    """The folder of a saved policy: `source` itself, or where the files of that hub id were downloaded to."""
    return Path(source) if Path(source).is_dir() else hub.fetch(source, files=FILES, setting=setting)


def identity(source: str | Path) -> str:
    """What tells a saved policy from all others: the SHA-256 of its manifest, which holds those of its files."""
    return files.digest(locate(source) / MANIFEST)


def _features(fields: dict) -> Features:
    return Features(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def unit_statistics(features: Features) -> Statistics:
    """A place for the saved statistics, which come with the weights."""

    def moments(size: int) -> Moments:
        return Moments(*(np.full(size, value, np.float32) for value in (-1, 1, 0, 1, -1, 1)))

    return Statistics(moments(features.state_size), moments(features.action_size))


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {path.parent} is no saved policy") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _replace(new: Path, old: Path) -> None:
    """Put the folder `new` in the place of `old`. Two renames: no file of the one is ever mixed with the other's."""
    aside = old.with_name(f"{new.name}-old")
    try:
        if old.exists():
            os.rename(old, aside)
        os.rename(new, old)
    finally:  # whatever came between the two, a signal too
        if aside.exists() and not old.exists():
            os.rename(aside, old)
    files.sync(old.parent)
    shutil.rmtree(aside, ignore_errors=True)
