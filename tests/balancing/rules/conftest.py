"""Reference numbers of other rules: what their authors' code gives on one sequence of steps."""

from pathlib import Path

import numpy as np
import pytest

from paddlescience_gradnorm.balancing import Measurement


def measurement_of(gradients, losses=None, equations=(0,), **others):
    """What is measured of these gradients, shape [T, values of W]."""
    n_loss, means = len(gradients), gradients.mean(1)[:, None]
    stds = gradients.std(1)
    with np.errstate(invalid="ignore"):  # NaN if all entries are equal, as a balancer measures it
        kurtosis = (((gradients - means) / stds[:, None]) ** 4).mean(1)
    return Measurement(
        np.ones(n_loss) if losses is None else np.array(losses, float),
        gradients @ gradients.T,
        largest=np.abs(gradients).max(1),
        mean=np.abs(gradients).mean(1),
        std=stds,
        kurtosis=kurtosis,
        equations=np.isin(np.arange(n_loss), equations),
        **others,
    )


class Recorded:
    """25 steps of 4 losses with gradients of 30 values. The first loss is the equation."""

    def __init__(self, path):
        with np.load(path) as arrays:
            self.arrays = dict(arrays)
        self.losses, self.gradients = self.arrays["losses"], self.arrays["gradients"]

    def __getitem__(self, name):
        return self.arrays[name]

    def measurements(self, n_loss=4, zeros=0, **others):
        """One for each step; ``zeros`` values are added to the gradients."""
        for step, (losses, gradients) in enumerate(zip(self.losses, self.gradients)):
            padded = np.pad(gradients[:n_loss], [(0, 0), (0, zeros)])
            yield measurement_of(padded, losses[:n_loss], step=step, **others)

    def weights(self, rule, **options):
        """What the rule returns in each step, shape [25, T]."""
        found, state = [], None
        for measurement in self.measurements(**options):
            n_loss = len(measurement.losses)
            weights = found[-1] if found else np.ones(n_loss)
            state = rule.start(n_loss) if state is None else state
            weights, state = rule.weigh(weights, state, measurement)
            found.append(weights)
        return np.array(found)

    def directions(self, rule, n_loss=4):
        """The combined gradient of each step, shape [25, 30]."""
        coefficients = self.weights(rule, n_loss=n_loss)
        return np.einsum("st,stp->sp", coefficients, self.gradients[:, :n_loss])


@pytest.fixture(scope="session")
def recorded():
    return Recorded(Path(__file__).parents[2] / "data/rules.npz")


@pytest.fixture
def measured():
    return measurement_of


def assert_same_directions(found, expected, tolerance=1e-10):
    scales = np.linalg.norm(expected, axis=1)[:, None]
    np.testing.assert_allclose(found / scales, expected / scales, rtol=0, atol=tolerance)


@pytest.fixture
def same_directions():
    return assert_same_directions
