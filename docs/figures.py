"""The pictures of the pages: from runs that are made here, points, and tables of the pages.

    python docs/figures.py                  # all of them, in docs/images; two minutes on one core
    python docs/figures.py healthy floor    # some

There is one more, deepxde, where DeepXDE is installed.

What the pages say of the runs is printed beside.
"""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import sympy
from matplotlib.colors import LogNorm

from paddlescience_gradnorm import FCNet, GradNorm
from paddlescience_gradnorm.balancing import Measurement, PinnRule
from paddlescience_gradnorm.pde import sample_boundary, sample_face, sample_interior
from paddlescience_gradnorm.pde.problems import Condition, Problem, Region, problem
from paddlescience_gradnorm.training import History, Trainer

import paddle  # isort: skip, after the package that sees to its loading

IMAGES = Path(__file__).with_name("images")
EXAMPLES = Path(__file__).parents[1] / "examples"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STEPS, POINTS, LAYERS, WIDTH, LEARNING_RATE = 2000, 400, 4, 30, 2e-3
STEEL = 2.1e5  # Young's modulus in N/mm^2
TASKS, SCALES = ("scale 1", "scale 5"), paddle.to_tensor([1.0, 5.0])
OFFSET = 0.2  # of sensors that are wrong; the solution lies between 0.54 and 1.54


def train(
    title: str,
    posed: Problem,
    steps: int,
    each: Callable[[int, Any, Any], None] | None = None,
    **balance: Any,
) -> Trainer:
    """A run by Adam at a rate that falls to zero along a cosine; prints what came of it.

    Args:
        title: Of what is printed.
        posed: The problem.
        steps: Their number.
        each: Called in every step with its number, the network and the losses.
        balance: Options of ``GradNorm``; none for equal weights.
    """
    paddle.seed(0)
    sampled = posed.sample(POINTS, seed=0)
    net: Any = FCNet(len(posed.coordinates), len(posed.fields), LAYERS, WIDTH)
    if balance:
        balance.setdefault("equations", [c.name for c in posed.conditions if c.kind == "pde"])
        net = GradNorm(net, len(posed.conditions), **balance)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(LEARNING_RATE, T_max=steps)
    adam = paddle.optimizer.Adam(schedule, parameters=net.parameters())

    def losses(net: Any) -> Any:
        values = sampled.losses(net)
        if each is not None:
            each(trainer.step, net, values)
        return values

    trainer = Trainer(net, losses, adam)
    trainer.fit(epochs=steps)
    last = trainer.history.last()
    print(title, {k: f"{v:.2g}" for k, v in posed.relative_errors(net).items()})
    for name in trainer.history.names:
        print(f"  {name:10}", *(f"{quantity} {last[quantity][name]:.3g}" for quantity in last))
    for finding in trainer.diagnose() or ["Nothing needs attention."]:
        print("  -", finding)
    return trainer


def healthy(folder: Path, steps: int) -> None:
    posed = problem("poisson")
    train("poisson, equal weights", posed, steps)
    trainer = train("poisson, PINN rule", posed, steps, rule="pinn")
    save(folder / "curves_healthy.png", draw(trainer.history))


def floor(folder: Path, steps: int) -> None:
    trainer = train("helmholtz, published", problem("helmholtz"), steps, alpha=1.0)
    save(folder / "curves_floor.png", draw(trainer.history))
    train("helmholtz, PINN rule", problem("helmholtz"), steps, rule="pinn")


def bound(folder: Path, steps: int) -> None:
    trainer = train("bar in N/mm^2", bar(STEEL), steps, rule="pinn")
    save(folder / "curves_bound.png", draw(trainer.history))
    train("bar, divided by its modulus", bar(1.0), steps, rule="pinn")


def conflict(folder: Path, steps: int) -> None:
    measured = []

    def measure(step: int, net: Any, losses: Any) -> None:
        if step % 20 == 0:
            measured.append((step, cosine(net, losses["boundary"], losses["inner"])))

    posed = sensors(OFFSET)
    trainer = train("sensors 0.2 too high", posed, steps, measure, rule="pinn")
    figure = draw(trainer.history, panels=3)
    at, cosines = zip(*measured)
    axes = figure.axes[2]
    axes.axhline(0, color="0.8", linewidth=1)
    axes.plot(at, cosines, color="0.3", linewidth=1)
    axes.set(xlabel="step", title="cosine of boundary and inner", ylim=(-1.05, 1.05))
    save(folder / "curves_conflict.png", figure)
    train("sensors without a fault", sensors(0.0), steps, rule="pinn")


