"""The error that balances reach on problems with known solutions: problem x balance x seed.

Every run is a process of its own and adds a line to runs.jsonl when it is done; what is there
already is not run again, and what was interrupted goes on from its last checkpoint. From these
lines come two tables (of balances, and of problems with medians and spread over seeds) and a figure
(a dot for each problem and balance). Run it with --help for the options.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
import paddle
from accuracy_balances import BALANCES, TITLES, balanced, usual
from accuracy_networks import standardised_net, wave_net

from paddlescience_gradnorm import GradNorm
from paddlescience_gradnorm.pde.problems import PROBLEMS
from paddlescience_gradnorm.pde.problems import problem as problem_of
from paddlescience_gradnorm.runtime import tune_cpu  # before Paddle multiplies
from paddlescience_gradnorm.training import StopOnSignals, Trainer, _runs
from paddlescience_gradnorm.training._course import MOMENTS, Course
from paddlescience_gradnorm.training._runs import Run
from paddlescience_gradnorm.training._trial import KnownProblem


@dataclass(frozen=True)
class Settings:
    """How a problem is trained: by Adam, at a rate that falls to zero along a cosine.

    As ``published``, the rate is constant, and network and inputs are those of ``DB_PINN``.
    """

    hidden_layers: int = 4
    width: int = 50
    points: dict[str, int] = field(default_factory=dict)  # by region; the rest as usual
    learning_rate: float = 2e-3
    steps: int = 5000
    seconds: float = 0.0  # instead of steps, if above 0
    lbfgs_steps: int = 0  # afterwards
    waves: dict[str, float] = field(default_factory=dict)  # of a network of waves, as for wave_net
    point_weights: str = ""  # of the equations
    optimizer: str = ""  # of OPTIMIZERS; Adam if it is empty
    beta2: float = 0.0  # of the optimizer, which has its own if it is 0
    published: bool = False


COLORS = 3  # that dots on one line can have and still be told apart

# What a line keeps of a run: little, because lines are kept in the repository.
KEPT = ("error", "steps", "seconds", "cpu_seconds", "losses", "paddle", "operators")

# Their derivatives of third and fourth order make a step 3 to 20 times as long as others'.
SUITE = {
    "cavity": Settings(steps=3000),
    "plate": Settings(steps=1000),
    "kdv": Settings(points={"interior": 700}),
    "vibration": Settings(points={"interior": 300}),
    "beam": Settings(points={"interior": 100}),  # on a line, which is enough
}
# A better rule is looked for on the first fifteen problems and on SEARCH, and confirmed on
# CONFIRMATION. docs/accuracy.md says what was chosen where. Both halves have the same kinds, a row
# each.
SEARCH = (
    *("channel", "step", "taylor_green"),
    *("laplace_holes", "helmholtz_3d"),
    *("first_order", "beam"),
    *("kdv", "reaction_diffusion"),
    *("elasticity", "heat_inverse"),
)
CONFIRMATION = (
    *("couette", "lid", "beltrami"),
    *("poisson_boltzmann", "poisson_3d"),
    *("lotka_volterra", "vibration"),
    *("schroedinger", "heat_multiscale"),
    *("pipe", "transport_inverse"),
)
# No weights of losses solve these with the networks of the suite and Adam.
UNSOLVED = ("convection", "allen_cahn", "wave")
# Table 1 of Zhou et al., IJCAI 2025.
DB_PINN = {
    "allen_cahn": Settings(
        4, 128, {"interior": 20_000, "initial": 512, "boundary": 200}, 1e-3, 80_000
    ),
    "burgers_inverse": Settings(
        8,
        20,
        {"interior": 10_000, "initial": 100, "boundary": 200, "data": 300},
        1e-3,
        5_000,
        lbfgs_steps=10_000,
    ),
    "cavity": Settings(3, 50, {"interior": 20_000, "lid": 100, "walls": 300}, 1e-3, 40_000),
}

# UNSOLVED, with networks of waves.
WAVES: dict[str, Settings] = {
    "convection": Settings(
        2, 64, {"interior": 2500}, 4e-3, 2000, waves={"number": 32, "x": 1, "t": 2.5}
    ),
    "wave": Settings(2, 64, steps=5000, waves={"number": 32, "x": 1.5, "t": 1.5}),
    "allen_cahn": Settings(3, 64, {"interior": 2000}, waves={"number": 0, "x": 6, "t": 0}),
}


def soap(**options: Any) -> paddle.optimizer.Optimizer:
    """PaddleScience's SOAP, without weight decay, as Adam here."""
    from ppsci.optimizer.soap import SOAP

    return SOAP(weight_decay=0.0, **options)


