"""An extension of griffe, which reads the code for the reference pages: the fields of a class become a list in its docstring,
`name: type = default`, each with the comment that stands beside or above it."""

import re

from griffe import Docstring, Extension


class Fields(Extension):
    def on_class_members(self, *, cls, **_):
        attributes = [each for each in cls.members.values() if each.is_attribute and "property" not in each.labels]
        if {str(base) for base in cls.bases} & {"NamedTuple", "Protocol"} or "dataclass" in cls.labels:
            fields = [_describe(each) for each in attributes if each.annotation is not None]
            text = "\n".join([cls.docstring.value if cls.docstring else "", "", *fields])
            cls.docstring = Docstring(text, parent=cls)
            cls.labels, cls.decorators = set(), []  # else a dataclass gets a signature, without the fields
        for each in attributes:  # of other classes, their own docstrings tell
            cls.del_member(each.name)


def _describe(attribute):
    lines = attribute.filepath.read_text(encoding="utf-8").splitlines()
    above = re.fullmatch(r"\s*# (.*)", lines[attribute.lineno - 2])
    beside = re.search(r"  # (?:noqa: \S+ (?:\([^)]*\) )?)?(.*)", lines[attribute.endlineno - 1])
    kind = str(attribute.annotation).replace("'", '"')
    value = "" if attribute.value is None else str(attribute.value)
    default = f" = {value}" if value and not value.startswith("field(") else ""
    comment = next((f": {found[1]}" for found in (beside, above) if found), "")
    return f"- `{attribute.name}: {kind}{default}`{comment}"
