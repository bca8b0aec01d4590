import dataclasses

import numpy as np
import paddle
import pytest
import sympy

from paddlescience_gradnorm.pde.problems import (
    PROBLEMS,
    Condition,
    Problem,
    Region,
    Unknown,
    problem,
)

x, y, k = sympy.symbols("x y k")
u = sympy.Function("u")
U = u(x, y)
INSIDE = Region("interior", 1000)
PDE = Condition("pde", "pde", INSIDE, (U.diff(x) - y,))


def make(**changes):
    parts = {
        "name": "slope",
        "equation": "u_x = y",
        "coordinates": (x, y),
        "fields": (u,),
        "low": (0.0, 0.0),
        "high": (2.0, 1.0),
        "conditions": (PDE,),
        "reference": (x * y,),
    }
    return Problem(**{**parts, **changes})


@pytest.mark.parametrize("name", PROBLEMS)
def test_points_lie_in_their_regions(name):
    p = problem(name)
    axes = {symbol: k for k, symbol in enumerate(p.coordinates)}
    for region in p.regions:
        points = p.sample_region(region, 96, seed=0)
        assert points.shape == (96, len(p.coordinates))
        assert ((np.array(p.low) <= points) & (points <= np.array(p.high))).all()
        faces = region.faces
        if region.periodic is not None:
            faces = ({region.periodic: p.low[axes[region.periodic]]},)
        if not faces:
            assert (points > p.low).all() and (points < p.high).all() and p.contains(points).all()
        if any(sympy.sympify(v).free_symbols for face in faces for v in face.values()):
            continue  # curves
        on = [np.all([points[:, axes[s]] == v for s, v in f.items()], axis=0) for f in faces]
        if on:
            assert np.any(on, axis=0).all() and all(face.sum() > 0 for face in on)
        extent = np.ptp(points, axis=0) / (np.array(p.high) - p.low)
        free = [i for i, c in enumerate(p.coordinates) if not any(c in f for f in faces)]
        assert (extent[free] > 0.9).all()  # they reach all of it


def test_faces_get_points_in_proportion_to_their_length():
    around = Region("around", 90, faces=({x: 0.0}, {x: 2.0}, {y: 0.0}, {y: 1.0}))
    points = make().sample_region(around, 90, seed=0)
    # Perimeter 6: sides of 1, 1, 2 and 2.
    assert [(points[:, 0] == 0).sum(), (points[:, 0] == 2).sum()] == [15, 15]
    assert [(points[:, 1] == 0).sum(), (points[:, 1] == 1).sum()] == [30, 30]
    assert len(make().sample_region(around, 1, seed=0)) == 4  # one for each


def test_points_on_a_corner():
    corner = Region("corner", 1, faces=({x: 2.0, y: 0.0},))
    assert make().sample_region(corner, 2, seed=0).tolist() == [[2.0, 0.0], [2.0, 0.0]]


def test_numbers_of_points():
    p = problem("heat")

    def counts(**how):
        return {name: len(points) for name, points in p.sample(**how).points.items()}

    default = {"interior": 1000, "boundary": 200, "initial": 100, "data": 20}
    assert counts() == default
    assert counts(n_points=2000) == {"interior": 2000, "boundary": 400, "initial": 200, "data": 20}
    assert counts(points={"data": 5, "interior": 30}) == {**default, "data": 5, "interior": 30}
    assert counts(n_points=1) == {"interior": 1, "boundary": 2, "initial": 1, "data": 20}


@pytest.mark.parametrize("name", PROBLEMS)
def test_seed_decides(name):
    p = problem(name)
    one, same, other = (p.sample(n_points=40, seed=seed).points for seed in (1, 1, 2))
    for region in p.regions:
        points, again, others = (points[region.name].numpy() for points in (one, same, other))
        np.testing.assert_array_equal(points, again)
        a_point = region.faces and all(len(face) == points.shape[1] for face in region.faces)
        curved = any(sympy.sympify(v).free_symbols for f in region.faces for v in f.values())
        assert (points != others).any() == (curved or not a_point)


def test_regions_and_faces_have_points_of_their_own():
    points = problem("laplace").sample(seed=0).points
    assert (points["left"].numpy()[:, 1] != points["right"].numpy()[:, 1]).all()
    ends = problem("wave").sample(seed=0).points["boundary"].numpy()
    low, high = ends[ends[:, 0] == 0, 1], ends[ends[:, 0] == 1, 1]
    assert (low != high).all()


@pytest.mark.parametrize("name", PROBLEMS)
def test_solution_is_of_float64_in_columns(name):
    p = problem(name)
    uniform = np.random.default_rng(0).random((5, len(p.low)))
    points = p.low + (np.array(p.high) - p.low) * uniform
    values = p.solution(points)
    assert values.shape == (5, len(p.quantities)) and values.dtype == np.float64
    np.testing.assert_allclose(p.solution(points[2:3]), values[2:3], rtol=1e-12, atol=1e-14)