OPTIMIZERS: dict[str, Callable[..., paddle.optimizer.Optimizer]] = {
    "adam": paddle.optimizer.Adam,
    "soap": soap,
}


def train(run: Run, folder: Path, say: Callable[[float], None], stop: StopOnSignals) -> Run | None:
    """One run, with checkpoints in the folder; all that is to be known of it."""
    tune_cpu(threads=1, build=False)
    settings = Settings(**run["settings"])
    network = settings.hidden_layers, settings.width
    problem = problem_of(run["problem"])
    task = KnownProblem(
        run["problem"],
        *network,
        points=settings.points,
        point_weights=settings.point_weights or None,
    )
    trial = task.begin(run["seed"])
    if settings.waves:
        trial = trial._replace(net=wave_net(problem, settings.waves, *network, run["seed"]))
    if settings.published:
        trial = trial._replace(net=standardised_net(problem, *network, run["seed"]))
    kinds = {c.name: c.kind for c in problem.conditions}
    net, balancer = balanced(run["balance"], run["options"], trial.net, kinds, run["problem"])
    course = Course(trial.error, say)

    class OverTime(paddle.optimizer.lr.LRScheduler):
        def get_lr(self) -> float:
            done = min(1.0, course.seconds() / settings.seconds)
            if done and isinstance(net, GradNorm):  # what the run will have at this pace
                net.balancer.total_steps = math.ceil(max(1, self.last_epoch) / done)
            return 0.5 * self.base_lr * (1 + math.cos(math.pi * done))

    class Deadline(paddle.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if course.seconds() > settings.seconds:
                self.model.stop_training = True

    steps, callbacks = settings.steps, [stop]
    if settings.seconds:
        schedule = OverTime(settings.learning_rate)
        steps, callbacks = 10**9, [stop, Deadline()]
    elif settings.published:
        schedule = settings.learning_rate
    else:
        schedule = paddle.optimizer.lr.CosineAnnealingDecay(settings.learning_rate, T_max=steps)
    more = {"beta2": settings.beta2} if settings.beta2 else {}
    optimizer = OPTIMIZERS[settings.optimizer or "adam"](
        learning_rate=schedule, parameters=[*net.parameters(), *trial.parameters], **more
    )
    extras = {"course": course}
    trainer = Trainer(
        net, trial.losses, optimizer, balancer, callbacks, extras=extras, progress=False
    )
    # PaddleScience's aggregators keep a part of their state where no checkpoint finds it.
    keeps = not settings.seconds and balancer is None
    course.follow(trainer, steps, folder, max(1, settings.steps // MOMENTS), keeps)
    if stop.received:
        return None
    if settings.lbfgs_steps:
        trainer.fit_lbfgs(epochs=1, max_iter=settings.lbfgs_steps)
    found = course.results(trainer)
    kept = {name: found[name] for name in KEPT}
    last = {name: weights[-1] for name, weights in found["weights"].items()}
    return {**kept, "weights": last, **trial.found(net)}


def run_all(options: argparse.Namespace) -> list[Run]:
    """All runs that have been asked for, those that are in the file already and new ones."""
    plan = [
        {
            "problem": name,
            "balance": balance,
            "options": options.rule_options if balance == options.label else {},
            "seed": seed,
            "settings": told(settings_of(name, options)),
        }
        for seed in options.seeds
        for balance in options.balances
        for name in options.problems
    ]
    # One thread each, also where a library looks when it is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    known = _runs.read_runs(options.output)
    if options.table:
        asked = ("problem", "balance", "seed", "settings")
        plan = [{name: run[name] for name in asked} for run in plan]
        return [run for run in known if {name: run[name] for name in asked} in plan]
    runs = _runs.run_all(plan, known, options.output, train, options.processes, described)
    return [run for run in runs if _runs.FAILED not in run]


def told(settings: Settings) -> dict[str, Any]:
    """The settings for JSON; runs that were made before there were the last five have none."""
    values = asdict(settings)
    late = ("waves", "point_weights", "optimizer", "beta2", "published")
    return {name: value for name, value in values.items() if value or name not in late}


def described(run: Run) -> str:
    what = f"{run['problem']}, {run['balance']}, seed {run['seed']}"
    if _runs.FAILED in run:
        return f"{what} failed: {run[_runs.FAILED]}"
    return f"{what}: {run['error']:.2e}, {run['seconds']:.0f} s"


def settings_of(name: str, options: argparse.Namespace) -> Settings:
    chosen = DB_PINN if options.db_pinn else WAVES if options.waves else SUITE
    settings = chosen.get(name, Settings())
    if options.steps:
        settings = replace(settings, steps=options.steps)
    if options.lbfgs_steps:
        settings = replace(settings, lbfgs_steps=options.lbfgs_steps)
    if options.interior:
        settings = replace(settings, points={**settings.points, "interior": options.interior})
    return replace(
        settings,
        seconds=options.seconds,
        point_weights=options.points or "",
        optimizer="" if options.optimizer == "adam" else options.optimizer,
        beta2=options.beta2,
        published=options.db_pinn,
    )


Errors = Mapping[str, "list[float]"]  # problem -> those of its seeds


def errors_of(runs: list[Run]) -> dict[str, dict[str, list[float]]]:
    """Balance -> problem -> the errors of all seeds."""
    errors: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        errors.setdefault(run["balance"], {}).setdefault(run["problem"], []).append(run["error"])
    return errors


def medians(errors: Errors) -> dict[str, float]:
    return {problem: float(np.median(values)) for problem, values in errors.items()}


def mean(ratios: Iterable[float]) -> float:
    """The geometric mean."""
    return float(np.exp(np.mean(np.log(list(ratios)))))


def last_if_nan(value: float) -> float:
    """To sort by, because a run may have diverged."""
    return math.inf if math.isnan(value) else value


def table_of_balances(runs: list[Run], titles: dict[str, str]) -> str:
    """Markdown: a row for each balance, the best first."""
    found = {balance: medians(errors) for balance, errors in errors_of(runs).items()}
    equal = found.get("equal", {})
    best = {
        problem: np.nanmin([of[problem] for of in found.values() if problem in of])
        for problem in equal
    }
    rows = []
    for balance, of in found.items():
        ratios = np.array(
            [error / equal[problem] for problem, error in of.items() if problem in equal]
        )
        if not len(ratios):
            continue
        near = sum(error <= 1.1 * best[problem] for problem, error in of.items() if problem in best)
        counts = (f"{n} of {len(ratios)}" for n in ((ratios <= 0.5).sum(), near))
        rows.append(
            (
                last_if_nan(mean(ratios)),
                f"| {titles.get(balance, balance)} | {mean(ratios):.2f} | {ratios.max():.2f} | "
                f"{' | '.join(counts)} | {(ratios > 1.05).sum()} |",
            )
        )
    lines = [
        "| error / that of equal weights | geometric mean | largest | half or less on "
        "| best, or within 10 % of it | more than 5 % worse on |",
        "|---" * 6 + "|",
        *(row for _, row in sorted(rows)),
    ]
    return "\n".join(lines) + "\n"


def table(runs: list[Run], titles: dict[str, str]) -> str:
    """Markdown: a row for each problem, a column for each balance."""
    errors = errors_of(runs)
    lines = ["| problem | " + " | ".join(titles.get(b, b) for b in errors) + " |"]
    lines.append("|---" * (len(errors) + 1) + "|")
    for problem in dict.fromkeys(run["problem"] for run in runs):
        of_problem = {b: np.median(of[problem]) for b, of in errors.items() if problem in of}
        best = np.nanmin(list(of_problem.values()))
        cells = []
        for balance, of in errors.items():
            if problem not in of:
                cells.append("")
                continue
            values, median = of[problem], of_problem[balance]
            text = f"{median:.2g}"
            if len(values) > 1:
                text += f" [{min(values):.2g}, {max(values):.2g}]"
            text = f"**{text}**" if median <= 1.1 * best else text
            ratio = median / of_problem.get("equal", math.nan)
            cells.append(text if balance == "equal" else f"{text}, {ratio:.2f}")
        lines.append(f"| {problem} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(path: Path, runs: list[Run], titles: dict[str, str]) -> None:
    """Errors divided by the median error of equal weights, or the errors if there are none.

    A line for each problem. With more balances than colors can tell apart, a line for each balance.
    """
    from matplotlib.figure import Figure

    errors = errors_of(runs)
    equal = errors.pop("equal", {})
    errors = errors or {"equal": equal}
    draw = plot_problems if len(errors) <= COLORS else plot_balances
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    if equal:
        axes.axvline(1.0, color="0.3", linewidth=1)
    lines = draw(axes, errors, equal, titles)
    figure.set_size_inches(7.5, 1.6 + 0.2 * lines)
    axes.set_xscale("log")
    axes.set_ylim(lines - 0.5, -0.5)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    of_equal = "relative L2 error / that of equal weights" if equal else "relative L2 error"
    axes.set_xlabel(of_equal)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)


def plot_problems(
    axes: Any, errors: Mapping[str, Errors], equal: Errors, titles: dict[str, str]
) -> int:
    """A line for each problem, sorted by the balance that was named first; how many there are."""
    unit, first = medians(equal), medians(next(iter(errors.values())))

    def median(problem: str) -> float:
        return first.get(problem, math.inf) / unit.get(problem, 1.0)

    problems = sorted({problem for of in errors.values() for problem in of}, key=median)
    for place, problem in enumerate(problems):
        if problem in unit:
            ends = [end(equal[problem]) / unit[problem] for end in (min, max)]
            axes.plot(ends, [place] * 2, color="0.8", linewidth=6, solid_capstyle="butt")
    for number, (balance, of) in enumerate(errors.items()):
        found = [
            (place, np.array(of[problem]) / unit.get(problem, 1.0))
            for place, problem in enumerate(problems)
            if problem in of
        ]
        style = {"color": f"C{number}", "linestyle": "none", "zorder": 3}
        for place, ratios in found:
            axes.plot(ratios, [place] * len(ratios), marker="o", markersize=3, alpha=0.5, **style)
        axes.plot(
            [np.median(ratios) for _, ratios in found],
            [place for place, _ in found],
            marker="o",
            markersize=7,
            label=titles.get(balance, balance),
            **style,
        )
    if unit:
        axes.plot([], [], color="0.8", linewidth=6, label="seeds of equal weights")
    axes.set_yticks(range(len(problems)), problems, fontsize=9)
    return len(problems)


def plot_balances(
    axes: Any, errors: Mapping[str, Errors], equal: Errors, titles: dict[str, str]
) -> int:
    """A line for each balance, the best first; how many there are."""
    unit = medians(equal)
    ratios = {
        balance: [median / unit.get(problem, 1.0) for problem, median in medians(of).items()]
        for balance, of in errors.items()
    }
    balances = sorted(ratios, key=lambda balance: last_if_nan(mean(ratios[balance])))
    for place, balance in enumerate(balances):
        dots, line = ("a problem", "geometric mean") if place == 0 else (None, None)
        style = {"linestyle": "none", "zorder": 3}
        found = ratios[balance]
        axes.plot(
            found,
            [place] * len(found),
            "o",
            markersize=4,
            color="C0",
            alpha=0.6,
            label=dots,
            **style,
        )
        at = mean(found)
        axes.plot([at], [place], "|", markersize=14, mew=2.5, color="k", label=line, **style)
    axes.set_yticks(range(len(balances)), [titles.get(b, b) for b in balances], fontsize=9)
    return len(balances)


def main() -> None:
    options = parse(list(PROBLEMS), BALANCES)
    try:
        runs = run_all(options)
    except _runs.Interrupted as stopped:
        print(stopped)
        raise SystemExit(stopped.exit_code) from None
    if not runs:
        raise SystemExit("no run has come to its end")
    text = f"{table_of_balances(runs, TITLES)}\n{table(runs, TITLES)}"
    (options.output / "accuracy.md").write_text(text)
    plot(options.output / "accuracy.png", runs, TITLES)
    print(f"\n{text}\n{platform.processor() or platform.machine()}: {options.output}")


def parse(problems: list[str], balances: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(known: list[str], sets: dict[str, list[str]]) -> Any:
        def chosen(text: str) -> list[str]:
            listed = [name for part in text.split(",") for name in sets.get(part, [part])]
            unknown = set(listed) - set(known)
            if unknown:
                names = [*sets, *known]
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not in {names}")
            return listed

        return chosen

    first = [name for name in problems if name not in SEARCH + CONFIRMATION]
    sets = {
        "first": first,
        "solvable": [name for name in first if name not in UNSOLVED],
        "unsolved": list(UNSOLVED),
        "search": list(SEARCH),
        "confirmation": list(CONFIRMATION),
    }

    parser.add_argument(
        "--problems",
        type=names(problems, sets),
        default=first,
        help="by name, or 'first' (the default), of which are 'solvable' and 'unsolved', 'search' "
        "and 'confirmation'",
    )
    parser.add_argument("--balances", type=names(balances, {}), default=usual(balances))
    parser.add_argument(
        "--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2]
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="of Adam; 5,000 by default, fewer for cavity and plate"
    )
    parser.add_argument("--seconds", type=float, default=0.0, help="a budget instead of steps")
    parser.add_argument(
        "--db-pinn", action="store_true", help="networks, points and steps of DB-PINN's table 1"
    )
    parser.add_argument("--interior", type=int, default=0, help="points inside, for all problems")
    parser.add_argument(
        "--waves",
        action="store_true",
        help="the problems that no loss weight solves, with networks of waves before tanh layers",
    )
    parser.add_argument(
        "--points", choices=["rba", "self_adaptive", "causal"], help="weights of equations' points"
    )
    parser.add_argument(
        "--lbfgs-steps", type=int, default=0, help="steps of L-BFGS afterwards, weights frozen"
    )
    parser.add_argument(
        "--optimizer", choices=list(OPTIMIZERS), default="adam", help="soap needs PaddleScience"
    )
    parser.add_argument(
        "--beta2", type=float, default=0.0, help="of Adam, whose own is 0.999 in Paddle"
    )
    parser.add_argument("--rule-options", type=json.loads, default={}, help="JSON, of PinnRule")
    parser.add_argument("--label", help="the name of a balance with these --rule-options")
    parser.add_argument("--table", action="store_true", help="only of the runs that are there")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("outputs/accuracy"))
    options = parser.parse_args()
    if options.db_pinn:
        options.problems = [name for name in options.problems if name in DB_PINN]
    if options.waves:
        options.problems = [name for name in options.problems if name in WAVES]
    if options.label:
        options.balances = [*options.balances, options.label]
    return options


if __name__ == "__main__":
    main()
