"""Paddle's private parts that the package uses, each on a real object of this Paddle."""

import ast
import gc
import inspect
import sys
import weakref
from pathlib import Path

import numpy as np
import paddle
import pytest

import paddlescience_gradnorm
from paddlescience_gradnorm import _paddle

lr = paddle.optimizer.lr


@pytest.fixture
def net():
    return paddle.nn.Sequential(paddle.nn.Linear(2, 3), paddle.nn.Linear(3, 1))


def adam(parameters, rate=0.1, **options):
    return paddle.optimizer.Adam(rate, parameters=parameters, **options)


def step(net, optimizer):
    net(paddle.ones([1, 2])).sum().backward()
    optimizer.step()
    optimizer.clear_grad()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_are_written_where_the_tensor_is(dtype):
    tensor = paddle.zeros([2, 2], dtype)
    twice = 2 * tensor
    _paddle.write_on_host(tensor, [0.5, 1.0, -2.0, 1e-3])
    assert tensor.tolist() == np.array([[0.5, 1.0], [-2.0, 1e-3]], dtype).tolist()
    assert twice.tolist() == [[0, 0], [0, 0]]


def test_integers_are_written_where_the_tensor_is():
    tensor = paddle.to_tensor([1, 2], "int64")
    _paddle.write_on_host(tensor, [2**40 + 3, -1])
    assert tensor.tolist() == [2**40 + 3, -1]


def test_a_count_is_read_and_set_where_it_is():
    tensor = paddle.to_tensor(2**40 + 3, "int64")
    assert _paddle.host_count(tensor).value == 2**40 + 3
    _paddle.host_count(tensor).value = 7
    assert tensor.item() == 7


def test_counts_are_read_and_set_where_they_are():
    tensor = paddle.to_tensor([0, 2**40 + 3, -1], "int64")
    counts = _paddle.host_counts(tensor)
    assert list(counts) == [0, 2**40 + 3, -1] and any(counts)
    counts[:] = [4, 5, 6]
    assert tensor.tolist() == [4, 5, 6]


def test_the_closure_of_lbfgs_is_told_from_a_plain_step(net):
    found, lbfgs = [], paddle.optimizer.LBFGS(max_iter=1, parameters=net.parameters())

    def closure():
        found.append(_paddle.is_in_a_closure())
        lbfgs.clear_grad()
        loss = net(paddle.ones([1, 2])).square().sum()
        loss.backward()
        return loss

    closure()
    lbfgs.step(closure)
    step(net, adam(net.parameters()))
    assert found[0] is False and len(found) > 1 and all(found[1:])
    assert not _paddle.is_in_a_closure()


def test_so_is_a_function_that_scipy_minimises():
    optimize, found = pytest.importorskip("scipy.optimize"), []

    def squared(x):
        found.append(_paddle.is_in_a_closure())
        return float(x @ x), 2 * x

    optimize.minimize(squared, np.ones(2), jac=True, method="L-BFGS-B")
    assert found and all(found) and not _paddle.is_in_a_closure()


def test_a_sparse_gradient_becomes_dense():
    table = paddle.nn.Embedding(5, 2, sparse=True)
    dense = paddle.nn.Embedding(5, 2)
    for each in (table, dense):
        each(paddle.to_tensor([1, 3, 1])).sum().backward()
    assert table.weight.grad.is_selected_rows()
    found = _paddle.dense(table.weight.grad, table.weight)
    assert found.tolist() == dense.weight.grad.tolist() == [[0, 0], [2, 2], [0, 0], [1, 1], [0, 0]]
    gradient = dense.weight.grad
    assert _paddle.dense(gradient, dense.weight) is gradient


def test_memory_of_another_type_or_size_is_not_written_to():
    with pytest.raises(RuntimeError, match=r"tensor of .*float32.*use \.to\(dtype="):
        _paddle.host_count(paddle.zeros([]))
    with pytest.raises(RuntimeError, match=r"tensor of .*float32.*use \.to\(dtype="):
        _paddle.host_counts(paddle.zeros([2]))
    with pytest.raises(RuntimeError, match=r"tensor of .*float16"):
        _paddle.write_on_host(paddle.zeros([2], "float16"), [1.0, 2.0])
    with pytest.raises(ValueError, match="3 values do not fit a tensor of shape"):
        _paddle.write_on_host(paddle.zeros([2]), [1.0, 2.0, 3.0])


