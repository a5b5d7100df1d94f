"""Settings of which each is right by itself, but not beside the others: refused, by a line that names both."""

import itertools
from collections.abc import Mapping
from typing import Any

from vla_mini.config.check import show

Settings = Mapping[str, Any]


def refuse_contradictions(settings: Settings) -> None:
    """ValueError for the first. `settings` are those of any command, checked key by key: what it lacks contradicts nothing."""
    if {"experiment", "policy"} <= settings.keys():
        _refuse_choice(settings)
    if "budget" in settings:
        _refuse_comparison(settings)
    if "trainer" in settings:
        _refuse_training(settings)
        _refuse_compilation(settings)
        _refuse_fine_tuning(settings)
        _refuse_logging(settings)


def _refuse_choice(settings: Settings) -> None:
    if (settings["policy"] is None) == (settings["experiment"] is None):
        given = "neither" if settings["policy"] is None else "both"
        raise ValueError(
            f"{given} given: say policy=DIR for a saved policy, or experiment=NAME for an untrained one as train.py begins with"
        )


def _refuse_comparison(settings: Settings) -> None:
    given = {name: settings["budget"][name] for name in ("steps", "seconds") if settings["budget"][name] is not None}
    if len(given) != 1 or not all(given.values()):
        shown = " and ".join(f"budget.{name}={amount:g}" for name, amount in given.items()) or "no budget"
        raise ValueError(f"{shown} given: say budget.steps=400 or budget.seconds=300 (and null for the other)")
    if not settings["seeds"] or len(set(settings["seeds"])) < len(settings["seeds"]):
        raise ValueError(f"seeds={settings['seeds']}: give at least one, and each once")


def _refuse_training(settings: Settings) -> None:
    execute, horizon = settings["execute"], settings["data"]["horizon"]
    if execute > horizon:
        raise ValueError(f"execute={execute} is more than the data.horizon={horizon} of a chunk")
    if settings["ensemble"] is not None and execute == horizon:
        raise ValueError(
            f"ensemble={settings['ensemble']:g} is for chunks that overlap: execute={execute} leaves none of a chunk"
        )
    if settings["insulate"] and settings["action"]["_target_"].endswith(".BinsHead"):
        raise ValueError("insulate=true with action=bins: the backbone would learn from the same head; choose another action")
    if settings["trainer"].get("limit_train_batches") == 0:
        raise ValueError("trainer.limit_train_batches=0 would train nothing: it has to be above 0")
    for name in ("lr", "adam_lr"):
        if (rate := settings["optimizer"].get(name, 1.0)) <= 0:
            raise ValueError(f"optimizer.{name}={rate} is no learning rate: it has to be above 0")


def _refuse_compilation(settings: Settings) -> None:
    mode, dynamic = settings["compile"], settings["compile_dynamic"]
    if mode == "none" and dynamic is not None:
        raise ValueError(f"compile_dynamic={show(dynamic)} is for torch.compile: say compile=default, too")
    if mode not in ("none", "default") and (several := settings["trainer"].get("accumulate_grad_batches", 1)) > 1:
        raise ValueError(
            f"compile={mode} with trainer.accumulate_grad_batches={several}: its CUDA graphs overwrite the gradients of the "
            "micro-batch before; say compile=default"
        )


def _refuse_fine_tuning(settings: Settings) -> None:
    for name, step in settings["unfreeze_at"].items():
        if name in settings["freeze"]:
            raise ValueError(f"freeze=[{name}] and unfreeze_at.{name}={step}: say one; the second freezes it until then")
        if step >= settings["trainer"]["max_steps"]:
            last = settings["trainer"]["max_steps"]
            raise ValueError(f"unfreeze_at.{name}={step} never comes: trainer.max_steps={last}; say freeze=[{name}]")
    for name, multiplier in settings["schedule"]["multipliers"].items():
        if multiplier == 0:
            raise ValueError(f"schedule.multipliers.{name}=0 leaves no learning rate: say freeze=[{name}]")
    lora, decay, noise = settings["lora"], settings["ema"]["decay"], settings["language"].get("noise")
    if noise and ("language" in settings["freeze"] or (lora["targets"] and "language" not in lora["also_train"])):
        key = "freeze=[language]" if "language" in settings["freeze"] else "lora.targets without lora.also_train=[language]"
        raise ValueError(f"language.noise={noise:g} with {key}: there is no noise in a part that is not in training mode")
    if not lora["targets"] and (lora["also_train"] or lora["save"] == "apart"):
        key = "also_train" if lora["also_train"] else "save"
        raise ValueError(f"lora.{key}={lora[key]} is for adapters: say lora.targets=[...], too")
    for name, frozen in itertools.product(lora["also_train"], settings["freeze"]):
        if f"{name}.".startswith(f"{frozen}."):
            raise ValueError(f"lora.also_train=[{name}] and freeze=[{frozen}]: say one")
    if lora["alpha"] == 0:
        raise ValueError("lora.alpha=0 would multiply what adapters add by nothing: it has to be above 0")
    if lora["dropout"] >= 1:
        raise ValueError(f"lora.dropout={lora['dropout']} would leave nothing: it has to be below 1")
    if decay is not None and not 0 < decay < 1:
        raise ValueError(f"ema.decay={decay} is no share of the weights to keep: it has to lie between 0 and 1, such as 0.999")


def _refuse_logging(settings: Settings) -> None:
    logger = settings["logger"]
    if not logger or logger["wandb"]:
        return
    for key, default in (("project", None), ("mode", "offline"), ("name", None)):
        if logger[key] != default:
            raise ValueError(f"logger.{key}={logger[key]} is for Weights & Biases: say logger=wandb, too")
    if settings["monitor"]["watch"]:
        raise ValueError("monitor.watch=true is for Weights & Biases: say logger=wandb, too")
