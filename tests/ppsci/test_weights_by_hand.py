"""What becomes of the weights that a Solver's constraints give their losses by hand."""

import itertools

import numpy as np
import paddle
import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import ppsci
from ppsci_problem import LOADER, apart, trained, values_of

from paddlescience_gradnorm.ppsci import GradNormAggregator
from paddlescience_gradnorm.ppsci._weights_by_hand import constant_weight, without_weights_by_hand


def set_weight_dict(constraint, weights):
    """What ``weight_dict=`` does: a weight for each point comes with every batch."""
    batch = next(constraint.data_iter)
    tensors = {
        name: paddle.full_like(batch[1][name], weight) if np.isscalar(weight) else weight
        for name, weight in weights.items()
    }
    constraint.data_iter = itertools.repeat((*batch[:2], tensors))


def run(
    prepare=None, steps=25, kinds=("EQ", "left", "right"), balanced=True, adapt=None, **settings
):
    """Parameters after a training; weights; and the aggregator, if there is one."""
    model, constraint, equation = apart(kinds)
    for each in constraint.values():  # the same points in every step
        each.data_iter = itertools.repeat(next(each.data_iter))
    if prepare is not None:
        prepare(constraint)
    aggregator = None
    if balanced:
        options = {} if balanced is True else balanced
        aggregator = GradNormAggregator.of(model, constraint, equation, **options)
        if adapt is not None:
            adapt(aggregator)
    optimizer = settings.pop("optimizer", None)
    if optimizer is not None:
        optimizer = optimizer(model)
    trained(model, constraint, equation, aggregator, steps, optimizer=optimizer, **settings)
    return values_of(model), aggregator


def same(found, expected):
    """Up to rounding, which is another if the losses are added up in another order."""
    for mine, other in zip(found, expected):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


def by_weight(constraint):
    constraint["left"].loss.weight = 100
    constraint["right"].loss.weight = {"u": 0.25, "other": 7.0}


def by_weight_dict(constraint):
    set_weight_dict(constraint["left"], {"u": 100.0})


def by_both(constraint):
    by_weight(constraint)
    set_weight_dict(constraint["right"], {"u": 12.0})


@pytest.mark.parametrize("prepare", [by_weight, by_weight_dict, by_both])
@pytest.mark.parametrize("settings", [{}, {"iters_per_epoch": 2, "update_freq": 2}])
def test_with_weights_on_conditions_the_training_is_that_without(prepare, settings):
    found, aggregator = run(prepare, **settings)
    expected, other = run(**settings)
    same(found, expected)
    same(aggregator.get_weights(), other.get_weights())
    assert set(aggregator.get_weights()) != {1.0}
    plain, _ = run(prepare, balanced=False, **settings)
    assert any((mine != each).any() for mine, each in zip(found, plain))


@pytest.mark.parametrize("loss", [ppsci.loss.L2Loss, ppsci.loss.CausalMSELoss, "functional"])
def test_a_loss_that_is_not_proportional_to_its_weight(loss):
    def ignores(output, label, weights=None):
        return {name: (output[name] - label[name]).square().mean() for name in label}

    def prepare(constraint):
        made = ppsci.loss.FunctionalLoss(ignores) if loss == "functional" else None
        constraint["left"].loss = made or (loss(4) if loss is ppsci.loss.CausalMSELoss else loss())

    def prepare_weighted(constraint):
        prepare(constraint)
        by_weight_dict(constraint)

    same(run(prepare_weighted)[0], run(prepare)[0])


def test_weights_that_differ_from_point_to_point_stay():
    points = paddle.arange(16, dtype="float32").reshape([16, 1])

    def prepare(constraint):
        set_weight_dict(constraint["left"], {"u": points})

    same(run(prepare, 1)[0], run(prepare, 1, balanced=False)[0])


def on_the_equation(constraint):
    constraint["EQ"].loss.weight = {"laplace": 0.25}


def too_small(constraint):
    constraint["left"].loss.weight = 1e-4


def too_large(constraint):
    set_weight_dict(constraint["left"], {"u": 1e4})


def lbfgs(model):
    return ppsci.optimizer.LBFGS(0.1, max_iter=2)(model)


@pytest.mark.parametrize(
    "prepare, options, settings",
    [
        (on_the_equation, {}, {}),
        (too_small, {}, {}),
        (too_large, {}, {}),
        (by_weight, {}, {"optimizer": lbfgs}),
        (by_both, {"rule": "equal"}, {}),
        pytest.param(by_both, {"alpha": 1.0}, {}, marks=pytest.mark.filterwarnings("ignore")),
        pytest.param(
            by_both, {"rule": "softadapt"}, {}, marks=pytest.mark.filterwarnings("ignore")
        ),
    ],
)
def test_weights_that_stay_act_as_in_the_plain_sum(prepare, options, settings):
    """All learned weights are 1 in the first step. Adam's would not depend on factors."""
    settings = {"optimizer": ppsci.optimizer.SGD(1e-3), **settings}
    found, _ = run(prepare, 1, balanced=options or True, **settings)
    expected, _ = run(prepare, 1, balanced=False, **settings)
    same(found, expected)
    other, _ = run(None, 1, balanced=False, **settings)
    assert any(np.abs(mine - each).max() > 1e-4 for mine, each in zip(found, other))


def test_weights_stay_if_none_are_learned():
    found, _ = run(by_weight, 3, adapt=lambda aggregator: aggregator.balancer.freeze())
    same(found, run(by_weight, 3, balanced=False)[0])


