"""What a check found: its verdict, what was measured beside what is expected, and what to do."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

Status = Literal["pass", "warn", "fail", "skip"]


class Finding(NamedTuple):
    """One line of the table. `warn`: a healthy run may look so; `fail`: none does; `skip`: it could not be checked here."""

    check: str
    status: Status
    measured: str
    expected: str = ""
    advice: str = ""  # what to do, where it did not pass
    value: float | None = None  # the number among what was measured


def checked(check: str, function: Callable[[], Finding]) -> Finding:
    """What `function` finds. A part that raises is a finding, too: it must not hide what the other checks have to say."""
    try:
        return function()
    except Exception as error:  # whatever a patient's own code may raise
        return broken(check, error)


def broken(check: str, error: Exception) -> Finding:
    """What is found where a check cannot be made."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return Finding(check, "fail", said, "no exception", "see where it is raised: training would stop there, too")


def describe(finding: Finding) -> str:
    """A finding as lines of text: one if all is well, more where there is something to do."""
    lines = [f"{finding.status:<6}{finding.check:<16}{finding.measured}"]
    if finding.status in ("warn", "fail"):
        lines += [f"{'':<22}{word}: {text}" for word, text in (("expected", finding.expected), ("do", finding.advice)) if text]
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> str:
    """How many of each, and the names of those that failed."""
    counts = Counter(finding.status for finding in findings)
    failed = ", ".join(finding.check for finding in findings if finding.status == "fail")
    text = ", ".join(f"{counts[status]} {status}" for status in ("pass", "warn", "fail", "skip") if counts[status])
    return f"{text}: {failed}" if failed else text
