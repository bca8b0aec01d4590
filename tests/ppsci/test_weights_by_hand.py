"""What becomes of the weights that a Solver's constraints give their losses by hand."""

import itertools

import numpy as np
import paddle
import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import ppsci
from ppsci_problem import LOADER, apart, trained, values_of

from paddlescience_gradnorm.ppsci import GradNormAggregator
from paddlescience_gradnorm.ppsci._weights_by_hand import weights_by_hand, without_weights_by_hand


def set_weight_dict(constraint, weights):
    """What ``weight_dict=`` does: the dataset has a weight for each point."""
    constraint.data_loader.weight = {
        name: paddle.full([16, 1], weight) if np.isscalar(weight) else weight
        for name, weight in weights.items()
    }
    constraint.data_iter = iter(constraint.data_loader)


def run(
    prepare=None, steps=25, kinds=("EQ", "left", "right"), balanced=True, adapt=None, **settings
):
    """Parameters after a training; weights; and the aggregator, if there is one."""
    model, constraint, equation = apart(kinds)
    if prepare is not None:
        prepare(constraint)
    for each in constraint.values():  # the same points in every step
        each.data_iter = itertools.repeat(next(each.data_iter))
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


@pytest.mark.parametrize("prepare, calls", [(on_the_equation, 4), (by_weight, 6)])
def test_a_loss_is_computed_twice_only_if_its_weight_is_replaced(prepare, calls):
    """After the first step, in which nobody knows that yet."""
    counted = []

    def prepare_counted(constraint):
        prepare(constraint)
        loss = constraint["EQ" if prepare is on_the_equation else "left"].loss
        forward = loss.forward
        loss.forward = lambda *args: counted.append(1) or forward(*args)

    run(prepare_counted, 3)
    assert len(counted) == calls


def test_weights_stay_if_conditions_have_one_coefficient_in_common():
    _, aggregator = run(by_both, 1, balanced={"rule": "dcgd"})
    assert aggregator._losses.by_hand.replaced == set()


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
    run(by_both, 3, balanced={"rule": "equal"})  # no weights are learned
    assert not [w for w in recorded_warnings if "multiply" in str(w.message)]
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
        without_weights_by_hand({"u": {"weight": 5.0}}, loss, {}, {})
    assert loss.weight == 5


def test_a_plain_training_afterwards_has_the_weights_again():
    model, constraint, equation = apart()
    by_weight(constraint)
    aggregator = GradNormAggregator.of(model, constraint, equation)
    trained(model, constraint, equation, aggregator, steps=2)
    losses = losses_of(model, constraint)
    bare = losses_of(model, {"left": apart()[1]["left"]})
    assert float(losses["left.u"]) == pytest.approx(100 * float(bare["u"]), rel=1e-5)


def supervised(weights, batch_size):
    points = np.linspace(0, 1, 4, dtype="float32")[:, None]
    data = {"name": "NamedArrayDataset", "input": {"x": points, "y": points}}
    data |= {"label": {"u": 5 * points}, "weight": {"u": np.array(weights, "float32")[:, None]}}
    return ppsci.constraint.SupervisedConstraint(
        {
            "dataset": data,
            "batch_size": batch_size,
            "sampler": {"name": "BatchSampler", "shuffle": False, "drop_last": False},
        },
        ppsci.loss.MSELoss(),
        {"u": lambda out: out["u"]},
        name="data",
    )


def losses_of(model, constraint):
    """The losses of the next batches, as a Solver gives them to its aggregator."""
    forward = ppsci.utils.ExpressionSolver()
    forward.nvtx_flag = False  # as a Solver sets it
    batches = [next(iter(each.data_loader)) for each in constraint.values()]
    for points, _, _ in batches:
        for value in points.values():
            value.stop_gradient = False
    points, labels, weights = zip(*batches)
    expressions = tuple(each.output_expr for each in constraint.values())
    return forward.train_forward(expressions, points, model, constraint, labels, weights)[0]


