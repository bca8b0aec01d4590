"""The command line: ``python -m paddlescience_gradnorm --help``.

``problems`` lists what there is to train on, ``run`` trains on one of them and writes what came
of it, ``report`` makes a page of that, ``compare`` trains on one by several rules, ``doctor``
prints versions, settings and speed of this installation.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import itertools
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import paddlescience_gradnorm
from paddlescience_gradnorm import _arguments
from paddlescience_gradnorm.command_line import ALPHA, at_least, non_negative

# What only one command needs is imported by that command.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from paddlescience_gradnorm.pde.problems import Problem
    from paddlescience_gradnorm.pde.residual import Network
    from paddlescience_gradnorm.training import History, Trainer

PROGRAM = "python -m paddlescience_gradnorm"
HIDDEN_LAYERS, WIDTH = 4, 50
PIXELS = 100  # of a figure's side
DISTRIBUTIONS = ("numpy", "scipy", "sympy", "matplotlib", "paddlesci")
MOST_OF_LOSSES = 34  # characters, in the table of problems
ERRORS = 50  # in the curve of a run's error
EXAMPLES = """examples:
  {program} problems                              # what there is to train on
  {program} run heat                              # train on one, with learned weights
  {program} run heat --balance equal              # the same with equal weights
  {program} report outputs/heat_pinn              # a page that shows both
  {program} compare heat --balance equal,pinn,relobralo

{program} COMMAND --help lists the options of a command."""
EXAMPLES_OF_RUN = """examples:
  {program} run heat --live                       # watch weights, losses and error
  {program} run heat --balance published --alpha 1.5
  {program} run kovasznay --epochs 20000 --points 4000 --output outputs/long"""
EXAMPLES_OF_COMPARE = """examples:
  {program} compare heat --balance equal,pinn,relobralo
  {program} compare wave --balance equal,pinn --seeds 0,1,2,3,4 --epochs 10000"""


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage above them."""

    def __init__(self, **options: Any) -> None:
        # A subparser gets the class of its parent, but not its formatter.
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if wrong is not None:
            known = re.split(", ?", wrong[2].replace("'", ""))
            message += _arguments.did_you_mean(wrong[1], known)
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code, 0 if all went well."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser(argv).parse_args(argv)
    try:
        code: int = options.command(options)
        sys.stdout.flush()  # here, where an error has a name
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads on, as in "problems | head -1"
        # Or Python would say at its end that it could not write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as by SIGPIPE
    except OSError as error:  # a disk that is full, a folder that went away
        options.parser.exit(1, f"{options.parser.prog}: {error}\n")
    except MemoryError as error:
        options.parser.exit(1, f"{options.parser.prog}: {error}; give fewer --points\n")
    return code


def list_problems(options: argparse.Namespace) -> int:
    """Print a table with a row for each problem."""
    from paddlescience_gradnorm.pde.problems import PROBLEMS, problem

    rows = [("problem", "losses", "equation")]
    for name in PROBLEMS:
        losses = ", ".join(condition.name for condition in problem(name).conditions)
        rows.append((name, losses, problem(name).equation))
    first, second = (max(len(row[k]) for row in rows) for k in (0, 1))
    second = min(second, MOST_OF_LOSSES)
    # A file has whole lines, which other programs may read.
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6
    third = max(20, columns - first - second - 4)
    for k, (name, losses, equation) in enumerate(rows):
        cells = [name], textwrap.wrap(losses, second), textwrap.wrap(equation, third)
        for line in itertools.zip_longest(*cells, fillvalue=""):
            print(f"{line[0]:<{first}}  {line[1]:<{second}}  {line[2]}".rstrip())
        if k == 0:
            print("-" * first, "-" * second, "-" * min(third, 40), sep="  ")
    return 0


