import importlib.util
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from paddlescience_gradnorm.training import write_report

FOLDER = Path(__file__).parents[2] / "examples/pinn_laplace"


@pytest.fixture(scope="module")
def demo():
    """The program; its processes find it by the path, as they do when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("demo", FOLDER / "demo.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "demo", module)
        spec.loader.exec_module(module)
        yield module
        sys.modules.pop("pinn_laplace", None)


def test_both_runs_are_made_and_compared_in_a_picture_and_a_sentence(demo, tmp_path, capfd):
    runs = demo.main(["--epochs", "300", "--points", "64", "--output", str(tmp_path)])
    printed = capfd.readouterr().out.splitlines()
    equal, gradnorm = (runs[balance]["relative_l2_error"] for balance in ("equal", "gradnorm"))
    assert printed[-1] == demo.sentence(equal, gradnorm, 300)
    assert printed[-2] == f"picture: {tmp_path / 'demo.png'}"
    for run in runs.values():
        epochs, errors = zip(*run["error_curve"])
        assert epochs[-1] == 300 and len(epochs) == 100 and errors[-1] < 0.2
    ours, theirs = (dict(run["settings"]) for run in runs.values())
    assert {k for k in ours if ours[k] != theirs[k]} == {"balance", "output"}
    pixels = np.asarray(Image.open(tmp_path / "demo.png").convert("L"))
    assert pixels.shape == (1140, 1600) and pixels.std() > 10
    # Each is a whole run, and the page of one shows the other.
    page = write_report(tmp_path / "gradnorm").read_text(encoding="utf-8")
    assert f"equal weights: {equal:.4g}" in page
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_sentence_tells_which_is_better(demo):
    assert demo.sentence(4.0e-3, 2.4e-4, 4000) == (
        "With the PINN rule the error is 17 times smaller than with equal "
        "weights: 2.4e-04 instead of 4.0e-03, after 4000 epochs each."
    )
    assert "is 2.5 times larger than" in demo.sentence(1e-3, 2.5e-3, 10)


def test_a_color_bar_is_as_tall_as_its_axes(demo):
    figure, axis = plt.subplots()
    image = demo.pinn_laplace.draw_panel(axis, np.eye(3), "a title")
    demo.pinn_laplace.add_color_bar(axis, image)
    figure.canvas.draw()
    (bar,) = axis.child_axes
    panel, drawn = axis.get_window_extent(), bar.get_window_extent()
    assert (drawn.y0, drawn.y1) == pytest.approx((panel.y0, panel.y1))
    assert drawn.x0 > panel.x1
    plt.close(figure)


def test_a_mistake_of_a_run_ends_the_program(demo, tmp_path, capfd):
    (tmp_path / "equal").touch()  # where a folder has to be
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--epochs", "2", "--points", "16", "--output", str(tmp_path)])
    assert stopped.value.code == 1 and "demo: " in capfd.readouterr().err
