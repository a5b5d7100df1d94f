"""`vla-mini COMMAND [key=value]` is scripts/COMMAND.py, for an installed package, in any folder.

The folders configs/ and scripts/ are beside the package in a checkout, and within it where a wheel is installed.
"""

import ast
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
IN_CHECKOUT = not (PACKAGE / "configs").is_dir()


def shipped(name: str) -> Path:
    """The folder configs/ or scripts/."""
    return (PACKAGE.parent if IN_CHECKOUT else PACKAGE) / name


def command_line(name: str) -> str:
    """How a person starts a command: `python scripts/train.py` in a checkout, else `vla-mini train`."""
    return f"python scripts/{name}.py" if IN_CHECKOUT else f"vla-mini {name}"


def main() -> None:
    """Run the command that sys.argv names. Exit code 2 where there is none of that name."""
    scripts = {path.stem: path for path in sorted(shipped("scripts").glob("*.py"))}
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(overview(scripts))
    elif name == "--version":
        print(f"vla-mini {version('vla-mini')}")
    elif name not in scripts:
        from vla_mini.utils.errors import did_you_mean  # which takes longer to import than to print the above

        print(f"vla-mini: {name!r} is no command; {did_you_mean(name, scripts)}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [str(scripts[name]), *arguments]  # from which Lightning starts further processes
        runpy.run_path(sys.argv[0], run_name="__main__")


def overview(scripts: dict[str, Path]) -> str:
    """The commands, each with the first line of its docstring."""
    lines = ["usage: vla-mini COMMAND [group=variant] [key=value]", ""]
    for name, path in scripts.items():
        purpose, _, _ = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).partition("\n")
        lines.append(f"  {name:<10} {purpose}")
    hint = "vla-mini COMMAND --help lists its settings; configs/ in this folder, or --config-dir DIR, adds to them"
    return "\n".join([*lines, "", hint])
