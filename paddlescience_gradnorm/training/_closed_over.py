"""The layers behind a function of losses."""

from __future__ import annotations

import inspect
from typing import Any

import paddle


def layers_of(losses: Any) -> list[paddle.nn.Layer]:
    """The layer that the losses are, or are a method of, and those that the function names.

    Examples:
        >>> def losses_by(residual):
        ...     return lambda net: [residual(net)]
        >>> layer = paddle.nn.Identity()
        >>> layers_of(losses_by(layer)), layers_of(layer.forward), layers_of(layer)
        ([Identity()], [Identity()], [Identity()])
    """
    parts = [getattr(losses, "__self__", losses)]
    if inspect.isfunction(losses):
        names = inspect.getclosurevars(losses)  # a script has its layers in globals
        parts += [*names.nonlocals.values(), *names.globals.values()]
    return [part for part in parts if isinstance(part, paddle.nn.Layer)]