def run(options: argparse.Namespace) -> int:
    """Train on a problem, print what came of it and write it to the output folder."""
    from paddlescience_gradnorm.runtime import check_environment

    if options.balance == "gradnorm":  # as GradNorm(net, n_loss, alpha) takes it
        options.balance = "pinn" if options.alpha is None else "published"
    if options.balance not in ("pinn", "published") and options.alpha is not None:
        which = "equal weights have" if options.balance == "equal" else f"{options.balance!r} has"
        options.parser.error(
            f"argument --alpha: {which} none, got {options.alpha:g}; leave it out, or choose "
            "another --balance"
        )
    if options.balance == "published" and options.alpha is None:
        options.alpha = ALPHA
    check_environment(options.parser)
    _check_point_weights(options)
    output = options.output or Path("outputs", f"{options.problem.name}_{options.balance}")
    try:  # before the training
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        options.parser.error(
            f"argument --output: cannot write to {str(output)!r} ({error.strerror}); choose "
            "another folder"
        )
    from paddlescience_gradnorm.training import CheckpointError, save_metrics
    from paddlescience_gradnorm.training._lock import FolderLock

    try:
        held = FolderLock(output)
    except CheckpointError as error:
        options.parser.error(f"argument --output: {error}")
    with held:
        callbacks = _callbacks(options, output)
        net, trainer, metrics, code = _train(options, callbacks)
        metrics["settings"]["output"] = str(output)
        # Files first, because the printing fails if nobody reads it, as in `run ... | head -1`.
        save_metrics(output / "metrics.json", metrics)
        trainer.history.save(output / "history.npz")
        _print_metrics(options.problem, metrics)
        written = ["metrics.json", "history.npz"]
        try:
            _plot_training(output / "training.png", trainer.history)
            _plot_solution(output / "solution.png", options.problem, net)
            _plot_solution(output / "solution_narrow.png", options.problem, net, narrow=True)
        except ImportError as error:
            print(f"no figures: {error}")
        else:
            written += ["training.png", "solution.png"]
        print(f"{', '.join(written)} in {output}")
        print(f"as a page: {PROGRAM} report {shlex.quote(str(output))}")
    return code