def test_equations_by_name_decide_which_weights_stay():
    """If the user says that a value on the boundary is an equation, its weight is one of those."""
    options = {"equations": ["EQ.laplace", "left.u"]}
    found, _ = run(by_weight_dict, 1, balanced=options)
    same(found, run(by_weight_dict, 1, balanced=False)[0])
    with pytest.raises(ValueError, match=r"equations names 'EQ\.laplac'"):
        run(by_weight_dict, 1, balanced={"equations": ["EQ.laplac"]})


def test_one_weight_of_a_condition_and_an_equation_stays_on_the_equation():
    """As ``weight=`` of a supervised constraint that holds both."""
    times = np.linspace(0, 1, 16, dtype="float32")[:, None]
    measured = {}
    for weight in (None, 10.0):
        ppsci.utils.misc.set_random_seed(1)
        model = ppsci.arch.MLP(("t_f",), ("eta",), 2, 8, "tanh")
        equation = {"VIV": ppsci.equation.Vibration(2.0, -4.0, 0.0)}
        data = {"name": "NamedArrayDataset", "input": {"t_f": times}}
        data["label"] = {"eta": np.sin(times), "f": np.cos(times)}
        constraint = {
            "Sup": ppsci.constraint.SupervisedConstraint(
                {"dataset": data, "batch_size": 16},
                ppsci.loss.MSELoss(weight=weight),
                {"eta": lambda out: out["eta"], **equation["VIV"].equations},
                name="Sup",
            )
        }
        aggregator = GradNormAggregator.of(model, constraint, equation)
        optimizer = ppsci.optimizer.Adam(1e-2)((model, *equation.values()))
        trained(model, constraint, equation, aggregator, 1, optimizer=optimizer)
        measured[weight] = dict(zip(aggregator.names, aggregator.balancer.last_measurement.losses))
    assert measured[10.0]["Sup.f"] == pytest.approx(10 * measured[None]["Sup.f"], rel=1e-6)
    assert measured[10.0]["Sup.eta"] == measured[None]["Sup.eta"]


def test_the_log_says_what_is_replaced_and_what_stays(tmp_path):
    def prepare(constraint):
        by_both(constraint)
        on_the_equation(constraint)

    ppsci.utils.logger.init_logger("ppsci", str(tmp_path / "train.log"), "info")
    try:
        run(prepare, 2)
    finally:
        ppsci.utils.logger.init_logger("ppsci", None, "error")
    printed = (tmp_path / "train.log").read_text()
    assert printed.count("by hand") == 2
    replaced = "left.u 100 (weight), right.u 12 (weight_dict) x 0.25 (weight)"
    assert f"learned weights replace those by hand: {replaced}\n" in printed
    assert "weights by hand stay as factors: EQ.laplace 0.25 (weight)\n" in printed


def test_a_rule_that_does_not_tell_conditions_warns_once(recorded_warnings):
    run(by_both, 3, balanced={"alpha": 1.0})
    found = [str(w.message) for w in recorded_warnings if "multiply" in str(w.message)]
    assert len(found) == 1
    assert found[0].startswith(
        "left.u 100 (weight), right.u 12 (weight_dict) x 0.25 (weight): these weights by hand "
    )


def test_weights_in_a_later_stage_are_replaced_too():
    ends = []
    for weight in (None, 100):
        model, constraint, equation = apart()
        aggregator = GradNormAggregator.of(model, constraint, equation)
        trained(model, constraint, equation, aggregator, steps=5)
        _, constraint, equation = apart(loss=ppsci.loss.MSELoss(weight=weight))
        aggregator.take(constraint, equation)
        trained(model, constraint, equation, aggregator, steps=5)
        ends.append(values_of(model))
    same(*ends)


def test_a_loss_object_keeps_its_weight():
    """The validators may use it, and so may constraints of another Solver."""
    loss = ppsci.loss.MSELoss(weight={"u": 100.0})

    def prepare(constraint):
        constraint["left"].loss = loss

    run(prepare, 3)
    assert loss.weight == {"u": 100.0}
    loss.weight = 5

    def fails(output, label, weights):
        raise RuntimeError("no points")

    loss.forward = fails
    with pytest.raises(RuntimeError, match="no points"):
        without_weights_by_hand(loss, {}, {}, None)
    assert loss.weight == 5


@pytest.mark.parametrize(
    "weights, expected",
    [
        (None, None),
        (3, 3.0),
        ({"u": 0.5}, 0.5),
        ({"v": 0.5}, None),
        ({"u": paddle.full([4, 1], 7.0)}, 7.0),
        ({"u": paddle.to_tensor([[1.0], [2.0]])}, None),
    ],
)
def test_a_weight_that_is_the_same_at_all_points(weights, expected):
    assert constant_weight(weights, "u") == expected


def test_a_periodic_constraint_may_have_a_weight():
    square = ppsci.geometry.Rectangle((0.0, 0.0), (1.0, 1.0))
    value = {"u": lambda out: out["u"]}
    constraint = {
        "EQ": ppsci.constraint.InteriorConstraint(
            ppsci.equation.Laplace(2).equations,
            {"laplace": 0},
            square,
            {**LOADER, "batch_size": 16},
            ppsci.loss.MSELoss(),
        ),
        "PBC": ppsci.constraint.PeriodicConstraint(
            value,
            {"u": 0},
            square,
            "x",
            {**LOADER, "batch_size": 16},
            ppsci.loss.PeriodicMSELoss(weight=10.0),
        ),
    }
    model = ppsci.arch.MLP(("x", "y"), ("u",), 2, 8)
    aggregator = GradNormAggregator.of(model, constraint, {"laplace": ppsci.equation.Laplace(2)})
    trained(model, constraint, {}, aggregator, steps=2)
    assert set(constraint["PBC"].loss.weights_by_hand) == {"PBC.u"}
