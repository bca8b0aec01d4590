"""GradNorm loss balancing for physics-informed neural networks on PaddlePaddle."""

import warnings as _warnings

# Before Paddle: its 2.6 carries a zlib of its own, and Python's zlib crashes if it is
# loaded only afterwards (PaddlePaddle/Paddle issue 70538).
import zlib as _zlib  # noqa: F401
from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING

# Paddle says it whenever it is imported, but it matters only to those who compile extensions.
_warnings.filterwarnings("ignore", message="No ccache found", category=UserWarning)

__version__ = "0.2.0.dev0"
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

# Imported as they are asked for: the balancing rules need no Paddle, and
# `python -m paddlescience_gradnorm --help` answers without it, which takes seconds to load.
if TYPE_CHECKING:
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
else:  # a type checker would take every name for one that is there

    def __getattr__(name):
        if name not in (*__all__, "balancing", "network"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name != "balancing" and _find_spec("paddle") is None:
            raise ImportError(
                "paddlescience_gradnorm needs PaddlePaddle, which is not installed: "
                "pip install paddlepaddle, or on a machine with CUDA: "
                "pip install paddlepaddle-gpu 'numpy<2'"
            )
        if name in ("balancing", "network"):
            return _import_module(f"{__name__}.{name}")
        module = "balancing" if name == "LossBalancer" else "network"
        globals()[name] = value = getattr(_import_module(f"{__name__}.{module}"), name)
        return value

    def __dir__():
        return [*globals(), *__all__]