def report(options: argparse.Namespace) -> int:
    """Write the page of a finished run and say where it is."""
    from paddlescience_gradnorm.training import write_report

    try:
        page = write_report(options.folder, options.output)
    except (ValueError, ImportError, OSError) as error:
        options.parser.error(str(error))
    print(f"{page}: open it in a browser; it needs no network")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Train by several rules, print the table and say where figure and page are."""
    from paddlescience_gradnorm.runtime import check_environment
    from paddlescience_gradnorm.training._runs import Interrupted
    from paddlescience_gradnorm.training._trial import KnownProblem
    from paddlescience_gradnorm.training.comparison import compare_problem

    check_environment(options.parser)
    _check_point_weights(options)
    problem = options.problem
    folder = options.output or Path("outputs", f"{problem.name}_comparison")
    print(f"{problem.name}: {problem.equation}", flush=True)
    try:
        comparison = compare_problem(
            KnownProblem(
                problem.name,
                HIDDEN_LAYERS,
                WIDTH,
                options.points,
                point_weights=options.point_weights,
            ),
            options.balance,
            options.seeds,
            options.epochs,
            options.jobs,
            folder,
            problem.equation,
        )
    except Interrupted as stopped:
        print(stopped)
        return stopped.exit_code
    except (ValueError, RuntimeError, ImportError) as error:
        options.parser.exit(1, f"{options.parser.prog}: {error}\n")
    print(f"\n{comparison.table()}\ncomparison.md, comparison.png, comparison.html in {folder}")
    return 1 if comparison.failed else 0


def _check_point_weights(options: argparse.Namespace) -> None:
    try:
        options.problem.sample(1, point_weights=options.point_weights)
    except ValueError as error:
        options.parser.error(f"argument --point-weights: {error}")


def doctor(options: argparse.Namespace) -> int:
    """Print versions, then what ``python -m paddlescience_gradnorm.runtime`` prints."""
    from paddlescience_gradnorm import runtime

    for name, number in _versions().items():
        print(f"{name:<24}{number or 'not installed'}")
    print(flush=True)
    runtime.report(options, options.parser)
    return 0


def _callbacks(options: argparse.Namespace, output: Path) -> list[Any]:
    """The views of the running training that were asked for."""
    from paddlescience_gradnorm.training import LiveView, TensorBoard, VisualDL

    try:  # without the live view Trainer shows its progress bar
        views: list[Any] = [LiveView()] if options.live else []
        for name, log in ("visualdl", VisualDL), ("tensorboard", TensorBoard):
            if getattr(options, name):
                views.append(log(output / name))
                print(f"curves: {name} --logdir {shlex.quote(str(output))}")
    except ImportError as error:
        options.parser.error(str(error))
    return views


def _train(
    options: argparse.Namespace, callbacks: Sequence[Any]
) -> tuple[Any, Trainer, dict[str, Any], int]:
    """Network, finished run, what is to be known of it, and the exit code that it asks for."""
    from paddlescience_gradnorm._machine import find_machine
    from paddlescience_gradnorm.runtime import tune_cpu

    tune_cpu()
    from paddlescience_gradnorm import GradNorm, _operators
    from paddlescience_gradnorm.training import StopOnSignals, Trainer
    from paddlescience_gradnorm.training._trial import BETA2, LEARNING_RATE, KnownProblem

    problem = options.problem
    print(f"{problem.name}: {problem.equation}", flush=True)
    task = KnownProblem(
        problem.name,
        HIDDEN_LAYERS,
        WIDTH,
        options.points,
        point_weights=options.point_weights,
    )
    trial = task.begin(options.seed)
    net = trial.net
    if options.balance != "equal":
        net = GradNorm(
            net,
            len(problem.conditions),
            options.alpha,
            rule=options.balance,
            equations=[c.name for c in problem.conditions if c.kind == "pde"],
        )
    adam = trial.optimizer([*net.parameters(), *trial.parameters], options.epochs)
    curve: list[list[float]] = []

    def validate(net: Any) -> dict[str, float]:
        assert trial.error is not None  # the solution is known
        curve.append([trainer.step, trial.error(net)])
        return {"error": curve[-1][1]}

    start = time.perf_counter()
    with StopOnSignals() as stop:
        trainer = Trainer(net, trial.losses, adam, callbacks=[*callbacks, stop])
        every = max(1, options.epochs // ERRORS)
        trainer.fit(epochs=options.epochs, validate=validate, validate_every=every)
    seconds = time.perf_counter() - start
    if stop.received:
        print(f"stopped at step {trainer.step} of {options.epochs}; so far:")
    last = trainer.history.last()
    settings = {
        name: getattr(options, name)
        for name in ("balance", "epochs", "points", "point_weights", "seed")
    }
    metrics = {
        "equation": problem.equation,
        **trial.found(net),
        "error_curve": curve,
        "final_losses": last["losses"],
        "final_weights": last["weights"],
        "diagnosis": trainer.diagnose(),
        "steps": trainer.step,
        "seconds": seconds,
        "settings": {
            "problem": problem.name,
            **settings,
            # By default the PINN rule has none in effect.
            **({"alpha": net.alpha} if settings["balance"] == "published" else {}),
            "hidden_layers": HIDDEN_LAYERS,
            "width": WIDTH,
            "learning_rate": LEARNING_RATE,
            "beta2": BETA2,
        },
        "versions": {**_versions(), "operators": "in use" if _operators.loaded else "not in use"},
        "machine": str(find_machine()),
    }
    return net, trainer, metrics, stop.exit_code


def _print_metrics(problem: Problem, metrics: dict[str, Any]) -> None:
    for name, error in metrics["errors"].items():
        print(f"relative L2 error of {name}: {error:.2e}")
    for unknown in problem.unknowns:
        found, error = (metrics[k][unknown.name] for k in ("coefficients", "coefficient_errors"))
        print(f"{unknown.name}: {found:.4g}, truly {unknown.true:.4g}, relative error {error:.2e}")
    print(f"{'loss':<14}{'value':>10}{'weight':>10}")
    for name, loss in metrics["final_losses"].items():
        print(f"{name:<14}{loss:>10.2e}{metrics['final_weights'][name]:>10.3g}")
    for finding in metrics["diagnosis"] or ["Nothing needs attention."]:
        print(finding)
    print(f"{metrics['steps']} steps, {metrics['seconds']:.0f} s")


def _figure(width: float, height: float) -> Figure:
    """Of that size in inches; ``ImportError`` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is not installed; pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def _plot_training(path: Path, history: History) -> None:
    """Losses above weights."""
    figure = _figure(8, 6)
    history.plot(figure.subplots(2, 1, sharex=True))
    figure.savefig(path, dpi=120)


