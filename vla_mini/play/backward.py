"""The tab "Backward": one sample's loss, and every step of its backward pass -> what static/backward.js draws.

request: Request, as JSON ──▶ trace_backward, twice: without the switches and with them ──▶ steps, components, edges, notes
"""

import base64
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, get_args

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from vla_mini.autograd.batches import select
from vla_mini.autograd.graph import LOSS, component_of
from vla_mini.play.pictures import facts_of, picture
from vla_mini.play.rules import rule
from vla_mini.play.trace import PIXELS, STATE, Step, Switches, Trace, trace_backward
from vla_mini.policy import Policy
from vla_mini.types import Batch
from vla_mini.utils.errors import validation_message

DESCRIPTIONS = {
    LOSS: "one number: how wrong the actions are",
    "action": "context tokens → a chunk of actions",
    "backbone_action": "a second head, which trains the backbone",
    "trunk": "image, word and state tokens → context tokens",
    "state": "the robot's state → one token",
    "projection.vision": "image tokens → the trunk's width",
    "projection.language": "word vectors → the trunk's width",
    "camera_embedding": "which camera an image token is from",
    "vision": "camera image → image tokens",
    "language": "instruction → word vectors",
    PIXELS: "the camera image",
    STATE: "the numbers of the robot's state",
}


class Request(Switches):
    sample: int = Field(default=0, ge=0)


