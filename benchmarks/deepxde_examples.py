"""DeepXDE's own PINN examples on Paddle, as they are and balanced.

Copies of the examples are shortened by the substitutions below: fewer steps, fewer points, no
plots. The balanced copy has two lines more, the import and ``balance(model)`` before the first
``model.train``. Weights that an example sets by hand are left out of the balanced copy. Hard
constraints that leave only one loss are replaced by conditions, in both copies.

Each run is a process of its own and leaves one file in the work folder, failures too, so a run
that was cut off goes on where it was. Needs the package with ``.[cpu,deepxde]``, and a clone of
https://github.com/lululxvi/deepxde, of which nothing is changed::

    python benchmarks/deepxde_examples.py path/to/deepxde --work outputs/deepxde_examples
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Steps of L-BFGS, in examples that use it after Adam.
LBFGS_STEPS = 200
VARIANTS = ("original", "balanced")
DISPLAY = {"original": "as it is", "balanced": "balanced"}


@dataclass(frozen=True)
class Example:
    """An example of DeepXDE.

    Args:
        path: Its file, below ``examples/``.
        title: What the table calls it.
        error: An expression for its error, evaluated after the example.
        substitutions: Pieces of its text, and what stands for them.
        balanced: More of these, for the balanced copy only.
    """

    path: str
    title: str
    error: str
    substitutions: dict[str, str]
    balanced: dict[str, str] = field(default_factory=dict)


def l2(exact: str, points: str) -> str:
    """The error of the model's first output against this function of these points."""
    # A function, because random points must be drawn only once.
    of = f"lambda x: dde.metrics.l2_relative_error({exact}(x), model.predict(x))"
    return f"({of})({points})"


def steps(before: int, after: int) -> dict[str, str]:
    """Fewer steps of Adam."""
    return {f"iterations={before}": f"iterations={after}"}


EXAMPLES = {
    "poisson_lshape": Example(
        "pinn_forward/Poisson_Lshape.py",
        "Poisson, L-shape",
        "dde.metrics.l2_relative_error(values[known], model.predict(points[known]))",
        {
            **steps(50000, 1500),
            # With numpy 2 DeepXDE samples a polygon in float64, which the network does not take.
            "num_domain=1200, num_boundary=120, num_test=1500)\n": "num_domain=400, "
            "num_boundary=60)\n"
            'data.train_x = data.test_x = data.train_x.astype("float32")\n',
            "import deepxde as dde\n": "import deepxde as dde\nimport numpy as np\n"
            "reference = np.load('../dataset/Poisson_Lshape.npz')\n"
            "points, values = reference['X_test'], reference['y_ref']\n"
            "known = np.isfinite(values[:, 0])\n",
        },
    ),
    "burgers": Example(
        "pinn_forward/Burgers.py",
        "Burgers",
        "dde.metrics.l2_relative_error(y_true, model.predict(X))",
        {
            **steps(15000, 3000),
            "num_domain=2540, num_boundary=80, num_initial=160": "num_domain=600, "
            "num_boundary=40, num_initial=80",
        },
    ),
    "allen_cahn": Example(
        "pinn_forward/Allen_Cahn.py",
        "Allen-Cahn, conditions instead of hard constraints",
        "dde.metrics.l2_relative_error(y_true, model.predict(X))",
        {
            **steps(40000, 3000),
            "net.apply_output_transform(output_transform)\n": "",
            "pde, [], num_domain=8000, num_boundary=400, num_initial=800": "pde, ["
            "dde.icbc.IC(geomtime, lambda x: x[:, 0:1]**2 * np.cos(np.pi * x[:, 0:1]), "
            "lambda _, on_initial: on_initial), "
            "dde.icbc.DirichletBC(geomtime, lambda x: -1, lambda _, on_boundary: on_boundary)], "
            "num_domain=600, num_boundary=40, num_initial=80",
        },
    ),
    "helmholtz": Example(
        "pinn_forward/Helmholtz_Dirichlet_2d.py",
        "Helmholtz, its soft constraint, weights 1 and 100 by hand",
        l2("func", "geom.uniform_points(2500)"),
        {
            "iterations = 5000": "iterations = 1200",
            "hard_constraint = True": "hard_constraint = False",
            '[1e-3, 3, 150, "sin"]': '[1e-3, 3, 50, "sin"]',
        },
        {"        loss_weights=loss_weights,\n": ""},
    ),
    "kovasznay": Example(
        "pinn_forward/Kovasznay_flow.py",
        "Kovasznay flow",
        "max(l2_difference_u, l2_difference_v)",
        {
            **steps(30000, 1000),
            "num_domain=2601": "num_domain=300",
            "num_boundary=400": "num_boundary=80",
            "num_test=100000": "num_test=300",
            "random_points(100000)": "random_points(5000)",
        },
    ),
    "diffusion_reaction": Example(
        "pinn_forward/diffusion_reaction.py",
        "Diffusion-reaction, conditions instead of hard constraints",
        l2("func", "geomtime.random_points(5000)"),
        {
            **steps(20000, 2000),
            "net.apply_output_transform(output_transform)\n": "",
            "pde, [], num_domain=320, solution=func, num_test=80000": "pde, ["
            "dde.icbc.DirichletBC(geomtime, func, lambda _, on_boundary: on_boundary), "
            "dde.icbc.IC(geomtime, func, lambda _, on_initial: on_initial)], num_domain=320, "
            "num_boundary=40, num_initial=40, solution=func",
        },
    ),
    "klein_gordon": Example(
        "pinn_forward/Klein_Gordon.py",
        "Klein-Gordon",
        l2("func", "X_star"),
        {
            **steps(20000, 2000),
            "num_domain=30000": "num_domain=500",
            "num_boundary=1500": "num_boundary=50",
            "num_initial=1500": "num_initial=50",
            "num_test=6000": "num_test=500",
        },
    ),
    "wave": Example(
        "pinn_forward/wave_1d.py",
        "Wave, its weights of 5 / initial losses by hand",
        l2("func", "geomtime.random_points(5000)"),
        {
            **steps(10000, 600),
            "[2] + [100] * 3 + [1]": "[2] + [50] * 3 + [1]",
            "num_domain=360": "num_domain=100",
            "num_boundary=360": "num_boundary=60",
            "num_initial=360": "num_initial=60",
            "num_test=10000": "num_test=500",
        },
        {"    loss_weights=loss_weights,\n": ""},
    ),
    "ode_system": Example(
        "pinn_forward/ode_system.py",
        "System of two ODEs",
        l2("func", "geom.uniform_points(1000)"),
        steps(20000, 4000),
    ),
    "euler_beam": Example(
        "pinn_forward/Euler_beam.py",
        "Euler beam, four conditions",
        l2("func", "geom.uniform_points(1000)"),
        steps(10000, 2000),
    ),
    "lorenz_inverse": Example(
        "pinn_inverse/Lorenz_inverse.py",
        "Lorenz, inverse: largest error of the three constants",
        "max(abs(float(c) / exact - 1) for c, exact in [(C1, 10), (C2, 15), (C3, 8 / 3)])",
        {**steps(20000, 3000), ', filename="variables.dat"': ""},
    ),
}

