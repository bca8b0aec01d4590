import numpy as np
import pytest

from paddlescience_gradnorm.balancing._equations import are_equations, checked


@pytest.mark.parametrize(
    "equations", [(), [], [0], (2, 1), ["pde"], ["pde", 2], [np.int64(1)], [0, 0]]
)
def test_numbers_and_names_are_taken_as_they_are(equations):
    assert checked(equations, n_loss=3) == tuple(equations)


def test_names_are_not_looked_up_before_they_are_known():
    assert checked(["no such loss"], n_loss=2) == ("no such loss",)


def test_what_is_kept_does_not_change_with_the_list():
    given = [0]
    kept = checked(given, n_loss=2)
    given.append(1)
    assert kept == (0,)


@pytest.mark.parametrize("equations", ["pde", 0, None, {0: "pde"}, {0}])
def test_something_else_than_a_list_is_named(equations):
    with pytest.raises(TypeError, match="equations must be a list of numbers or names") as error:
        checked(equations, n_loss=2)
    assert str(error.value).endswith(f"got {equations!r}")


@pytest.mark.parametrize("equation", [1.0, None, True, [0]])
def test_an_equation_of_another_type_is_named(equation):
    with pytest.raises(TypeError, match="equations must be an integer") as error:
        checked([0, equation], n_loss=2)
    assert str(error.value).endswith(f"got {equation!r}")


def test_a_number_without_a_loss_is_named():
    with pytest.raises(ValueError, match="equations has 2, but n_loss is 2"):
        checked([0, 2], n_loss=2)
    with pytest.raises(ValueError, match="equations must be at least 0, got -1"):
        checked([-1], n_loss=2)


@pytest.mark.parametrize(
    "equations, expected",
    [
        ([], [False, False, False]),
        ([0], [True, False, False]),
        (["bc"], [False, True, False]),
        (["flux", 0], [True, False, True]),
        ([1, "bc", 1], [False, True, False]),
        ([0, 1, 2], [True, True, True]),
    ],
)
def test_losses_are_equations_by_number_or_by_name(equations, expected):
    assert are_equations(equations, ["pde", "bc", "flux"]) == expected


def test_a_name_that_no_loss_has_is_an_error_that_says_which_was_meant():
    with pytest.raises(ValueError) as error:
        are_equations([0, "pdee"], ["pde", "bc"])
    assert str(error.value) == (
        "equations names 'pdee', but there is no such loss, only ['pde', 'bc']; did you mean 'pde'?"
    )
    with pytest.raises(ValueError, match=r"only \['pde', 'bc'\]$"):
        are_equations(["x"], ["pde", "bc"])
