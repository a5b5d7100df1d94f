"""Which keys of a message are understood, and how the others are refused."""

import numpy as np
import pytest

from vla_mini.serving.keys import understood_keys
from vla_mini.utils.features import Features

ONE = Features(("top",), (8, 6), ("x", "y"), ("dx",), 10)
TWO = Features(("image", "wrist_image"), (8, 6), ("x", "y"), ("dx",), 10)
IMAGE, STATE = np.zeros((8, 6, 3), np.uint8), np.float64([1, 2])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (ONE, {"observation/image": IMAGE, "observation/state": STATE, "prompt": "go"}),
        (ONE, {"observation.images.top": IMAGE, "observation.state": STATE, "task": "go"}),
        (ONE, {"top": IMAGE, "state": STATE, "instruction": "go"}),
        (TWO, {"observation/image": IMAGE, "observation/wrist_image": IMAGE + 1, "observation/state": [1, 2], "prompt": "go"}),
        (TWO, {"wrist_image": IMAGE + 1, "observation.images.image": IMAGE, "state": STATE, "task": "go", "reset": True}),
    ],
)
def test_openpis_lerobots_and_our_own_keys_are_understood(features, message):
    found = understood_keys(features, {}).observation(message)
    assert list(found["images"]) == list(features.cameras) and found["instruction"] == "go"
    assert [image.max() for image in found["images"].values()] == [0, 1][: len(features.cameras)]
    assert found["state"].dtype == np.float32 and found["state"].tolist() == [1, 2]


def test_chosen_keys_take_the_place_of_the_others():
    keys = understood_keys(TWO, {"image": "observation/exterior_image_1_left"})
    message = {"wrist_image": IMAGE, "state": STATE, "task": "go"}
    assert set(keys.observation(message | {"observation/exterior_image_1_left": IMAGE})["images"]) == set(TWO.cameras)
    with pytest.raises(ValueError, match="unknown key 'image'; did you mean 'wrist_image'"):
        keys.observation(message | {"image": IMAGE})
    with pytest.raises(ValueError, match="the policy has no 'wrist'; did you mean 'wrist_image'"):
        understood_keys(TWO, {"wrist": "observation/wrist"})


GOOD = {"observation/image": IMAGE, "observation/state": STATE, "prompt": "go"}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ([1], "an observation is a dict with the keys observation/top, observation/state, prompt, not list"),
        (GOOD | {"observation/stat": STATE}, "unknown key 'observation/stat'; did you mean 'observation/state'?"),
        (GOOD | {3: STATE}, "unknown key 3"),
        ({**GOOD, "prompt": 3}, "the instruction is of type int: send text"),
        ({**GOOD, "observation/state": "far"}, "state is of type str: send an array of numbers"),
        ({**GOOD, "observation/state": [1, "far"]}, "state is of type list: send an array of numbers"),
        ({**GOOD, "observation/state": [[1], [2, 3]]}, "state is of type list: send an array of numbers"),
        ({"observation/image": IMAGE, "prompt": "go"}, "state is missing: send it as 'observation/state' or "),
        ({"observation/state": STATE, "prompt": "go"}, "top is missing: send it as 'observation/top' or "),
        ({"observation/image": IMAGE, "observation/state": STATE}, "instruction is missing: send it as 'prompt' or 'task'"),
    ],
)
def test_mistakes_are_refused_in_one_line(message, text):
    with pytest.raises(ValueError) as refused:
        understood_keys(ONE, {}).observation(message)
    assert str(refused.value).startswith(text) and "\n" not in str(refused.value)
