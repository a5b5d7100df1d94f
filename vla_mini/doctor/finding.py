"""The result of one check: its status, what was measured beside what is expected, and what to do about it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from vla_mini.utils.errors import one_line


class Finding(NamedTuple):
    """What one check found. `warn`: a healthy run may look like this; `fail`: no healthy run does; `skip`: it could not be
    checked."""

    status: Literal["pass", "warn", "fail", "skip"]
    measured: str
    expected: str = ""
    advice: str = ""  # what to do where the check did not pass
    value: float | None = None  # the number in `measured`
    check: str = ""  # its name, set by `run_check`
    episodes: tuple[int, ...] = ()  # that it is about, by the dataset's numbers


class CannotCheckError(Exception):
    """Raised by a check that is not possible here. The message is the reason."""


def run_check(name: str, check: Callable[..., Finding], *arguments: Any, **options: Any) -> Finding:
    """What `check` finds, under its name. An exception is a finding as well, so that the other checks can still run."""
    try:
        return check(*arguments, **options)._replace(check=name)
    except Exception as error:  # the code of a policy, a dataset or an environment may raise anything
        return _from_exception(name, error)


def run_checks_on(prepare: Callable[[], Any], checks: Mapping[str, Callable[[Any], Finding]]) -> Iterator[Finding]:
    """What `checks` find in the result of `prepare`. Where that fails, only the first check has a finding, which says why."""
    try:
        prepared = prepare()
    except Exception as error:
        yield _from_exception(next(iter(checks)), error)
        return
    for name, check in checks.items():
        yield run_check(name, check, prepared)


def _from_exception(name: str, error: Exception) -> Finding:
    if isinstance(error, CannotCheckError):
        return Finding("skip", str(error), check=name)
    measured = one_line(f"{type(error).__name__}: {error}")[:300]
    advice = "find where the exception is raised: training would stop there as well"
    return Finding("fail", measured, "no exception", advice, check=name)


def describe(finding: Finding) -> str:
    """A finding as text: one line, and what is expected and what to do on further lines where the check did not pass."""
    lines = [f"{finding.status:<6}{finding.check:<16}{finding.measured}"]
    if finding.status in ("warn", "fail"):
        lines += [f"{'':<22}{word}: {text}" for word, text in (("expected", finding.expected), ("do", finding.advice)) if text]
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> str:
    """The number of findings of each status, and the names of the checks that failed."""
    counts = Counter(finding.status for finding in findings)
    failed = ", ".join(finding.check for finding in findings if finding.status == "fail")
    text = ", ".join(f"{counts[status]} {status}" for status in ("pass", "warn", "fail", "skip") if counts[status])
    return f"{text}: {failed}" if failed else text