def _plot_solution(path: Path, problem: Problem, net: Network, narrow: bool = False) -> None:
    """A row for each quantity: network, solution, absolute error, over the first two coordinates.

    In the middle of the others; over the only one as curves. For a narrow screen all is in one
    column.
    """
    import numpy as np

    lines = len(problem.low) == 1
    low, high = np.array(problem.low), np.array(problem.high)
    # In the middles of cells: on the faces a solution may jump.
    middles = (np.arange(PIXELS) + 0.5) / PIXELS
    shape = (PIXELS,) if lines else (PIXELS, PIXELS)
    unit = np.full((*shape, len(low)), 0.5)
    for k, places in enumerate(np.meshgrid(*[middles] * len(shape))):
        unit[..., k] = places
    points = (low + (high - low) * unit).reshape(-1, len(low))
    found, truth = problem.evaluate(net, points), problem.solution(points)
    found[~problem.contains(points)] = truth[~problem.contains(points)] = np.nan
    rows = len(problem.quantities)
    figure = _figure(4.5, 9.6 * rows) if narrow else _figure(12, 3.6 * rows)
    shape_of_axes = (3 * rows, 1) if narrow else (rows, 3)
    axes = figure.subplots(*shape_of_axes, squeeze=False).reshape(rows, 3)
    names = list(map(str, problem.coordinates))
    cut = "".join(f", {c} = {v:g}" for c, v in zip(names[2:], ((low + high) / 2)[2:]))
    for k, name in enumerate(problem.quantities):
        limits = {"vmin": np.nanmin(truth[:, k]), "vmax": np.nanmax(truth[:, k])}
        for axis, title, values, style in zip(
            axes[k],
            (f"{name}, network", f"{name}, solution", f"{name}, absolute error"),
            (found[:, k], truth[:, k], np.abs(found - truth)[:, k]),
            (limits, limits, {"cmap": "magma"}),
        ):
            axis.set(title=title + cut, xlabel=names[0])
            if lines:
                axis.plot(points[:, 0], values)
                continue
            image = axis.imshow(
                values.reshape(shape),
                origin="lower",
                extent=(low[0], high[0], low[1], high[1]),
                aspect="auto",
                **style,
            )
            axis.set_ylabel(names[1])
            figure.colorbar(image, cax=axis.inset_axes((1.04, 0, 0.05, 1)))
    figure.savefig(path, dpi=120)


def _versions() -> dict[str, str | None]:
    """By name; ``None`` for what is not installed."""
    import paddle

    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "paddlescience_gradnorm": paddlescience_gradnorm.__version__,
        "paddle": paddle.__version__,
    }
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """All commands, but options only of the one in ``argv``: some take Paddle to be known."""
    parser = _Parser(
        prog=PROGRAM,
        description="GradNorm loss balancing for physics-informed neural networks.",
        epilog=EXAMPLES.format(program=PROGRAM),
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"paddlescience_gradnorm {paddlescience_gradnorm.__version__}",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, act, add_options, help, more, examples in (
        ("problems", list_problems, None, "list the problems: names, losses, equations", "", ""),
        (
            "run",
            run,
            _add_run_options,
            "train a network on a problem and say how good it is",
            f" A tanh network with {HIDDEN_LAYERS} hidden layers of {WIDTH} is trained by Adam, "
            "with a beta2 of 0.99, at a rate that falls to zero along a cosine. Ctrl-C ends the "
            "run after the step; what came of it is written all the same.",
            EXAMPLES_OF_RUN,
        ),
        (
            "report",
            report,
            _add_report_options,
            "make an HTML page of a finished run: settings, curves, figures, diagnosis, versions",
            " The page is one file, which needs no network. If a folder beside holds a run with "
            "equal weights and otherwise the same settings, the page shows both.",
            "",
        ),
        (
            "compare",
            compare,
            _add_compare_options,
            "train on a problem by several rules, side by side",
            " Table, figure and an HTML page are written. Runs that the folder holds are not made "
            "again. Ctrl-C stops after the step, and the same command goes on from there.",
            EXAMPLES_OF_COMPARE,
        ),
        (
            "doctor",
            doctor,
            _add_doctor_options,
            "print versions, and settings and speed on this machine",
            "",
            "",
        ),
    ):
        added = commands.add_parser(
            name,
            help=help,
            description=textwrap.fill(f"{help}.{more}", 90),
            epilog=examples.format(program=PROGRAM),
        )
        added.set_defaults(command=act, parser=added)
        if add_options is not None and name in argv:
            add_options(added)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    from paddlescience_gradnorm.balancing.rules import RULES

    parser.add_argument(
        "problem", type=_problem, metavar="PROBLEM", help="see the command problems"
    )
    parser.add_argument(
        "--balance",
        choices=["gradnorm", *(name for name in RULES if name != "fixed")],
        default="pinn",
        help="the rule that weighs the losses (default: pinn); gradnorm means pinn, or published "
        "if you also pass --alpha",
    )
    parser.add_argument(
        "--alpha",
        type=non_negative,
        help=f"GradNorm's, at least 0 (default: the PINN rule's; {ALPHA:g} if published)",
    )
    _add_epochs_and_points(parser)
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of points, noise and network (default: 0)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where files are written, in place of an earlier run's "
        "(default: outputs/PROBLEM_BALANCE)",
    )
    parser.add_argument(
        "--live", action="store_true", help="draw weights, losses and error while it runs, by rich"
    )
    for name, viewer in ("visualdl", "VisualDL"), ("tensorboard", "TensorBoard"):
        parser.add_argument(
            f"--{name}",
            action="store_true",
            help=f"log the curves for {viewer}; the command that opens it is printed",
        )


