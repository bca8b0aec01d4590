import importlib.util
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[2] / "docs"


def load(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


labels = load("chinese_labels")


@pytest.mark.parametrize(
    "label, translation",
    [
        ("equal weights", "等权重"),
        ("error, equal weights", "误差，等权重"),  # noqa: RUF001
        ("500\npoints", "500\n个点"),
        ("Paddle with operators, plain step", "Paddle + 算子，普通步"),  # noqa: RUF001
        ("scale 5", "尺度 5"),
        ("pde", "pde"),
        ("laplace_holes", "laplace_holes"),
        ("GradNorm, PINN rule", "PINN 规则"),
        ("$10^{-2}$", "$10^{-2}$"),
        ("0.5", "0.5"),
        ("误差，等权重", "误差，等权重"),  # noqa: RUF001
    ],
)
def test_labels_are_translated_and_names_and_numbers_stay(label, translation):
    assert labels.in_chinese(label) == translation


def test_a_label_that_nobody_has_translated_is_named():
    with pytest.raises(KeyError, match="residual per hour"):
        labels.in_chinese("residual per hour")


def test_both_pictures_are_saved_and_the_script_knows_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", Figure.savefig)  # is put back
    monkeypatch.setattr(labels, "FONTS", ("DejaVu Sans",))  # a Chinese one may be missing
    with matplotlib.rc_context():
        labels.switch_on()
        figure, axes = plt.subplots()
        axes.set(xlabel="step", title="relative error", xticks=[0], xticklabels=["500\npoints"])
        figure.savefig(tmp_path / "errors.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.png", "errors_zh.png"]
    assert axes.get_title() == "相对误差" and axes.get_xlabel() == "训练步"
    assert axes.get_xticklabels()[0].get_text() == "500\n个点"
    plt.close(figure)


def test_names_of_problems_on_an_axis_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", Figure.savefig)
    monkeypatch.setattr(labels, "FONTS", ("DejaVu Sans",))
    with matplotlib.rc_context():
        labels.switch_on()
        figure, axes = plt.subplots()
        axes.set(xlabel="step", yticks=[0, 1], yticklabels=["step", "heat"])
        figure.savefig(tmp_path / "errors.png")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["step", "heat"]
    assert axes.get_xlabel() == "训练步"
    plt.close(figure)


def test_a_missing_font_is_an_error(monkeypatch):
    monkeypatch.setattr(labels, "FONTS", ("No Such Font",))
    with pytest.raises(RuntimeError, match="No Such Font"):
        labels.switch_on()


def test_a_click_on_a_picture_that_stands_alone_shows_it():
    html = '<p><img alt="a" src="images/a.png"></p><p>text <img alt="b" src="b.png"></p>'
    found = load("pictures").on_page_content(html, page=None, config=None, files=None)
    assert found.startswith('<p><a class="picture" href="images/a.png"><img alt="a"')
    assert found.endswith('<p>text <img alt="b" src="b.png"></p>')


def test_cells_of_words_are_marked_by_their_length():
    def marked(html):
        return load("unbroken").on_page_content(html, page=None, config=None, files=None)

    chinese = "两个配点互不相同的"
    assert marked(f"<td>{chinese}</td>") == f'<td class="phrase">{chinese}</td>'
    words, link = "a lead from the start ", '<a href="x">' + "y" * 9 + "</a>"
    for attributes in ("", ' style="text-align: right"'):
        for content, kind in ((words * 3, "prose"), (words + link, "phrase")):
            found = marked(f"<td{attributes}>{content}</td>")
            assert found == f'<td{attributes} class="{kind}">{content}</td>'
        html = f"<td{attributes}>{link}</td>"
        assert marked(html) == html


def test_numbers_and_options_are_kept_together_but_not_in_blocks_of_code():
    def kept(html):
        return load("unbroken").on_page_content(html, page=None, config=None, files=None)

    mark = '<span class="together">'
    assert kept("<p>1.5e-4, a-b</p>") == f"<p>{mark}1.5e-4</span>, a-b</p>"
    assert kept("<li>with --option</li>") == f"<li>with {mark}--option</span></li>"
    long = "python -m x --option " + "y" * 9
    assert kept(f"<code>{long}</code>") == (
        f"<code>python {mark}-m</span> x {mark}--option</span> {'y' * 9}</code>"
    )
    assert kept("<code>.venv/bin</code>") == '<code class="together">.venv/bin</code>'
    assert kept("<p>1.5 ms, 7 %, 3 to 5</p>") == (
        f"<p>{mark}1.5 ms</span>, {mark}7 %</span>, 3 to 5</p>"
    )
    assert kept("<p>用时 80 秒。</p>") == f"<p>用时 {mark}80 秒</span>。</p>"
    assert kept("<td>1.07 [1.05, 1.10]</td>") == '<td class="together">1.07 [1.05, 1.10]</td>'
    for html in ("<pre><code>f --a 1e-4</code></pre>", '<a href="--b">x -y</a>', "<td>two</td>"):
        assert kept(html) == html
