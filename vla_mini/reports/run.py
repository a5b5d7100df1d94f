"""The folder of a run -> report.html, one self-contained page. It shows what there is and leaves out what there is not.

It is made from files alone, config.yaml, metrics.csv and evaluation/ (metrics.json and videos/, or open_loop.json and
open_loop/), so that the report of an old run can be written again.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from vla_mini.evaluation.curves import Curve, read_curves
from vla_mini.evaluation.metrics import further_rates, words
from vla_mini.evaluation.open_loop_texts import BASELINES, verdict
from vla_mini.reports.drawing.charts import Panel, line_plot
from vla_mini.reports.open_loop import read_open_loop
from vla_mini.reports.page import NOTHING, explanations, number, percent, write_page
from vla_mini.utils.files import read_json
from vla_mini.utils.machine import machine_text

STEP = "optimizer step"


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html and return its path. Raises ValueError where there is no such folder."""
    if not run_dir.is_dir():
        raise ValueError(f"run folder {run_dir} does not exist")
    evaluation, videos = run_dir / "evaluation", run_dir / "evaluation" / "videos"
    metrics = read_json(evaluation / "metrics.json") if (evaluation / "metrics.json").is_file() else {}
    config = (run_dir / "config.yaml").read_text(encoding="utf-8") if (run_dir / "config.yaml").is_file() else ""
    env_id = metrics["env"] if metrics else ((yaml.safe_load(config) or {}).get("env") or {}).get("id")
    curves, open_loop = read_curves(run_dir / "metrics.csv"), read_open_loop(evaluation)
    episodes = [
        entry | {"gif": (videos / f"{entry['name']}.gif").read_bytes(), "strip": (videos / f"{entry['name']}.png").read_bytes()}
        for entry in (read_json(videos / "index.json") if (videos / "index.json").is_file() else [])
    ]
    return write_page(
        run_dir / "report.html",
        "run.html.j2",
        title=" · ".join(filter(None, (env_id, run_dir.name))),
        **_headline(metrics, open_loop, curves, has_env=env_id is not None),
        hero=next((episode["gif"] for episode in episodes if episode["outcome"] == "success"), None),
        metrics=metrics,
        open_loop=open_loop,
        explanations=explanations(env_id),
        panels=_panels(curves),
        episodes=sorted(episodes, key=lambda episode: episode["outcome"] != "success"),
        config=config,
        versions=machine_text(),
    )


def _headline(
    metrics: Mapping[str, Any], open_loop: Mapping[str, Any], curves: Mapping[str, Curve], *, has_env: bool
) -> dict[str, Any]:
    """The most important number, its unit, a sentence about it, and further figures by name."""
    headline, unit, text, figures = NOTHING, "success", "This run has not been evaluated.", {}
    if metrics:
        headline, unit = f"{100 * metrics['success_rate']:.1f}", "% success"
        text = f"in closed loop, in {metrics['episodes']} scenes that were not used in training."
        low, high = metrics["success_ci95"]
        figures["95 % interval"] = f"{100 * low:.1f} – {percent(high)}"
        figures |= {name: percent(rate) for name, rate in further_rates(metrics).items()}
        figures |= {"steps per episode": f"{metrics['steps_mean']:.1f}", "evaluation": f"{metrics['seconds']:.0f} s"}
    elif not has_env and (open_loop or "validation/loss" in curves):
        text = "There is no environment in which the policy could be evaluated. "
        if "validation/loss" in curves:
            loss, step = min(zip(curves["validation/loss"].values, curves["validation/loss"].steps, strict=True))
            headline, unit = number(loss), "validation loss"
            figures["validation loss"], figures["at step"] = number(loss), f"{step:,.0f}"
        if open_loop:
            errors = {name: found["std"] for name, found in open_loop["errors"].items()}
            headline, unit = f"{errors['policy']:.2f}", "open-loop error"
            text = "in standard deviations of each joint, from the recorded actions of validation episodes. "
            text += f"{verdict(open_loop)} Nothing was executed, so it is not known whether it succeeds."
            figures = {words(name): f"{errors[name]:.2f}" for name in BASELINES} | figures
    if "seconds" in curves:
        steps, seconds = curves["seconds"]
        figures |= {"training": f"{max(seconds):.0f} s", "optimizer steps": f"{max(steps):,.0f}"}
    return {"headline": headline, "unit": unit, "text": text, "figures": figures}


def _panels(curves: Mapping[str, Curve]) -> list[tuple[Markup, str, str]]:
    """(plot, heading, caption) of what was logged: losses, success, gradient norms and learning rate."""

    def named(pattern: str) -> dict[str, list[Curve]]:
        """The columns that match, by what the pattern's group matches."""
        return {words(match[1]): [curve] for name, curve in curves.items() if (match := re.fullmatch(pattern, name))}

    losses = named(r"(train|validation)/loss") | named(r"train/(?!loss$)(\w+)")
    components = named(r"gradients/(?!total$|clip_factor$)(\w+)")
    steps, success = curves.get("selection/success_rate", Curve((0,), (0.0,)))
    best = f"selection scenes, best {percent(max(success))} at step {steps[success.index(max(success))]:,.0f}"
    panels = (
        ("loss", "and its terms", Panel("Loss", STEP, losses, "log", smooth=True)),
        ("success", best, Panel("Success", STEP, named(r"selection/(\w+)_rate"), "percent")),
        ("gradients", "by component, before clipping", Panel("Gradient norms", STEP, components, "log", smooth=True)),
        ("rate", "warm-up and decay", Panel("Learning rate", STEP, named("(learning_rate)"))),
    )
    return [(line_plot(name, [panel]), panel.title, caption) for name, caption, panel in panels if panel.curves]
