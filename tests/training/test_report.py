import base64
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlescience_gradnorm.training import History, report, write_report

NAMES = ["pde", "<b>&'\"$bc"]  # the second one as unkind as a name can be
METRICS = {
    "equation": "u < v & 'w'",
    "errors": {"u": 1.25e-3},
    "seconds": 12.0,
    "diagnosis": ["The loss of '<b>' no longer falls."],
    "final_losses": {"pde": 0.5},
    "settings": {"problem": "<script>alert(1)</script>", "alpha": None, "live": True, "x": [1, 2]},
    "versions": {"paddle": "3.3.1", "ppsci": None},
    "machine": "a <processor>",
}
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page(HTMLParser):
    """Text, images and tags of a page, as a browser would find them."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append(dict(attributes))

    def handle_data(self, data):
        self.text.append(data)

    @property
    def images(self):
        sources = [a["src"] for t, a in zip(self.tags, self.attributes) if t == "img"]
        prefix = "data:image/png;base64,"
        assert all(source.startswith(prefix) for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(s[len(prefix) :]))) for s in sources]


def save_history(folder, balanced=True, steps=40):
    history = History()
    for step in range(steps):
        row = paddle.to_tensor([0.9**step, 2.0 * 0.8**step])
        history.record(NAMES, row, *([3 * row, 5 * row, 7 * row] if balanced else []))
    history.save(folder / "history.npz")
    return history


@pytest.fixture
def run(tmp_path):
    """A folder as a run leaves it."""
    save_history(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    for name, color in (("solution", "red"), ("training", "blue")):
        Image.new("RGB", (1200, 360), color).save(tmp_path / f"{name}.png")
    return tmp_path


def test_the_page_shows_what_the_run_has_left(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    text = " ".join(page.text)
    for shown in (
        *("<script>alert(1)</script>", "u < v & 'w'", "errors: u", "0.00125", "a <processor>"),
        *("The loss of '<b>' no longer falls.", "alpha", "yes", "1, 2", "3.3.1", NAMES[1]),
        *("Losses", "Weights", "Gradient norms", "Inverse training rates", "solution", "40"),
    ):
        assert shown in text, shown
    last = History.load(run / "history.npz").last()
    for quantity in last.values():
        for number in quantity.values():
            assert f"{number:.4g}" in text
    *curves, solution = page.images
    assert len(curves) == 4 and solution.getpixel((600, 180)) == (255, 0, 0)
    for image in curves:
        assert image.width >= 1000 and np.asarray(image.convert("L")).std() > 10
    assert len({image.tobytes() for image in curves}) == 4


def test_nothing_of_the_users_becomes_part_of_the_page(run):
    page = Page(write_report(run))
    assert not {"script", "b>", "iframe"} & set(page.tags)
    assert page.tags.count("b") == page.tags.count("img")  # of the captions alone
    colors = [a["style"] for tag, a in zip(page.tags, page.attributes) if tag == "i"]
    assert colors == ["background: #1f77b4", "background: #ff7f0e"]  # of the curves, by name
    assert not any(name.startswith("on") for a in page.attributes for name in a)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:https?:)?//\w", re.sub(r"base64,[^\"]*", "", text))


def test_a_history_alone_is_enough(tmp_path):
    history = save_history(tmp_path, balanced=False)
    page = Page(write_report(tmp_path, tmp_path / "other.html"))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["history.npz", "other.html"]
    text = " ".join(page.text)
    assert tmp_path.name in text and len(page.images) == 1  # the losses
    assert "Nothing needs attention." in text and history.diagnose() == []
    assert "nan" not in text and "Settings" not in text


def save_run(folder, balance, error, steps=40, **settings):
    """A run of a problem, which may be compared with others."""
    folder.mkdir()
    settings = {"problem": "p", "balance": balance, "epochs": steps, "seed": 0, **settings}
    curve = [[k, error * 0.9**k] for k in range(1, steps + 1)]
    metrics = {"errors": {"u": error}, "error_curve": curve, "settings": settings}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return save_history(folder, balance != "equal", steps)


def test_a_run_with_equal_weights_beside_is_shown_too(tmp_path):
    save_run(tmp_path / "b", "pinn", 0.01, output="b", alpha=0.0, rule="pinn")
    alone = Page(write_report(tmp_path / "b"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.json").write_text("{")  # nobody's run
    save_run(tmp_path / "c", "equal", 0.03, seed=1)
    save_run(tmp_path / "d", "equal", 0.04, steps=30, epochs=40)  # it was stopped
    save_run(tmp_path / "e", "published", 0.05)
    assert Page(write_report(tmp_path / "b")).text == alone.text
    equal = save_run(tmp_path / "f", "equal", 0.0625, output="f", live=True)
    page = Page(write_report(tmp_path / "b"))
    assert "equal weights: 0.0625" in page.text and "last, equal weights" in page.text
    assert f"{equal.losses['pde'][-1]:.4g}" in page.text
    assert sum("Dashed: with equal weights" in text for text in page.text) == 2
    pictures = [[image.tobytes() for image in each.images] for each in (alone, page)]
    assert [a == b for a, b in zip(*pictures)] == [False, True, True, True, False]
    assert "equal weights" not in " ".join(Page(write_report(tmp_path / "f")).text)


def test_both_curves_of_a_long_run_are_over_its_steps(tmp_path, monkeypatch):
    drawn = []

    def png(figure):
        drawn.append({x.get_linestyle(): x.get_xdata().tolist() for x in figure.axes[0].lines})
        return b""

    monkeypatch.setattr(report, "png", png)
    for balance in ("pinn", "equal"):
        save_run(tmp_path / balance, balance, 0.01, steps=1)
        history = History(limit=1000)
        for step in range(3000):
            history.record(NAMES, np.array([0.999**step, 2.0]))
        history.save(tmp_path / balance / "history.npz")
    write_report(tmp_path / "pinn")
    assert drawn[0]["-"] == drawn[0]["--"] == history.steps.tolist()


def test_an_error_curve_that_is_none_is_left_out(run):
    for curve in ("often", [1, 2], [[1, 2, 3]], {"a": 1}, []):
        (run / "metrics.json").write_text(json.dumps({**METRICS, "error_curve": curve}))
        assert len(Page(write_report(run)).images) == 5


def test_a_narrow_screen_gets_a_figure_of_its_own(run):
    Image.new("RGB", (300, 900), "green").save(run / "solution_narrow.png")
    page = Page(write_report(run))
    sources = [a for tag, a in zip(page.tags, page.attributes) if tag == "source"]
    assert [source["media"] for source in sources] == ["(max-width: 40rem)"]
    data = base64.b64decode(sources[0]["srcset"].removeprefix("data:image/png;base64,"))
    assert data == (run / "solution_narrow.png").read_bytes()
    assert len(page.images) == 5  # and none for itself


def test_every_number_knows_the_head_of_its_column(run):
    page = Page(write_report(run))
    labels = [a["data-label"] for a in page.attributes if "data-label" in a]
    assert labels[:5] == ["first", "last", "weight", "gradient norm", "inverse training rate"]


def test_without_findings_of_the_run_those_of_the_history_are_shown(tmp_path):
    history = History()
    for _ in range(300):
        history.record(["pde", "data"], paddle.ones([2]))
    history.save(tmp_path / "history.npz")
    found = history.diagnose()
    assert found and html.escape(found[0]) in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_run_of_bad_numbers_has_a_page_too(tmp_path):
    history = History()
    for loss in (1.0, float("inf"), float("nan")):
        row = paddle.to_tensor([loss, float("nan")])
        history.record(NAMES, row, row, row, row)
    history.save(tmp_path / "history.npz")
    page = Page(write_report(tmp_path))
    assert len(page.images) == 4 and page.tags.count("i") == 2


def change_history(folder, **changed):
    with np.load(folder / "history.npz") as arrays:
        arrays = {**arrays, **changed}
    with (folder / "history.npz").open("wb") as file:
        np.savez(file, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (shutil.rmtree, "does not exist; give the folder that a run has written"),
        (lambda run: (run / "history.npz").unlink(), "has no history.npz, so no finished run"),
        (lambda run: (run / "history.npz").write_bytes(b""), r"history.npz' is damaged"),
        (lambda run: (run / "history.npz").write_bytes(b"PK\3\4" * 9), "is damaged"),
        (lambda run: np.save((run / "history.npz").open("wb"), np.ones(3)), "is damaged"),
        (lambda run: change_history(run, weights=None), "is damaged, or no history; train again"),
        (lambda run: change_history(run, weights=np.ones((3, 2))), "is damaged"),
        (lambda run: change_history(run, names=np.array(["pde"])), "is damaged"),
        (lambda run: save_history(run, steps=0), "has no step"),
        (lambda run: (run / "metrics.json").write_text("{"), "metrics.json' is no dict in JSON"),
        (lambda run: (run / "metrics.json").write_text("[]"), "mend it or take it away"),
    ],
)
def test_what_is_no_run_is_named(run, spoil, message):
    spoil(run)
    with pytest.raises(ValueError, match=message) as raised:
        write_report(run)
    assert str(run) in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match="run' is no folder"):
        write_report(tmp_path / "run")


def test_a_cut_off_history_is_named(run):
    content = (run / "history.npz").read_bytes()
    for length in range(0, len(content), 97):
        (run / "history.npz").write_bytes(content[:length])
        with pytest.raises(ValueError, match="is damaged"):
            write_report(run)


def test_without_matplotlib_it_says_which_extra_to_install(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        write_report(run)


def browse(page, folder, width):
    """What Chromium writes to its console and asks the network for, and its picture."""
    result = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'user'}"),
            *("--enable-logging=stderr", f"--log-net-log={folder / 'net.json'}"),
            *(f"--window-size={width},900", f"--screenshot={folder / 'page.png'}"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    console = [line for line in result.stderr.splitlines() if ":CONSOLE" in line]
    events = json.loads((folder / "net.json").read_text())["events"]
    requests = [event["params"] for event in events if "initiator" in event.get("params", {})]
    # The browser has some of its own, with nobody who initiated them.
    asked = [r["url"] for r in requests if r["initiator"] != "not an origin"]
    return console, asked, Image.open(folder / "page.png")


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_errors_or_network(run, tmp_path_factory, width):
    page = write_report(run)
    console, asked, picture = browse(page, tmp_path_factory.mktemp("browser"), width)
    assert console == [] and asked == []
    assert picture.width == width and np.asarray(picture.convert("L")).std() > 10


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
def test_on_a_phone_nothing_is_wider_than_the_screen(run, tmp_path):
    Image.new("RGB", (300, 900), "green").save(run / "solution_narrow.png")
    text = write_report(run).read_text(encoding="utf-8")
    policy = re.compile(r"<meta http-equiv.*?>", re.DOTALL)
    script = (
        "<script>document.title = [...document.querySelectorAll('img, table, td, th')].filter("
        "x => x.getBoundingClientRect().right > document.documentElement.clientWidth).length + ' '"
        " + document.querySelector('picture img').naturalHeight</script></body>"
    )
    page = tmp_path / "page.html"
    page.write_text(policy.sub("", text).replace("</body>", script), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    more = [f"--user-data-dir={tmp_path / 'user'}", "--window-size=500,900", page.as_uri()]
    result = subprocess.run([*command, *more], capture_output=True, text=True, timeout=120)
    assert "<title>0 900</title>" in result.stdout


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_itself_forbids_scripts_and_network(run, tmp_path_factory):
    page = write_report(run)
    text = page.read_text(encoding="utf-8")
    more = '<img src="http://localhost:9/x.png"><script>console.error("boo")</script></main>'
    page.write_text(text.replace("</main>", more), encoding="utf-8")
    console, asked, _ = browse(page, tmp_path_factory.mktemp("browser"), 1280)
    assert len(console) == 2 and all("Content Security Policy" in line for line in console)
    assert asked == []
    # And without that line it would all have been seen.
    policy = re.compile(r"<meta http-equiv.*?>", re.DOTALL)
    page.write_text(policy.sub("", text.replace("</main>", more)), encoding="utf-8")
    console, asked, _ = browse(page, tmp_path_factory.mktemp("browser"), 1280)
    assert any("boo" in line for line in console) and asked == ["http://localhost:9/x.png"]


HOSTILE = (
    "</td></title><script>console.error('boo')</script>"
    "<img src=http://localhost:9/x onerror=console.error('boo')>\" onload='console.error(1)"
)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_runs_no_name(tmp_path, tmp_path_factory):
    """Because they are escaped, not only because the page forbids scripts."""
    history = History()
    for _ in range(3):
        history.record([HOSTILE, "bc"], *4 * [np.ones(2)])
    history.save(tmp_path / "history.npz")
    metrics = {
        **dict.fromkeys(("equation", "machine", HOSTILE), HOSTILE),
        **{name: {HOSTILE: HOSTILE} for name in ("errors", "settings", "versions")},
        "diagnosis": [HOSTILE],
    }
    metrics["settings"]["problem"] = HOSTILE
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    name = HOSTILE.replace("/", "")
    Image.new("RGB", (40, 40), "red").save(tmp_path / f"{name}.png")
    page = write_report(tmp_path)
    text = re.sub(r"<meta http-equiv.*?>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")
    assert "boo" in text and "Content-Security-Policy" not in text
    console, asked, picture = browse(page, tmp_path_factory.mktemp("browser"), 1280)
    assert console == [] and asked == []
    assert np.asarray(picture.convert("L")).std() > 10
