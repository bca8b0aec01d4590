"""The private parts of Paddle that this package needs, each with its reason.

Nothing else in the package uses private names of Paddle. Each entry says what it does, why
nothing public serves, and what would replace it. ``tests/test_paddle.py`` runs all of them on
Paddle 3.3 and 2.6.
"""

from __future__ import annotations

import copy
import ctypes
import math
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
import paddle
from paddle.base.framework import EagerParamBase, _dygraph_tracer
from paddle.base.layer_helper import LayerHelper
from paddle.nn.utils.weight_norm_hook import WeightNorm

core: Any = paddle.base.core

# The class of parameters, because pickling must recognise them and unpickling must make them.
# A public class of parameters that takes a name would replace it.
Parameter = EagerParamBase


def graph_node(tensor: paddle.Tensor) -> Any:
    """The node that a backward pass from this tensor starts with: ``Tensor.grad_fn``.

    The property is public, but in Paddle 2.6.2 to 3.3.1 it leaks a reference to the node. That
    would keep the graph of this step, and all tensors in it, forever. A ``grad_fn`` without the
    leak would replace this.
    """
    node = tensor.grad_fn
    if sys.getrefcount(node) > 2:  # this variable's reference and the call's own
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(node))
    return node


def host_count(tensor: paddle.Tensor) -> ctypes.c_int64:
    """The integer in a host tensor, shape [], int64; read and set its ``value``.

    ``Tensor.data_ptr`` is public, but it is not meant for reading and writing memory. After a
    network's pass ``Tensor.item`` and ``Tensor.fill_`` take 50 us, as much as all else that a step
    between updates adds. Calls that take a few us would replace this.
    """
    if tensor.dtype != paddle.int64:
        raise _converted(tensor)
    return ctypes.c_int64.from_address(tensor.data_ptr())


def host_counts(tensor: paddle.Tensor) -> Any:
    """The integers in a host tensor, shape [n], int64, as an array that writes through."""
    if tensor.dtype != paddle.int64:
        raise _converted(tensor)
    return (ctypes.c_int64 * tensor.shape[0]).from_address(tensor.data_ptr())


_KINDS: dict[Any, Any] = {
    paddle.float32: (ctypes.c_float, np.dtype(np.float32)),
    paddle.float64: (ctypes.c_double, np.dtype(np.float64)),
    paddle.int64: (ctypes.c_int64, np.dtype(np.int64)),
}


def write_on_host(tensor: paddle.Tensor, values: Any) -> None:
    """Overwrite a contiguous host tensor of float32, float64 or int64 by its address.

    ``Tensor.set_value`` takes 60 us after a network's pass. See also ``host_count``.

    Args:
        tensor: The tensor.
        values: As many numbers as it has, in an array or a list of any shape.
    """
    if tensor.dtype not in _KINDS:
        raise _converted(tensor)
    kind, dtype = _KINDS[tensor.dtype]
    values = np.asarray(values).ravel()
    if len(values) != math.prod(tensor.shape):
        raise ValueError(f"{len(values)} values do not fit a tensor of shape {tensor.shape}")
    memory = (kind * len(values)).from_address(tensor.data_ptr())
    np.frombuffer(memory, dtype)[:] = values


def _converted(tensor: paddle.Tensor) -> RuntimeError:
    return RuntimeError(
        f"a layer that balances losses holds a tensor of {tensor.dtype}, which its own conversion "
        "never makes. On Paddle 2.6 Layer.astype of a layer around it does; use .to(dtype=...)"
    )


def dense(gradient: paddle.Tensor, parameter: paddle.Tensor) -> paddle.Tensor:
    """A parameter's gradient as a dense tensor, even if it is sparse, such as an embedding's.

    Paddle's operators read a sparse gradient as if it were dense, which corrupts memory, and
    ``Tensor.to_dense`` does not take it. One that does would replace this.
    """
    if not gradient.is_selected_rows():
        return gradient
    rows: Any = gradient.get_selected_rows()
    entries = np.array(rows.get_tensor())
    whole = np.zeros(parameter.shape, entries.dtype)
    np.add.at(whole, np.array(rows.rows()), entries)  # a row may come more than once
    return paddle.to_tensor(whole, place=parameter.place)


def overwrite_sparse(gradient: paddle.Tensor, values: np.ndarray) -> None:
    """Overwrite a sparse gradient, such as an embedding's; it keeps the rows that are not 0.

    Paddle refuses a dense tensor where a parameter has a sparse gradient. A ``Tensor.set_value``
    that takes one would replace this.

    Args:
        gradient: The gradient.
        values: The same as a dense array, of the parameter's shape.
    """
    kept = np.flatnonzero((values != 0).reshape([len(values), -1]).any(axis=1))
    kept = kept if len(kept) else np.zeros(1, int)  # an optimizer needs a row
    rows: Any = gradient.get_selected_rows()
    tensor, place = rows.get_tensor(), gradient.place
    on_gpu = place.is_gpu_place()
    own = values[kept].astype(np.array(tensor).dtype)
    rows.set_rows(kept.tolist())
    tensor.set(own, paddle.CUDAPlace(place.gpu_device_id()) if on_gpu else paddle.CPUPlace())


