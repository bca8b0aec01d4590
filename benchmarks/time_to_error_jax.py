"""The JAX side of time_to_error.py: jitted, with jaxpi's weights by gradient norms."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from step_cost_jax import network
from time_to_error_task import EVERY, LEARNING_RATE, Course, Task, main

# jaxpi's settings for its weights by gradient norms (Wang et al. 2023): a moving average.
MEMORY, UPDATE_EVERY, SMALL = 0.9, 1000, 1e-5


def train(task: Task, contestant: str) -> Course:
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, task.steps)
    optimizer = optax.adam(schedule)
    losses = losses_of(task)

    @jax.jit
    def block(state: Any, weights: jax.Array) -> Any:
        def step(state: Any, _: None) -> Any:
            parameters, moments = state
            gradient = jax.grad(lambda p: weights @ losses(p))(parameters)
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(parameters, updates), moments), None

        return jax.lax.scan(step, state, None, length=EVERY)[0]

    @jax.jit
    def balanced(parameters: Any, weights: jax.Array) -> jax.Array:
        norms = jax.vmap(optax.global_norm)(jax.jacrev(losses)(parameters))
        mean = norms.mean()
        return MEMORY * weights + (1 - MEMORY) * mean / (norms + SMALL * mean)

    fields = jax.jit(network)

    def predict(trained: Any, points: np.ndarray) -> np.ndarray:
        return np.asarray(fields(trained, jnp.asarray(points)))

    parameters = [(jnp.asarray(w), jnp.zeros(w.shape[1])) for w in task.weights]
    state = parameters, optimizer.init(parameters)
    weights = jnp.ones(len(task.conditions))
    course = Course(task)
    for step in range(0, task.steps, EVERY):
        if contestant == "jax grad_norm" and step % UPDATE_EVERY == 0:
            weights = balanced(state[0], weights)
        state = jax.block_until_ready(block(state, weights))
        course.record(step + EVERY, partial(predict, state[0]))
    return course


def losses_of(task: Task) -> Callable[[Any], jax.Array]:
    """The losses of parameters, shape [T]."""
    targets = {c.name: jnp.asarray(c.targets, "float32") for c in task.conditions}

    def losses(parameters: Any) -> jax.Array:
        found = {}
        for conditions in task.regions:
            points = jnp.asarray(conditions[0].points, "float32")
            columns = jnp.split(points, points.shape[1], axis=1)
            paths = {path for each in conditions for _, path in task.used_in(each).values()}
            fields = partial(network, parameters)
            by_path = {path: derivative(fields, path)(points) for path in paths}

            def of(field: int, path: tuple[int, ...], by_path: Any = by_path) -> jax.Array:
                return by_path[path][:, field : field + 1]

            for each in conditions:
                values = jnp.concatenate(task.values(each, jnp, columns, of), axis=1)
                found[each.name] = ((values - targets[each.name]) ** 2).mean(axis=0).sum()
        return jnp.stack([found[condition.name] for condition in task.conditions])

    return losses


def derivative(
    function: Callable[[jax.Array], jax.Array], path: tuple[int, ...]
) -> Callable[[jax.Array], jax.Array]:
    """Forward over forward."""
    for axis in path:
        function = partial(along, function, axis)
    return function


def along(function: Callable[[jax.Array], jax.Array], axis: int, points: jax.Array) -> jax.Array:
    direction = jnp.zeros_like(points).at[:, axis].set(1.0)
    return jax.jvp(function, (points,), (direction,))[1]


if __name__ == "__main__":
    main(train, {name: version(name) for name in ("jax", "jaxlib", "optax")})