def rate(folder: Path, steps: int) -> None:
    options = {"alpha": 0.12, "weight_lr": 1e-2}
    trainer = train("helmholtz, a rate too high", problem("helmholtz"), steps, **options)
    save(folder / "curves_rate.png", draw(trainer.history))


def norms(folder: Path, steps: int) -> None:
    """How the published rule brings the gradient norms together, on two quantities to fit."""
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3), layout="constrained")
    for axis, alpha, balance in zip(axes, (None, 0.12), ("equal weights", "GradNorm")):
        history = two_tasks(alpha, steps)
        for name in TASKS:
            weighted = history.weights[name] * history.gradient_norms[name]
            axis.plot(smooth(weighted), label=name)
        axis.set(ylim=(0, 4), xlabel="step", title=f"w ‖g‖, {balance}")
        axis.legend()
    history.plot_weights(axes[2]).set(title="weights", ylabel="")
    save(folder / "how_norms.png", figure)


def targets(folder: Path, steps: int) -> None:
    """Where the PINN rule's weights rest, and how they get there."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.2), layout="constrained")
    ratios = np.logspace(-7, 5, 49)
    for rule, label in (
        (PinnRule(strength=1.0, lead=1.0), "equal norms: strength 1, lead 1"),
        (PinnRule(), "default: strength 1/3, lead 20"),
        (PinnRule(lead=1.0), "strength 1/3, lead 1"),
    ):
        left.plot(ratios, [weight_at_rest(rule, ratio) for ratio in ratios], label=label)
    left.set(xscale="log", yscale="log", title="where it rests")
    left.set(xlabel="gradient norm, condition / equation", ylabel="weight of the condition")
    left.legend(fontsize=8)
    for ratio in (1e-4, 1e-2, 1.0, 1e2):
        path = [weight for _, weight in zip(range(100), follow(PinnRule(), ratio, 0.1))]
        right.plot(10 * np.arange(100), path, label=f"norms 1 : {ratio:g}")
    right.set(
        yscale="log", xlabel="step", ylabel="weight of the condition", title="how it gets there"
    )
    right.legend(fontsize=8)
    save(folder / "how_targets.png", figure)


def points(folder: Path, steps: int) -> None:
    """The collocation points of conditions.md."""
    figure, panels = plt.subplots(1, 4, figsize=(11, 3.7), layout="constrained")
    low, high = [0, 0], [1, 1]
    inside = sample_interior(200, low, high, seed=0)
    faces = [
        sample_face(14, low, high, {axis: side}, seed=3) for axis in (0, 1) for side in (0.0, 1.0)
    ]

    def draw_points(axes: Any, **sets: np.ndarray) -> None:
        for label, where in sets.items():
            size, color = (4, "0.6") if label == "inside" else (16, None)
            axes.scatter(*where.T, s=size, color=color, label=label.replace("_", " "))
        axes.set(aspect="equal", xticks=[0, 1], yticks=[0, 1], xlabel="x", ylabel="y")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False)

    left, right, bottom, top = faces
    draw_points(panels[0], inside=inside, Dirichlet=top, Neumann=bottom)
    panels[0].scatter(*left.T, s=16, color="tab:green", label="periodic")
    panels[0].scatter(*right.T, s=16, color="tab:green")
    for one, other in zip(left, right):
        panels[0].plot(*np.stack([one, other]).T, color="tab:green", linewidth=0.3)
    panels[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False)
    panels[0].set(title="a square")

    draw_points(panels[1], inside=inside, initial=bottom, sides=np.concatenate([left, right]))
    panels[1].set(title="in time", ylabel="t")

    cut = [0.5, 0.5]
    edge = sample_boundary(90, low, high, seed=1)
    corner = [sample_face(12, cut, high, {k: 0.5}, seed=2) for k in (0, 1)]
    draw_points(
        panels[2],
        inside=inside[~(inside > cut).all(axis=1)],
        edge=np.concatenate([edge[~(edge > cut).all(axis=1)], *corner]),
    )
    panels[2].set(title="an L-shape")

    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)[:, None]
    hole = 0.5 + 0.2 * np.hstack([np.cos(angle), np.sin(angle)])
    outside = ((inside - 0.5) ** 2).sum(axis=1) > 0.2**2
    draw_points(panels[3], inside=inside[outside], edge=np.concatenate(faces), hole=hole)
    panels[3].set(title="a hole")
    save(folder / "points.png", figure)


def cost(folder: Path, steps: int) -> None:
    """What balancing adds to a step, from the tables of performance.md."""
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3), sharey=True, layout="constrained")
    found = ratios((IMAGES.parent / "performance.md").read_text(encoding="utf-8"))
    for axes, rows, title in zip(panels, found, ("Paddle alone", "with the operator in C++")):
        groups = list(dict.fromkeys(group for group, _ in rows))
        for shift, rule in enumerate(("PINN rule", "published rule, weight_lr")):
            at = np.arange(len(groups)) + 0.38 * (shift - 0.5)
            heights = [rows[group, rule] - 1 for group in groups]
            bars = axes.bar(at, heights, 0.36, bottom=1, label=rule.partition(",")[0])
            axes.bar_label(bars, [f"{1 + height:.2f}" for height in heights])
        axes.axhline(1, color="0.3", linewidth=1)
        axes.set_xticks(np.arange(len(groups)), groups)
        axes.set(title=title, ylim=(0.95, 1.5))
        axes.legend(loc="upper left")
    panels[0].set(ylabel="time of a step / plain step")
    save(folder / "cost.png", figure)


def step_cost(folder: Path, steps: int) -> None:
    """That of benchmarks/step_cost.py, from its tables in performance.md."""
    page = (IMAGES.parent / "performance.md").read_text(encoding="utf-8")
    sys.path.append(str(BENCHMARKS))
    plot = runpy.run_path(str(BENCHMARKS / "step_cost.py"))["plot"]
    plot(folder / "step_cost.png", contestants(page))
    print("step_cost.png")


def own_loop(folder: Path, steps: int) -> None:
    """What the network of examples/own_loop has learnt, at one frequency."""
    plain_loop = runpy.run_path(str(EXAMPLES / "own_loop/plain_loop.py"))
    net, _ = plain_loop["main"](epochs=min(60, steps))
    time, frequency = paddle.linspace(0, 1, 101).reshape([-1, 1]), 5.0
    outputs = net(paddle.concat([time, paddle.full_like(time, frequency)], axis=1))
    exact = (frequency * time).sin()
    figure, panels = plt.subplots(1, 2, figsize=(7.6, 3), layout="constrained")
    titles = ("displacement [m]", "acceleration [m/s²]")
    for axes, title, found, truth in zip(panels, titles, outputs, (exact, -(frequency**2) * exact)):
        # As arrays, because Matplotlib copies what it is given, and Paddle 2.6 copies no tensors.
        axes.plot(time.numpy(), truth.numpy(), color="0.7", linewidth=5, label="exact")
        axes.plot(time.numpy(), found.numpy(), label="network")
        axes.set(title=title, xlabel="time [s]")
        axes.legend()
    save(folder / "own_loop.png", figure)


def several_processes(folder: Path, steps: int) -> None:
    """The points of examples/several_processes: each process has its own."""
    figure, axes = plt.subplots(figsize=(3.6, 3.9), layout="constrained")
    for rank in range(2):
        sampled = problem("laplace").sample(n_points=128, seed=rank)
        for k, where in enumerate(sampled.points.values()):
            label = f"process {rank}" if k == 0 else None
            axes.scatter(*where.T, s=8, color=f"C{rank}", label=label)
    axes.set(aspect="equal", xlabel="x", ylabel="y", title="points of two processes")
    legend_below(axes, distance=0.14)
    save(folder / "several_processes.png", figure)


def deepxde(folder: Path, steps: int) -> None:
    """The error of examples/deepxde_poisson after Adam, without and with its two lines."""
    program = (EXAMPLES / "deepxde_poisson/poisson.py").read_text(encoding="utf-8")
    until_adam = program[: program.index("dde.optimizers.set_LBFGS_options")]
    until_adam = until_adam.replace("iterations=2000", f"iterations={steps}")
    side = np.linspace(0, 1, 101)
    square = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    errors = {}
    for name, code in (
        ("plain", until_adam.replace("balance(model)\n", "")),
        ("balanced", until_adam),
    ):
        run: dict[str, Any] = {}
        exec(code, run)
        error = run["model"].predict(square) - run["exact"](square)
        errors[name] = np.abs(error).reshape(101, 101)
        print(
            f"DeepXDE, {name}: {np.linalg.norm(error) / np.linalg.norm(run['exact'](square)):.2g}"
        )
    figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.4), sharey=True, layout="constrained")
    largest = max(error.max() for error in errors.values())
    scale = LogNorm(largest / 1e4, largest, clip=True)  # as in the demo
    for axes, (name, error) in zip(panels, errors.items()):
        image = axes.imshow(error, origin="lower", extent=(0, 1, 0, 1), cmap="magma", norm=scale)
        axes.set(title=f"error after Adam, {name}", xlabel="x", ylabel="y")
    figure.colorbar(image, cax=axes.inset_axes((1.04, 0, 0.05, 1)))
    save(folder / "deepxde_poisson.png", figure)


def ratios(page: str) -> list[dict[tuple[str, str], float]]:
    """For each table of step_overhead.py: (losses and points, kind of step) -> median in pairs."""
    tables: list[dict[tuple[str, str], float]] = []
    row = re.compile(
        r"\| (two|three)[^|]*\| ([\d,]+) \| ([^|]+) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \["
    )
    for line in page.splitlines():
        match = row.match(line)
        if match is None:
            continue
        losses, number, step, ratio = match.groups()
        group = f"{number}\npoints" if losses == "two" else f"{number}\none graph"
        if (group, step) == ("500\npoints", "plain step"):
            tables.append({})
        tables[-1][group, step] = float(ratio)
    return tables


def contestants(page: str) -> list[dict[str, Any]]:
    """The rows of step_cost.py, as its figure takes them, from its tables on Laplace's equation."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    of_three = r"([\d.]+) \[([\d.]+), ([\d.]+)\]"
    line = re.compile(rf"\| ([\d,]+) \| (.+?) \| {of_three} \| {of_three} \|")
    for section in page.split("\n#### "):
        title = section.partition(" ")[0]
        if title not in ("Points", "Losses", "All") or "Navier" in section.partition("\n")[0]:
            continue
        for count, label, *found in line.findall(section):
            points, losses = ("2,000", count) if title == "Losses" else (count, "2")
            row = {"equation": "laplace", "worker": "", "mode": "", "label": label}
            row.update(points=int(points.replace(",", "")), losses=int(losses))
            ms, ratio = (
                dict(zip(("median", "q1", "q3"), map(float, x))) for x in (found[:3], found[3:])
            )
            if title != "All":
                row.update(worker="paddle", to_plain=ratio)
            rows.setdefault((points, losses, label), {**row, "ms": ms})
    return list(rows.values())