PROLOGUE = """\
import json, os, time
os.environ["DDE_BACKEND"] = "paddle"
import matplotlib
matplotlib.use("Agg")
import paddle
import deepxde as dde
dde.config.set_random_seed({seed})
dde.optimizers.config.LBFGS_options.update(
    maxiter={lbfgs}, iter_per_step={lbfgs}, fun_per_step={lbfgs} * 5 // 4)
spent = {{"steps": 0, "seconds": 0.0}}
train_by_adam = dde.Model._train_sgd
def timed(self, iterations, *arguments, **keywords):
    begin = time.process_time()
    train_by_adam(self, iterations, *arguments, **keywords)
    spent["steps"] += iterations
    spent["seconds"] += time.process_time() - begin
dde.Model._train_sgd = timed
"""
EPILOGUE = """
weights = getattr(model, "balance", None)
with open("result.json", "w") as file:
    json.dump({{
        "error": float({error}),
        "steps": spent["steps"],
        "cpu_ms_a_step": 1e3 * spent["seconds"] / spent["steps"],
        "names": weights.names if weights else [],
        "weights": weights.get_weights().tolist() if weights else [],
    }}, file)
"""


def program(source: str, example: Example, variant: str, seed: int) -> str:
    """The text of the example's copy.

    Raises:
        ValueError: The example is not the one that the substitutions were made for.
    """
    common = {
        "from deepxde.backend import tf\n": "",
        "tf.": "paddle.",
        "dde.saveplot(losshistory, train_state, issave=True, isplot=True)\n": "",
        'np.savetxt("test.dat", np.hstack((X, y_true, y_pred)))\n': "",
    }
    more = example.balanced if variant == "balanced" else {}
    for old, new in common.items():
        pattern = r"\btf\." if old == "tf." else re.escape(old)
        source = re.sub(pattern, lambda _, new=new: new, source)
    for old, new in {**example.substitutions, **more}.items():
        if old not in source:
            raise ValueError(f"{example.path} has no {old!r}: it is another version of the example")
        source = source.replace(old, new)
    if variant == "balanced":
        first = re.compile(r"^(?=(?:losshistory, train_state = )?model\.train\()", re.MULTILINE)
        source, times = first.subn("balance(model)\n", source, count=1)
        if not times:
            raise ValueError(f"{example.path} has no model.train(...) to balance")
        source = "from paddlescience_gradnorm.deepxde import balance\n" + source
    return (
        PROLOGUE.format(seed=seed, lbfgs=LBFGS_STEPS)
        + source
        + EPILOGUE.format(error=example.error)
    )


