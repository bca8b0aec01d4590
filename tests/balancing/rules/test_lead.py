import numpy as np
import pytest

from paddlescience_gradnorm.balancing.measurement import Measurement
from paddlescience_gradnorm.balancing.rules._lead import Lead

DEFAULT = Lead(20.0, None)


def measured(losses, equations=(), **others):
    are_equations = np.isin(np.arange(len(losses)), equations)
    return Measurement(np.array(losses, float), equations=are_equations, **others)


def remembered(*means, first=0):
    """State after a run with these mean losses in its tenths, from ``first`` on; largest loss 1."""
    log_losses = Lead.start(len(means))
    for loss, of_loss in zip(log_losses, means):
        loss[first : first + len(of_loss)] = np.stack(
            [3 * np.log(of_loss), np.full(len(of_loss), 3)], axis=1
        )
    return {"largest_losses": np.ones(len(means)), "log_losses": log_losses}


def leads(measurement, state=None, lead=DEFAULT):
    """The factors of all losses, shape [T]."""
    state = remembered(*[[]] * len(measurement.losses)) if state is None else state
    return np.exp(lead.logs(state, measurement))


@pytest.mark.parametrize(
    "progress, of_one, of_several",
    [
        (0, 0, 0),
        (0.25, 0.5, 0),
        (0.3, 0.6, 0),
        (0.425, 0.85, 0.25),
        (0.5, 1, 0.4),
        (0.55, 1, 0.5),
        (0.8, 1, 1),
        (1, 1, 1),
    ],
)
def test_it_grows_in_the_first_half_or_later_with_several_equations(progress, of_one, of_several):
    one, several = (measured([1] * 3, x, progress=progress) for x in ([0], [0, 1]))
    assert leads(one)[1:] == pytest.approx([20**of_one] * 2)
    assert leads(several)[2] == pytest.approx(20**of_several)
    assert leads(one, lead=Lead(20.0, True))[1:] == pytest.approx([20**of_several] * 2)
    assert leads(several, lead=Lead(20.0, False))[2] == pytest.approx(20)
    # Noisy data among the equations are no second equation.
    for name in ("data", "noisy_data"):
        noisy = measured([1] * 3, [0, 1], progress=progress, names=("pde", name, "bc"))
        assert leads(noisy)[2] == pytest.approx(20**of_one)


def test_one_that_must_come_late_does_not_come_if_nobody_knows_when_that_is():
    one, several = measured([1] * 3, [0]), measured([1] * 3, [0, 1])
    assert leads(one)[1:] == pytest.approx([20, 20])
    assert leads(several)[2] == 1 and leads(one, lead=Lead(20.0, True))[1:].tolist() == [1, 1]
    assert leads(several, lead=Lead(20.0, False))[2] == pytest.approx(20)
    # Measured data have it from the start in any case.
    names = ("continuity", "momentum", "data", "walls")
    assert leads(measured([1] * 4, [0, 1], names=names))[2:] == pytest.approx([20, 1])
    noisy = measured([1] * 3, [0, 1], names=("pde", "data", "bc"))
    assert leads(noisy)[2] == pytest.approx(20)


def test_an_equation_that_an_update_leaves_out_still_counts():
    both = measured([1] * 3, [0, 1], progress=0.25)
    for left in ([True, False, True], [False, False, True]):
        assert leads(both.of(np.array(left)))[-1] == 1
    assert leads(measured([1] * 2, [0], progress=0.25))[1] == pytest.approx(20**0.5)


def lead_of_data(progress, losses, name="data", lead=DEFAULT):
    run = measured([1] * 3, [0], progress=progress, names=("pde", name, "bc"))
    return leads(run, remembered([], losses, []), lead)[1]


@pytest.mark.parametrize("name", ["data", "sensors_u", "PointSetBC 2"])
def test_data_have_it_from_the_start_and_lose_it_if_they_are_noisy(name):
    noise, later = [1, 0.03, 0.0252], [1, 0.5, 0.2, 0.06, 0.01, 0.0118]
    for progress, lost in ((0, 0), (0.3, 0), (0.45, 0.5), (0.6, 1), (1, 1)):
        assert lead_of_data(progress, noise, name) == pytest.approx(20 ** (1 - lost))
    for progress, lost in ((0.6, 0), (0.75, 0.5), (0.9, 1)):
        assert lead_of_data(progress, later, name) == pytest.approx(20 ** (1 - lost))
    assert lead_of_data(0.9, noise, name, Lead(20.0, False)) == pytest.approx(20)
    assert lead_of_data(np.nan, noise, name) == pytest.approx(20)


@pytest.mark.parametrize(
    "losses",
    [
        [1, 0.02, 0.016, 0.013, 0.01, 0.008],  # they fall
        [1, 0.008, 0.01, 0.013, 0.016, 0.02],  # or rise
        [1, 0.07, 0.07, 0.07, 0.07, 0.07],  # nothing has been learned
        [1, 0.5, 0.4, 0.3, 0.02, 0.01, 0.01, 0.01],  # at rest only when others are, too
        [1, 0.05],
        [],
    ],
)
def test_data_that_are_not_at_rest_keep_it(losses):
    assert lead_of_data(1.0, losses) == pytest.approx(20)


