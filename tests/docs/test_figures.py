import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.balancing import PinnRule

PATH = Path(__file__).parents[2] / "docs/figures.py"
spec = importlib.util.spec_from_file_location("docs_figures", PATH)
figures = sys.modules["docs_figures"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(figures)


def test_short_runs_draw_every_figure_that_the_pages_show(tmp_path, capsys):
    figures.main(["--steps", "60", "--output", str(tmp_path)])
    written = {path.name for path in tmp_path.iterdir()}
    pages = [page.read_text(encoding="utf-8") for page in PATH.parent.glob("*.md")]
    assert len(written) == len(figures.FIGURES)
    for name in written:
        assert any(f"images/{name}" in page for page in pages), name
        assert np.ptp(np.asarray(Image.open(tmp_path / name).convert("L"))) > 100, name
    assert "poisson, PINN rule" in capsys.readouterr().out


def test_a_figure_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        figures.main(["sickly"])
    assert "sickly" in capsys.readouterr().err


def test_the_bars_are_the_numbers_of_the_page():
    page = (PATH.parent / "performance.md").read_text(encoding="utf-8")
    alone, with_operator = figures.ratios(page)
    for table in (alone, with_operator):
        for (group, step), ratio in table.items():
            number = group.partition("\n")[0]
            assert re.search(rf"\| {number} \| {re.escape(step)} \|.*\| {ratio:.3f} \[", page)
    assert len(alone) == len(with_operator) == 17


def test_the_curves_of_all_contestants_are_the_numbers_of_the_page():
    page = (PATH.parent / "performance.md").read_text(encoding="utf-8")
    rows = figures.contestants(page)
    in_full = {(r["points"], r["losses"]): 0 for r in rows}
    for row in rows:
        in_full[row["points"], row["losses"]] += 1
        q = row["ms"]
        assert f"| {row['label']} | {q['median']:.1f} [{q['q1']:.1f}, {q['q3']:.1f}] |" in page
    assert in_full == {
        **{(points, 2): 18 for points in (500, 2000, 10_000)},
        **{(50_000, 2): 10, **{(2000, losses): 10 for losses in (4, 8, 16, 32)}},
    }
    assert sum("to_plain" in row for row in rows) == 80
    of_plain = [r for r in rows if "to_plain" in r and r["label"].endswith("plain step")]
    assert len(of_plain) == 16 and all(row["to_plain"]["median"] == 1 for row in of_plain)


def test_a_weight_rests_at_lead_over_the_root_of_the_ratio_within_the_bound():
    assert figures.weight_at_rest(PinnRule(), 1.0) == pytest.approx(20, rel=1e-6)
    assert figures.weight_at_rest(PinnRule(), 1e-3) == pytest.approx(200, rel=1e-6)
    assert figures.weight_at_rest(PinnRule(), 1e-9) == pytest.approx(1000, rel=1e-6)


def test_the_solution_of_the_bar_fulfils_its_conditions():
    exact = figures.bar(figures.STEEL).sample(50).losses(lambda p: p * (2 - p) / 2)
    assert all(float(loss) < 1e-3 for loss in exact.values())  # E times rounding, squared


@pytest.mark.skipif(paddle.__version__ < "3", reason="Paddle 2.6 does not differentiate exp twice")
def test_the_solution_that_the_sensors_see_fulfils_its_conditions():
    for offset, seen in ((0.0, 0.0), (0.2, 0.04)):
        losses = (
            figures.sensors(offset)
            .sample(50)
            .losses(lambda p: p[:, :1].cos() * (p[:, 1:].exp() + (-p[:, 1:]).exp()) / 2)
        )
        assert float(losses["inner"]) == pytest.approx(seen, abs=1e-5)
        assert float(losses["pde"]) < 1e-9 and float(losses["boundary"]) < 1e-9


def test_cosine_of_gradients_that_agree_and_that_are_opposed():
    net = GradNorm(FCNet(1, 1, 2, 8), n_loss=2)
    u = net(paddle.ones([3, 1])).mean()
    assert figures.cosine(net, u, 2 * u) == pytest.approx(1, abs=1e-6)
    assert figures.cosine(net, u, -u) == pytest.approx(-1, abs=1e-6)
