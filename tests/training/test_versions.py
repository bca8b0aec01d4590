import pytest

from paddlescience_gradnorm.training import CheckpointError
from paddlescience_gradnorm.training._versions import Schema, filled

FIRST = Schema("a clock", ("hour",))
SECOND = FIRST._replace(added=({"minute": 0, "zone": "UTC"},))
THIRD = FIRST._replace(added=(*SECOND.added, {"second": 30}))


@pytest.mark.parametrize("schema, version", [(FIRST, 1), (SECOND, 2), (THIRD, 3)])
def test_every_addition_is_a_version(schema, version):
    assert schema.version == version
    assert schema.written(hour=7) == {"version": version, "hour": 7}


def test_older_states_get_the_defaults_of_what_they_lack():
    old, newer = FIRST.written(hour=7), SECOND.written(hour=7, minute=5, zone="CET")
    assert SECOND.read(old) == {"hour": 7, "minute": 0, "zone": "UTC"}
    assert THIRD.read(old) == {"hour": 7, "minute": 0, "zone": "UTC", "second": 30}
    assert THIRD.read(newer) == {"hour": 7, "minute": 5, "zone": "CET", "second": 30}
    assert SECOND.read(newer) == {"hour": 7, "minute": 5, "zone": "CET"}
    assert old == FIRST.written(hour=7) and newer["version"] == 2  # which stay as they were


@pytest.mark.parametrize(
    "state, match",
    [
        (None, "has no state of a clock"),
        ({"hour": 7}, "has no state of a clock"),
        ({"version": True, "hour": 7}, "the impossible version True of a clock"),
        ({"version": 0, "hour": 7}, "the impossible version 0"),
        ({"version": "1", "hour": 7}, "the impossible version 1"),
        ({"version": 2}, "has no hour of a clock"),
        ({"version": 2, "hour": 7, "zone": ""}, "has no minute of a clock"),
        ({"version": 1, "hour": 7, "day": 3}, "'day' of a clock, which is not known here"),
        (
            {"version": 3, "hour": 7, "day": 3},
            r"written by a newer paddlescience_gradnorm: it holds version 3 of a clock, .* up to 2"
            r"\. Update the package",
        ),
        ({"version": 10**40}, "version 10000000000000000000 of"),
    ],
)
def test_another_state_is_an_error(state, match):
    with pytest.raises(CheckpointError, match=match):
        SECOND.read(state)


OWN = {"a": 1, "caller": {"acted": 2, "awaited": 3}, "names": ["x", "y"]}


@pytest.mark.parametrize(
    "state, expected",
    [
        ({}, OWN),
        ({"a": 7, "names": []}, {**OWN, "a": 7, "names": []}),
        ({"caller": {"acted": 7}}, {**OWN, "caller": {"acted": 7, "awaited": 3}}),
        ({"caller": None}, {**OWN, "caller": None}),  # which check_like refuses
        (None, None),
    ],
)
def test_what_is_missing_stays_as_it_is(state, expected):
    assert filled(OWN, state, "extra", False) == expected


@pytest.mark.parametrize(
    "is_older, why", [(False, r"newer \(update this package\)"), (True, "file is older")]
)
def test_what_is_unknown_is_named(is_older, why):
    with pytest.raises(
        CheckpointError, match=f"has 'b' at extra, which is not known here: .*{why}"
    ):
        filled(OWN, {"a": 1, "b": 2}, "extra", is_older)
    with pytest.raises(CheckpointError, match=r"has 'until' at extra\.caller"):
        filled(OWN, {"caller": {"until": 2}}, "extra", is_older)
