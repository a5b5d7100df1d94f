"""Settings from a constructor's signature: what YAML may give them, and the one line for what it may not."""

from numbers import Number
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge
from pydantic import NonNegativeFloat, PositiveInt, ValidationError

from vla_mini.utils.errors import as_value_error, did_you_mean, show, validation_message
from vla_mini.utils.schema import settings_model


class Head:
    def __init__(
        self,
        spec: torch.Tensor,
        *,
        hidden: PositiveInt = 256,
        depth: Annotated[int, Ge(2)] = 3,
        betas: tuple[float, float] = (0.9, 0.9),
        target: Literal["action", "noise"] = "action",
        scale: NonNegativeFloat = 0.5,
        interval: PositiveInt | NonNegativeFloat | None = None,
        flag: bool = False,
        names: list[str] = (),
        rates: dict[Literal["a", "b"], float] | None = None,
        callback: torch.nn.Module | None = None,
    ): ...


def validate(**settings: Any):
    value = {"_target_": "Head", **settings}
    try:
        return settings_model(Head).model_validate(value)
    except ValidationError as error:
        raise ValueError(validation_message(error, value=value, prefix="action")) from None


def test_what_is_accepted_is_an_attribute_and_a_keyword_argument():
    settings = validate(scale=1, betas=[1, 0.5], target="noise", interval=2, rates={"a": 1})
    assert settings.arguments() == {"scale": 1.0, "betas": (1.0, 0.5), "target": "noise", "interval": 2, "rates": {"a": 1.0}}
    assert type(settings.scale) is float and type(settings.interval) is int and settings.target == "Head"
    assert settings.as_dict()["_target_"] == "Head" and "hidden" not in settings.as_dict() and settings.hidden == 256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hiden": 2}, "unknown key 'action.hiden' (=2): did you mean 'action.hidden'?"),
        ({"spec": 2}, "unknown key 'action.spec' (=2): choose from: _target_, hidden, depth, "),
        ({"callback": None}, "unknown key 'action.callback' (=null): "),
        ({"hidden": 0}, "action.hidden=0 is not an integer of at least 1"),
        ({"depth": 1}, "action.depth=1 is not an integer of at least 2"),
        ({"hidden": True}, "action.hidden=true is not an integer"),
        ({"hidden": 1.5}, "action.hidden=1.5 is not an integer"),
        ({"hidden": None}, "action.hidden=null is not an integer"),
        ({"scale": -1}, "action.scale=-1 is not a number of at least 0"),
        ({"scale": float("nan")}, "action.scale=nan is not a number"),
        ({"scale": False}, "action.scale=false is not a number"),
        ({"flag": 1}, "action.flag=1 is not true or false"),
        ({"betas": [1]}, "action.betas=[1] is not a list of 2 values"),
        ({"betas": [1, 2, 3]}, "action.betas=[1, 2, 3] is not a list of 2 values"),
        ({"betas": ["a", 1]}, "action.betas[0]='a' is not a number"),
        ({"target": "nose"}, "action.target='nose' is not one of action, noise: did you mean 'noise'?"),
        ({"interval": -1}, "action.interval=-1 is not an integer of at least 1 or a number of at least 0"),
        ({"names": "a"}, "action.names='a' is not a list"),
        ({"names": ["a", {"b": 1}]}, "action.names[1]={b: 1} is not text"),
        ({"rates": {"c": 1}}, "unknown key 'action.rates.c': choose from: a, b"),
        ({"rates": {"a": "x"}}, "action.rates.a='x' is not a number"),
        ({"rates": 3}, "action.rates=3 is not a group of settings"),
        ({"_target_": 3}, "action._target_=3 is not text"),
    ],
    ids=str,
)
def test_what_is_refused_is_named_as_the_user_wrote_it(settings, message):
    with pytest.raises(ValueError) as refused:
        validate(**settings)
    assert str(refused.value).startswith(message)


def test_all_arguments_of_a_library_class_are_settings():
    model = settings_model(torch.optim.Adam, exclude=("params",), overrides=(("lr", PositiveInt),))
    assert {"lr", "betas", "eps", "foreach", "fused"} <= model.model_fields.keys() and "params" not in model.model_fields
    with pytest.raises(ValidationError, match="greater than 0"):
        model.model_validate({"_target_": "torch.optim.Adam", "lr": 0})


def test_unresolved_and_open_annotations_accept_any_value():
    class Library:
        def __init__(self, a: "Unknown", b: Number = 1, c=None): ...

    assert settings_model(Library).model_validate({"_target_": "x", "a": {"b": [1]}, "c": "d"}).arguments()["a"] == {"b": [1]}


def test_messages():
    assert did_you_mean("Visoin", ["vision", "trunk"]) == "did you mean 'vision'?"
    assert did_you_mean("x", map(str, range(20))) == f"choose from: {', '.join(map(str, range(12)))}, ..."
    assert show({"a": [None, True, "b", 1.5]}) == "{a: [null, true, 'b', 1.5]}"
    with pytest.raises(ValueError, match=r"^trainer: a b$"), as_value_error("trainer"):
        raise RuntimeError("a\n  b")
    with pytest.raises(KeyError), as_value_error("trainer", TypeError):
        raise KeyError("a")
