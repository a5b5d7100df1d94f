"""Each exercise: its solution and other right answers pass; its gap, and typical mistakes, are refused with the right place."""

import re

import pytest
import torch

from tests.factory import ROOT
from vla_mini.exercises.catalogue import EXERCISES, NAMES, SOLUTION, find
from vla_mini.exercises.compare import WrongAnswerError, check_backward
from vla_mini.exercises.judge import NOT_JUDGED, PASSED, WRONG, judge

ENCODE = "x = x + torch.relu(layer(F.layer_norm(x, x.shape[-1:])))"
NO_GRAD = "@torch.no_grad()\ndef rollout(policy: Policy, observation: Observation, steps: int) -> Tensor:\n"
LATE = "total = loss.sum() / num_valid + (0 if batch is micro_batches[0] else total)\n    total.backward()"

# Exercise, what is replaced in its solution, by what, parts of the message.
MISTAKES = [
    ("linear", "grad_y @ weight\n", "grad_y @ weight.T\n", "line 24: RuntimeError", "b=3 m=5"),
    ("linear", "bmo,bmd->od", "bmo,bmd->do", "grad_weight has the shape (7, 11), and should have (11, 7)"),
    ("linear", "grad_y.sum(dim=(0, 1))", "grad_y.mean(dim=(0, 1))", "grad_bias[0] is", "0.06667 = 1/(b·m)", "sum over b and m"),
    ("linear", "return grad_x,", "return -grad_x,", "grad_x[0, 0, 0]", "the right one times -1"),
    ("linear", "return grad_x,", "return grad_x.float(),", "grad_x is torch.float32, and should be torch.float64"),
    ("linear", "return grad_x, grad_weight, grad_bias", "return grad_x, grad_weight", "returns 2 values, and should return 3"),
    ("linear", "return grad_x, grad_weight, grad_bias", "pass", "returns None, and should return 3"),
    ("linear", "return grad_x,", "return x.numpy(),", "grad_x is of type ndarray, and should be a tensor of shape (3, 5, 7)"),
    ("linear", "return grad_x,", "return grad_x * torch.nan,", "grad_x[0, 0, 0] is nan", "105 are not finite"),
    ("reshape", '"b (k h w) d -> (b k)', '"b (k w h) d -> (b k)', "vector_by_maps[0, 0, 0, 1] is", "row by row"),
    ("reshape", '"b (k h w) d -> (b k)', '"b (k h w) d -> (k b)', "vector_by_maps[1, 0, 0, 0] is", "(b k)"),
    ("reshape", "sum(dim=(0, 2))", "mean(dim=(0, 2))", "vector_by_embedding[0, 0] is", "1/(b·h·w)"),
    ("in_place", "(gate * gain)", "gate.mul_(gain)", "backward fails: one of the variables", "output 0 of Sigmoid"),
    ("in_place", "tokens * (gate", "tokens.mul_(gate", "the argument tokens was overwritten"),
    ("in_place", "(gate * gain)", "(gate.detach() * gain)", "the gradient by tokens[0, 0, 0] is", "detached"),
    ("in_place", "gated[~mask] = 0", "pass", "35 of 105 elements are wrong: all of them where the mask is False"),
    ("no_grad", "@torch.no_grad()\n", "", "in 3 steps 199 tensors were saved for backward", "199 were still kept"),
    ("no_grad", NO_GRAD, "def rollout(policy, observation, steps):\n    torch.set_grad_enabled(False)\n", "still switched off"),
    ("no_grad", "    states = []\n", "    policy.requires_grad_(False)\n    states = []\n", "no longer require a gradient"),
    (
        "accumulation",
        "/ num_valid",
        "/ (~batch.is_pad).sum() / len(micro_batches)",
        "micro-batches of 1, 3, 2 samples",
        "divide by one number",
    ),
    (
        "accumulation",
        "(~batch.is_pad).sum()",
        "batch.is_pad.numel()",
        "vision.stem.weight[0, 0, 0, 0]",
        "the right one times 0.5625",
    ),
    ("accumulation", "    policy.zero_grad()\n", "", "the right one times 2", "zero_grad once"),
    (
        "accumulation",
        "(loss.sum() / num_valid).backward()",
        LATE,
        "when the loss of micro-batch 1 is computed",
        "frees its graph",
    ),
    ("accumulation", "in micro_batches:\n", "in micro_batches[:1]:\n", "the gradient of"),
    ("film", "(1 + scale[:, None])", "scale[:, None]", "grad_x[0, 0, 0]", "mind the 1"),
    ("film", "[grad_scale, grad_shift]", "[grad_shift, grad_scale]", "grad_bias[0]", "the first d elements shift scale"),
    ("film", "grad_y.sum(dim=1)\n", "grad_y.mean(dim=1)\n", "grad_bias[7]", "7 of 14 elements", "sum over the tokens"),
    ("freezing", "    encoder.eval()\n", "", "encoder.1.running_mean has changed", "BatchNorm"),
    ("freezing", "zero_grad()", "zero_grad(set_to_none=False)", "encoder.0.weight has changed", "gradient of zero"),
    ("freezing", "    encoder.requires_grad_(False)\n", "", "encoder.0.weight has changed"),
    (
        "freezing",
        "        optimizer.step()\n",
        "    optimizer.step()\n",
        "head.weight[0, 0] is",
        "one zero_grad, backward and step",
    ),
    ("adam", " / (1 - beta1**step)", "", "after step 1 of lr=1", "in the first step both averages"),
    ("adam", "(square.sqrt() + eps)", "(square + eps).sqrt()", "after step 1 of lr=1", "should be 2.54099599151"),
    ("adam", 'state.get("step", 0) + 1', "1", "after step 2 of lr=1", "the first step is right: state has to keep"),
    ("vanishing", ENCODE, "x = torch.tanh(layer(x))", "the gradient vanishes: a factor of 0.55", "layer 0 7.1e-06"),
    ("vanishing", ENCODE, "x = 5 * torch.relu(layer(x))", "the gradient explodes"),
    ("vanishing", ENCODE, "x = x + layer(x)", "the output is a linear function of x"),
    ("vanishing", "in layers", "in layers[4:]", "20 calls of layers"),
    ("vanishing", ENCODE, "x = x.detach() + torch.relu(layer(x))", "the gradient vanishes"),
    ("flow", " * valid[:, None, :, None]", "", "grad_condition[0, 0]", "the mask"),
    ("flow", "2 * error", "error", "grad_condition[0, 0]", "the right one times 0.5", "the 2 of the square"),
    ("flow", "(r * a * valid.sum())", "valid.sum()", "the right one times 55 = r·a", "the denominator"),
    ("flow", "grad_velocity, noisy", "grad_velocity, noise", "grad_weight[0, 0]", "not by noise"),
    ("flow", "->oi", "->io", "grad_weight[0, 1]", "it is the right matrix, transposed"),
    (
        "layer_norm",
        "g - g.mean(dim=-1, keepdim=True) -",
        "g -",
        "grad_x[0, 0, 0]",
        "all are off by the same amount",
        "the mean",
    ),
    ("layer_norm", " - xhat * (g * xhat).mean(dim=-1, keepdim=True)", "", "grad_x[0, 0, 0]", "the variance"),
    ("layer_norm", "unbiased=False) + 1e-5).sqrt()\n", "unbiased=True) + 1e-5).sqrt()\n", "grad_gain[0]", "not d - 1"),
    ("attention", " - (grad_weights * weights).sum(dim=-1, keepdim=True)", "", "grad_q[0, 0, 0, 0]", "the softmax"),
    ("attention", "return scale * grad_scores @ k", "return grad_scores @ k", "grad_q[0, 0, 0, 0]", "3.606 = sqrt(d)"),
    ("attention", ".masked_fill(~mask[:, None, None], -inf)", "", "grad_v[0, 0, 0, 0]", "the mask is part of the weights"),
    ("attention", "grad_scores.mT @ q", "(grad_scores * 0).mT @ q", "grad_k[0, 0, 0, 0]", "all are zero", "grad_q is right"),
]
OTHER_ANSWERS = [
    ("in_place", "gated[~mask] = 0", "gated = gated.masked_fill(~mask[..., None], 0)"),
    ("no_grad", "@torch.no_grad()\n", "@torch.inference_mode()\n"),
    ("accumulation", "loss.sum() / num_valid", "(loss / num_valid).sum()"),
    ("freezing", "        optimizer.zero_grad()\n", "        encoder.zero_grad()\n        head.zero_grad()\n"),
    ("vanishing", ENCODE, "x = x + torch.tanh(layer(x))"),
    ("vanishing", ENCODE, "x = torch.relu(layer(F.layer_norm(x, x.shape[-1:])))"),
]