def is_in_a_closure() -> bool:
    """Whether an L-BFGS of Paddle's or SciPy's is calling, which evaluates one step several times.

    An optimizer does not tell whoever computes its losses. So this looks for it among the functions
    that are running. A closure that is told about the evaluation would replace it.
    """
    frame = sys._getframe(1).f_back
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_name == "step" and re.fullmatch(r"paddle\..*lbfgs", module):
            return True
        if module.startswith("scipy.optimize."):
            return True
        frame = frame.f_back
    return False


def found_overflow(scaler: paddle.amp.GradScaler) -> paddle.Tensor:
    """Whether the scaler has found an overflow; a new tensor for every step that it checks.

    ``GradScaler`` does not tell whether it has skipped a step. A public property would replace
    this.
    """
    return scaler._found_inf


def is_amp_on() -> bool:
    """Whether ``paddle.amp.auto_cast`` is active. Nothing public tells."""
    return bool(_dygraph_tracer()._amp_level != core.AmpLevel.O0)


def has_hooks(layer: paddle.nn.Layer) -> bool:
    """Whether the layer has forward hooks, so that calling it does more than its ``forward``.

    Public methods add and remove hooks, but none lists them. A public property would replace this.
    """
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks)


def normed_weight(layer: paddle.nn.Layer) -> paddle.Tensor | None:
    """The weight that ``paddle.nn.utils.weight_norm`` computes in front of each call.

    None if the layer has no such hook, or others beside it. Public are only the functions that
    add and remove it. A public class that can be looked for would replace this.
    """
    hooks = [*layer._forward_pre_hooks.values(), *layer._forward_post_hooks.values()]
    if len(hooks) == 1 and type(hooks[0]) is WeightNorm and hooks[0].name == "weight":
        return hooks[0].compute_weight(layer)
    return None


def activation_options(layer: paddle.nn.Layer) -> dict[str, Any]:
    """What an activation layer was made with, such as GELU's ``approximate``, by private names.

    Only its printed form tells that in public. Public attributes would replace this.
    """
    names = ("_approximate", "_beta", "_threshold")
    return {name: vars(layer)[name] for name in names if name in vars(layer)}


def sublayer(layer: paddle.nn.Layer, name: str) -> paddle.nn.Layer | None:
    """A sublayer by name; None if there is none, even before the layer's ``__init__`` has run.

    Reading it as an attribute would call ``__getattr__``. A ``__getattr__`` that looks for a
    sublayer would then call itself forever. Nothing public avoids that.
    """
    found: paddle.nn.Layer | None = layer.__dict__.get("_sub_layers", {}).get(name)
    return found


def set_num_threads(number: int) -> None:
    """Set how many threads Paddle's matrix products use. Nothing public does so after the start."""
    core.set_num_threads(number)


def run_custom_op(name: str, *arguments: Any) -> list[paddle.Tensor]:
    """Call an operator of an extension that has been loaded from a file.

    Only ``cpp_extension.load`` is public, but it compiles and makes its own Python module.
    """
    runner: Callable[..., list[paddle.Tensor]]
    if hasattr(paddle._C_ops, "_run_custom_op"):
        runner = paddle._C_ops._run_custom_op
    else:
        runner = paddle.base.core.eager._run_custom_op  # Paddle 2.6
    return runner(name, *arguments)


def schedule_of(optimizer: paddle.optimizer.Optimizer) -> Any | None:
    """The optimizer's learning-rate schedule; None if the rate is a plain number.

    ``get_lr`` returns only the rate. A public getter beside ``set_lr_scheduler`` would replace
    this.
    """
    rate = optimizer._learning_rate
    return rate if isinstance(rate, paddle.optimizer.lr.LRScheduler) else None


def options_of(optimizer: paddle.optimizer.Optimizer) -> dict[str, Any]:
    """The optimizer's numbers and flags by name, such as ``beta2``; without its learning rate.

    Nothing public tells. An optimizer that is not one of Paddle's may have none.
    """
    options = getattr(optimizer, "_default_dict", None) or {}
    return {name: each for name, each in options.items() if isinstance(each, (bool, int, float))}


def parameter_groups(optimizer: paddle.optimizer.Optimizer) -> list[list[paddle.Tensor]]:
    """The optimizer's parameters by group; one group if it was given plain parameters.

    Nothing public tells. A public ``param_groups`` would replace this.
    """
    groups = optimizer._param_groups
    if groups and isinstance(groups[0], dict):
        return [list(group["params"]) for group in groups]
    return [list(groups)]


def has_fused_accumulators(optimizer: paddle.optimizer.Optimizer) -> bool:
    """Whether the optimizer keeps its accumulators in fused tensors (``use_multi_tensor``).

    Nothing public tells.
    """
    return bool(getattr(optimizer, "_use_multi_tensor", False))


def accumulators(
    optimizer: paddle.optimizer.Optimizer,
) -> dict[str, dict[str, paddle.Tensor]]:
    """Moments and other accumulators, by their name and then by the parameter's name.

    ``state_dict`` joins both names and a running number into one. A state dict in the order of
    the parameters would replace this.
    """
    return {name: dict(tensors) for name, tensors in optimizer._accumulators.items() if tensors}


