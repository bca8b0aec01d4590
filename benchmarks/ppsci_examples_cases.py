"""Which of PaddleScience's examples ``ppsci_examples.py`` runs, how they are shortened, and judged.

The examples themselves are read from the user's snapshot. Here are only their names, the options
of their configuration, and what is replaced in a copy of a script.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

Points = Mapping[str, np.ndarray]
# (points -> the model's outputs there, the example's script) -> error
Error = Callable[[Callable[[Points], Points], ModuleType], float]


@dataclass(frozen=True)
class Example:
    """One script of a snapshot.

    Args:
        folder: Its folder below ``examples``.
        script: Its file there.
        metric: What is reported, smaller is better: the name ``METRIC.OUTPUT`` in the example's
            own validator, or a function, where the example has none that compares with a solution.
        short: Options of hydra for the shortened form.
        resize: What to replace in the script for the shortened form.
        repair: What to replace in both forms. ``{seed}`` stands for the seed.
        data: Files that this benchmark computes, by their place in the example's folder.
        by_hand: Whether an equation has a weight by hand, which ``of`` leaves and ``of_bare`` takes
            out.
        lbfgs_steps: Whether L-BFGS makes several steps after Adam, before which ``of_bare`` freezes
            the weights.
        adds_up: Whether constraints share a loss's name, so that the Solver adds up their losses.
            Otherwise ``by_name`` is the same as ``of``, and is not run.
        trainings: How many Solvers are trained, one after the other.
        has_options: Whether the script reads hydra's options.
    """

    folder: str
    script: str
    metric: str | Error
    short: str = ""
    resize: Mapping[str, str] = field(default_factory=dict)
    repair: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    by_hand: bool = False
    lbfgs_steps: bool = False
    adds_up: bool = False
    trainings: int = 1
    has_options: bool = True

    @property
    def has_bare_run(self) -> bool:
        """Whether ``of_bare`` is another run than ``of``."""
        return self.by_hand or self.lbfgs_steps


def grid(keys: str, low: Any, high: Any, count: int) -> dict[str, np.ndarray]:
    """Even points of a box: one key a letter, each of shape [count ** len(keys), 1]."""
    axes = [np.linspace(a, b, count, dtype="float32") for a, b in zip(low, high)]
    return {k: x.reshape(-1, 1) for k, x in zip(keys, np.meshgrid(*axes, indexing="ij"))}


def relative(value: np.ndarray, exact: np.ndarray) -> float:
    """The relative error in the L2 norm."""
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))


def darcy_error(predict: Any, script: ModuleType) -> float:
    at = grid("xy", (0, 0), (1, 1), 41)
    exact = np.sin(2 * np.pi * at["x"]) * np.cos(2 * np.pi * at["y"])
    return relative(predict(at)["p"], exact)


def cavity_error(predict: Any, script: ModuleType) -> float:
    """Of the speed in the cavity at Re 10, without its edge; at the end, if time is an input."""
    import scipy.io

    exact = scipy.io.loadmat("data/ldc_Re10.mat")
    at = grid("xy", (-0.05, -0.05), (0.05, 0.05), 65)
    found = predict({**at, "t": np.full_like(at["x"], 1.5)})
    inside = np.s_[1:-1, 1:-1]
    speed = np.hypot(found["u"], found["v"]).reshape(65, 65)
    return relative(speed[inside], np.hypot(exact["u"], exact["v"])[inside])


def heat_error(predict: Any, script: ModuleType) -> float:
    """Mean square, against the example's own finite differences."""
    count = 40
    at = grid("yx", (-1, -1), (1, 1), count)
    exact = script.fdm.solve(count, 1) / 75.0
    found = predict(at)["u"].reshape(count, count)
    return float(np.mean((found - exact) ** 2))


def plate_error(predict: Any, script: ModuleType) -> float:
    at = grid("xy", (0, 0), (2, 3), 41)
    stiffness = 201880.0e6 * 0.01**3 / (12 * (1 - 0.25**2))
    exact = np.sin(np.pi * at["x"] / 2) * np.sin(np.pi * at["y"] / 3)
    exact = exact * 980 / (np.pi**4 * stiffness * (1 / 4 + 1 / 9) ** 2)
    return relative(predict(at)["u"], exact)