@pytest.fixture(autouse=True)
def gradients_stay_on():
    yield
    torch.set_grad_enabled(True)  # which an answer may have switched off


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_and_the_file_to_begin_with_does_not(name):
    exercise = find(name)
    assert judge(exercise, exercise.solution().encode()).code == PASSED
    assert judge(exercise, exercise.task().encode()).code == WRONG


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: " ".join(mistake[:3]))
def test_a_mistake_is_refused_with_its_place(mistake):
    name, old, new, *expected = mistake
    code, message = judge_changed(name, old, new)
    assert code == WRONG
    assert [part for part in expected if part not in message] == [], message


def test_each_exercise_has_planted_mistakes():
    assert min(sum(mistake[0] == name for mistake in MISTAKES) for name in NAMES) >= 3


@pytest.mark.parametrize("answer", OTHER_ANSWERS, ids=" ".join)
def test_other_right_answers_pass(answer):
    assert judge_changed(*answer).code == PASSED


def test_a_rollout_that_detaches_has_saved_tensors_and_one_with_act_has_not():
    exercise = find("no_grad")
    detached, acting = (exercise.task().replace(*change) for change in [("0])", "0].detach())"), ("predict_chunk", "act")])
    code, message = judge(exercise, detached.encode())
    assert code == WRONG and "in 3 steps 195 tensors were saved" in message and " 0 were still kept" in message
    assert judge(exercise, acting.encode()).code == PASSED