def master_weights(optimizer: paddle.optimizer.Optimizer) -> dict[str, paddle.Tensor]:
    """The float32 copies of half-precision parameters, by the parameter's name.

    ``state_dict`` has them too, but does not tell before the first step whether they will be
    made. The same state dict as for ``accumulators`` would replace this.
    """
    return dict(optimizer._master_weights)


# What an optimizer keeps for its parameters. The last name is a prefix, because Paddle 2.6 and 3
# spell its end differently.
_KEPT = ("_accumulators", "_accumulators_holder", "_master_weights", "_opti_name_list", "helper")
_CREATED = "_already_create_accumul"


def with_new_accumulators(
    optimizer: paddle.optimizer.Optimizer, parameters: Sequence[paddle.Tensor]
) -> Any:
    """A copy of the optimizer with new accumulators, for these parameters only.

    An optimizer makes them in its first step, and ``set_state_dict`` neither makes nor removes
    any. A ``set_state_dict`` that does would replace this.
    """
    twin = copy.copy(optimizer)
    twin._accumulators = defaultdict(dict)
    twin._accumulators_holder, twin._master_weights, twin._opti_name_list = {}, {}, []
    for name in vars(optimizer):
        if name.startswith(_CREATED):
            setattr(twin, name, set())
    twin.helper = twin.helper or LayerHelper(type(optimizer).__name__)
    with warnings.catch_warnings():  # the first step itself warns of half precision
        warnings.simplefilter("ignore")
        twin._create_accumulators(paddle.static.default_main_program().global_block(), parameters)
    return twin


def take_accumulators(optimizer: paddle.optimizer.Optimizer, twin: Any) -> None:
    """Give the optimizer the accumulators of its twin; see ``with_new_accumulators``."""
    for name in vars(twin):
        if name in _KEPT or name.startswith(_CREATED):
            setattr(optimizer, name, getattr(twin, name))


def default_generators() -> list[Any]:
    """The global random generators of the CPU and of all accelerators.

    ``paddle.get_rng_state`` covers one kind of device at a time. On Paddle 2.6 ``set_rng_state``
    fails if a device is given. Functions that cover all devices would replace this.
    """
    generators = [core.default_cpu_generator()]
    if paddle.is_compiled_with_cuda():
        number = core.get_cuda_device_count()
        generators += [core.default_cuda_generator(i) for i in range(number)]
    if paddle.is_compiled_with_xpu():
        number = core.get_xpu_device_count()
        generators += [core.default_xpu_generator(i) for i in range(number)]
    return generators


MERSENNE_WORDS = 312  # in the engine of Paddle's generators, 64 bits each


class GeneratorNumbers(NamedTuple):
    """What the state of a Paddle generator holds.

    ``engine`` holds the ``MERSENNE_WORDS`` words of the Mersenne twister and its position in them.
    """

    device: int
    seed: int
    offset: int
    engine: list[int]


def generator_numbers(state: Any) -> GeneratorNumbers:
    """The numbers in the state of a generator.

    The state is opaque, and on Paddle 2.6 its pickle lacks the engine. So the engine is read from
    the end of the state's text. A state that pickles would replace this.
    """
    engine = [int(word) for word in str(state).split()[-MERSENNE_WORDS - 1 :]]
    device, seed, offset = state.__getstate__()[:3]
    return GeneratorNumbers(device, seed, offset, engine)


def generator_state(numbers: GeneratorNumbers) -> Any:
    """The state of a generator with these numbers, which must be valid.

    The reason and the replacement are those of ``generator_numbers``.

    Raises:
        RuntimeError: This Paddle keeps the state in an unknown memory layout.
    """
    own = paddle.get_rng_state("cpu")[0]
    kind: Any = type(own)
    state = kind.__new__(kind)
    if len(own.__getstate__()) > 3:
        text = " ".join(map(str, numbers.engine)).encode()
        # Paddle 3 returns unsigned numbers but takes signed ones.
        signed = [n - 2**64 if n >= 2**63 else n for n in numbers[:3]]
        state.__setstate__((*signed, list(text)))
    else:
        state.__setstate__(numbers[:3])
        _write_engine(state, numbers.engine)
    return state


def _write_engine(state: Any, engine: Sequence[int]) -> None:
    """Set the engine of a state of Paddle 2.6, whose ``__setstate__`` leaves it out.

    Only writing to memory reaches it. After the reference count and the type, a pybind11 object
    holds a pointer to
    {int64 device; uint64 seed; uint64 offset; uint64 words[312]; size_t position}.
    """
    pointer = ctypes.c_void_p.from_address(id(state) + object.__basicsize__).value
    memory = (ctypes.c_uint64 * (3 + len(engine))).from_address(pointer or id(state))
    if list(memory)[3:] != generator_numbers(state).engine:
        raise RuntimeError(f"Paddle {paddle.__version__} keeps random states in another form")
    memory[3:] = list(engine)