def pipe_error(predict: Any, script: ModuleType) -> float:
    axes = [np.linspace(*ends, 15) for ends in ((0.1, 0.9), (-0.05, 0.05), (0.0002, 0.0019))]
    points = np.meshgrid(*axes, indexing="ij")
    at = {k: x.reshape(-1, 1).astype("float32") for k, x in zip(("x", "y", "nu"), points)}
    return relative(predict(at)["u"], (0.05**2 - at["y"] ** 2) * 0.1 / (2 * at["nu"]))


def optical_error(low: Any, high: Any) -> Error:
    def error(predict: Any, script: ModuleType) -> float:
        at = grid("tx", low, high, 41)
        found = predict(at)
        names = ("Eu", "Ev", "pu", "pv", "eta")
        return relative(
            np.concatenate([found[name] for name in names]),
            np.concatenate(script.analytic_solution(at)),
        )

    return error


def helmholtz_error(predict: Any, script: ModuleType) -> float:
    *axes, exact = script.generate_test_helmholtz3d(4, 4, 3, 40)
    found = predict(dict(zip("xyz", axes)))["u"]
    return relative(found.reshape(-1), exact.reshape(-1))


def sine_error(predict: Any, script: ModuleType) -> float:
    at = grid("x", (-np.pi,), (np.pi,), 1000)
    return relative(predict(at)["u"], np.sin(at["x"]) + 2)


def chip_error(predict: Any, script: ModuleType) -> float:
    """For the source 1 and the edge's temperature 0, which are among those trained on."""
    at = grid("xy", (0, 0), (1, 1), 20)
    exact, odd = 0.0, range(1, 60, 2)
    for m, n in ((m, n) for m in odd for n in odd):
        wave = np.sin(m * np.pi * at["x"]) * np.sin(n * np.pi * at["y"])
        exact = exact + 1600 / (np.pi**4 * m * n * (m**2 + n**2)) * wave
    count = len(at["x"])
    inputs = {
        "u": np.ones([count, 324]),
        "bc": np.zeros([count, 1]),
        "bc_data": np.zeros([count, 76]),
    }
    inputs = {name: value.astype("float32") for name, value in inputs.items()}
    return relative(predict({**at, **inputs})["T"], exact)


ALLEN_CAHN = {"dataset/allen_cahn.mat": "allen_cahn.mat"}
FEWER_ALLEN_CAHN = (
    "TRAIN.epochs=50 TRAIN.batch_size=256 TRAIN.save_freq=0 TRAIN.eval_during_train=false "
    "MODEL.hidden_size=48 TRAIN.iters_per_epoch="
)
# The configuration does not have all that PaddleScience 1.4.0 reads from it.
WITHOUT_CONFIGURATION = {
    "        cfg=cfg,\n": "",
    "eval_during_train=True": "eval_during_train=False",
}

