from vla_mini.evaluation.curves import Curve, read_curves

LOG = """epoch,gradients/vision,step,train/loss,validation/loss
0,0.25,0,2.0,
0,,9,,1.5
1,nan,10,1.0,
1,,19,,0.5
"""


def test_curves_leave_out_empty_cells_and_what_is_no_number(tmp_path):
    (tmp_path / "metrics.csv").write_text(LOG)
    curves = read_curves(tmp_path / "metrics.csv")
    assert curves["train/loss"] == Curve((1, 11), (2.0, 1.0))
    assert curves["validation/loss"] == Curve((10, 20), (1.5, 0.5))
    assert curves["gradients/vision"] == Curve((1,), (0.25,))
    assert read_curves(tmp_path / "missing.csv") == {}
