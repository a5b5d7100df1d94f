"""(colour, shape) -> an instruction in English.

The held-out wordings are made of the training wordings' words alone, in structures that training never shows.
"""

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("cube", "ball", "cone", "star")

# Never a target in training (bystanders only): each colour and each shape is still met with all its other partners.
HELD_OUT_PAIRS = (("red", "ball"), ("green", "star"), ("blue", "cone"), ("yellow", "cube"))

TRAINING = (
    "pick up the {colour} {shape}",
    "grab the {colour} {shape}",
    "lift the {colour} {shape}",
    "please pick up the {colour} {shape}",
    "take the {colour} {shape} from the table",
    "get me the {colour} {shape}",
    "could you lift the {colour} {shape} up",
    "find the {colour} {shape} and pick it up",
    "i want you to grab the {colour} {shape}",
    "pick up the {colour} {shape} that is on the table",
)

HELD_OUT = (
    "pick the {colour} {shape} up",
    "could you find me the {colour} {shape} and lift it",
    "from the table please get the {colour} {shape}",
    "grab the {shape} that is {colour}",
    "i want the {shape} on the table the {colour} {shape}",
)