def test_solution_at_points_that_were_rounded_to_float32():
    p = problem("convection")
    top = np.array([p.high])
    assert (top.astype(np.float32) > p.high).any()  # 2 pi
    np.testing.assert_array_equal(p.solution(top.astype(np.float32)), p.solution(top))


def test_errors_are_relative_to_the_solution():
    p = make()
    errors = p.relative_errors(lambda q: 1.25 * q[:, :1] * q[:, 1:])
    assert errors == pytest.approx({"u": 0.25}, rel=1e-5)
    slope = make(quantities={"slope": U.diff(x)}, reference=(y,))
    assert slope.relative_errors(lambda q: 3.0 * q[:, :1] * q[:, 1:])["slope"] == pytest.approx(2)


def test_a_solution_that_is_the_same_everywhere():
    p = make(conditions=(Condition("pde", "pde", INSIDE, (U.diff(x),)),), reference=(sympy.pi,))
    assert p.solution(np.zeros((3, 2))).tolist() == [[np.pi]] * 3


def test_problems_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem("heat").name = "cold"


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"conditions": ()}, "conditions must have names of their own, one at least, got"),
        ({"conditions": (PDE, PDE)}, r"conditions must have names .* \['pde', 'pde'\]"),
        (
            {"conditions": (PDE, Condition("b", "boundary", Region("interior", 9), (U,)))},
            r"regions must have names .* \['interior', 'interior'\]",
        ),
        ({"low": (0.0,)}, r"low and high must have a number for each .* got \(0.0,\)"),
        (
            {"conditions": (Condition("pde", "PDE", INSIDE, (U,)),)},
            "kind of condition 'pde' must be one of .*, got 'PDE'",
        ),
        (
            {"conditions": (Condition("seen", "data", INSIDE, (U.diff(x),)),)},
            "expressions of the data 'seen' must be quantities",
        ),
        (
            {"conditions": (Condition("pde", "pde", INSIDE, (U,), noise=0.1),)},
            "noise of condition 'pde' .* got 0.1 for 'pde'",
        ),
        (
            {"conditions": (Condition("seen", "data", INSIDE, (U,), noise=-0.1),)},
            "noise of condition 'seen' must not be negative",
        ),
        (
            {"conditions": (Condition("b", "boundary", Region("e", 9, ({k: 0.0},)), (U,)),)},
            "region 'e' must have faces or be periodic, in coordinates",
        ),
        (
            {"conditions": (Condition("b", "boundary", Region("e", 9, ({x: 0.0},), x), (U,)),)},
            "region 'e' must have faces or be periodic",
        ),
        (
            {"conditions": (Condition("pde", "pde", Region("e", 0), (U,)),)},
            "n_points of region 'e' must be at least 1, got 0",
        ),
        ({"reference": (x, y)}, r"reference must have an expression .* \['u'\]"),
        ({"reference": (k * x,)}, r"reference must have an expression in \(x, y\)"),
        (
            {"conditions": (Condition("pde", "pde", INSIDE, (U.diff(x) - k,)),)},
            r"expressions of condition 'pde' have the symbols \{k\}",
        ),
        ({"unknowns": (Unknown("k", k, 1.0, k, 2.0),)}, "unknown 'k' must be in a condition"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        make(**changes)


def test_a_bare_expression_is_named():
    with pytest.raises(TypeError, match="expressions of condition 'pde' must be a tuple"):
        make(conditions=(Condition("pde", "pde", INSIDE, U),))


@pytest.mark.parametrize(
    "how, error, match",
    [
        ({"n_points": 0}, ValueError, "n_points must be at least 1, got 0"),
        ({"n_points": 10.0}, TypeError, "n_points must be an integer, got 10.0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"points": {"edge": 3}}, ValueError, r"points has 'edge', .* of slope; .* \['interior'\]"),
        ({"points": {"interior": 0}}, ValueError, r"points\['interior'\] must be at least 1"),
    ],
)
def test_bad_arguments_of_sample_are_named(how, error, match):
    with pytest.raises(error, match=match):
        make().sample(**how)


@pytest.mark.parametrize(
    "points, match",
    [
        (np.zeros((4, 3)), r"points must have shape \[N, 2\], got \(4, 3\)"),
        (np.array([[0.5, -1e-6]]), "points must lie between"),
        (np.array([[0.5, float("nan")]]), "points must lie between"),
        (np.array([[0.5, 1.5]]), r"points must lie between \(0.0, 0.0\) and \(2.0, 1.0\)"),
    ],
)
def test_bad_points_are_named(points, match):
    with pytest.raises(ValueError, match=match):
        make().solution(points)


def test_networks_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"the network must return shape \[10000, 1\]"):
        make().relative_errors(lambda q: paddle.concat([q, q], axis=1))
