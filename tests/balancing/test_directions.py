"""What a balancer does with a rule that combines the gradients of the step itself."""

import logging

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer
from paddlescience_gradnorm.balancing import DirectionRule
from paddlescience_gradnorm.balancing.rules import (
    DCGD,
    AlignedMTL,
    ConFIG,
    Directed,
    Fixed,
    PCGrad,
    PinnRule,
    UPGrad,
)


class Given(DirectionRule):
    """The same coefficients in every step."""

    def __init__(self, *coefficients):
        self.coefficients = coefficients

    def start(self, n_loss):
        return {"own": np.array(self.coefficients)}

    def weigh(self, weights, state, measurement):
        assert (weights == 1).all()
        return state["own"], state


def parameter_of(*values, dtype="float32"):
    assign = paddle.nn.initializer.Assign(np.array(values))
    return paddle.create_parameter([len(values)], dtype, attr=paddle.ParamAttr(initializer=assign))


def test_a_direction_much_shorter_than_its_gradients_is_exact():
    w = parameter_of(1.0, 1.0)
    balancer = LossBalancer(w, 2, rule=Given(1e-7, 1.0))
    # 1e-7 * (3e7, 1e7) and (-3, 1): of the sum first, float32 would leave nothing.
    balancer.backward([(w * paddle.to_tensor([3e7, 1e7])).sum(), w[1] - 3 * w[0]])
    np.testing.assert_allclose(w.grad.numpy(), [0, 2], atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_of_others_stay(parts):
    w = parameter_of(1.0, 2.0)
    balancer = LossBalancer(w, 2, rule=Given(-1.0, 2.0))
    (7 * w).sum().backward()
    for part in range(parts):
        balancer.backward([w[0], w[1]], update=part == parts - 1, scale=1 / parts)
        if part < parts - 1:
            np.testing.assert_array_equal(w.grad.numpy(), [7, 7])  # the last one adds all of it
            (3 * w).sum().backward()
    added = 3 * (parts - 1)
    np.testing.assert_allclose(w.grad.numpy(), [6 + added, 9 + added], rtol=1e-6)


def test_a_step_that_is_taken_back_takes_its_direction_back():
    w = parameter_of(1.0, 2.0)
    balancer, whole = (LossBalancer(w, 2, rule=ConFIG()) for _ in range(2))

    def losses(part):
        return [(w * w * (1 + part)).sum(), (w[0] - 3 * part) * w[1]]

    (7 * w).sum().backward()
    before = w.grad.numpy().copy()
    balancer.backward(losses(0), scale=0.5)
    assert (w.grad.numpy() != before).any()
    balancer.take_back()
    np.testing.assert_array_equal(w.grad.numpy(), before)
    balancer.backward(losses(1), scale=0.5)
    found = w.grad.numpy().copy()
    w.clear_gradient()
    (7 * w).sum().backward()
    whole.backward([(a + b) / 2 for a, b in zip(losses(0), losses(1))])
    np.testing.assert_allclose(found, w.grad.numpy(), rtol=1e-5)


def test_micro_batches_of_other_scales_are_refused():
    w = parameter_of(1.0, 2.0)
    balancer = LossBalancer(w, 2, rule=ConFIG())
    balancer.backward([w[0], w[1]], update=False, scale=0.25)
    with pytest.raises(ValueError, match=r"scale is 0.75, but it was 0.25 for the micro-batches"):
        balancer.backward([w[0], w[1]], scale=0.75)


def test_parameters_that_are_not_shared_get_the_plain_sum():
    w, other = parameter_of(1.0, 2.0), parameter_of(1.0, 1.0)
    balancer = LossBalancer(w, 2, rule=Given(-1.0, 5.0))
    balancer.backward([w[0] + 2 * other[0], w[1] + 3 * other[1]])
    assert w.grad.tolist() == [-1, 5] and other.grad.tolist() == [2, 3]


def test_a_network_that_is_not_all_shared_is_said(fc_net):
    with pytest.warns(RuntimeWarning, match=r"shared holds 1 of the network.s 6 trained parameter"):
        GradNorm(fc_net, 2, rule=ConFIG(), shared=lambda net: net.get_last_shared_layer())


def test_frozen_parameters_stay_as_they_are():
    w, still = parameter_of(1.0, 2.0), parameter_of(1.0)
    balancer = LossBalancer([w, still], 2, rule=Given(2.0, 3.0))
    still.stop_gradient = True
    for _ in range(2):
        balancer.backward([w[0] * still[0], w[1]])
    assert w.grad.tolist() == [4, 6] and still.grad is None


@pytest.mark.parametrize("zeros_first", [False, True])
def test_sparse_gradients_are_combined(zeros_first):
    table = paddle.nn.Embedding(5, 2, sparse=True)
    before = table.weight.numpy()
    sgd = paddle.optimizer.SGD(1.0, parameters=table.parameters())
    balancer = LossBalancer(table, 2, rule=Given(2.0, -3.0))
    if zeros_first:
        table.weight.grad = paddle.zeros([5, 2])
    for _ in range(2):
        rows = table(paddle.to_tensor([1, 1, 3]))
        balancer.backward([rows[0].sum() + rows[1].sum(), rows[2].sum()])
        assert table.weight.grad.is_selected_rows() != zeros_first
    sgd.step()
    expected = [[0, 0], [8, 8], [0, 0], [-6, -6], [0, 0]]
    np.testing.assert_allclose(before - table.weight.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_complex_parameters_are_combined_too():
    real = parameter_of(1.0, 2.0)
    z = paddle.to_tensor(np.array([1 + 2j, 3 - 1j], "complex64"), stop_gradient=False)

    def losses():
        return [(z.abs() ** 2).sum() + real[0], (z.real() * 3).sum() + real[1]]

    rows = []
    for i in range(2):
        losses()[i].backward()
        rows.append((z.grad.numpy().copy(), real.grad.numpy().copy()))
        z.clear_gradient()
        real.clear_gradient()
    balancer = LossBalancer([real, z], 2, rule=Given(2.0, -3.0))
    balancer.backward(losses())
    np.testing.assert_allclose(z.grad.numpy(), 2 * rows[0][0] - 3 * rows[1][0], rtol=1e-6)
    np.testing.assert_allclose(real.grad.numpy(), [2, -3], rtol=1e-6)


def test_half_precision_gradients_stay_half_precision():
    w = parameter_of(1.0, 2.0, dtype="float64").astype("bfloat16").detach()
    w.stop_gradient = False
    balancer = LossBalancer(w, 2, rule=Given(2.0, -3.0))
    balancer.backward([w[0].astype("float32"), w[1].astype("float32")])
    assert w.grad.dtype == paddle.bfloat16
    assert w.grad.astype("float32").tolist() == [2, -3]


def test_steps_and_closures_that_cannot_be_combined_are_said():
    w = parameter_of(1.0, 2.0)
    balancer = LossBalancer(w, 2, rule=ConFIG())
    with pytest.raises(RuntimeError, match=r"step\(losses\) updates the weights alone, but ConFIG"):
        balancer.step([w[0], w[1]])
    with pytest.raises(ValueError, match=r"weight_lr is None, but ConFIG\(\) has no gradient"):
        LossBalancer(w, 2, rule=ConFIG(), weight_lr=None)


def test_in_a_closure_of_lbfgs_the_last_coefficients_act():
    w = parameter_of(1.0, 2.0)
    balancer = LossBalancer(w, 2, rule=DCGD(), equations=[0])
    balancer.backward([(w[0] - 3) ** 2, (4 * w[1] + w[0]) ** 2])
    held = balancer.get_weights()
    lbfgs = paddle.optimizer.LBFGS(parameters=[w], line_search_fn="strong_wolfe")
    balancer._schedule.knows_steps = True  # as under a Solver
    totals = []

    def closure():
        lbfgs.clear_grad()
        losses = [(w[0] - 3) ** 2, (4 * w[1] + w[0]) ** 2]
        expected = float(held[0] * losses[0] + held[1] * losses[1])
        totals.append((float(balancer.backward(losses)), expected))
        return paddle.to_tensor(totals[-1][0])

    with pytest.warns(RuntimeWarning, match="was called in the closure of L-BFGS"):
        lbfgs.step(closure)
    np.testing.assert_array_equal(balancer.get_weights(), held)
    np.testing.assert_allclose(*zip(*totals), rtol=1e-5)
    np.testing.assert_allclose(w.numpy(), [3, -0.75], atol=1e-3)


@pytest.mark.parametrize(
    "rule, n_loss, warns",
    [
        (ConFIG(), 3, True),
        (ConFIG(), 2, False),
        (AlignedMTL(), 2, True),
        (UPGrad(), 5, False),
        (PCGrad(), 5, False),
        (Directed(), 5, False),
        (Directed(groups="each"), 3, True),
        (Directed(direction=AlignedMTL()), 3, True),
        (PinnRule(), 5, False),
    ],
    ids=str,
)
def test_holding_coefficients_that_may_be_negative_is_warned_of(
    rule, n_loss, warns, fc_net, recorded_warnings
):
    LossBalancer(fc_net, n_loss, rule=rule, update_every=4)
    LossBalancer(fc_net, n_loss, rule=rule, update_every=1)
    told = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert len(told) == warns
    if warns:
        assert f"update_every is 4, so {rule} combines gradients in one of 4 steps" in told[0]


def test_freezing_says_which_coefficients_stay_and_which_are_negative(caplog, recorded_warnings):
    w = parameter_of(1.0, 2.0)
    balancer = LossBalancer(w, 2, rule=Given(2.0, -0.5))
    balancer.backward({"pde": w[0], "bc": w[1]})
    with caplog.at_level(logging.INFO, "paddlescience_gradnorm"):
        balancer.freeze()
        balancer.freeze()
    (line,) = [text for text in caplog.messages if "stay" in text]
    assert "the last coefficients stay as weights ('pde' 2, 'bc' -0.5)" in line
    (message,) = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert "the network climbs a loss whose weight is negative: call renormalize()" in message
    w.clear_gradient()
    total = balancer.backward({"pde": w[0], "bc": w[1]})
    assert w.grad.tolist() == [2, -0.5] and total.item() == pytest.approx(2 * 1 - 0.5 * 2)
    balancer.unfreeze()
    balancer.backward({"pde": w[0], "bc": w[1]})
    assert balancer.get_weights().tolist() == [2, -0.5]


def test_the_log_says_that_gradients_are_combined(caplog):
    w = parameter_of(1.0, 2.0)
    with caplog.at_level(logging.INFO, "paddlescience_gradnorm"):
        LossBalancer(w, 2, rule=PCGrad()).backward([w[0], w[1]])
    assert "gradients on the shared parameters combined by PCGrad() in every step" in caplog.text


def test_a_loss_that_comes_back_between_updates_is_combined_with_all_others():
    w = parameter_of(1.0, 2.0, 3.0)
    balancer = LossBalancer(w, 3, rule=UPGrad(), update_every=3, absent="skip")

    def losses():
        return {"a": w[0] - w[1], "b": w[1] - 2 * w[2], "c": w[2] - w[0]}

    balancer.backward({**losses(), "c": paddle.zeros([])})
    assert balancer.get_weights()[2] == 1 and balancer.missed.tolist() == [0, 0, 1]
    w.clear_gradient()
    balancer.backward(losses())
    expected, other = w.grad.numpy().copy(), LossBalancer(w, 3, rule=UPGrad())
    w.clear_gradient()
    other.backward(losses())
    np.testing.assert_array_equal(balancer.get_weights(), other.get_weights())
    np.testing.assert_array_equal(expected, w.grad.numpy())


def test_weights_of_ones_own_act_from_the_first_step_on():
    for options, first in (({}, [50, 1]), ({"weight_attr": [3, 4]}, [3, 4])):
        w = parameter_of(1.0, 2.0)
        balancer = LossBalancer(w, 2, rule=Fixed({"bc": 50}), **options)
        balancer.backward({"bc": w[0], "pde": w[1]})
        assert w.grad.tolist() == first
        assert balancer.acted_weights.tolist() == first
        assert balancer.get_weights().tolist() == [50, 1]
    w = parameter_of(1.0, 2.0)
    with pytest.raises(ValueError, match="weights names 'bc', but the losses are"):
        LossBalancer(w, 2, rule=Fixed({"bc": 50})).backward({"pde": w[0], "edge": w[1]})
    assert w.grad is None


def test_a_direction_of_a_network_is_on_all_its_parameters():
    net = GradNorm(FCNet(2, 1, 3, 8), 2, rule="config")
    assert len(net.balancer.shared) == len(net.net.parameters())
    assert "ConFIG" in repr(net.balancer)
