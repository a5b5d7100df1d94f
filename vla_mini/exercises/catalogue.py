"""The exercises in their order, from easy to hard: module of tasks/ -> the student's file and the worked solution.

A module is the solved file, and the check below the line `# ---- judge`. In the student's file the lines from `# solution:` to
`# end` are replaced by those that follow `# task:`, without their comment signs; where there are none, by a line that raises
NotImplementedError. No torch is imported here, so that the list is printed at once.
"""

import re
from pathlib import Path
from typing import NamedTuple

from vla_mini.utils.errors import did_you_mean
from vla_mini.utils.files import digest

NAMES = (
    *("linear", "reshape", "in_place", "no_grad", "accumulation", "film"),
    *("freezing", "adam", "vanishing", "flow", "layer_norm", "attention"),
)
FOLDER = Path("exercises")  # of the student's files, in the working directory
PASSED = ".passed"  # in FOLDER: the SHA-256 and the name of each file that passed
GAP = 'raise NotImplementedError("replace this line by your code")'
SOLUTION = re.compile(r"^( *)# solution:\n(.*?)(?:^ *# task:\n(.*?))?^ *# end\n", re.MULTILINE | re.DOTALL)
IMPORT = re.compile(r"^((?:from \S+ )?import )(.+)\n", re.MULTILINE)


class Exercise(NamedTuple):
    number: int
    name: str

    @property
    def path(self) -> Path:
        """The student's file."""
        return FOLDER / f"{self.number:02}_{self.name}.py"

    @property
    def title(self) -> str:
        return self._solved().removeprefix('"""').partition("\n")[0]

    @property
    def sections(self) -> str:
        """Of docs/autograd.md, that one reads first: "4, 6, 20"."""
        (line,) = re.findall(r"^Read first: docs/autograd.md, sections? (.*)", self._solved(), re.MULTILINE)
        return line.replace(" and ", ", ")

    @property
    def function(self) -> str:
        """The name of the function that is judged."""
        return re.findall(r"^def (\w+)", self._solved(), re.MULTILINE)[0]

    def task(self) -> str:
        """The student's file as it is at first."""

        def gap(found: re.Match) -> str:
            indent, _, lines = found.groups()
            return re.sub(r"^( *)# ", r"\1", lines, flags=re.MULTILINE) if lines is not None else f"{indent}{GAP}\n"

        return SOLUTION.sub(gap, self._solved())

    def solution(self) -> str:
        """The solved file, with the derivation as comments."""
        return SOLUTION.sub(r"\2", self._solved())

    def state(self) -> str:
        """not begun, open (begun, or changed since it passed) or passed."""
        if not self.path.is_file():
            return "not begun"
        passed = self.path.with_name(PASSED)
        known = passed.read_text(encoding="utf-8", errors="replace").split() if passed.is_file() else []
        return "passed" if digest(self.path) in known else "open"

    def remember_passed(self, checksum: str) -> None:
        with self.path.with_name(PASSED).open("a", encoding="utf-8") as file:
            file.write(f"{checksum}  {self.path.name}\n")

    def _solved(self) -> str:
        """The module without its check, and without the imports that only the check needs."""
        text = (Path(__file__).parent / "tasks" / f"{self.name}.py").read_text(encoding="utf-8")
        text = text.partition("\n\n# ---- judge\n")[0]
        code = IMPORT.sub("", text.split('"""', 2)[2])

        def needed(found: re.Match) -> str:
            names = [name for name in found[2].split(", ") if re.search(rf"\b{name.split()[-1]}\b", code)]
            return f"{found[1]}{', '.join(names)}\n" if names else ""

        return re.sub(r"\n\n\n+(?=import |from )", "\n\n", re.sub(r"\n{4,}", "\n\n\n", IMPORT.sub(needed, text)))


EXERCISES = tuple(Exercise(number, name) for number, name in enumerate(NAMES, start=1))


def find(wanted: str) -> Exercise:
    """The exercise of this number, name or file. ValueError, which names the nearest, where there is none."""
    for exercise in EXERCISES:
        if Path(wanted).name in (exercise.name, exercise.path.name) or wanted.lstrip("0") == str(exercise.number):
            return exercise
    if wanted.lstrip("-").isdigit():
        raise ValueError(f"there is no exercise {wanted}; choose a number from 1 to {len(EXERCISES)}")
    raise ValueError(f"there is no exercise {wanted!r}; {did_you_mean(wanted, NAMES)}")
