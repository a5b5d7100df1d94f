"""The words of toy_pick: instruction templates for (colour, shape), in training and held out of it.

The held-out phrasings consist of the training phrasings' words alone. The synonyms are words that training never uses: they
measure what a language encoder knows beforehand. They were written down once, before any encoder was tested on them, and are
for the final evaluation alone; methods are selected by other words (benchmarks/synonyms.py). Each is one word that an English
speaker may use instead (thesaurus), but for no other colour or shape (coral), without one of training's in it (starfish).
"""

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("cube", "ball", "cone", "star")

# In training these pairs are distractors only. Each of their colours and shapes is still a target in its other pairs.
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
