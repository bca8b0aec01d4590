"""The JAX side of step_cost.py: the whole step jitted, Laplacian forward over forward."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from step_cost_worker import ALPHA, LAYERS, LEARNING_RATE, WEIGHT_LR, WIDTH, Case, Run, serve

FLOOR = 1e-3


def build(case: Case, mode: str) -> Run:
    """The step of this mode, compiled."""
    optimizer = optax.adam(LEARNING_RATE)
    parts = [jnp.asarray(points) for points in case.interior()]
    edge, values = (jnp.asarray(array) for array in case.boundary())

    def pde(points: jax.Array, parameters: Any) -> jax.Array:
        return (laplacian(partial(network, parameters), points) ** 2).mean()

    def bc(parameters: Any) -> jax.Array:
        return ((network(parameters, edge) - values) ** 2).mean()

    tasks = [*(partial(pde, points) for points in parts), bc]

    def step(state: Any) -> Any:
        parameters, moments, weights, initial = state
        if mode == "plain":
            gradient = jax.grad(lambda p: sum(task(p) for task in tasks))(parameters)
        else:
            # One backward for each loss, as here; nothing is differentiated twice.
            pairs = [jax.value_and_grad(task)(parameters) for task in tasks]
            losses = jnp.stack([loss for loss, _ in pairs])
            gradients = [gradient for _, gradient in pairs]
            gradient = jax.tree.map(
                lambda *parts: sum(w * part for w, part in zip(weights, parts)), *gradients
            )
            norms = jnp.stack([jnp.linalg.norm(g[-1][0]) for g in gradients])
            initial = jnp.where(initial > 0, initial, losses)
            weights = balanced(weights, losses / initial, norms)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(parameters, updates), moments, weights, initial

    parameters = initial_parameters()
    ones, zeros = jnp.ones(case.losses), jnp.zeros(case.losses)
    state = (parameters, optimizer.init(parameters), ones, zeros)
    compiled = jax.jit(step).lower(state).compile()

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state = compiled(state)
        jax.block_until_ready(state)

    return run


def initial_parameters() -> list[tuple[jax.Array, jax.Array]]:
    sizes = [2] + [WIDTH] * (LAYERS - 1) + [1]
    keys = jax.random.split(jax.random.key(0), len(sizes) - 1)
    xavier = jax.nn.initializers.glorot_uniform()
    return [(xavier(k, (a, b)), jnp.zeros(b)) for k, a, b in zip(keys, sizes, sizes[1:])]


def network(parameters: Any, points: jax.Array) -> jax.Array:
    hidden = points
    for weight, bias in parameters[:-1]:
        hidden = jnp.tanh(hidden @ weight + bias)
    weight, bias = parameters[-1]
    return hidden @ weight + bias


def laplacian(field: Callable[[jax.Array], jax.Array], points: jax.Array) -> jax.Array:
    def second(direction: jax.Array) -> jax.Array:
        along = jnp.broadcast_to(direction, points.shape)
        slope = lambda at: jax.jvp(field, (at,), (along,))[1]  # noqa: E731
        return jax.jvp(slope, (points,), (along,))[1]

    return second(jnp.array([1.0, 0.0])) + second(jnp.array([0.0, 1.0]))


def balanced(weights: jax.Array, progress: jax.Array, norms: jax.Array) -> jax.Array:
    """GradNorm's step of the weights, as in balancing/algorithm.py."""
    rates = progress / progress.mean()
    weighted = weights * norms
    targets = weighted.mean() * rates**ALPHA
    weights = weights - WEIGHT_LR * jnp.sign(weighted - targets) * norms
    weights = jnp.maximum(weights, FLOOR)
    return weights * len(weights) / weights.sum()


if __name__ == "__main__":
    names = {"jax": jax.__version__, "jaxlib": version("jaxlib"), "optax": optax.__version__}
    serve(build, {"versions": names, "settings": f"{jax.default_backend()}, XLA's own threads"})