@pytest.mark.parametrize(
    "losses, grows",
    [
        ([1, 0.05, 0.041], True),
        ([1, 0.05, 0.042], False),
        ([1, 0.05, 0.07], False),  # whether it rises
        ([1, 0.7, 0.7], True),  # but it has not been learned yet
        ([1, 0.05, 0.041, 0.041, 0.041], True),  # what comes later does not matter
        ([1, 0.05], True),  # of a run that went on from elsewhere
    ],
)
def test_with_several_equations_a_condition_at_rest_gets_none(losses, grows):
    state = remembered([], losses, [])
    for progress in (0.55, 0.8, 1.0):
        run = measured([1] * 3, [0, 2], progress=progress, names=("pde", "walls", "energy"))
        share = grows * min(1, (progress - 0.3) / 0.5)
        assert leads(run, state)[1] == pytest.approx(20**share)
        assert leads(run, state, Lead(20.0, False))[1] == pytest.approx(20)
    one = measured([1] * 3, [0], progress=1.0, names=("pde", "walls", "bc"))
    assert leads(one, state)[1:] == pytest.approx([20, 20])


@pytest.mark.parametrize(
    "lid, walls, data, gains",
    [
        ((0.2, 0.2), (0.2, 0.1), (1, 1), False),  # two thirds of the conditions' losses rest
        ((0.02, 0.0111), (0.2, 0.1), (1, 1), True),  # the lid's falls
        ((0.012, 0.012), (0.2, 0.1), (1, 1), False),
        ((0.011, 0.011), (0.2, 0.1), (1, 1), True),  # less than a tenth: a pressure at one point
        ((0.02, 0.012), (0.2, 0.1), (0.01, 0.01), True),  # noise is no conflict
    ],
)
def test_conditions_at_rest_that_are_a_large_part_take_it_from_all(lid, walls, data, gains):
    names = ("pde1", "pde2", "lid", "walls", "data")
    state = remembered([1, 1], [1, 1], lid, walls, data, first=1)
    rests = lid[0] < 1.2 * lid[1]
    run = measured([1] * 5, [0, 1], progress=0.8, names=names)
    expected = [20 ** (gains and not rests), 20**gains]
    assert leads(run, state)[2:4] == pytest.approx(expected)
    # With one equation, whose lead comes early, nobody looks.
    one = measured([1] * 5, [0], progress=0.8, names=("pde1", "bc", *names[2:]))
    assert leads(one, state)[1:4] == pytest.approx([20, 20, 20])


def test_data_that_have_lost_it_are_named():
    names, noise = ("pde", "data", "bc"), remembered([], [1, 0.02, 0.019], [])

    def lost(progress, state=noise, equations=(0,), lead=DEFAULT):
        run = measured([1] * 3, equations, progress=progress, names=names)
        return lead.lost_to_noise(names, state, run)

    assert lost(0.4) == ["data"]
    falling = remembered([], [1, 0.02, 0.01], [])
    assert (
        lost(0.3) == lost(0.4, falling) == lost(0.4, lead=Lead(20.0, False)) == lost(np.nan) == []
    )
    assert lost(0.4, equations=()) == lost(0.4, equations=(0, 1)) == []


def test_losses_are_summed_by_tenths_of_the_run():
    log_losses = Lead.start(2)
    for progress, loss in ((0.15, 0.1), (0.15, 0.0), (0.19, 0.1), (1.0, 0.5)):
        log_losses = Lead.summed(log_losses, measured([1, loss], [0], progress=progress))
    # A loss of zero has no logarithm, and does not count.
    np.testing.assert_allclose(log_losses[1, 1], [2 * np.log(0.1), 2])
    np.testing.assert_allclose(log_losses[:, 9], [[0, 1], [np.log(0.5), 1]])
    assert log_losses[:, [0, *range(2, 9)]].sum() == 0
    unknown = Lead.summed(log_losses, measured([1, 1], [0]))
    assert (unknown == log_losses).all()


def test_it_is_described_before_it_comes():
    lead, two = Lead(5.0, None), ["momentum_x", "momentum_y"]
    grows = "a lead of 5 that grows between steps {} and {}"
    assert lead.described(two, ["bc"], 1000) == (grows.format(300, 800), "")
    for one in (["pde"], ["pde", "data"]):
        assert lead.described(one, ["bc"], 1000) == (grows.format(0, 500), "")
    of_data = "a lead of 5 from the start, taken back if it is noise that is left"
    assert lead.described(["pde"], ["data"], 1000) == (of_data, "")
    mixed, _ = lead.described(["pde"], ["bc", "obs", "data"], 1000)
    assert mixed == f"{grows.format(0, 500)} ('obs' and 'data': {of_data})"
    # With a length that is not known.
    advice = " (pass total_steps=, the number of steps, for a lead at the right time)"
    for conditions, given in (
        (["bc"], "no lead"),
        (["data"], "a lead of 5 from the start"),
        (["bc", "data"], "no lead ('data': a lead of 5 from the start)"),
    ):
        assert lead.described(two, conditions, None) == (given, advice)
        assert lead.described(["pde"], conditions, None) == ("a lead of 5 from the start", advice)
        for steps in (None, 1000):
            constant = Lead(5.0, False).described(two, conditions, steps)
            assert constant == ("a lead of 5 from the start", "")
