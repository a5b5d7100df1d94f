"""The walls between the rooms of vla_mini, read from the imports: who may know whom, and which library lives where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vla_mini"

FACTS = {"files", "features", "types", "geometry", "layers", "hub", "machine"}
PARTS = {"vision", "language", "trunk", "action", "auxiliary", "normalization", "data", "envs"}
JOINS = {"policy", "build", "lora", "pretrained", "sharing", "collection"}

# room -> the rooms it may import, besides itself. DESIGN.md section 2: bottom to top.
ROOMS = {
    "files": set(),
    "features": set(),
    "geometry": set(),
    "layers": set(),
    "hub": set(),
    "machine": set(),
    "types": {"features"},
    **{part: FACTS for part in PARTS},
    "door": FACTS,
    "policy": FACTS | {"door", "normalization", "pretrained", "sharing"},  # and no concrete variant
    "build": FACTS | {"normalization", "policy"},
    "lora": FACTS | {"policy"},
    "pretrained": FACTS | {"build", "lora", "policy"},
    "sharing": FACTS | {"policy", "pretrained"},
    "collection": FACTS | {"data", "envs"},
    "autograd": FACTS | PARTS | JOINS | {"pages"},
    "pages": set(),  # words, numbers and pictures in, HTML out
    "evaluation": FACTS | PARTS | JOINS | {"pages"},
    "training": FACTS | PARTS | JOINS | {"autograd", "evaluation"},
    "testing": FACTS | PARTS | JOINS | {"autograd", "evaluation", "training"},
    "doctor": FACTS | PARTS | JOINS | {"autograd", "evaluation", "training"},
    "comparison": FACTS | PARTS | JOINS | {"evaluation", "training", "pages", "config"},
    "config": {"build", "files"},
}

# library -> where alone it may be imported, relative to the repository
LIBRARIES = {
    "lightning": ("vla_mini/training/", "vla_mini/data/module.py", "scripts/train.py"),
    "pytorch_lightning": (),
    "hydra": ("vla_mini/config/",),
    "omegaconf": ("vla_mini/config/", "vla_mini/training/", "vla_mini/comparison/", "scripts/"),
    "peft": ("vla_mini/lora.py",),
    "wandb": ("vla_mini/training/",),
    "beartype": (),
}


def imports(path: Path) -> list[str]:
    """Every module that a file imports, at its top or within its functions, as dotted names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room they lead to"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_know_only_what_lies_below(path):
    room = room_of(path)
    assert room in ROOMS, f"say in ROOMS which rooms {room} may import"
    for name in imports(path):
        if name.startswith("vla_mini."):
            other = name.split(".")[1]
            assert other == room or other in ROOMS[room], f"{path.relative_to(ROOT)} must not import {name}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_stay_where_they_belong(library):
    for path in [*FILES, *sorted((ROOT / "scripts").glob("*.py"))]:
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith(LIBRARIES[library] or ("nowhere",)):
            assert all(name.split(".")[0] != library for name in imports(path)), f"{place} must not import {library}"


@pytest.mark.parametrize("group", ["vision", "language", "trunk", "action", "auxiliary"])
def test_each_variant_is_one_py_and_one_yaml(group):
    modules = {path.stem for path in (PACKAGE / group).glob("*.py") if not path.stem.startswith("_")}
    configs = {path.stem for path in (ROOT / "configs" / group).glob("*.yaml")}
    assert modules == configs - ({"none"} if group == "auxiliary" else set())
    assert modules


@pytest.mark.parametrize("group", ["vision", "language", "trunk", "action", "auxiliary"])
def test_variants_of_a_group_do_not_know_each_other(group):
    for path in (PACKAGE / group).glob("*.py"):
        for name in imports(path):
            if name.startswith(f"vla_mini.{group}."):
                assert name.split(".")[2].startswith("_"), f"{path.relative_to(ROOT)} must not import {name}"


def loaded_by(code: str) -> set[str]:
    """The libraries, of those that cost seconds, that a fresh interpreter has loaded after `code`."""
    watched = ["torch", "lightning", "hydra", "transformers", "wandb", "pandas", "matplotlib"]
    code += f"\nimport sys; print(*[name for name in {watched} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_the_light_rooms_load_no_torch():
    light = "vla_mini, vla_mini.config, vla_mini.envs, vla_mini.collection, vla_mini.data.writer, vla_mini.data.reader"
    assert not loaded_by(f"import {light}") & {"torch", "lightning", "hydra", "transformers", "wandb", "matplotlib"}


def test_a_policy_needs_neither_hydra_nor_lightning_nor_wandb():
    loaded = loaded_by("import vla_mini\nvla_mini.Policy, vla_mini.Observation, vla_mini.Batch")
    assert "torch" in loaded
    assert not loaded & {"hydra", "lightning", "wandb"}
