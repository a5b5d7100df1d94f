"""A precision that the hardware lacks is refused before any work."""

import pytest

from tests.factory import command


@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_fp16_on_a_cpu_is_refused(precision, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("train", "experiment=toy_pick_smoke", "trainer.accelerator=cpu", f"trainer.precision={precision}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"trainer.precision={precision} is for GPUs" in line and "bf16-mixed" in line
    assert list(tmp_path.iterdir()) == []