def bar(modulus: float) -> Problem:
    """A clamped bar under its own weight, E u'' + E = 0, with the solution x (2 - x) / 2."""
    x, u = sympy.Symbol("x"), sympy.Function("u")
    clamp = Region("clamp", 1, faces=({x: 0.0},))
    end = Region("end", 1, faces=({x: 1.0},))
    return Problem(
        name="bar",
        equation="E u'' + E = 0, u(0) = 0, u'(1) = 0",
        coordinates=(x,),
        fields=(u,),
        low=(0.0,),
        high=(1.0,),
        conditions=(
            Condition("pde", "pde", Region("interior", 250), (modulus * (u(x).diff(x, 2) + 1),)),
            Condition("clamp", "boundary", clamp, (u(x),)),
            Condition("end", "boundary", end, (u(x).diff(x),)),
        ),
        reference=(x * (2 - x) / 2,),
    )


def sensors(offset: float) -> Problem:
    """Laplace's equation with values on the edge, and sensors inside that show too much."""
    x, y = sympy.symbols("x y")
    u = sympy.Function("u")
    exact = sympy.cos(x) * sympy.cosh(y)
    edge = Region("edge", 200, faces=({x: 0.0}, {x: 1.0}, {y: 0.0}, {y: 1.0}))
    return Problem(
        name="sensors",
        equation="Laplace's equation, u on the edge and at sensors",
        coordinates=(x, y),
        fields=(u,),
        low=(0.0, 0.0),
        high=(1.0, 1.0),
        conditions=(
            Condition(
                "pde", "pde", Region("interior", 1000), (u(x, y).diff(x, 2) + u(x, y).diff(y, 2),)
            ),
            Condition("boundary", "boundary", edge, (u(x, y) - exact,)),
            Condition("inner", "boundary", Region("sensors", 50), (u(x, y) - exact - offset,)),
        ),
        reference=(exact,),
    )