def run(snapshot: Path, work: Path, name: str, variant: str, seed: int) -> dict[str, Any]:
    """The result of one run, or how it fails."""
    example = EXAMPLES[name]
    # The examples read ../dataset.
    folder = work / "runs" / f"{name}-{variant}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    dataset = work / "runs" / "dataset"
    if not dataset.exists():
        dataset.symlink_to((snapshot / "examples/dataset").resolve(), target_is_directory=True)
    try:
        source = (snapshot / "examples" / example.path).read_text(encoding="utf-8")
        (folder / "run.py").write_text(program(source, example, variant, seed), encoding="utf-8")
    except (OSError, ValueError) as error:
        return {"fails": f"{type(error).__name__}: {error}"}
    with open(folder / "log.txt", "w") as log:
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "run.py"],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "DDE_BACKEND": "paddle"},
        )
    if process.returncode or not (folder / "result.json").exists():
        lines = (folder / "log.txt").read_text().strip().splitlines()
        return {"fails": lines[-1] if lines else f"exit code {process.returncode}"}
    return json.loads((folder / "result.json").read_text())


def table(results: dict[tuple[str, str, int], dict[str, Any]]) -> str:
    """The results as markdown: medians over the seeds that both copies of an example have."""
    lines = [
        "| example | steps | error as it is | error balanced | ratio | CPU ms a step as it is "
        "| balanced |",
        "|---|---|---|---|---|---|---|",
    ]
    learned = ["", "| example | seeds | weights of the first |", "|---|---|---|"]
    ratios = []
    for name, example in EXAMPLES.items():
        seeds = sorted({seed for other, _, seed in results if other == name})
        both = [s for s in seeds if all((name, v, s) in results for v in VARIANTS)]
        if not both:
            continue
        of = {v: [results[name, v, seed] for seed in both] for v in VARIANTS}
        failures = [
            f"{DISPLAY[v]}, seed {seed}: `{result['fails']}`"
            for v in VARIANTS
            for seed, result in zip(both, of[v])
            if "fails" in result
        ]
        start = f"| {example.title} |"
        if failures:
            lines.append(f"{start} | fails {'; '.join(failures)} | | | | |")
            continue
        errors = {v: [result["error"] for result in of[v]] for v in VARIANTS}
        ms = {v: statistics.median(r["cpu_ms_a_step"] for r in of[v]) for v in VARIANTS}
        median = {v: statistics.median(errors[v]) for v in VARIANTS}
        ratios.append(median["balanced"] / median["original"])
        first = of["balanced"][0]
        weights = ", ".join(f"{n} {w:.3g}" for n, w in zip(first["names"], first["weights"]))
        lines.append(
            f"{start} {first['steps']:,} | {_spread(errors['original'])} | "
            f"{_spread(errors['balanced'])} | {ratios[-1]:.2g} | {ms['original']:.1f} | "
            f"{ms['balanced']:.1f} ({ms['balanced'] / ms['original']:.2f}) |"
        )
        learned.append(f"{start} {', '.join(map(str, both))} | {weights} |")
    if ratios:
        lines += learned
        lines += ["", f"Geometric mean of the ratios: {statistics.geometric_mean(ratios):.2f}."]
    return "\n".join(lines) + "\n"


def _spread(errors: Sequence[float]) -> str:
    median = f"{statistics.median(errors):.2g}"
    return median if len(errors) == 1 else f"{median} [{min(errors):.2g}, {max(errors):.2g}]"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("snapshot", type=Path, help="a clone of DeepXDE's repository")
    parser.add_argument("--work", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=EXAMPLES, default=list(EXAMPLES))
    parser.add_argument("--table", action="store_true", help="only print what there is already")
    options = parser.parse_args(arguments)
    if not (options.snapshot / "examples").is_dir():
        parser.error(f"{options.snapshot} has no folder examples: clone DeepXDE's repository there")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    folder = options.work.resolve() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for seed in options.seeds:
        for name in options.only:
            for variant in VARIANTS:
                path = folder / f"{name}-{variant}-{seed}.json"
                if not path.exists():
                    if options.table:
                        continue
                    result = run(options.snapshot, options.work.resolve(), name, variant, seed)
                    part = path.with_suffix(".part")
                    part.write_text(json.dumps(result) + "\n")
                    part.replace(path)
                    print(name, variant, seed, json.dumps(result), flush=True)
                results[name, variant, seed] = json.loads(path.read_text())
    print(table(results))


if __name__ == "__main__":
    main()