@pytest.mark.parametrize("weights", [[10, 10, 0, 0], [10, 10, 10, 0], [10, 10, 10, 10]])
def test_the_weights_of_all_points_decide_not_those_of_a_batch(weights):
    model, constraint, equation = apart(["own"])
    constraint["data"] = supervised(weights, batch_size=2)
    aggregator = GradNormAggregator.of(model, constraint, equation)
    losses = losses_of(model, constraint)
    total = float(aggregator(losses))
    factor = 0.1 if set(weights) == {10} else 1
    assert total == pytest.approx(
        float(losses["own.anything"] + factor * losses["data.u"]), rel=1e-5
    )


def test_the_same_losses_may_be_given_twice():
    model, constraint, equation = apart(["own", "left", "right"])
    by_weight(constraint)
    aggregator = GradNormAggregator.of(model, constraint, equation)
    losses = losses_of(model, constraint)
    first, second = float(aggregator(losses)), float(aggregator(losses))
    assert first == second < float(sum(losses.values()))


@pytest.mark.parametrize("prepare", ["freeze", "lbfgs"])
def test_a_resumed_run_replaces_what_the_first_one_has_replaced(prepare):
    """Though its own first step would leave the weights."""
    model, constraint, equation = apart()
    by_weight(constraint)
    aggregator = GradNormAggregator.of(model, constraint, equation)
    trained(model, constraint, equation, aggregator, steps=12)
    if prepare == "freeze":
        aggregator.balancer.freeze()
    state = aggregator.state_dict()
    again, constraint, equation = apart()
    by_weight(constraint)
    again.set_state_dict(model.state_dict())
    other = GradNormAggregator.of(again, constraint, equation)
    other.set_state_dict(state)
    optimizer = lbfgs(again) if prepare == "lbfgs" else None
    trained(again, constraint, equation, other, steps=1, optimizer=optimizer)
    assert other._losses.by_hand.replaced == {"left.u", "right.u"}


def test_weights_of_a_loss_that_joins_later():
    """And the number of an equation that has not come yet."""
    model, constraint, equation = apart(["left", "right", "EQ"])
    by_weight(constraint)
    aggregator = GradNormAggregator.of(
        model, constraint, equation, absent="skip", equations=[2], weight_attr=[1.0] * 3
    )
    first = {name: constraint[name] for name in ("left",)}
    trained(model, first, equation, aggregator, steps=2)
    assert aggregator._losses.by_hand.replaced == {"left.u"}
    trained(model, constraint, equation, aggregator, steps=2)
    assert aggregator._losses.by_hand.replaced == {"left.u", "right.u"}
    assert aggregator.names == ["left.u", "right.u", "EQ.laplace"]


@pytest.mark.parametrize(
    "weight, expected",
    [
        (None, {}),
        (3, {"u": {"weight": 3.0}}),
        (1.0, {}),
        ({"u": 0.5}, {"u": {"weight": 0.5}}),
        ({"u": np.float32(0.5)}, {"u": {"weight": 0.5}}),
        ({"v": 0.5}, {}),
        ({"u": paddle.full([4, 1], 7.0)}, {"u": {"weight": 7.0}}),
        ({"u": paddle.to_tensor([[1.0], [2.0]])}, {}),
    ],
)
def test_a_weight_that_is_the_same_at_all_points(weight, expected):
    constraint = apart()[1]["left"]
    assert weights_by_hand(constraint, ppsci.loss.MSELoss(weight=weight)) == expected


def test_a_trainable_weight_is_not_one_by_hand():
    class Trained(ppsci.loss.MSELoss):
        def __init__(self):
            super().__init__()
            del self.weight
            self.weight = self.create_parameter([])

    constraint = apart()[1]["left"]
    assert weights_by_hand(constraint, Trained()) == {}


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


def test_the_other_losses_of_a_constraint_keep_their_weights():
    ones, points = paddle.ones([4, 1]), paddle.arange(4, dtype="float32").reshape([4, 1])
    loss = ppsci.loss.MSELoss(weight={"u": 3.0, "v": 5.0})
    found = {"u": {"weight_dict": 7.0, "weight": 3.0}}
    losses = without_weights_by_hand(
        found,
        loss,
        {"u": 2 * ones, "v": ones},
        {"u": 0 * ones, "v": 0 * ones},
        {"u": 7 * ones, "v": points},
    )
    assert {name: float(each) for name, each in losses.items()} == {"u": 4.0, "v": 5 * 1.5}
