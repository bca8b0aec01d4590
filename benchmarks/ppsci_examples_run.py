"""One run of one of PaddleScience's examples: ``ppsci_examples.py`` starts it as a process.

It runs in the copy of the example's folder. It changes ``Solver.__init__`` so that the Solver gets
the aggregator, and ends the process after the last training, because what the example draws
afterwards is not of interest.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import math
import os
import runpy
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from paddle.optimizer import LBFGS
from ppsci.loss import mtl
from ppsci.optimizer import Adam
from ppsci.solver import solver as solvers
from ppsci.utils import save_load
from ppsci_examples_cases import EXAMPLES, Example

from paddlescience_gradnorm.balancing import PinnRule
from paddlescience_gradnorm.ppsci import GradNormAggregator, propagate_derivatives
from paddlescience_gradnorm.ppsci._weights_by_hand import weights_by_hand, without_weights_by_hand
from paddlescience_gradnorm.runtime import tune_cpu

# A single iterate at a constant rate is noise, so this takes the median of five.
MOMENTS = (0.92, 0.94, 0.96, 0.98, 1.0)
# A shorter memory of Adam, for the balances that end so. An example that sets another keeps it.
BETA2, OF_BETA2 = 0.99, "_beta2"
# What is faster, in balances that end so: tune_cpu, and propagate_derivatives besides.
TUNED, PROPAGATED = "_tuned", "_propagated"
# PaddleScience's aggregators update on every thousandth step, which a shortened run hardly reaches.
SHORT_UPDATE_FREQ = 100
Build = Callable[[Any, dict[str, Any], dict[str, Any], int, int], Any]


def count_losses(constraint: dict[str, Any]) -> int:
    """As the Solver sees them: it adds up losses of the same name."""
    return len({name for each in constraint.values() for name in each.output_keys})


def balance_named(name: str) -> Build | None:
    """Builds the aggregator from model, constraints, equations and update_freq."""
    for suffix in (OF_BETA2, TUNED, PROPAGATED):
        name = name.removesuffix(suffix)
    return {
        "original": None,
        "of": lambda m, c, e, f: GradNormAggregator.of(m, c, e),
        "of_bare": lambda m, c, e, f: bare_aggregator(m, c, e),
        "of_early": lambda m, c, e, f: GradNormAggregator.of(m, c, e, rule=PinnRule(late=False)),
        "by_name": lambda m, c, e, f: GradNormAggregator(m),
        "GradNorm": lambda m, c, e, f: mtl.GradNorm(m, count_losses(c), f),
        "Relobralo": lambda m, c, e, f: mtl.Relobralo(count_losses(c)),
        "NTK": lambda m, c, e, f: mtl.NTK(m, count_losses(c), f),
    }[name]


def bare_aggregator(model: Any, constraint: dict[str, Any], equation: Any) -> GradNormAggregator:
    """Without any weights by hand, not even those of equations."""
    for each in constraint.values():
        found = weights_by_hand(each, each.loss)
        each.loss = functools.partial(without_weights_by_hand, found, each.loss)
    return GradNormAggregator.of(model, constraint, equation)


class Recorder:
    """What is to be known of a run, and the changes to PaddleScience that find it out."""

    def __init__(self, example: Example, balance: str, full: bool) -> None:
        self.example = example
        self.build = balance_named(balance)
        self.is_by_name = balance == "by_name"
        self.is_bare = balance == "of_bare"
        self.adam_options = {"beta2": BETA2} if balance.endswith(OF_BETA2) else {}
        self.propagates = balance.endswith(PROPAGATED)
        self.paths: dict[str, str] = {}
        self.update_freq = 1000 if full else SHORT_UPDATE_FREQ
        self.trainings: list[dict[str, Any]] = []
        # By the constraints, which are kept alive so that their ids stay theirs.
        self._aggregators: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def install(self) -> None:
        """Change the Solver, and perhaps Adam."""
        Adam.__init__ = functools.partialmethod(Adam.__init__, **self.adam_options)
        original_init, original_train = solvers.Solver.__init__, solvers.Solver.train

        def init(solver: Any, *args: Any, **kwargs: Any) -> None:
            bound = inspect.signature(original_init).bind(solver, *args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            constraint, aggregator = given["constraint"], None
            if constraint and self.build:
                aggregator = self._aggregator(given["model"], constraint, given["equation"])
                kwargs["loss_aggregator"] = aggregator
            original_init(solver, *args, **kwargs)
            if self.propagates:
                self.paths.update(propagate_derivatives(solver))
            if aggregator is not None and self.is_by_name:
                aggregator.log_to(solver)

        def train(solver: Any) -> None:
            errors: list[float] = []
            last = self._evaluate_at_the_end(solver, errors)
            if self.is_bare and self.trainings and isinstance(solver.optimizer, LBFGS):
                solver.loss_aggregator.balancer.freeze()
            begin, busy = time.perf_counter(), time.process_time()
            original_train(solver)
            training = {
                "optimizer": type(solver.optimizer).__name__,
                "steps": solver.global_step,
                "seconds": time.perf_counter() - begin - last["seconds"],
                "cpu_seconds": time.process_time() - busy - last["cpu_seconds"],
                "errors": errors,
                "error": statistics.median(errors),
            }
            if self.propagates:
                training["derivatives"] = self.paths
            aggregator = solver.loss_aggregator
            if isinstance(aggregator, GradNormAggregator):
                equations = aggregator.balancer.equations or aggregator._losses.equations
                training["losses"] = list(aggregator.names)
                training["equations"] = list(equations)
                training["weights"] = [float(w) for w in aggregator.get_weights()]
            self.trainings.append(training)
            if len(self.trainings) == self.example.trainings:
                raise SystemExit(0)

        solvers.Solver.__init__, solvers.Solver.train = init, train
        # A checkpoint after every epoch would take longer than the epoch, if that is one step.
        save_load.save_checkpoint = lambda *args, **kwargs: None

    def _aggregator(self, model: Any, constraint: Any, equation: Any) -> Any:
        """The same one for a second Solver with the same constraints."""
        key = tuple(id(each) for each in constraint.values())
        if key not in self._aggregators:
            built = self.build(model, constraint, equation or {}, self.update_freq)
            self._aggregators[key] = built, constraint
        return self._aggregators[key][0]

    def _evaluate_at_the_end(self, solver: Any, errors: list[float]) -> dict[str, float]:
        """Measure the error at the moments; returns what that takes, filled in later."""
        spent = {"seconds": 0.0, "cpu_seconds": 0.0}
        moments = {max(1, round(share * solver.epochs)) for share in MOMENTS}
        train_epoch = solver.train_epoch_func

        def train_and_evaluate(solver: Any, epoch: int, log_freq: int) -> None:
            train_epoch(solver, epoch, log_freq)
            if epoch in moments:
                begin, busy = time.perf_counter(), time.process_time()
                errors.append(self._error(solver))
                spent["seconds"] += time.perf_counter() - begin
                spent["cpu_seconds"] += time.process_time() - busy

        solver.train_epoch_func = train_and_evaluate
        return spent

    def _error(self, solver: Any) -> float:
        metric = self.example.metric
        if callable(metric):

            def predict(points: Any) -> Any:
                return solver.predict(dict(points), batch_size=None, return_numpy=True)

            return float(metric(predict, sys.modules["__main__"]))
        kind, output = metric.rsplit(".", 1)
        return float(solver.eval()[1][kind][output])


def substitute(text: str, changes: Mapping[str, str], seed: int) -> str:
    """Replace in a script. It is an error if something is not there.

    Raises:
        ValueError: The script does not have a text, so it is another version's.
    """
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"the script does not have {old!r}: the snapshot is another version")
        text = text.replace(old, new.replace("{seed}", str(seed)))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("example", choices=EXAMPLES)
    parser.add_argument("balance")
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path, help="copy of the example's folder")
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()

    matplotlib.use("Agg")
    if args.balance.endswith((TUNED, PROPAGATED)):
        tune_cpu(threads=1)
    example = EXAMPLES[args.example]
    script = args.folder / example.script
    recorder = Recorder(example, args.balance, args.full)
    recorder.install()
    os.chdir(args.folder)
    sys.path.insert(0, str(args.folder))
    sys.argv = [str(script)]
    if example.has_options:
        output = args.folder / "output"
        sys.argv += [f"seed={args.seed}", f"output_dir={output}", f"hydra.run.dir={output}"]
        sys.argv += [] if args.full else example.short.split()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    failure = None
    begin = time.perf_counter()
    try:
        changes = {**example.repair, **({} if args.full else example.resize)}
        script.write_text(substitute(script.read_text(), changes, args.seed))
        runpy.run_path(str(script), run_name="__main__")
        failure = f"the script ended after {len(recorder.trainings)} trainings"
    except SystemExit as end:
        done = len(recorder.trainings) == example.trainings
        failure = None if done else f"SystemExit: {end}"
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    if failure is None and not all(map(math.isfinite, recorder.trainings[-1]["errors"])):
        failure = f"the error is {recorder.trainings[-1]['errors']}"
    result = {
        "error": recorder.trainings[-1]["error"] if failure is None else None,
        "fails": failure,
        "cpu_seconds": sum(t["cpu_seconds"] for t in recorder.trainings),
        "steps": sum(t["steps"] for t in recorder.trainings),
        "seconds": time.perf_counter() - begin,
        "trainings": recorder.trainings,
    }
    args.result.write_text(json.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
