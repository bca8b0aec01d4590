import numpy as np
import pytest

from paddlescience_gradnorm.balancing._equations import (
    are_equations,
    by_name,
    checked,
    is_equation,
    is_measured,
)
from paddlescience_gradnorm.pde.problems import PROBLEMS, problem


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


@pytest.mark.parametrize("equations", ["pde", 0, {0: "pde"}, {0}])
def test_something_else_than_a_list_is_named(equations):
    with pytest.raises(TypeError, match="equations must be a list of numbers or names") as error:
        checked(equations, n_loss=2)
    hint = "; pass ['pde']" if equations == "pde" else ""
    assert str(error.value).endswith(f"got {equations!r}{hint}")


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
    with pytest.raises(ValueError, match=r"only .*; its losses are \['EQ.u', 'EQ.v'\]$"):
        are_equations(["EQ"], ["EQ.u", "EQ.v", "BC.u"])


def test_a_number_beyond_the_losses_of_the_first_step_is_named():
    assert checked([5], n_loss=None) == (5,) and checked(None, n_loss=None) is None
    with pytest.raises(ValueError, match="equations has 5, but there are 2 losses"):
        are_equations([5], ["pde", "bc"])


EQUATIONS = """pde PDE PDEs pde_loss loss_pde pdeLoss pde1 pde_u ode odes eq eq0 eq_0 eq1 equation
residual residual_u res continuity momentum momentum_x momentum_y navier_stokes navier_stokes_x
laplace poisson helmholtz biharmonic burgers allen_cahn heat wave diffusion physics physics_loss
interior governing_eq energy mass_conservation NavierStokes Maxwell_1 Bloch volterra fpde""".split()
CONDITIONS = """bc BC BCs ICs bc1 loss_bc bc_left u_bc boundary boundary_x ic IC ic_u initial
initial_condition init data data_loss obs observed measurements sensor dirichlet neumann periodic
left right top bottom up down_edge upper lower left_edge wall walls no_slip inlet outlet lid
interface u0 ut0 h_0 inlet_velocity wall_temperature boundary_u uBC icLoss""".split()
CONDITIONS += ["u >= -50", "u(0) = 1", "u(0)=1", "v <= 2.5e3", "u = 0"]
DOUBTFUL = """u v p T u_x u_x=0 losses[0] loss1 a click heat_boundary cold_boundary_pde pde_bc
boundary_residual heat_flux wave_speed reaction_rate deflection moment_x mse_f mse_u chip
regularization l2 total temperature velocity top_hat energy_data flux f0 r0 e0 l0 f=0 r=0 x<0 x>0
f(x)=0 boundary_layer data_free end_to_end top_k u_continuity continuity_u c0_continuity
C1_continuity convection reaction kl_divergence KLDivergence eq_constraint pde_params_reg
pde_solution ode_solution pde_exact ode_start ode_x0 ode_u0 ode_at_0 eq_u0 pde_T0
pde_surface eq_jump velocity_residual residual_velocity ns0 de0
constraint PDEloss NS gpinn""".split()
DOUBTFUL += ["u_x = 0", "u_t + u u_x = 0", "", "pde边界", "PDE_∂Ω", "eq_Γ"]


@pytest.mark.parametrize("name", EQUATIONS)
def test_names_of_equations(name):
    assert is_equation(name) is True


@pytest.mark.parametrize("name", CONDITIONS)
def test_names_of_conditions(name):
    assert is_equation(name) is False


@pytest.mark.parametrize("name", DOUBTFUL)
def test_names_that_leave_doubt(name):
    assert is_equation(name) is None


def test_the_names_of_all_problems_are_right_or_leave_doubt():
    for name in PROBLEMS:
        for condition in problem(name).conditions:
            assert is_equation(condition.name) in (None, condition.kind == "pde")


def test_one_name_in_doubt_is_enough_to_ask():
    assert by_name(["bc", "pde", "res"], "R") == ["pde", "res"]
    assert by_name(["bc", "ic"], "R") == []
    assert by_name(["heat_boundary", "u"], "R", {"heat_boundary": True, "u": False, "v": True}) == [
        "heat_boundary"
    ]
    with pytest.raises(ValueError) as error:
        by_name(["pde", "u", "v"], "PinnRule")
    assert str(error.value) == (
        "PinnRule treats equations and conditions differently, and of the losses 'pde', 'u', 'v' "
        "the names do not tell which 'u' and 'v' are. Pass equations=['pde'], with those of "
        "['u', 'v'] added that are residuals of equations"
    )
    with pytest.raises(ValueError, match=r"Pass equations=\[\], with those of \['u'\]"):
        by_name(["u", "bc"], "PinnRule")


@pytest.mark.parametrize(
    "name",
    [
        *("data", "u_obs", "Sensors", "data loss", "data.u", "PointSetBC 2"),
        *("noisy_data", "data_phi", "train_data", "heat_data"),  # in doubt, but not if a condition
    ],
)
def test_names_of_measured_data(name):
    assert is_measured(name)


@pytest.mark.parametrize(
    "name", ["bc", "data_free", "Sup.u", "Sup_b.v", "supervised", "pde_data", "u0", "losses[1]", ""]
)
def test_names_that_do_not_say_that_data_are_measured(name):
    assert not is_measured(name)
