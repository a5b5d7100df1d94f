"""The description of toy_pick for collection, evaluation and reports."""

from vla_mini.envs.spec import EnvSpec
from vla_mini.utils.features import Features

SPEC = EnvSpec(
    id="vla_mini/ToyPick-v0",
    features=Features(
        cameras=("top",),
        image_size=(64, 64),
        state=("x", "y", "height", "closed"),
        action=("dx", "dy", "dz", "close"),
        fps=10,
    ),
    robot_type="toy_pick",
    max_episode_steps=48,
    splits={
        "seen": "new scenes, described in the phrasings of training",
        "held_out_pairs": "a colour and a shape never asked for together in training",
        "held_out_phrasings": "sentence structures never used in training",
    },
    further_splits={
        "synonyms": "colour, shape and verb in words never used in training",
        "synonyms_colours": "the colour in a word never used in training",
        "synonyms_shapes": "the shape in a word never used in training",
        "synonyms_verbs": "the verb in a word never used in training",
    },
    checks={
        "swapped": "the same scenes with another object named: success is picking that one",
        "blank": "the same scenes without an instruction: success is picking the object it would have named",
    },
    rates=("wrong_object",),
    subsets=("two_words",),
    check_rates=("original_object", "chance"),
    has_expert=True,
    has_object_masks=True,
)
