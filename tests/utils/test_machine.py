"""The description of the machine, the versions of the packages, and the rate of matrix products."""

import json
import platform
from types import SimpleNamespace

import pytest
import torch

from vla_mini.utils import machine


def test_machine_and_versions_are_described_once_for_files_and_pages():
    described, versions = machine.describe_machine(), machine.versions()
    assert described.keys() == {"processor", "cores", "threads", "gpus", "system"} and described["cores"] >= 1
    assert (
        versions["python"] == platform.python_version() and versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    )
    json.dumps(described | versions)
    lines = machine.machine_text().splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == [*described, *versions]
    assert machine.version("no-such-package") is None


def test_how_mujoco_draws_is_said_where_it_does(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert "MUJOCO_GL" not in machine.versions()
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert machine.versions()["MUJOCO_GL"] == machine.machine_text().splitlines()[-1].split()[-1] == "egl"


def test_git_state_is_that_of_this_checkout(monkeypatch):
    assert machine.git_state().keys() == {"git_commit", "git_changes"}
    monkeypatch.setenv("PATH", "")
    assert machine.git_state() == {"git_commit": None, "git_changes": False}


def test_the_rate_is_that_of_the_fastest_product(monkeypatch):
    def timer(_, globals):
        return SimpleNamespace(timeit=lambda number: 1e-3 * len(globals["a"]) / machine.SIDES[0])

    monkeypatch.setattr(machine, "Timer", timer)
    side = machine.SIDES[-1]
    expected = 2 * side**3 / (1e-3 * side / machine.SIDES[0]) / 1e9
    assert machine.matrix_product_rate("float32", seconds=1e-2) == pytest.approx(expected)


def test_larger_products_are_left_out_where_one_takes_all_the_time(monkeypatch):
    sides = []

    def timer(_, globals):
        return SimpleNamespace(timeit=lambda number: sides.append(len(globals["a"])) or 0.2)

    monkeypatch.setattr(machine, "Timer", timer)
    assert machine.matrix_product_rate("float32", seconds=0.1) == pytest.approx(2 * machine.SIDES[0] ** 3 / 0.2 / 1e9)
    assert set(sides) == {machine.SIDES[0]}


def test_rates_of_this_machine_are_sensible():
    rates = {dtype: machine.matrix_product_rate(dtype, seconds=0.05) for dtype in ("float32", "bfloat16")}
    assert all(0.1 < rate < 1e7 for rate in rates.values())