def judge_changed(name, old, new):
    exercise = find(name)
    assert exercise.solution().count(old) == 1, old
    return judge(exercise, exercise.solution().replace(old, new).encode())


@pytest.mark.parametrize("name", NAMES)
def test_the_students_file_is_short_and_tells_nothing(name):
    exercise = find(name)
    task = exercise.task()
    assert 15 <= len(task.splitlines()) <= 40
    assert "vla_mini.exercises" not in task and "LOOK" not in task and "# end" not in task
    (solution,) = SOLUTION.findall((ROOT / f"vla_mini/exercises/tasks/{name}.py").read_text(encoding="utf-8"))
    comments = [line.strip() for line in solution[1].splitlines() if line.strip().startswith("#")]
    assert comments and not any(comment in task for comment in comments)
    assert all(comment in exercise.solution() for comment in comments)
    assert f"def {exercise.function}(" in task


def test_the_sections_that_are_to_be_read_exist():
    sections = set(re.findall(r"^## (\d+)\.", (ROOT / "docs/autograd.md").read_text(encoding="utf-8"), re.MULTILINE))
    for exercise in EXERCISES:
        assert set(exercise.sections.split(", ")) <= sections


def test_the_page_lists_all_exercises_in_their_order():
    page = (ROOT / "docs/exercises.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \| `(\w+)`", page, re.MULTILINE) == [(str(each.number), each.name) for each in EXERCISES]


def test_central_differences_judge_too():
    """A forward pass whose gradient by autograd is half of the slope: x once detached."""
    options = {"letters": "b d", "inputs": lambda case: {"x": case.randn("b d")}, "look": {"x": ""}}
    with pytest.raises(AssertionError, match="autograd and central differences disagree"):
        check_backward(lambda x, grad: grad, lambda x: x + x.detach(), **options)
    with pytest.raises(WrongAnswerError, match=r"\(autograd; central differences: -?\d"):
        check_backward(lambda x, grad: 2 * grad, lambda x: x + x.detach(), **options)


def test_codes_are_those_of_the_command():
    assert (PASSED, WRONG, NOT_JUDGED) == (0, 1, 2)