def test_a_sublayer_is_found_even_before_init():
    net = paddle.nn.Sequential(paddle.nn.Linear(1, 1))
    assert _paddle.sublayer(net, "0") is net[0]
    assert _paddle.sublayer(net, "1") is None
    assert _paddle.sublayer(paddle.nn.Layer.__new__(paddle.nn.Layer), "net") is None


def test_parameters_are_told_from_other_tensors_and_made_by_name(net):
    assert all(isinstance(p, _paddle.Parameter) for p in net.parameters())
    assert not isinstance(paddle.ones([2]), _paddle.Parameter)
    made = _paddle.Parameter(shape=[2, 3], dtype="float64", name="w")
    assert (made.name, list(made.shape), made.dtype) == ("w", [2, 3], paddle.float64)
    assert isinstance(made, paddle.Tensor) and not made.stop_gradient


def test_a_graphs_nodes_die_with_their_tensors():
    class Hook:
        """Lives as long as the graph that holds it."""

        def __call__(self, gradient):
            return gradient

    def look():
        x, hook = paddle.ones([2]), Hook()
        x.stop_gradient = False
        doubled = 2 * x
        doubled.register_hook(hook)
        y = doubled.sum()
        node = _paddle.graph_node(y)
        references = sys.getrefcount(node)
        again = _paddle.graph_node(y)
        assert again is node and node.node_ptr() == again.node_ptr()
        assert node.next_functions[0].node_ptr() == _paddle.graph_node(doubled).node_ptr()
        return references, weakref.ref(hook)

    references, alive = look()
    gc.collect()
    assert references == 2  # of the variable and of the call that counts
    assert alive() is None


@pytest.fixture
def scaler(monkeypatch):
    with monkeypatch.context() as patch:  # because there is no loss scaling on a CPU
        patch.setattr(paddle.base.core.Place, "is_gpu_place", lambda self: True)
        scaler = paddle.amp.GradScaler(init_loss_scaling=8.0, decr_every_n_nan_or_inf=1000)
    with paddle.amp.auto_cast(dtype="float16"):  # without this it switches itself off
        pass
    return scaler