def two_tasks(alpha: float | None, steps: int) -> History:
    """Two noisy quantities of different scale and one network, much as the paper's section 4."""
    paddle.seed(0)
    common, own = paddle.randn([10, 1]), 0.5 * paddle.randn([10, 2])
    net = GradNorm(FCNet(10, 2, LAYERS, 2 * WIDTH), 2, alpha=alpha or 0.0)
    if alpha is None:
        net.freeze()  # equal weights; what they do to the norms is measured below
    adam = paddle.optimizer.Adam(LEARNING_RATE, parameters=net.parameters())
    history = History()
    for _ in range(steps):
        inputs = paddle.randn([100, 10])
        exact = paddle.tanh(inputs @ (common + own))
        outputs = SCALES * (exact + 0.5 * paddle.randn([100, 2]))
        losses = (net(inputs) - outputs).square().mean(axis=0).unbind()
        weights = paddle.to_tensor(net.get_weights())
        shared = net.get_last_shared_layer()
        sizes = [paddle.grad(x, [shared], retain_graph=True)[0].norm() for x in losses]
        net.backward(losses)
        values = paddle.stack(losses).detach()
        history.record(TASKS, values, weights, paddle.stack(sizes))
        adam.step()
        adam.clear_grad()
    return history


def weight_at_rest(rule: PinnRule, ratio: float) -> float:
    """Of a condition whose gradient is so many times the equation's."""
    weights = [weight for _, weight in zip(range(60), follow(rule, ratio, 1.0))]
    return weights[-1]


