"""An aggregator from a configuration, such as a part of a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import paddle

from paddlescience_gradnorm.balancing.rules import find_rule
from paddlescience_gradnorm.ppsci.aggregator import GradNormAggregator


def build_aggregator(
    cfg: Mapping[str, Any],
    model: paddle.nn.Layer,
    constraint: Mapping[str, Any],
    equation: Mapping[str, Any] | None = None,
) -> GradNormAggregator:
    """The aggregator that a configuration describes, such as a part of a YAML file.

    PaddleScience 1.4 reads no aggregator from a configuration: its examples write them in Python,
    and its ``ppsci.loss.mtl.build_mtl_aggregator`` knows its own only.

    Args:
        cfg: ``{"name": "GradNormAggregator", ...}``, a dict or a ``DictConfig``. All other entries
            are options of ``GradNormAggregator.of``. ``rule`` is a name, or a mapping of the name
            and the rule's options: ``{"name": "pinn", "late": False}``.
        model: The Solver's model.
        constraint: The Solver's constraints by name.
        equation: The Solver's equations by name.

    Raises:
        TypeError: ``cfg`` is no mapping, or an option does not exist, of the rule or of ``of``.
        ValueError: Another aggregator is named, or an option is out of range.

    Examples:
        >>> build_aggregator({"name": "NTK"}, None, {})
        Traceback (most recent call last):
        ValueError: cfg names the aggregator 'NTK', but only 'GradNormAggregator' is built here
    """
    if not isinstance(cfg, Mapping):
        raise TypeError(f'cfg must be a mapping such as {{"name": ...}}, got {cfg!r}')
    options = _plain(cfg)
    name = options.pop("name", None)
    if name != "GradNormAggregator":
        raise ValueError(
            f"cfg names the aggregator {name!r}, but only 'GradNormAggregator' is built here"
        )
    if isinstance(options.get("rule"), dict):
        rule = options["rule"]
        if "name" not in rule:
            raise ValueError(f"cfg has no name for its rule, got {rule!r}: add name: pinn")
        options["rule"] = find_rule(rule.pop("name"), **rule)
    return GradNormAggregator.of(model, constraint, equation, **options)


def _plain(part: Any) -> Any:
    """A part of a configuration as dicts, lists and values."""
    if isinstance(part, Mapping):
        return {name: _plain(value) for name, value in part.items()}
    if isinstance(part, Sequence) and not isinstance(part, str):
        return [_plain(value) for value in part]
    return part
