"""The layers behind a function of losses."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from types import CodeType
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
        # A script has its layers in globals. Not by getclosurevars, because that fails if a name
        # of an enclosing function has no value yet.
        parts.update({x: losses.__globals__.get(x) for x in _global_names(losses.__code__)})
        for name, cell in zip(losses.__code__.co_freevars, losses.__closure__ or ()):
            with contextlib.suppress(ValueError):  # it is empty
                parts[name] = cell.cell_contents
    return {name: part for name, part in parts.items() if isinstance(part, paddle.nn.Layer)}


def _global_names(code: CodeType) -> Iterator[str]:
    """What the code may look up in the globals, a comprehension or a lambda within it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)