def answer(policy: Policy, batch: Batch, request: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the tab shows of one sample; the policy stays as it is.

    ValueError, in one line, for a request that is wrong.
    """
    asked = parse(Request, request)
    size = len(batch.actions)
    if asked.sample >= size:
        raise ValueError(f"sample={asked.sample} is not one of the {size} samples, 0 to {size - 1}")
    chosen = [asked.sample, (asked.sample + 1) % size] if asked.accumulate else [asked.sample]
    plain = trace_backward(policy, [select(batch, chosen)], Switches(inputs=asked.inputs))
    switches = Switches(**asked.model_dump(exclude={"sample"}))
    switched = switches != Switches(inputs=asked.inputs)
    trace = trace_backward(policy, [select(batch, [index]) for index in chosen], switches) if switched else plain
    components = compare(policy, trace, plain)
    observations = [select(batch.observation, index) for index in chosen]
    facts = [facts_of(policy, observation.tokens) for observation in observations]
    return {
        "samples": [instruction(policy, batch, index) for index in range(size)],
        "request": asked.model_dump(),
        "choices": {
            "detach": choices("detach"),
            "no_grad": choices("no_grad"),
            "freeze": [name for name, row in components.items() if row["parameters"]],
        },
        "cameras": [cameras(policy, observation.images) for observation in observations],
        "dtype": name_of(policy.normalization.state_mean.dtype),
        "loss": number(trace.loss),
        "plain_loss": number(plain.loss),
        "error": trace.error,
        "steps": [describe(step, picture(step, facts[step.micro_batch])) for step in trace.steps],
        "segments": list(segments(trace.steps)),
        "components": list(components.values()),
        "edges": edges(plain.steps),
        "flowing": edges(trace.steps),
        "notes": list(notes(asked, trace, components)) if switched else [],
    }


def describe(step: Step, drawn: dict[str, Any] | None) -> dict[str, Any]:
    arriving = [gradient for gradient in step.gradients if gradient is not None]
    values = torch.cat([gradient.flatten() for gradient in arriving]) if arriving else torch.zeros(0)
    return {
        "operation": step.operation,
        "node": step.node,
        "rule": rule(step.operation),
        "component": step.component,
        "module": step.module,
        "parameter": step.parameter,
        "shapes": [None if gradient is None else list(gradient.shape) for gradient in step.gradients],
        "dtype": name_of(values.dtype),
        "norm": number(norm(arriving)),
        "largest": number(values.abs().max().item()) if len(values) else 0.0,
        "zeros": (values == 0).double().mean().item() if len(values) else 1.0,
        "value": number(values.item()) if len(values) == 1 else None,
        "following": list(step.following),
        "attention": step.attention,
        "micro_batch": step.micro_batch,
        "picture": drawn,
    }


def segments(steps: Sequence[Step]) -> Iterator[dict[str, Any]]:
    """Runs of steps within one component."""
    for (micro_batch, component), run in groupby(enumerate(steps), key=lambda pair: (pair[1].micro_batch, pair[1].component)):
        indices, found = zip(*run, strict=True)
        counts = Counter(step.operation for step in found).most_common()
        operations = ", ".join(f"{count} {operation}" for operation, count in counts)
        row = {"component": component, "first": indices[0], "last": indices[-1], "operations": operations}
        yield row | {"micro_batch": micro_batch}


def edges(steps: Sequence[Step]) -> list[tuple[str, str]]:
    """Component -> component, in the direction of the gradient."""
    pairs = ((step.component, steps[index].component) for step in steps for index in step.following)
    return [(source, target) for source, target in dict.fromkeys(pairs) if source != target]


def compare(policy: Policy, trace: Trace, plain: Trace) -> dict[str, dict[str, Any]]:
    """Each component with the norm of its gradient, and how far that is from the gradient without switches, relative to it."""
    names = {name: component_of(policy, name.rpartition(".")[0]) for name, _ in policy.named_parameters()}
    order = dict.fromkeys([step.component for step in plain.steps] + list(names.values()))
    rows = {}
    for component in order:
        own = [name for name in (*names, PIXELS, STATE) if names.get(name, name) == component]
        found = [trace.gradients[name] for name in own if name in trace.gradients]
        before = [plain.gradients[name] for name in own if name in plain.gradients]
        pairs = [(trace.gradients.get(name), plain.gradients[name]) for name in own if name in plain.gradients]
        apart = norm([old if new is None else new - old for new, old in pairs])
        rows[component] = {
            "name": component,
            "description": DESCRIPTIONS.get(component, "an auxiliary loss" if component.startswith("auxiliary") else ""),
            "parameters": sum(policy.get_parameter(name).numel() for name in own if name in names),
            "tensors": sum(step.component == component and step.operation == "AccumulateGrad" for step in trace.steps),
            "norm": number(norm(found)) if found else None,
            "plain_norm": number(norm(before)) if before else None,
            "difference": number(apart / norm(before)) if before and norm(before) else None,
            "has_gradient": bool(found),
            "had_gradient": bool(before),
        }
    return rows


def notes(asked: Request, trace: Trace, components: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What the switches did, in sentences, read from the gradients."""
    if trace.error:
        yield f"No graph was recorded, so there is nothing to go back through. torch says: {trace.error}."
        return
    lost = [name for name, row in components.items() if row["had_gradient"] and not row["has_gradient"]]
    passed = {step.component for step in trace.steps}
    through = [name for name in lost if name in passed and name in asked.freeze]
    ended = [name for name in lost if name not in through]
    if through:
        yield f"Frozen, but on the way: the gradient goes through {listed(through)} and leaves nothing in the parameters there."
    if ended:
        yield f"The flow ends before {listed(ended)}: no gradient arrives there."
    changed = {name: row["difference"] for name, row in components.items() if row["has_gradient"] and row["difference"]}
    if changed:
        name = max(changed, key=changed.get)
        share = f"{100 * changed[name]:.1f} %" if changed[name] >= 0.001 else f"{changed[name]:.1e}"
        yield f"{'Elsewhere the' if lost else 'The'} gradient changes most in {name}: by {share} of its norm."
    else:
        yield f"All {'other ' if lost else ''}gradients are the same, bit by bit."
    if asked.bf16:
        rounded = sum(any(g is not None and g.dtype == torch.bfloat16 for g in step.gradients) for step in trace.steps)
        yield f"{rounded} of {len(trace.steps)} steps get a gradient in bfloat16, which keeps two to three digits."
    if asked.accumulate:
        yield (
            "Two backward passes, one for each micro-batch; the second adds to what the first left in .grad. Each loss is "
            "divided by the number of valid actions of both: the sum is the gradient of one batch of two, up to rounding."
        )


def listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# ---- used by both tabs


def parse(model: type[Any], request: Mapping[str, Any]) -> Any:
    """The request as a `model`. ValueError, in one line, for what does not fit."""
    try:
        return model.model_validate(request)
    except ValidationError as error:
        raise ValueError(validation_message(error, value=request)) from None


def number(value: float) -> float | str:
    """A number as JSON has it; "not finite" for one that JSON has not."""
    return value if math.isfinite(value) else "not finite"


def norm(tensors: Sequence[Tensor]) -> float:
    return math.hypot(*(torch.linalg.vector_norm(tensor.detach()).item() for tensor in tensors))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def choices(field: str) -> list[str]:
    """The values of a switch that is a Literal or None."""
    return list(get_args(get_args(Switches.model_fields[field].annotation)[0]))


def instruction(policy: Policy, batch: Batch, index: int) -> str:
    return policy.language.tokenizer.decode(batch.observation.tokens[index].tolist(), skip_special_tokens=True)


def cameras(policy: Policy, images: Tensor) -> list[dict[str, Any]]:
    return [{"name": name, **drawing(image)} for name, image in zip(policy.letters["k"], images, strict=True)]


def drawing(image: Tensor) -> dict[str, Any]:
    """An image "c h w" for a canvas: bytes in base64, red, green and blue of each pixel."""
    data = base64.b64encode(image.permute(1, 2, 0).contiguous().cpu().numpy().tobytes()).decode()
    return {"height": image.shape[1], "width": image.shape[2], "bytes": data}