def follow(rule: PinnRule, ratio: float, rate: float) -> Any:
    """The condition's weight from update to update while the norms stay as they are."""
    weights, state = np.ones(2), rule.start(2)
    measured = Measurement(
        np.ones(2),
        np.diag([1.0, ratio**2]),
        equations=np.array([True, False]),
        rate=rate,
        floor=1e-6,
    )
    while True:
        yield float(weights[1])
        weights, state = rule.weigh(weights, state, measured)


def cosine(net: Any, one: paddle.Tensor, other: paddle.Tensor) -> float:
    """Between the gradients of two losses on all parameters of the network."""
    parameters = net.net.parameters()
    flat = []
    for loss in (one, other):
        # The output layer's bias is in no derivative.
        found = paddle.grad(loss, parameters, retain_graph=True, allow_unused=True)
        flat.append(paddle.concat([g.flatten() for g in found if g is not None]))
    return float(paddle.nn.functional.cosine_similarity(*flat, axis=0))


def smooth(values: np.ndarray, window: int = 50) -> np.ndarray:
    """Running medians, for what jumps from step to step."""
    return np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=1)


def draw(history: History, panels: int = 2) -> Any:
    figure, axes = plt.subplots(1, panels, figsize=(3.6 * panels, 3.5), layout="constrained")
    for axis, plot in zip(axes, (history.plot_losses, history.plot_weights)):
        legend_below(plot(axis))
    return figure


def legend_below(axes: Any, distance: float = 0.22) -> None:
    """Where it covers no curve; the distance is in heights of the axes."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -distance), ncols=3, frameon=False)


def save(path: Path, figure: Any) -> None:
    figure.savefig(path, dpi=160)
    plt.close(figure)
    print(path.name)


FIGURES = {
    f.__name__: f
    for f in (
        *(norms, targets, healthy, floor, bound, conflict, rate, points, cost),
        *(step_cost, own_loop, several_processes, *([deepxde] if find_spec("deepxde") else [])),
    )
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(FIGURES))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=IMAGES)
    options = parser.parse_args(arguments)
    unknown = set(options.figures) - set(FIGURES)
    if unknown:
        parser.error(f"no such figure: {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.figures or FIGURES:
        FIGURES[name](options.output, options.steps)


if __name__ == "__main__":
    main()
