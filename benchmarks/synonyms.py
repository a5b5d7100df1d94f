"""What a pretrained encoder makes of words that training never said, before anything is trained."""

# Words to choose a method by, written down as those of vla_mini/envs/toy_pick/wordings.py were; none of them is among those,
# which are for the final examination alone.
DEVELOPMENT = {
    "red": ("cherry", "maroon", "burgundy"),
    "green": ("jade", "mint", "moss"),
    "blue": ("cobalt", "cerulean", "denim"),
    "yellow": ("canary", "banana", "blond"),
    "purple": ("plum", "mauve", "amethyst"),
    "orange": ("carrot", "mandarin", "ginger"),
    "cube": ("brick", "square", "crate"),
    "ball": ("bead", "marble", "bubble"),
    "cone": ("spike", "wedge", "spire"),
    "star": ("sparkle", "comet", "twinkle"),
}
DEVELOPMENT_VERBS = (
    "snatch the {colour} {shape}",
    "gather the {colour} {shape} from the table",
    "please heave the {colour} {shape}",
    "could you elevate the {colour} {shape}",
    "i want you to grasp the {colour} {shape}",
    "obtain the {colour} {shape} that is on the table",
)
