"""The layers behind a function of losses."""

from __future__ import annotations

import inspect
from typing import Any

import paddle


def layers_of(losses: Any) -> dict[str, paddle.nn.Layer]:
    """The layer that the losses are, or are a method of, and those that the function names.

    Returns:
        By the name that the function has for each; the first of them by ``""``.

    Examples:
        >>> def losses_by(residual):
        ...     return lambda net: [residual(net)]
        >>> layer = paddle.nn.Identity()
        >>> layers_of(losses_by(layer)), layers_of(layer.forward), layers_of(layer)
        ({'residual': Identity()}, {'': Identity()}, {'': Identity()})
    """
    parts = {"": getattr(losses, "__self__", losses)}
    if inspect.isfunction(losses):
        names = inspect.getclosurevars(losses)
        parts.update({**names.globals, **names.nonlocals})  # a script has its layers in globals
    return {name: part for name, part in parts.items() if isinstance(part, paddle.nn.Layer)}
