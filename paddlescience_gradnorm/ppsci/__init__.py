"""GradNorm in PaddleScience: a loss aggregator for its Solver. Importing this imports ``ppsci``."""

try:
    from paddlescience_gradnorm.ppsci.aggregator import GradNormAggregator
    from paddlescience_gradnorm.ppsci.configuration import build_aggregator
    from paddlescience_gradnorm.ppsci.derivatives import propagate_derivatives
except ModuleNotFoundError as error:
    if error.name != "ppsci":
        raise
    raise ImportError(
        "paddlescience_gradnorm.ppsci needs PaddleScience, which is not installed: "
        "pip install 'paddlesci>=1.4,<1.5'"
    ) from error

__all__ = ["GradNormAggregator", "build_aggregator", "propagate_derivatives"]
