"""(colour, shape) -> an instruction in English.

The held-out wordings are made of the training wordings' words alone, in structures that training never shows.

The synonyms are words that training never says: they measure what a language encoder knows beforehand. They were written down
once, by hand, before any encoder was asked about them: for each colour, shape and verb what an English speaker may say instead,
as a thesaurus has it, in one word that holds no colour or shape of training (starfish, greenish) and that nobody would use of
another of the six colours or four shapes (amber, coral, indigo). They are for the final examination alone; a method is chosen
by other words (benchmarks/synonyms.py).
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

SYNONYMS = {
    "red": ("crimson", "scarlet", "ruby"),
    "green": ("emerald", "lime", "olive"),
    "blue": ("azure", "navy", "sapphire"),
    "yellow": ("golden", "lemon", "mustard"),
    "purple": ("violet", "lilac", "lavender"),
    "orange": ("tangerine", "apricot", "pumpkin"),
    "cube": ("block", "box", "dice"),
    "ball": ("sphere", "orb", "globe"),
    "cone": ("funnel", "pyramid", "triangle"),
    "star": ("asterisk", "pentagram", "pentacle"),
}

SYNONYM_VERBS = (
    "fetch the {colour} {shape}",
    "collect the {colour} {shape} from the table",
    "please hoist the {colour} {shape}",
    "could you raise the {colour} {shape}",
    "i want you to seize the {colour} {shape}",
    "retrieve the {colour} {shape} that is on the table",
)
