"""The aggregator that a configuration describes."""

import pytest

pytest.importorskip("ppsci", reason="needs PaddleScience: pip install -e '.[ppsci]'")

import hydra
from omegaconf import OmegaConf
from ppsci_problem import apart, equations_found, trained

from paddlescience_gradnorm.balancing import PinnRule
from paddlescience_gradnorm.ppsci import build_aggregator

CONFIG = """
hydra: {run: {dir: .}, output_subdir: null}
TRAIN:
  epochs: 7
  loss_aggregator:
    name: GradNormAggregator
    update_every: ${TRAIN.epochs}
    equations: [EQ.laplace]
    rule: {name: pinn, late: false, lead: 5}
    weight_attr: [1, 2, 3]
"""


@pytest.mark.parametrize("kind", ["dict", "omegaconf", "hydra"])
def test_a_configuration_builds_the_aggregator(tmp_path, kind):
    (tmp_path / "laplace.yaml").write_text(CONFIG)
    if kind == "hydra":
        with hydra.initialize_config_dir(str(tmp_path), version_base=None):
            cfg = hydra.compose("laplace", overrides=["TRAIN.epochs=9"])
    else:
        cfg = OmegaConf.create(CONFIG)
    if kind == "dict":
        cfg = OmegaConf.to_container(cfg, resolve=True)
    model, constraint, equation = apart()
    aggregator = build_aggregator(cfg["TRAIN"]["loss_aggregator"], model, constraint, equation)
    assert aggregator.balancer.update_every == (9 if kind == "hydra" else 7)
    trained(model, constraint, equation, aggregator, steps=1)
    assert equations_found(aggregator) == ["EQ.laplace"]
    assert aggregator._start.tolist() == [1, 2, 3]
    assert aggregator.balancer.rule == PinnRule(late=False, lead=5)
    assert cfg["TRAIN"]["loss_aggregator"]["name"] == "GradNormAggregator"


@pytest.mark.parametrize(
    "cfg, error, message",
    [
        ("GradNormAggregator", TypeError, r'cfg must be a mapping such as \{"name"'),
        ({"name": "Relobralo"}, ValueError, "names the aggregator 'Relobralo', but only"),
        ({}, ValueError, "names the aggregator None, but only"),
        ({"name": "GradNormAggregator", "momentum": 0.9}, TypeError, "'momentum', which is Paddle"),
        ({"name": "GradNormAggregator", "num_losses": 3}, TypeError, "of takes no num_losses"),
        (
            {"name": "GradNormAggregator", "rule": {"name": "pin"}},
            ValueError,
            "did you mean 'pinn'",
        ),
        ({"name": "GradNormAggregator", "rule": {"lead": 5}}, ValueError, "no name for its rule"),
        ({"name": "GradNormAggregator", "rule": {"name": "published"}}, TypeError, "alpha is miss"),
        (
            {"name": "GradNormAggregator", "rule": {"name": "pinn", "leed": 5}},
            TypeError,
            "the rule 'pinn' has no option 'leed'; did you mean 'lead'",
        ),
    ],
)
def test_a_configuration_that_names_something_else_is_an_error(cfg, error, message):
    with pytest.raises(error, match=message):
        build_aggregator(cfg, *apart())
