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


def ring(**changes):
    s = sympy.Symbol("s")

    def circle(radius):
        return {
            x: 1 + radius * sympy.cos(2 * sympy.pi * s),
            y: radius * sympy.sin(2 * sympy.pi * s),
        }

    edges = Region("edges", 300, faces=(circle(0.5), circle(1)))
    parts = {
        "low": (0.0, -1.0),
        "high": (2.0, 1.0),
        "conditions": (PDE, Condition("edges", "boundary", edges, (U,))),
        "domain": ((x - 1) ** 2 + y**2 >= 0.25) & ((x - 1) ** 2 + y**2 <= 1),
    }
    return make(**{**parts, **changes})


def radius(points):
    return np.hypot(points[:, 0] - 1, points[:, 1])


def test_points_lie_in_the_domain_and_fill_it():
    inside = ring().sample_region(INSIDE, 1000, seed=0)
    assert inside.shape == (1000, 2)
    assert radius(inside).min() >= 0.5 and radius(inside).max() <= 1
    # Of the ring's area, 3/4 pi, the part within 3/4 has 5/12.
    assert (radius(inside) < 0.75).mean() == pytest.approx(5 / 12, abs=0.02)
    assert (inside[:, 0] < 1).mean() == pytest.approx(0.5, abs=0.02)
    # Those of a shorter sample come first.
    np.testing.assert_array_equal(ring().sample_region(INSIDE, 300, seed=0), inside[:300])


def test_points_on_curves_are_shared_out_by_length():
    p = ring()
    points = p.sample_region(p.regions[1], 300, seed=0)
    assert radius(points[:100]) == pytest.approx(0.5) and radius(points[100:]) == pytest.approx(1)
    angle = np.arctan2(points[100:, 1], points[100:, 0] - 1)
    assert np.histogram(angle, 8, (-np.pi, np.pi))[0] == pytest.approx(25, abs=2)


def test_curves_may_leave_coordinates_free_and_depend_on_them():
    s, t, z = sympy.symbols("s t z")
    field = sympy.Function("u")(x, y, z)
    slope = Region("slope", 100, faces=({z: x / 2},))  # with y free
    tube = Region("tube", 100, faces=({x: sympy.cos(s), y: sympy.sin(s)},))  # with z free
    ball = {x: sympy.sin(3 * s) * sympy.cos(6 * t), y: sympy.sin(3 * s) * sympy.sin(6 * t)}
    p = Problem(
        "box",
        "u = 0",
        (x, y, z),
        (u,),
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 4.0),
        conditions=(Condition("a", "boundary", slope, (field,)),),
        reference=(x,),
    )
    points = p.sample_region(slope, 100, seed=0)
    np.testing.assert_array_equal(points[:, 2], points[:, 0] / 2)
    assert np.ptp(points[:, :2], axis=0).min() > 0.9
    assert p._size(slope.faces[0]) == pytest.approx(np.sqrt(1.25))
    points = p.sample_region(tube, 100, seed=0)
    assert np.hypot(points[:, 0], points[:, 1]) == pytest.approx(1) and np.ptp(points[:, 2]) > 3.9
    assert p._size(tube.faces[0]) == pytest.approx(4)
    area = 6 * (1 - np.cos(3))  # of a part of the unit sphere
    assert p._size({**ball, z: sympy.cos(3 * s)}) == pytest.approx(area, rel=1e-3)


def test_errors_are_those_in_the_domain():
    p = ring(conditions=(PDE,))

    def wrong_in_the_hole(q):
        hole = (q[:, :1] - 1) ** 2 + q[:, 1:] ** 2 < 0.25
        return q[:, :1] * q[:, 1:] + hole.astype(q.dtype)

    assert p.relative_errors(wrong_in_the_hole)["u"] == pytest.approx(0, abs=1e-6)
    assert make().contains(np.zeros((3, 2))).tolist() == [True] * 3


@pytest.mark.parametrize(
    "face",
    [{x: 3.0}, {y: 0.0}, {x: 1 + 2 * k, y: k}],
    ids=["beyond the box", "through the hole", "a curve beyond the box"],
)
def test_a_face_outside_of_the_domain_is_named(face):
    region = Region("edge", 50, faces=(face,))
    with pytest.raises(
        ValueError, match=r"face .* of region 'edge' leaves the domain, .* a parameter"
    ):
        ring().sample_region(region, 50, seed=0)


def test_a_domain_with_hardly_a_point_is_named():
    p = ring(domain=x > 1e6, conditions=(PDE,))
    with pytest.raises(ValueError, match=r"domain x > 1000000.0 holds 0 of \d+ points of the box"):
        p.sample_region(INSIDE, 10, seed=0)


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


@pytest.mark.parametrize("number", [0, 1.5, np.float32(0.5), np.int64(2)])
def test_a_solution_may_be_a_number(number):
    assert make(reference=(number,)).solution(np.ones((3, 2))).tolist() == [[float(number)]] * 3


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
        (
            {"conditions": (Condition("b", "boundary", Region("e", 9, ({x: x / 2},)), (U,)),)},
            "a face of region 'e' must have values in parameters and in the coordinates that",
        ),
        (
            {"domain": k > 0},
            r"domain must be a sympy condition on the coordinates \(x, y\), .* k > 0",
        ),
        ({"domain": x}, r"domain must be a sympy condition .* such as .*, got x"),
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


@pytest.mark.parametrize(
    "changes, match",
    [
        (
            {"conditions": (Condition("pde", "pde", INSIDE, U),)},
            "expressions of condition 'pde' must be a tuple",
        ),
        (
            {"conditions": (Condition("pde", "pde", INSIDE, (sympy.Eq(U.diff(x), y),)),)},
            r"an expression of condition 'pde' .* got Eq\(.*minus the right side, -y \+ Deriv",
        ),
        (
            {"conditions": (Condition("pde", "pde", INSIDE, (0,)),)},
            "an expression of condition 'pde' must be a sympy expression, got 0",
        ),
        ({"reference": x}, r"reference must be a tuple .* \['u'\], such as \(x,\), .* got x"),
        ({"reference": ("x*y",)}, r"reference must be a tuple .* got \('x\*y',\)"),
        ({"reference": (sympy.Eq(x, y),)}, r"reference must be a tuple .* got \(Eq\(x, y\),\)"),
    ],
)
def test_what_is_no_expression_is_named(changes, match):
    with pytest.raises(TypeError, match=match):
        make(**changes)


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
