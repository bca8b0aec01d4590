"""GradNorm loss balancing for physics-informed neural networks on PaddlePaddle."""

# Before Paddle: its 2.6 carries a zlib of its own, and Python's zlib crashes if it is
# loaded only afterwards (PaddlePaddle/Paddle issue 70538).
import zlib as _zlib  # noqa: F401

try:
    import paddle as _paddle  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "paddle":
        raise
    raise ImportError(
        "paddlescience_gradnorm needs PaddlePaddle, which is not installed. Install "
        "one of its two distributions through an extra: "
        "pip install 'paddlescience_gradnorm[cpu]', or [gpu] on a machine with CUDA."
    ) from error

from paddlescience_gradnorm.balancing import LossBalancer
from paddlescience_gradnorm.network import (
    FCNet,
    GradNorm,
    NetworkBase,
    RotateOnly,
    RotoGrad,
    RotoGradNorm,
    cached,
)

__version__ = "0.1.0"
__all__ = [
    "FCNet",
    "GradNorm",
    "LossBalancer",
    "NetworkBase",
    "RotateOnly",
    "RotoGrad",
    "RotoGradNorm",
    "__version__",
    "cached",
]