def _add_epochs_and_points(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epochs", "--steps", type=at_least(1), default=5000, help="of one step (default: 5000)"
    )
    parser.add_argument(
        "--points", type=at_least(1), default=1000, help="in the interior (default: 1000)"
    )
    parser.add_argument(
        "--point-weights",
        choices=["rba", "self_adaptive", "causal"],
        help="weights of the equations' points (default: none)",
    )


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "problem", type=_problem, metavar="PROBLEM", help="see the command problems"
    )
    parser.add_argument(
        "--balance",
        type=_rules,
        default=["equal", "pinn", "lr_annealing", "relobralo"],
        metavar="RULE,...",
        help=f"rules, by their names (default: equal,pinn,lr_annealing,relobralo); published has "
        f"alpha {ALPHA:g}. With options: dual_balance:by=std:update_every=50",
    )
    parser.add_argument(
        "--seeds", type=_seeds, default=[0, 1, 2], metavar="N,...", help="default: 0,1,2"
    )
    _add_epochs_and_points(parser)
    parser.add_argument(
        "--jobs", type=at_least(1), help="runs at once (default: one for each core)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where runs, table, figure and page are kept (default: outputs/PROBLEM_comparison)",
    )


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="RUN_DIR", help="what run, or an example, has written"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: report.html in RUN_DIR"
    )


def _add_doctor_options(parser: argparse.ArgumentParser) -> None:
    from paddlescience_gradnorm.runtime import add_options

    add_options(parser)


def _rules(text: str) -> dict[str, Any]:
    """What ``compare`` takes: the rules by the texts that were given."""
    from paddlescience_gradnorm.balancing.rules import RULES

    known = [name for name in RULES if name != "fixed"]  # which needs weights
    rules = {}
    for label in text.split(","):
        name, *options = label.split(":")
        name = "pinn" if name == "gradnorm" else name
        if name not in known:
            hint = _arguments.did_you_mean(name, known)
            raise argparse.ArgumentTypeError(
                f"must name rules of {', '.join(known)}, got {name!r}{hint}"
            )
        rules[":".join([name, *options])] = _with_options(label, name, options)
    return rules


def _with_options(label: str, name: str, options: list[str]) -> dict[str, Any]:
    """A rule with options of its own and of the balancer, as ``compare`` takes it."""
    from paddlescience_gradnorm.balancing.rules import find_rule
    from paddlescience_gradnorm.training.comparison import OF_BALANCER, chosen

    of_rule: dict[str, Any] = {"alpha": ALPHA} if name == "published" else {}
    of_balancer: dict[str, Any] = {}
    for option in options:
        key, is_one, value = option.partition("=")
        if not is_one:
            raise argparse.ArgumentTypeError(
                f"{label!r} has {option!r}; write options as in {name}:update_every=50"
            )
        with contextlib.suppress(ValueError, SyntaxError):  # it is a string then
            value = ast.literal_eval(value)
        (of_balancer if key in OF_BALANCER else of_rule)[key] = value
    try:
        given = {"rule": find_rule(name, **of_rule), **of_balancer}
        chosen(label, given)
        return given
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{label!r}: {error}") from error


def _seeds(text: str) -> list[int]:
    return list(dict.fromkeys(map(at_least(0), text.split(","))))


def _problem(name: str) -> Problem:
    from paddlescience_gradnorm.pde.problems import problem

    try:
        return problem(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