EXAMPLES = {
    "laplace2d": Example(
        "laplace",
        "laplace2d.py",
        "MSE.u",
        "TRAIN.epochs=2000 NPOINT_INTERIOR=900 NPOINT_BC=120 TRAIN.eval_during_train=false",
    ),
    "darcy2d": Example(
        "darcy",
        "darcy2d.py",
        darcy_error,
        "TRAIN.epochs=1000 NPOINT_PDE=625 NPOINT_BC=100 TRAIN.eval_during_train=false "
        "TRAIN.lbfgs.max_iter=5",
        trainings=2,
        lbfgs_steps=True,
    ),
    "euler_beam": Example(
        "euler_beam",
        "euler_beam.py",
        "L2Rel.u",
        "TRAIN.epochs=2000 TRAIN.eval_during_train=false TRAIN.save_freq=0",
    ),
    "ldc2d_steady_Re10": Example(
        "ldc",
        "ldc2d_steady_Re10.py",
        cavity_error,
        "TRAIN.epochs=1000 TRAIN.eval_during_train=false",
        resize={
            "NPOINT_PDE = 99**2": "NPOINT_PDE = 20**2",
            "NPOINT_TOP = 101": "NPOINT_TOP = 21",
            "NPOINT_BOTTOM = 101": "NPOINT_BOTTOM = 21",
            "NPOINT_LEFT = 99": "NPOINT_LEFT = 21",
            "NPOINT_RIGHT = 99": "NPOINT_RIGHT = 21",
        },
        data={"data/ldc_Re10.mat": "ldc_Re10.mat"},
        adds_up=True,
        by_hand=True,
    ),
    "ldc2d_unsteady_Re10": Example(
        "ldc",
        "ldc2d_unsteady_Re10.py",
        cavity_error,
        "NTIME_ALL=5 TRAIN.epochs=800 TRAIN.eval_during_train=false",
        resize={
            "NPOINT_PDE, NTIME_PDE = 99**2": "NPOINT_PDE, NTIME_PDE = 11**2",
            "NPOINT_TOP, NTIME_TOP = 101": "NPOINT_TOP, NTIME_TOP = 12",
            "NPOINT_DOWN, NTIME_DOWN = 101": "NPOINT_DOWN, NTIME_DOWN = 12",
            "NPOINT_LEFT, NTIME_LEFT = 99": "NPOINT_LEFT, NTIME_LEFT = 12",
            "NPOINT_RIGHT, NTIME_RIGHT = 99": "NPOINT_RIGHT, NTIME_RIGHT = 12",
            "NPOINT_IC, NTIME_IC = 99**2, 1": "NPOINT_IC, NTIME_IC = 11**2, 1",
        },
        data={"data/ldc_Re10.mat": "ldc_Re10.mat"},
        adds_up=True,
        by_hand=True,
    ),
    "ldc_2d_Re1000_plain": Example(
        "ldc",
        "ldc_2d_Re1000_plain.py",
        "L2Rel.U",
        "epochs=[30,50,1] TRAIN.iters_per_epoch=20 TRAIN.eval_during_train=false "
        "TRAIN.batch_size.pde=256 TRAIN.batch_size.bc=64 MODEL.hidden_size=64",
        # Up to Re 400 in both forms: the flow at Re 1000 is not computed here.
        repair={"range(len(cfg.Re))": "range(2)", "cfg._tEVAL": "cfg_t.EVAL"},
        data={f"data/ldc_Re{re}.mat": f"ldc_Re{re}.mat" for re in (100, 400)},
        trainings=2,
    ),
    "heat_pinn": Example(
        "heat_pinn",
        "heat_pinn.py",
        heat_error,
        "TRAIN.epochs=1000 TRAIN.save_freq=0",
        resize={"NPOINT_PDE = 99**2": "NPOINT_PDE = 29**2"},
        adds_up=True,
    ),
    "biharmonic2d": Example(
        "biharmonic2d",
        "biharmonic2d.py",
        plate_error,
        "TRAIN.epochs=500 TRAIN.batch_size.bc=20 TRAIN.batch_size.interior=100 TRAIN.save_freq=0 "
        "TRAIN.optimizer.lbfgs.max_iter=60",
        trainings=2,
        adds_up=True,
        by_hand=True,
    ),
    "chip_heat": Example(
        "chip_heat",
        "chip_heat.py",
        chip_error,
        "TRAIN.epochs=1000 TRAIN.eval_during_train=false TRAIN.batch_size=64 NU=20 NBC=20 "
        "MODEL.branch_hidden_size=32 MODEL.BC_hidden_size=32 MODEL.trunk_hidden_size=32 "
        "MODEL.num_features=32 MODEL.branch_num_layers=3 MODEL.BC_num_layers=3 "
        "MODEL.trunk_num_layers=3",
        adds_up=True,
    ),
    "volterra_ide": Example("ide", "volterra_ide.py", "L2Rel.u", "TRAIN.optimizer.max_iter=600"),
    "poiseuille": Example(
        "pipe",
        "poiseuille_flow.py",
        pipe_error,
        "TRAIN.epochs=5 TRAIN.save_freq=0",
        repair={'"num_workers": 1,': '"num_workers": 0,'},
    ),
    "poiseuille_fixed": Example(
        "pipe",
        "poiseuille_flow.py",
        pipe_error,
        "TRAIN.epochs=5 TRAIN.save_freq=0",
        repair={
            '"num_workers": 1,': '"num_workers": 0,',
            'cfg.R**2 - input["y"] ** 2': 'cfg.R**2 - input["y"] * input["y"]',
        },
    ),
    "nlsmb_soliton": Example(
        "NLS-MB",
        "NLS-MB_optical_soliton.py",
        optical_error((-1, -1), (1, 1)),
        "NTIME_ALL=11 TRAIN.epochs=800 TRAIN.eval_during_train=false",
        resize={
            '"batch_size": 20000': '"batch_size": 550',
            '"total_size": 20600': '"total_size": 1100',
        },
        trainings=2,
        lbfgs_steps=True,
    ),
    "nlsmb_rogue_wave": Example(
        "NLS-MB",
        "NLS-MB_optical_rogue_wave.py",
        optical_error((-2.5, -0.5), (2.5, 0.5)),
        "NTIME_ALL=11 TRAIN.epochs=800 TRAIN.eval_during_train=false",
        resize={
            '"batch_size": 20000': '"batch_size": 550',
            '"total_size": 20600': '"total_size": 1100',
        },
        trainings=2,
        lbfgs_steps=True,
    ),
    "allen_cahn_plain": Example(
        "allen_cahn",
        "allen_cahn_plain.py",
        "L2Rel.u",
        FEWER_ALLEN_CAHN + "30",
        repair={**WITHOUT_CONFIGURATION, "use_tbd=True,": ""},
        data=ALLEN_CAHN,
    ),
    "allen_cahn_causal": Example(
        "allen_cahn",
        "allen_cahn_causal.py",
        "L2Rel.u",
        FEWER_ALLEN_CAHN + "30 MODEL.fourier.dim=48",
        repair={
            **WITHOUT_CONFIGURATION,
            "use_tbd=True,": "",
            # This file is not there.
            "allen_cahn_causal.yaml": "allen_cahn_causal_fourier_rwf.yaml",
        },
        data=ALLEN_CAHN,
    ),
    "allen_cahn_default": Example(
        "allen_cahn",
        "allen_cahn_default.py",
        "L2Rel.u",
        FEWER_ALLEN_CAHN + "30 MODEL.fourier.dim=48 TRAIN.grad_norm.update_freq=100",
        repair={
            "        cfg=cfg,\n": "        epochs=cfg.TRAIN.epochs,\n"
            "        iters_per_epoch=cfg.TRAIN.iters_per_epoch,\n"
        },
        data=ALLEN_CAHN,
    ),
    "allen_cahn_sota": Example(
        "allen_cahn",
        "allen_cahn_sota.py",
        "L2Rel.u",
        FEWER_ALLEN_CAHN + "20 MODEL.fourier.dim=48 TRAIN.ntk.update_freq=100",
        repair=WITHOUT_CONFIGURATION,
        data=ALLEN_CAHN,
    ),
    "gpinn_poisson_1d": Example(
        "gpinn",
        "poisson_1d.py",
        "L2Rel(u).u",
        "TRAIN.epochs=4000 TRAIN.eval_during_train=false",
        by_hand=True,
    ),
    "nsfnet1_kovasznay": Example(
        "nsfnet",
        "VP_NSFNet1.py",
        "L2R.u",
        "ntrain=500",
        resize={
            "epoch_list = [5000, 5000, 50000, 50000]": "epoch_list = [600, 200, 100, 100]",
            "EPOCHS = 5000": "EPOCHS = 1",
            "max_iter=50000": "max_iter=100",
        },
        trainings=2,
    ),
    "spinn_helmholtz3d": Example(
        "spinn",
        "helmholtz3d.py",
        helmholtz_error,
        "TRAIN.epochs=50 TRAIN.iters_per_epoch=30 TRAIN.nc=16 TRAIN.save_freq=0",
        # PaddleScience 1.4.0 wants the model at once.
        repair={"Helmholtz(3, 1.0)": "Helmholtz(3, 1.0, model)"},
        adds_up=True,
    ),
    "viv": Example(
        "fsi",
        "viv.py",
        "MSE.eta",
        "TRAIN.epochs=3000 TRAIN.eval_during_train=false TRAIN.save_freq=0",
    ),
    "quick_start_case2": Example(
        "quick_start",
        "case2.py",
        sine_error,
        repair={
            "set_random_seed(42)": "set_random_seed({seed})",
            "EPOCHS = 10": "EPOCHS = 50",
            "ITERS_PER_EPOCH = 100": "ITERS_PER_EPOCH = 20",
        },
        has_options=False,
    ),
}
