import numpy as np
import pytest

from paddlescience_gradnorm.balancing import DCGD, Measurement

FORMS = ("center", "proj", "avg")
every_form = pytest.mark.parametrize("form", FORMS)


@every_form
def test_directions_are_those_of_the_authors(recorded, same_directions, form):
    expected = recorded[f"dcgd_{form}"]
    same_directions(recorded.directions(DCGD(form, eps=1e-8)), expected)
    # Without what they add to the norms, the difference has that size.
    same_directions(recorded.directions(DCGD(form)), expected, tolerance=1e-8)


@every_form
def test_it_conflicts_neither_with_equations_nor_with_conditions(recorded, form):
    for direction, gradients in zip(recorded.directions(DCGD(form)), recorded.gradients):
        for kind in (gradients[:1], gradients[1:]):
            assert kind.sum(0) @ direction > -1e-9


def as_measured(gradients, equations):
    gradients = np.array(gradients)
    are = np.isin(np.arange(len(gradients)), equations)
    return Measurement(np.ones(len(gradients)), gradients @ gradients.T, equations=are)


@every_form
def test_all_losses_of_a_kind_have_one_coefficient(form):
    gradients = [[4.0, 0.0], [-1.0, 0.2], [4.0, 1.0], [-1.0, 0.3]]
    found, _ = DCGD(form).weigh(np.ones(4), {}, as_measured(gradients, [0, 2]))
    assert found[0] == found[2] and found[1] == found[3] and found[0] != found[1]
    two = [np.add(gradients[0], gradients[2]), np.add(gradients[1], gradients[3])]
    of_two, _ = DCGD(form).weigh(np.ones(2), {}, as_measured(two, [0]))
    np.testing.assert_allclose(found[:2], of_two, rtol=1e-12)


def test_without_a_conflict_proj_and_avg_are_the_plain_sum():
    measurement = as_measured([[4.0, 0.0], [-0.1, 1.0]], [0])
    for form in ("proj", "avg"):
        assert DCGD(form).weigh(np.ones(2), {}, measurement)[0].tolist() == [1, 1]


@every_form
@pytest.mark.parametrize("equations", [[], [0, 1]])
def test_with_one_kind_it_is_the_plain_sum(form, equations):
    measurement = as_measured([[4.0, 0.0], [-4.0, 1.0]], equations)
    assert DCGD(form).weigh(np.ones(2), {}, measurement)[0].tolist() == [1, 1]


@every_form
def test_a_kind_whose_gradients_cancel_out_leaves_the_plain_sum(form):
    measurement = as_measured([[1.0, 0.0], [-3.0, 1.0], [3.0, -1.0 + 1e-9]], [0])
    assert DCGD(form).weigh(np.ones(3), {}, measurement)[0].tolist() == [1, 1, 1]


@every_form
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_opposite_gradients_give_no_gradient(form, eps):
    gradients = np.array([[4.0, 2.0], [-1.0, -0.5]])
    found, _ = DCGD(form, eps).weigh(np.ones(2), {}, as_measured(gradients, [0]))
    assert np.isfinite(found).all() and abs(found @ gradients).max() < 1e-6


def test_options_out_of_range():
    with pytest.raises(ValueError, match="form must be one of 'center', 'proj', 'avg', got 'mid'"):
        DCGD("mid")
    with pytest.raises(ValueError, match="eps must be finite and at least 0, got -1"):
        DCGD(eps=-1)