@pytest.mark.parametrize("factor, overflows", [(1.0, False), (float("inf"), True)])
def test_an_overflow_is_a_new_tensor_in_every_step(net, scaler, factor, overflows):
    optimizer = adam(net.parameters())
    seen = [_paddle.found_overflow(scaler)]
    for _ in range(2):
        scaler.scale(factor * net(paddle.ones([1, 2])).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.clear_grad()
        seen.append(_paddle.found_overflow(scaler))
        assert bool(seen[-1].item()) == overflows
    assert seen[0] is not seen[1] and seen[1] is not seen[2]


def test_amp_is_on_where_the_tracer_says_so():
    tracer = paddle.base.framework._dygraph_tracer()
    levels = paddle.base.core.AmpLevel
    assert not _paddle.is_amp_on()
    try:
        for level in (levels.O1, levels.O2):  # auto_cast sets neither on a CPU
            tracer._amp_level = level
            assert _paddle.is_amp_on()
    finally:
        tracer._amp_level = levels.O0
    assert not _paddle.is_amp_on()


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_hooks_of_a_layer(kind):
    layer = paddle.nn.Linear(1, 1)
    assert not _paddle.has_hooks(layer)
    register = getattr(layer, f"register_forward_{kind}_hook")
    handle = register(lambda layer, inputs, outputs=None: None)
    assert _paddle.has_hooks(layer)
    handle.remove()
    assert not _paddle.has_hooks(layer)


def test_the_number_of_threads_changes_no_product():
    a, b = paddle.rand([64, 64]), paddle.rand([64, 64])
    expected = paddle.matmul(a, b).numpy()
    try:
        _paddle.set_num_threads(2)
        np.testing.assert_allclose(paddle.matmul(a, b).numpy(), expected, rtol=1e-5)
    finally:
        _paddle.set_num_threads(1)


def test_an_operator_that_has_been_loaded_runs(built_operators):
    x = paddle.to_tensor([[0.5, -1.0]])
    weight, bias = paddle.to_tensor([[1.0], [0.5]]), paddle.to_tensor([0.25])
    terms = [1, 1, 1, 1]  # of the one derivative: one term, 1 f'(z) z_0
    arguments = (x, [weight], [bias], [0], [-1, 0], terms)
    (parts,) = _paddle.run_custom_op("gradnorm_taylor_jet", *arguments)
    value = np.tanh(0.25)
    np.testing.assert_allclose(parts.numpy(), [[value, 1 - value**2]], rtol=1e-6)


# Optimizers.


def test_a_schedule_is_handed_out(net):
    schedule = lr.ExponentialDecay(0.1, 0.5)
    assert _paddle.schedule_of(adam(net.parameters(), schedule)) is schedule
    assert _paddle.schedule_of(adam(net.parameters(), 0.1)) is None


def test_an_optimizer_tells_its_options(net):
    options = _paddle.options_of(adam(net.parameters(), beta2=0.99))
    assert options.items() >= {"beta1": 0.9, "beta2": 0.99}.items()
    assert not any(isinstance(each, paddle.Tensor) for each in options.values())
    assert "momentum" in _paddle.options_of(paddle.optimizer.Momentum(parameters=net.parameters()))
    assert _paddle.options_of(object()) == {}


def test_parameters_by_group(net):
    first, second = net[0].parameters(), net[1].parameters()
    (plain,) = _paddle.parameter_groups(adam(net.parameters()))
    groups = _paddle.parameter_groups(
        adam([{"params": first}, {"params": second, "learning_rate": 0.5}])
    )
    assert list(map(id, plain)) == list(map(id, first + second))
    assert [list(map(id, group)) for group in groups] == [list(map(id, p)) for p in (first, second)]


def test_fused_accumulators(net):
    assert _paddle.has_fused_accumulators(adam(net.parameters(), use_multi_tensor=True))
    assert not _paddle.has_fused_accumulators(adam(net.parameters()))
    assert not _paddle.has_fused_accumulators(
        paddle.optimizer.SGD(0.1, parameters=net.parameters())
    )


def test_accumulators_by_name_and_parameter(net):
    optimizer = paddle.optimizer.Momentum(0.1, momentum=0.5, parameters=net.parameters())
    assert _paddle.accumulators(optimizer) == {}
    step(net[0], optimizer)  # which leaves the second layer without a gradient
    (velocity,) = _paddle.accumulators(optimizer).values()
    assert list(_paddle.accumulators(optimizer)) == ["velocity"]
    assert list(velocity) == [p.name for p in net[0].parameters()]
    assert velocity[net[0].bias.name].tolist() == [1, 1, 1]


def test_master_weights_by_parameter():
    net = paddle.nn.Linear(2, 1).to(dtype="bfloat16")
    optimizer = paddle.optimizer.AdamW(parameters=net.parameters(), multi_precision=True)
    assert _paddle.master_weights(optimizer) == {}
    twin = _paddle.with_new_accumulators(optimizer, [net.weight])
    assert _paddle.master_weights(optimizer) == {}
    ((name, master),) = _paddle.master_weights(twin).items()
    assert name == net.weight.name and master.dtype == paddle.float32
    np.testing.assert_array_equal(master.numpy(), net.weight.astype("float32").numpy())


def test_accumulators_are_made_anew_and_taken(net):
    optimizer = adam(net.parameters())
    step(net, optimizer)
    used = _paddle.accumulators(optimizer)["moment1"][net[0].bias.name]
    twin = _paddle.with_new_accumulators(optimizer, net[1].parameters())
    new = _paddle.accumulators(twin)
    assert set(new) == set(_paddle.accumulators(optimizer))
    assert list(new["moment1"]) == [p.name for p in net[1].parameters()]
    assert new["moment1"][net[1].bias.name].tolist() == [0]
    assert _paddle.accumulators(optimizer)["moment1"][net[0].bias.name] is used  # untouched
    _paddle.take_accumulators(optimizer, twin)
    taken = _paddle.accumulators(optimizer)["moment1"]
    assert taken[net[1].bias.name] is new["moment1"][net[1].bias.name]
    assert net[0].bias.name not in taken
    before = net[0].bias.numpy()
    step(net, optimizer)  # an Adam's first step is its rate, whatever the gradient
    np.testing.assert_allclose(
        before - net[0].bias.numpy(), 0.1 * np.sign(net[1].weight.numpy()[:, 0]), rtol=1e-4
    )


# Generators.


def generator():
    return _paddle.default_generators()[0]


def test_the_first_generator_is_what_paddle_draws_from():
    accelerators = sum(d.count("pu:") for d in paddle.device.get_available_device()) - 1
    assert len(_paddle.default_generators()) == 1 + max(accelerators, 0)
    before = generator().get_state()
    drawn = paddle.rand([3]).tolist()
    generator().set_state(before)
    assert paddle.rand([3]).tolist() == drawn


def test_a_generators_numbers_are_a_mersenne_twisters():
    paddle.seed(5)
    fresh = _paddle.generator_numbers(generator().get_state())
    assert (fresh.seed, fresh.offset, fresh.engine[-1]) == (5, 0, _paddle.MERSENNE_WORDS)
    words, n = fresh.engine[:-1], _paddle.MERSENNE_WORDS
    for i in range(n):  # the recurrence of C++'s mt19937_64
        joined = words[i] & 0xFFFFFFFF80000000 | words[(i + 1) % n] & 0x7FFFFFFF
        odd = 0xB5026F5AA96619E9 if joined & 1 else 0
        words[i] = words[(i + n // 2) % n] ^ joined >> 1 ^ odd
    paddle.rand([1])
    engine = _paddle.generator_numbers(generator().get_state()).engine
    assert engine[:-1] == words and 0 < engine[-1] < 9


@pytest.mark.parametrize("seed", [7, 2**63 + 5])
def test_a_generators_numbers_make_an_equal_state(seed):
    paddle.seed(seed)
    paddle.rand([100])
    numbers = _paddle.generator_numbers(generator().get_state())
    assert numbers.seed == seed and 0 < numbers.engine[-1] < _paddle.MERSENNE_WORDS
    expected = paddle.rand([1000]).numpy()
    paddle.seed(1)
    state = _paddle.generator_state(numbers)
    assert _paddle.generator_numbers(state) == numbers
    generator().set_state(state)
    np.testing.assert_array_equal(paddle.rand([1000]).numpy(), expected)


@pytest.mark.parametrize("kept", [[0, 3], [2], []])
def test_a_sparse_gradient_is_overwritten_and_stays_sparse(kept):
    embedding = paddle.nn.Embedding(5, 2, sparse=True)
    embedding(paddle.to_tensor([1, 4, 1])).sum().backward()
    weight = embedding.weight
    values = np.zeros([5, 2], np.float32)
    values[kept] = np.arange(1, 1 + 2 * len(kept)).reshape(-1, 2)
    _paddle.overwrite_sparse(weight.grad, values)
    assert weight.grad.is_selected_rows()
    assert (_paddle.dense(weight.grad, weight).numpy() == values).all()
    before = weight.numpy()
    paddle.optimizer.SGD(1.0, parameters=[weight]).step()
    np.testing.assert_allclose(weight.numpy(), before - values, rtol=1e-6)


@pytest.mark.parametrize(
    "layer, options",
    [
        (paddle.nn.GELU(approximate=True), {"_approximate": True}),
        (paddle.nn.Softplus(beta=2.0), {"_beta": 2.0, "_threshold": 20.0}),
        (paddle.nn.Tanh(), {}),
    ],
)
def test_what_an_activation_was_made_with_is_read(layer, options):
    assert _paddle.activation_options(layer) == options


def test_the_weight_that_weight_norm_computes_is_read():
    layer = paddle.nn.Linear(3, 2)
    assert _paddle.normed_weight(layer) is None
    before = layer.weight.numpy()
    paddle.nn.utils.weight_norm(layer)
    np.testing.assert_allclose(_paddle.normed_weight(layer).numpy(), before, rtol=1e-6)
    layer.weight_g.set_value(2 * layer.weight_g)
    ins = paddle.rand([4, 3])
    expected = layer(ins) - layer.bias  # the layer's own weight is up to date only after a call
    np.testing.assert_allclose(
        paddle.matmul(ins, _paddle.normed_weight(layer)).numpy(), expected.numpy(), rtol=1e-5
    )
    layer.register_forward_post_hook(lambda layer, ins, outs: 2 * outs)
    assert _paddle.normed_weight(layer) is None


# The rest of the package.


def test_everything_in_the_module_is_run_here():
    source = Path(__file__).read_text(encoding="utf-8")
    own = [n for n, x in vars(_paddle).items() if inspect.getmodule(x) is _paddle]
    public = [name for name in own if not name.startswith("_")]
    assert len(public) > 10
    assert [name for name in public if f"_paddle.{name}" not in source] == ["GeneratorNumbers"]
    for name in public:
        assert getattr(_paddle, name).__doc__, name


PACKAGE = Path(paddlescience_gradnorm.__file__).parent
# Documented where it is: layers override it to stay precise.
ALLOWED = {("_layers.py", "_apply")}


@pytest.fixture
def private(scaler):
    """The private attributes of Paddle's objects: methods and fields."""
    layer = paddle.nn.Linear(1, 1)
    optimizer = adam(layer.parameters(), lr.ExponentialDecay(0.1, 0.5))
    objects = [layer, optimizer, optimizer._learning_rate, scaler, layer.weight, paddle.ones([1])]
    names = {name for each in objects for name in dir(each)}
    return {name for name in names if name.startswith("_") and not name.endswith("__")}


def private_uses(tree, private):
    """Line and name of everything private of Paddle's that a module uses."""
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            defined.add(node.attr)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            if node.attr in private - defined:
                yield node.lineno, node.attr
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Constant) and node.value in private - defined:
            yield node.lineno, node.value  # as of getattr
            continue
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            inner = [n for n in rest if n.startswith("_") and not n.endswith("__")]
            if first == "paddle" and (inner or {"base", "fluid"} & set(rest[:1])):
                yield node.lineno, name


def test_nothing_else_in_the_package_is_private_to_paddle(private):
    assert {
        "_accumulators",
        "_param_groups",
        "_learning_rate",
        "_buffers",
        "_sub_layers",
    } <= private
    assert {"_parameters", "_non_persistable_buffer_names_set", "_apply", "_found_inf"} <= private
    found = {
        (str(path.relative_to(PACKAGE)), line, name)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "_paddle.py"
        for line, name in private_uses(ast.parse(path.read_text(encoding="utf-8")), private)
    }
    assert sorted(use for use in found if (use[0], use[2]) not in ALLOWED) == []


@pytest.mark.parametrize(
    "code, name",
    [
        ("from paddle.base import core", "paddle.base.core"),
        ("import paddle.base.core as c", "paddle.base.core"),
        ("from paddle import _C_ops", "paddle._C_ops"),
        ("paddle._C_ops.add(x, y)", "paddle._C_ops"),
        (
            "paddle.framework._current_expected_place_()",
            "paddle.framework._current_expected_place_",
        ),
        ("optimizer._accumulators", "_accumulators"),
        ("getattr(layer, '_buffers')", "_buffers"),
        ("for group in self.optimizers[0]._param_groups: pass", "_param_groups"),
    ],
)
def test_a_private_use_is_found(private, code, name):
    assert name in [found for _, found in private_uses(ast.parse(code), private)]


def test_a_name_of_ones_own_is_none(private):
    code = "class A:\n    def f(self):\n        self._scale = 1\n        return self._scale"
    assert "_scale" in private
    assert list(private_uses(ast.parse(code), private)) == []
