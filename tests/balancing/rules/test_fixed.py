import numpy as np
import pytest

from paddlescience_gradnorm.balancing import Equal, Fixed, Measurement


def test_equal_weights_are_1():
    assert Equal().weigh(np.array([3.0, 0.5]), {}, Measurement(np.ones(2)))[0].tolist() == [1, 1]
    assert Equal.needs == frozenset() and Equal.fewest_losses == 1


def test_weights_by_name_are_1_where_none_is_given():
    rule = Fixed({"bc": 50, "ic": 20.0})
    measurement = Measurement(np.ones(3), names=("bc", "pde", "ic"))
    assert rule.weigh(np.ones(3), rule.start(3), measurement)[0].tolist() == [50, 1, 20]
    part = measurement.of(np.array([False, True, True]))
    assert rule.weigh(np.ones(2), {}, part)[0].tolist() == [1, 20]


@pytest.mark.parametrize("weights", [[1, 50], (1.0, 50.0), np.array([1.0, 50.0])])
def test_weights_in_order(weights):
    rule = Fixed(weights)
    state = rule.start(2)
    assert rule.weigh(np.ones(2), state, Measurement(np.ones(2)))[0].tolist() == [1, 50]
    alone = {name: array[1:] for name, array in state.items()}
    assert rule.weigh(np.ones(1), alone, Measurement(np.ones(1)))[0].tolist() == [50]
    assert rule == Fixed([1, 50])


def test_a_name_that_no_loss_has_is_an_error():
    rule = Fixed({"bc": 50, "ci": 20})
    with pytest.raises(ValueError, match=r"weights names 'ci', but the losses are \['pde', 'bc'\]"):
        rule.meet(["pde", "bc"], complete=True)
    rule.meet(["pde", "bc"], complete=False)  # it may join later
    rule.meet(["ci", "bc"], complete=True)
    Fixed([1, 50]).meet(["pde", "bc"], complete=True)


def test_names_where_there_are_none_are_an_error():
    with pytest.raises(ValueError, match=r"by name, .* but the losses have no names; pass"):
        Fixed({"bc": 50}).weigh(np.ones(2), {}, Measurement(np.ones(2)))


def test_another_number_of_losses_is_an_error():
    with pytest.raises(ValueError, match="weights has 2 entries, but there are 3 losses; pass one"):
        Fixed([1, 50]).start(3)


@pytest.mark.parametrize("weights", [{}, [], "bc", 3.0, None])
def test_something_else_than_weights_is_an_error(weights):
    with pytest.raises(TypeError, match="weights must be a dict name -> weight, or a weight for"):
        Fixed(weights)


@pytest.mark.parametrize("weight", [0, -1, np.inf, np.nan])
def test_weights_out_of_range(weight):
    with pytest.raises(ValueError, match=rf"weights\['bc'\] must be .* got {weight}; to ignore"):
        Fixed({"bc": weight})
    with pytest.raises(ValueError, match=rf"weights\[1\] must be finite .* got {weight}"):
        Fixed([1, weight])


def test_a_weight_below_the_floor_is_an_error():
    Fixed([1, 0.01]).check(0.01)
    with pytest.raises(ValueError, match=r"weights has 0.001, below the floor of 0.01; pass floor"):
        Fixed({"bc": 0.001}).check(0.01)
