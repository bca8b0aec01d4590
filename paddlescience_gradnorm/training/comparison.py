"""compare: the same training by several rules, side by side."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NamedTuple, Protocol, Union

import numpy as np
import paddle

from paddlescience_gradnorm import _arguments, _operators, _paddle
from paddlescience_gradnorm._machine import find_machine
from paddlescience_gradnorm.balancing._losses import Losses, LossOrder, count
from paddlescience_gradnorm.balancing.balancer import LossBalancer
from paddlescience_gradnorm.balancing.rule import Rule
from paddlescience_gradnorm.balancing.rules import find_rule
from paddlescience_gradnorm.command_line import ALPHA
from paddlescience_gradnorm.network.grad_norm import GradNorm
from paddlescience_gradnorm.point_weights import called, held
from paddlescience_gradnorm.runtime import tune_cpu
from paddlescience_gradnorm.training import _compared
from paddlescience_gradnorm.training._checkpoint_file import PathLike, Values, replace
from paddlescience_gradnorm.training._closed_over import layers_of
from paddlescience_gradnorm.training._course import MOMENTS, Course
from paddlescience_gradnorm.training._like import copy_into, values_of
from paddlescience_gradnorm.training._runs import FAILED, Run, read_runs, run_all
from paddlescience_gradnorm.training._trial import (
    BETA2,
    KnownProblem,
    MakeOptimizer,
    Trial,
    adam,
    seed_all,
)
from paddlescience_gradnorm.training.signals import StopOnSignals
from paddlescience_gradnorm.training.trainer import Trainer

OneRule = Union[str, Rule, Mapping[str, Any]]
Rules = Union[Sequence[Union[str, Rule]], Mapping[str, OneRule]]

# What a rule may be given with, beside its own options: arguments of ``GradNorm``.
OF_BALANCER = ("update_every", "weight_lr", "warmup_steps", "floor")
TABLE = "comparison.md"


@dataclass(frozen=True)
class Comparison:
    """What came of the runs of ``compare``.

    Attributes:
        runs: A dict for each run that has come to its end. ``balance`` is the rule's name, and
            ``seed`` the seed. ``curve`` holds ``[step, seconds, error]`` of some fifty moments,
            with ``None`` where no error is known. ``conflicts`` holds the smallest cosine between
            two losses' gradients at these moments. ``loss_curves`` and ``weights`` hold, by the
            losses' names, the unweighted losses and their weights at these moments, and
            ``losses`` the last ones. ``seconds`` are those of the training, ``cpu_seconds`` the
            time of the CPU in it, or ``None`` on another device. ``diagnosis`` is what
            ``Trainer.diagnose`` says at the end.
        failed: A dict for each run that has failed: ``balance``, ``seed``, and the error as
            ``failed``.
        folder: Where ``comparison.md``, ``comparison.png`` and ``comparison.html`` are.
    """

    runs: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    folder: Path

    def table(self) -> str:
        """The results in Markdown: a row for each rule, medians over the seeds."""
        return _compared.markdown(self.runs, self.failed)


def compare(
    build: Callable[[], paddle.nn.Layer],
    losses: Callable[[Any], Losses],
    rules: Rules = ("equal", "pinn"),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 2000,
    *,
    error: Callable[[Any], float] | None = None,
    optimizer: MakeOptimizer = adam,
    equations: Sequence[Union[int, str]] | None = None,
    jobs: int | None = None,
    folder: PathLike = "outputs/comparison",
    progress: bool = True,
) -> Comparison:
    """Train one problem by several rules, and put the results side by side.

    Every rule gets the same seeds, networks, points, optimizer and number of steps. Before each
    run the generators of Paddle, numpy and Python are seeded. After Ctrl-C the same call goes on
    where the runs were stopped.

    Runs that are in the folder are not made again. What tells one problem from another is the
    name of ``losses``, the number of parameters, the losses and the error before the first step,
    the kinds of the optimizer and of its schedule, its first rate and its options, such as
    ``beta2``, ``equations`` and ``steps``.
    After another change, such as of how fast a schedule falls, choose another folder.

    Args:
        build: ``build()`` gives a new network in every call. Unknown coefficients are parameters
            of it.
        losses: ``losses(net)`` gives the unweighted losses: a dict name -> scalar, a list or tuple
            of scalars, or a 1-D tensor; two at least.
        rules: Names of rules, as in ``RULES``, or rules; or a dict label -> name or rule.
            ``"published"`` has alpha 1. In place of a rule the dict may have its arguments of
            ``GradNorm``, such as ``{"rule": "inverse_norm", "update_every": 10}``: ``rule``,
            ``update_every``, ``weight_lr``, ``warmup_steps`` and ``floor``.
        seeds: Integers from 0. Each rule is trained once for each of them.
        steps: Of every run, at least 1.
        error: ``error(net)`` gives the error of a network, a number. Without it the losses, their
            weights and their conflicts are compared.
        optimizer: ``optimizer(parameters, steps)`` gives the optimizer. The default is Adam
            with ``beta2=0.99``, at a rate that falls from 2e-3 to 0 along a cosine.
        equations: Losses that are residuals of equations, as for ``GradNorm``.
        jobs: How many runs are made at once, each in a process of its own; by default as many
            as cores. So the functions have to be at the top level of a module, and in a script
            the call under ``if __name__ == "__main__":``. With 0 the runs are made in this
            process, one after the other, as a notebook needs it.
        folder: Where runs, table, figure and page are written. Each problem needs its own.
        progress: Whether to print how far it is.

    Returns:
        The runs. Table, figure and page are in the folder; the figure and the page need
        matplotlib, which the extra ``[plot]`` brings.

    Raises:
        TypeError: An argument is of the wrong type, or cannot be sent to another process.
        ValueError: An argument is out of range, there is no rule of a name, or ``build`` gives the
            same parameters again.
        RuntimeError: All runs have failed; the first error is named.
        KeyboardInterrupt: By SIGINT or SIGTERM, after the steps that were under way.
        OSError: The folder cannot be written to.

    Examples:
        >>> import tempfile
        >>> from paddlescience_gradnorm import FCNet
        >>> x = paddle.linspace(0, 1, 16).reshape([-1, 1])
        >>> def losses(net):
        ...     u = net(x)
        ...     return {"pde": (u - x.sin()).square().mean(), "bc": (u[0] - 1).square().sum()}
        >>> found = compare(
        ...     lambda: FCNet(1, 1, 3, 8), losses, ["equal", "pinn"], seeds=[0], steps=20,
        ...     jobs=0, folder=tempfile.mkdtemp(), progress=False,
        ... )
        >>> [(run["balance"], run["steps"], list(run["losses"])) for run in found.runs]
        [('equal', 20, ['pde', 'bc']), ('pinn', 20, ['pde', 'bc'])]
    """
    contenders = _rules(rules)
    _arguments.integer("steps", steps, at_least=1)
    functions: dict[str, Any] = {"build": build, "losses": losses, "optimizer": optimizer}
    if error is not None:
        functions["error"] = error
    for argument, function in functions.items():
        if not callable(function):
            raise TypeError(f"{argument} must be a function, got {function!r}")
    if isinstance(build, paddle.nn.Layer):  # which can be called too
        raise TypeError(
            "build must be a function that gives a new network, got the network "
            f"{type(build).__name__}; construct it within build"
        )
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise TypeError(
            f"seeds must be a list of integers, got {seeds!r}; pass [0] for one run of each rule, "
            "or range(3) for three"
        )
    own = _OwnProblem(build, losses, error, optimizer, equations)
    own.check_that_networks_are_new()
    looks = {_seed(seed): own.looks(seed) for seed in seeds}
    name = getattr(losses, "__qualname__", type(losses).__qualname__)
    try:
        return _side_by_side(name, own, contenders, looks, steps, jobs, Path(folder), progress)
    finally:
        own.restore()  # or the same call would find another problem


def compare_problem(
    task: KnownProblem,
    rules: Rules,
    seeds: Sequence[int],
    steps: int,
    jobs: int | None,
    folder: Path,
    equation: str,
) -> Comparison:
    """``compare`` for one of ``PROBLEMS``, with its equation for the page."""
    looks = {name: getattr(task, name) for name in ("n_points", "hidden_layers", "width")}
    looks["beta2"] = BETA2  # which runs from before this number do not have
    if task.point_weights is not None:
        looks["point_weights"] = task.point_weights
    contenders, of_seeds = _rules(rules), dict.fromkeys(seeds, looks)
    return _side_by_side(task.name, task, contenders, of_seeds, steps, jobs, folder, True, equation)


class _Chosen(NamedTuple):
    """A rule, and what else ``GradNorm`` gets with it."""

    rule: Rule
    options: dict[str, Any]

    def __str__(self) -> str:
        more = (f"{name}={value!r}" for name, value in self.options.items())
        return ", ".join([repr(self.rule), *more])


class _Task(Protocol):
    def begin(self, seed: int) -> Trial:
        """The trial of this seed."""


@dataclass(frozen=True)
class _OwnProblem:
    """What the user of ``compare`` gives."""

    build: Callable[[], paddle.nn.Layer]
    losses: Callable[[Any], Losses]
    error: Callable[[Any], float] | None
    optimizer: MakeOptimizer
    equations: Sequence[int | str] | None
    # Of the layers behind the losses, such as weights of points, before any run.
    buffers: list[Values] = field(init=False)
    # Of weights of points that the losses call although their code does not name the layer.
    others: list[tuple[paddle.Tensor, Values]] = field(init=False, default_factory=list)
    # Seeds at which the losses begin at the same values in every call.
    repeated: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        object.__setattr__(self, "buffers", [_values(buffer) for buffer in self._buffers()])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "others": []}  # another process has its own

    def _buffers(self) -> list[paddle.Tensor]:
        return [buffer for layer in layers_of(self.losses).values() for buffer in layer.buffers()]

    def restore(self) -> None:
        """Undo what a run in this process has done to the layers behind the losses."""
        for buffer, values in [*zip(self._buffers(), self.buffers), *self.others]:
            copy_into(buffer, values)

    def _first_losses(self, net: paddle.nn.Layer) -> dict[str, float]:
        """The losses before the first step, in which no weights of points move."""
        with held(), called() as layers:
            losses = self.losses(net)
        known = {id(buffer) for buffer in [*self._buffers(), *(x for x, _ in self.others)]}
        self.others.extend(
            (buffer, _values(buffer))
            for layer in layers
            for buffer in layer.buffers()
            if id(buffer) not in known
        )
        return _by_name(losses)

    def check_here(self, run: Run, losses: Losses) -> None:
        """Raise an error if this process finds another problem than the one that has called it.

        A new process imports the user's module again, and what the module draws at random.

        Args:
            run: What the call has found, in its settings.
            losses: Those before the first step here.
        """
        if run["seed"] not in self.repeated:
            return  # they draw new points in every call
        there = {name: float(x) for name, x in run["settings"]["first losses"].items()}
        here = _by_name(losses)
        size = max((abs(loss) for loss in there.values() if np.isfinite(loss)), default=0.0)
        if here.keys() != there.keys() or not np.allclose(
            [*here.values()],
            [*there.values()],
            rtol=1e-3,  # because threads and operators may round otherwise here
            atol=1e-6 * size,
            equal_nan=True,
        ):
            raise ValueError(
                f"in a process of its own the losses of seed {run['seed']} begin at {here}, and "
                f"not at {there}: points or layers that a module draws when it is imported are "
                "drawn again in every process. Call paddle.seed(0) before them, draw them within "
                "build, or pass jobs=0"
            )

    def _network(self) -> paddle.nn.Layer:
        net = self.build()
        if not isinstance(net, paddle.nn.Layer):
            raise TypeError(f"build must give a paddle.nn.Layer, got {type(net).__name__} {net!r}")
        return net

    def check_that_networks_are_new(self) -> None:
        nets = [self._network(), self._network()]
        one, other = ({id(p) for p in net.parameters() if not p.stop_gradient} for net in nets)
        if one & other:
            raise ValueError(
                f"build must make a new network in every call, but {self.build!r} gives the same "
                "parameters again, and every run would go on from the one before; construct the "
                "network within build"
            )

    def begin(self, seed: int) -> Trial:
        seed_all(seed)
        self.restore()
        return Trial(
            self._network(),
            self.losses,
            [],
            self.error,
            self.optimizer,
            self.equations,
            lambda net: {},
        )

    def looks(self, seed: int) -> dict[str, Any]:
        """What tells this problem from others, and from itself before it was changed."""
        net = self.begin(seed).net
        first = self._first_losses(net)
        net = self.begin(seed).net
        if repr(first) == repr(self._first_losses(net)):  # in which NaN is NaN
            self.repeated.add(seed)
        optimizer = self.optimizer(net.parameters(), 1)
        if not isinstance(optimizer, paddle.optimizer.Optimizer):
            raise TypeError(
                "optimizer must be a function optimizer(parameters, steps) that gives a Paddle "
                f"optimizer, got {optimizer!r} from it"
            )
        schedule = _paddle.schedule_of(optimizer)
        return {
            "parameters": sum(int(np.prod(p.shape)) for p in net.parameters()),
            "first losses": {name: f"{loss:.6g}" for name, loss in first.items()},
            "first error": self._first_error(net),
            "optimizer": f"{type(optimizer).__name__}, rate {optimizer.get_lr():g}",
            "optimizer options": _paddle.options_of(optimizer),
            "schedule": None if schedule is None else type(schedule).__name__,
            "equations": None if self.equations is None else list(self.equations),
        }

    def _first_error(self, net: paddle.nn.Layer) -> str | None:
        if self.error is None:
            return None
        net.eval()  # as in a run
        with held():
            error = self.error(net)
        try:
            return f"{float(error):.6g}"
        except (TypeError, ValueError, AssertionError) as reason:  # the last by Paddle's tensors
            raise TypeError(f"error must give a number, got {error!r}") from reason


def _by_name(losses: Losses) -> dict[str, float]:
    order = LossOrder(count(losses))
    scalars = order.scalars(losses)  # which sets the names
    return {name: float(loss) for name, loss in zip(order.names, scalars)}


def _seed(value: Any) -> int:
    seed = _arguments.integer("seeds", value, at_least=0)
    if seed >= 2**32:
        raise ValueError(f"seeds must be below 2**32, because numpy's are, got {seed}")
    return seed


def _values(buffer: paddle.Tensor) -> Values:
    return values_of(buffer, "a buffer of losses")


def _rules(rules: Rules) -> dict[str, _Chosen]:
    if isinstance(rules, str):
        raise TypeError(f"rules must be a list or a dict of rules, got {rules!r}; pass [{rules!r}]")
    if not isinstance(rules, Iterable):
        raise TypeError(f"rules must be a list or a dict of rules, got {rules!r}")
    if not isinstance(rules, Mapping):
        by_label: dict[str, Any] = {}
        for rule in rules:
            label = rule if isinstance(rule, str) else repr(rule)
            if by_label.setdefault(label, rule) != rule:
                raise ValueError(
                    f"rules has two rules that are both printed as {label}; give them names, as in "
                    "rules={'one': ..., 'other': ...}"
                )
        rules = by_label
    for label in rules:
        if not isinstance(label, str):
            raise TypeError(f"rules must have strings as names, got {label!r}")
    return {label: chosen(label, rule) for label, rule in rules.items()}


def chosen(label: str, given: OneRule) -> _Chosen:
    """A rule that was asked for under this label; an error says what is wrong with it."""
    options = dict(given) if isinstance(given, Mapping) else {"rule": given}
    if "rule" not in options:
        raise TypeError(f"rules[{label!r}] is {given!r}, and has no 'rule'; name it")
    rule = options.pop("rule")
    for name in options:
        if name not in OF_BALANCER:
            hint = _arguments.did_you_mean(name, OF_BALANCER)
            raise TypeError(
                f"rules[{label!r}] has {name!r}, and may have {', '.join(OF_BALANCER)} beside the "
                f"rule{hint}. Pass options of the rule to the rule itself, as in "
                "{'rule': DualBalance('std')}"
            )
    found = find_rule(rule, ALPHA if rule == "published" else None)
    # It says what is wrong with an option. A rate, because the number of losses is not known yet.
    parameter = paddle.create_parameter([1], "float32")
    LossBalancer(parameter, rule=found, **{"weight_lr": 0.01, **options})
    return _Chosen(found, options)


def _side_by_side(
    name: str,
    task: _Task,
    rules: Mapping[str, _Chosen],
    looks: Mapping[int, Mapping[str, Any]],
    steps: int,
    jobs: int | None,
    folder: Path,
    progress: bool,
    equation: str = "",
) -> Comparison:
    """Make the runs, and write what came of them.

    Args:
        name: Of the problem.
        task: The problem.
        rules: By the names that tables have.
        looks: Seed -> what tells the problem, at this seed, from others.
        steps: Of every run.
        jobs: How many runs at once; ``None`` means as many as cores.
        folder: For runs, table, figure and page.
        progress: Whether to print how far it is.
        equation: For people.
    """
    machine = find_machine()
    jobs = machine.cores if jobs is None else _arguments.integer("jobs", jobs, at_least=0)
    plan: list[Run] = [
        {
            "problem": name,
            "balance": label,
            "options": str(rule),
            "seed": seed,
            "settings": {"steps": steps, **look},
        }
        for seed, look in looks.items()
        for label, rule in rules.items()
    ]
    if not plan:
        raise ValueError(f"rules and seeds must have one at least, got {[*rules]} and {[*looks]}")
    jobs = min(jobs, len(plan))
    threads = max(1, machine.cores // jobs) if jobs else None
    known = read_runs(folder)
    # All runs with the operators in C++, or all without, even if these are built meanwhile. Else
    # their seconds could not be compared.
    there = _operators.building(machine).outcome == "built" and _operators.choice() != "off"
    fast = next((run["operators"] for run in known if "operators" in run), there)
    work = functools.partial(_train, task, dict(rules), steps, threads, fast)
    ended = run_all(plan, known, folder, work, jobs, _described, progress)
    comparison = Comparison(
        [run for run in ended if FAILED not in run], [run for run in ended if FAILED in run], folder
    )
    if not comparison.runs:
        raise RuntimeError(f"all runs have failed, the first with {ended[0][FAILED]}")
    replace(folder / TABLE, [comparison.table().encode()])
    settings = {
        "problem": name,
        "rules": {label: str(rule) for label, rule in rules.items()},
        "seeds": list(looks),
        "steps": steps,
        **{name: x for name, x in plan[0]["settings"].items() if not name.startswith("first ")},
        "runs at once": jobs or "1, in one process for all",
        "machine": str(machine),
    }
    _compared.write(folder, comparison.runs, comparison.failed, settings, equation)
    return comparison


def _train(
    task: _Task,
    rules: Mapping[str, _Chosen],
    steps: int,
    threads: int | None,
    with_operators: bool,
    run: Run,
    folder: Path,
    say: Callable[[float], None],
    stop: StopOnSignals,
) -> Run | None:
    """A run of ``_side_by_side``; with ``threads`` in a process of its own."""
    if threads is not None:
        # Lines of several processes at once would hide how far they are.
        logging.getLogger("paddlescience_gradnorm").setLevel(logging.WARNING)
        tune_cpu(threads=threads)
        _operators.go_on(with_operators)
    trial = task.begin(run["seed"])
    with held(), called() as layers:
        losses = trial.losses(trial.net)
    if threads is not None and isinstance(task, _OwnProblem):
        task.check_here(run, losses)
    n_loss = count(losses)
    del losses  # or their graph would stay through the run
    # Checkpoints hold the weights of points too, except those that the trainer finds by itself.
    found = {id(x) for part in layers_of(trial.losses).values() for x in part.sublayers(True)}
    hidden = [layer for layer in layers if id(layer) not in found]
    extras = {f"points {number}": layer for number, layer in enumerate(hidden)}
    net = GradNorm(
        trial.net,
        n_loss,
        rule=rules[run["balance"]].rule,
        equations=trial.equations,
        **rules[run["balance"]].options,
    )
    optimizer = trial.optimizer([*net.parameters(), *trial.parameters], steps)
    course = Course(trial.error, say)
    trainer = Trainer(
        net,
        trial.losses,
        optimizer,
        callbacks=[stop],
        extras={"course": course, **extras},
        progress=False,
    )
    course.follow(trainer, steps, folder, every=max(1, steps // MOMENTS))
    if stop.received and trainer.step < steps:
        return None
    return {**course.results(trainer), **trial.found(net)}


def _described(run: Run) -> str:
    what = f"{run['balance']}, seed {run['seed']}"
    if FAILED in run:
        return f"{what} failed: {run[FAILED]}"
    losses = ", ".join(f"{name} {loss:.1e}" for name, loss in run["losses"].items())
    found = f"losses {losses}" if run["error"] is None else f"error {run['error']:.2e}"
    return f"{what}: {found}, {run['seconds']:.0f} s"
