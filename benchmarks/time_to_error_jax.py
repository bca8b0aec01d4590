"""The JAX side of time_to_error.py: jitted, with jaxpi's weights by gradient norms."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from time_to_error_task import EVERY, LEARNING_RATE, Course, Task, main

# jaxpi's settings for its weights by gradient norms (Wang et al. 2023): a moving average.
MEMORY, UPDATE_EVERY, SMALL = 0.9, 1000, 1e-5
FUNCTIONS = {name: getattr(jnp, name) for name in ("sin", "cos", "tanh", "exp", "sqrt")}


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


def network(parameters: Any, points: jax.Array) -> jax.Array:
    hidden = points
    for weight, bias in parameters[:-1]:
        hidden = jnp.tanh(hidden @ weight + bias)
    weight, bias = parameters[-1]
    return hidden @ weight + bias


def losses_of(task: Task) -> Callable[[Any], jax.Array]:
    """The losses of parameters, shape [T]."""
    # Conditions at the same points share the network's derivatives there.
    regions: dict[bytes, list[Any]] = {}
    for condition in task.conditions:
        regions.setdefault(condition.points.tobytes(), []).append(condition)
    targets = {c.name: jnp.asarray(c.targets, "float32") for c in task.conditions}

    def losses(parameters: Any) -> jax.Array:
        found = {}
        for conditions in regions.values():
            points = jnp.asarray(conditions[0].points, "float32")
            paths = {path for c in conditions for _, path in task.used_in(c).values()}
            fields = partial(network, parameters)
            values = {path: derivative(fields, path)(points) for path in paths}
            coordinates = {c: points[:, k : k + 1] for k, c in enumerate(task.coordinates)}
            for condition in conditions:
                names = task.used_in(condition)
                known = {name: values[path][:, k : k + 1] for name, (k, path) in names.items()}
                scope = {**FUNCTIONS, "pi": np.pi, **coordinates, **known}
                found[condition.name] = sum(
                    ((eval(code, scope) - targets[condition.name][:, k : k + 1]) ** 2).mean()
                    for k, code in enumerate(condition.codes)
                )
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
