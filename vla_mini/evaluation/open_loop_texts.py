"""open_loop.json (evaluation/open_loop.py) -> what it says, in sentences and as a table for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

BASELINES = {"mean_action": "the mean action", "hold": "holding still", "nearest_frame": "the nearest training frame"}
WORDS = {"own": "its own sentence", "swapped": "another task's sentence", "blank": "no words"}
NOTICED = 0.05  # by this share of itself the loss has to rise before it is said to notice other words


def verdict(metrics: Mapping[str, Any]) -> str:
    """Which baselines the policy is better than, as a sentence."""
    error = {name: found["std"] for name, found in metrics["errors"].items()}
    beaten = [text for name, text in BASELINES.items() if error["policy"] < error[name]]
    others = [text for name, text in BASELINES.items() if error["policy"] >= error[name]]
    if not others:
        return f"The policy is closer to the recorded actions than all baselines: {_list(beaten, 'and')}."
    text = "no closer to the recorded actions than any of the baselines"
    if beaten:
        text = f"closer to the recorded actions than {_list(beaten, 'and')}, but not than {_list(others, 'or')}"
    hint = " Actions relative to the state may help (data.actions=relative)." if _could_be_relative(metrics) else ""
    return f"The policy is {text}.{hint}"


def _could_be_relative(metrics: Mapping[str, Any]) -> bool:
    """Whether holding the state is better than a policy that predicts absolute actions."""
    kinds = {(joint["hold"], joint["predicted"]) for joint in metrics["joints"].values()}
    worse = metrics["errors"]["policy"]["std"] > metrics["errors"]["hold"]["std"]
    return worse and ("state", "absolute") in kinds and not any(predicted == "relative" for _, predicted in kinds)


def verdict_on_words(metrics: Mapping[str, Any]) -> str:
    """Whether the loss notices other words, as a sentence."""
    words, changed = metrics["words"], "swapped" if "swapped" in metrics["words"] else "blank"
    own, other = words["own"]["loss"], words[changed]["loss"]
    notices = other - own > NOTICED * abs(own)
    loss = f"stays {own:.3g}" if f"{own:.3g}" == f"{other:.3g}" else f"is {other:.3g} instead of {own:.3g}"
    change = f"{words[changed]['change']:.2g} of a standard deviation"
    if changed == "blank":
        text = "All episodes have one sentence, so nothing can be learned from the words."
        return f"{text} Without them the loss {loss}, and the predicted actions change by {change}."
    use = "uses" if notices else "makes little or no use of"
    return f"With {WORDS[changed]} the loss {loss}, and the predicted actions change by {change}: the policy {use} the words."


def headline(metrics: Mapping[str, Any]) -> str:
    """The error beside those of the baselines, in one line."""
    errors = metrics["errors"]
    others = ", ".join(f"{name.replace('_', ' ')} {errors[name]['std']:.2f}" for name in BASELINES)
    return f"error {errors['policy']['std']:.2f} of a standard deviation ({others})"


def table(metrics: Mapping[str, Any]) -> str:
    """Errors and losses as lines of text for a terminal, with what they say."""
    words, errors, last = metrics["words"], metrics["errors"], metrics["horizon"]
    frames = f"{metrics['num_frames']:,} of {metrics['of_frames']:,} frames of {len(metrics['episodes'])} validation episode(s)"
    lines = [
        f"open loop: mean absolute error in standard deviations of each joint, {frames}",
        f"{'':<32}{'error':>8}{'step 1':>10}{f'step {last}':>10}{'loss':>10}",
    ]
    for name, found in errors.items():
        loss = f"{words['own']['loss']:.3g}" if name == "policy" else ""
        steps = [f"{value:.2f}" if value is not None else "-" for value in (found["by_step"]["std"][i] for i in (0, -1))]
        lines.append(f"{name.replace('_', ' '):<32}{found['std']:>8.2f}{steps[0]:>10}{steps[1]:>10}{loss:>10}".rstrip())
    for name, found in list(words.items())[1:]:
        lines.append(f"{'policy, ' + WORDS[name]:<32}{found['error']:>8.2f}{'':>20}{found['loss']:>10.3g}")
    return "\n".join([*lines, verdict(metrics), verdict_on_words(metrics)])


def _list(items: Sequence[str], word: str) -> str:
    return f" {word} ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
