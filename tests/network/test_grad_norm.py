import copy
import pickle
import warnings
from collections.abc import Iterable, Sized

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer, NetworkBase, RotoGrad


@pytest.fixture
def net(fc_net):
    return GradNorm(fc_net, n_loss=3, alpha=1.0)


def train(net, make_losses, steps, optimizer=None, start=0):
    optimizer = optimizer or paddle.optimizer.Adam(1e-3, parameters=net.parameters())
    for step in range(start, start + steps):
        net.backward(make_losses(net, seed=step))
        optimizer.step()
        optimizer.clear_grad()
    return optimizer


# The mathematics.


@pytest.mark.parametrize("who", ["itself", "caller"])
@pytest.mark.parametrize("form", ["backward", "get_grad_norm_loss"])
def test_reference_is_reproduced(reference, who, form):
    net = GradNorm(
        reference.net,
        reference.n_loss,
        reference.alpha,
        weight_lr=reference.weight_lr if who == "itself" else None,
    )
    optimizers = [paddle.optimizer.SGD(reference.net_lr, parameters=reference.net.parameters())]
    if who == "caller":
        optimizers.append(paddle.optimizer.SGD(reference.weight_lr, parameters=[net.loss_weights]))
    weights = []
    for step in reference.steps:
        losses = reference.losses(net, step)
        if form == "backward":
            net.backward(losses)
        else:
            (net.loss_weights * paddle.stack(losses)).sum().backward(retain_graph=True)
            net.get_grad_norm_loss(losses)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.clear_grad()
        weights.append(net.get_weights())
    reference.assert_reproduced(weights)


def test_weights_stay_the_optimizers_parameter_and_learn(net, make_losses):
    parameter = net.loss_weights
    train(net, make_losses, 5)
    assert net.loss_weights is parameter
    assert net.get_weights().tolist() != [1, 1, 1]
    assert net.loss_weights.numpy().sum() == pytest.approx(3, abs=1e-5)


def test_lgrad_does_not_leak_into_the_network(net, make_losses):
    losses = make_losses(net)
    sum(losses).backward(retain_graph=True)
    expected = [p.grad.numpy().copy() for p in net.net.parameters()]
    net.get_grad_norm_loss(losses)
    for parameter, gradient in zip(net.net.parameters(), expected):
        np.testing.assert_array_equal(parameter.grad.numpy(), gradient)


def test_both_forms_write_the_same_gradient_in_place_of_what_was_there(fc_net, make_losses):
    gradients = []
    for form in ("backward", "get_grad_norm_loss"):
        net = GradNorm(copy.deepcopy(fc_net), 3, 0.5, weight_attr=[1.0, 0.5, 2.0])
        losses = make_losses(net)
        if form == "get_grad_norm_loss":
            # The weighted sum leaves the losses themselves as the weights' gradient.
            (net.loss_weights * paddle.stack(losses)).sum().backward(retain_graph=True)
        getattr(net, form)(losses)
        gradients.append(net.loss_weights.grad.numpy())
    assert np.abs(gradients[0]).min() > 0
    np.testing.assert_allclose(*gradients, rtol=1e-5)


def test_set_grad_makes_a_zero_gradient_and_keeps_an_existing_one(net):
    assert net.loss_weights.grad is None
    net.set_grad()
    assert net.loss_weights.grad.tolist() == [0, 0, 0]
    net.loss_weights.grad.set_value(paddle.to_tensor([1.0, 2.0, 3.0]))
    net.set_grad()
    assert net.loss_weights.grad.tolist() == [1, 2, 3]


def test_weights_set_by_hand_are_renormalized_on_demand(net):
    parameter = net.loss_weights
    parameter.set_value(paddle.to_tensor([1.0, 2.0, 9.0]))
    net.renormalize()
    assert net.loss_weights is parameter
    np.testing.assert_allclose(net.get_weights(), [0.25, 0.5, 2.25], rtol=1e-6)


# Who holds the weights.


def test_weights_are_parameters_unless_stepped_here(fc_net):
    mine, callers = GradNorm(fc_net, 2, 1.0, weight_lr=0.1), GradNorm(fc_net, 2, 1.0)
    network = {id(p) for p in fc_net.parameters()}
    assert {id(p) for p in mine.parameters()} == network
    assert {id(p) for p in callers.parameters()} == network | {id(callers.loss_weights)}
    for net in (mine, callers):
        assert not net.loss_weights.stop_gradient
        assert any(key.endswith("loss_weights") for key in net.state_dict())


# Delegation.


class WithOptions(NetworkBase):
    """A bare network with everything that calling code may use of one."""

    def __init__(self):
        super().__init__()
        self.linear = paddle.nn.Linear(2, 1)
        self.scale = 1.0
        self.input_keys = ("x", "y")

    def nn_func(self, ins):
        return self.scale * self.linear(ins)

    def doubled(self, ins):
        return 2 * self.nn_func(ins)

    @property
    def broken(self):
        return self.no_such_thing

    def get_shared_layer(self):
        return self.linear


def test_attributes_and_methods_fall_through():
    bare = WithOptions()
    net = GradNorm(bare, 2, 1.0)
    x = paddle.rand([4, 2])
    assert net.input_keys == ("x", "y")
    assert net.linear is bare.linear
    for method in (net, net.nn_func, net.forward):
        np.testing.assert_array_equal(method(x).numpy(), bare(x).numpy())
    np.testing.assert_array_equal(net.doubled(x).numpy(), bare.doubled(x).numpy())


def test_what_is_read_from_the_network_is_written_to_it():
    bare = WithOptions()
    net = GradNorm(bare, 2, 1.0)
    x = paddle.rand([4, 2])
    before = bare(x).numpy()
    net.scale = 3.0
    np.testing.assert_allclose(net(x).numpy(), 3 * before, rtol=1e-6)
    net.remark = "the wrapper's own"
    assert not hasattr(bare, "remark")


def test_what_is_deleted_or_added_is_the_networks():
    bare = WithOptions()
    net = GradNorm(bare, 2, 1.0)
    del net.scale
    assert not hasattr(bare, "scale")
    net.add_sublayer("linear", paddle.nn.Linear(2, 1))
    net.add_parameter("offset", paddle.create_parameter([1], "float32"))
    net.register_buffer("mask", paddle.ones([1]))
    for name in ("linear", "offset", "mask"):
        assert getattr(net, name) is getattr(bare, name)
    with pytest.raises(AttributeError):
        del net.nope


def test_hooks_of_both_run_once():
    bare = WithOptions()
    calls = []
    bare.register_forward_post_hook(lambda *_: calls.append("bare"))
    net = GradNorm(bare, 2, 1.0)
    net.register_forward_post_hook(lambda *_: calls.append("wrapper"))
    net(paddle.rand([4, 2]))
    assert calls == ["bare", "wrapper"]


def test_export_gives_the_bare_network(fc_net, tmp_path):
    net = GradNorm(fc_net, 2, 1.0)
    net.eval()
    spec = [paddle.static.InputSpec([None, 2], "float32")]
    paddle.jit.save(net, str(tmp_path / "exported"), input_spec=spec)
    points = paddle.rand([4, 2])
    exported = paddle.jit.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported(points).numpy(), fc_net(points).numpy(), rtol=1e-6)


def test_to_static_keeps_values(fc_net):
    points = paddle.rand([4, 2])
    expected = fc_net(points).numpy()
    static = paddle.jit.to_static(GradNorm(fc_net, 2, 1.0))
    np.testing.assert_allclose(static(points).numpy(), expected, rtol=1e-5)


class Clash(WithOptions):
    alpha = 99.0

    def __init__(self):
        super().__init__()
        self.net = paddle.nn.Linear(2, 2)
        self.loss_weights = {"pde": 1.0}
        self.register_buffer("initial_losses", paddle.ones([2]))

    def freeze(self):
        return "the network's"

    def backward(self, loss):
        return "the network's"


def test_own_names_win_and_a_clash_is_said_when_wrapping():
    bare = Clash()
    names = "alpha, backward, freeze, initial_losses, loss_weights, net"
    expected = (
        f"Clash has attributes whose names GradNorm has itself: {names}. "
        r".* network's own is net\.net\.alpha"
    )
    with pytest.warns(UserWarning, match=expected) as record:
        net = GradNorm(bare, 2, 1.0)
    (warning,) = record
    assert warning.filename == __file__
    assert net.alpha == 1.0 and net.net is bare and net.freeze() is None
    assert net.loss_weights.tolist() == [1, 1] and net.initial_losses.tolist() == [0, 0]
    assert net.net.alpha == 99.0 and net.net.loss_weights == {"pde": 1.0}
    assert net.net.freeze() == net.net.backward(None) == "the network's"


@pytest.mark.parametrize(
    "network",
    [
        lambda: FCNet(2, 1, 2, 4),
        WithOptions,
        lambda: paddle.nn.Sequential(paddle.nn.Linear(2, 2)),
        lambda: paddle.DataParallel(FCNet(2, 1, 2, 4)),
    ],
    ids=["FCNet", "NetworkBase", "Sequential", "DataParallel"],
)
def test_what_every_network_has_is_no_clash(network, recorded_warnings):
    net = network()
    del recorded_warnings[:]  # DataParallel's own
    GradNorm(net, 2)
    assert not recorded_warnings


def test_a_parameter_that_would_be_hidden_is_refused():
    class Heat(FCNet):
        def __init__(self):
            super().__init__(2, 1, 2, 4)
            self.alpha = self.create_parameter([1])

    with pytest.raises(ValueError, match=r"Heat has a parameter 'alpha'.*rename .*LossBalancer"):
        GradNorm(Heat(), 2)


@pytest.mark.parametrize("name", ["alpha", "backward", "net"])
def test_nothing_is_added_that_would_be_hidden(name):
    net = GradNorm(WithOptions(), 2)
    for add, value in (
        (net.add_sublayer, paddle.nn.Linear(2, 1)),
        (net.add_parameter, paddle.create_parameter([1], "float32")),
        (net.register_buffer, paddle.ones([1])),
    ):
        with pytest.raises(ValueError, match=f"added to the network as {name!r}"):
            add(name, value)
    assert [name for name, _ in net.net.named_sublayers()] == ["linear"]


def test_a_call_of_the_networks_own_is_kept():
    class Doubled(WithOptions):
        def __call__(self, ins):
            return 2 * super().__call__(ins)

    bare, x = Doubled(), paddle.rand([4, 2])
    np.testing.assert_array_equal(GradNorm(bare, 2)(x).numpy(), bare(x).numpy())


# Containers.


def linear():
    return paddle.nn.Linear(2, 2)


CONTAINERS = {
    "Sequential": lambda: paddle.nn.Sequential(linear(), paddle.nn.Tanh(), linear()),
    "LayerList": lambda: paddle.nn.LayerList([linear(), paddle.nn.Tanh(), linear()]),
    "LayerDict": lambda: paddle.nn.LayerDict({"a": linear(), "b": linear()}),
    "ParameterList": lambda: paddle.nn.ParameterList([*linear().parameters()]),
    "none": lambda: FCNet(2, 1, 2, 4),
}
# Those of a number are items[0], of a string items["a"].
USES = {
    "[0]": lambda items: items[0],
    "[-1]": lambda items: items[-1],
    "[:2]": lambda items: list(items[:2]),
    "['a']": lambda items: items["a"],
    "[9]": lambda items: items[9],
    "len": len,
    "list": list,
    "iter": lambda items: next(iter(items)),
    "reversed": lambda items: list(reversed(items)),
    "in": lambda items: ("a" in items, "b" in items, "c" in items),
    "bool": bool,
    "Iterable": lambda items: isinstance(items, Iterable),
    "Sized": lambda items: isinstance(items, Sized),
    "keys": lambda items: list(items.keys()),
}


def outcome(use, items):
    """What comes out, and of what is a layer or tensor, which one; or the kind of error."""
    try:
        found = use(items)
    except Exception as error:
        return type(error)
    return [id(x) if isinstance(x, (paddle.nn.Layer, paddle.Tensor)) else x for x in listed(found)]


def listed(found):
    return found if isinstance(found, (list, tuple)) else [found]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_wrapped_container_is_one(container, use):
    bare = CONTAINERS[container]()
    assert outcome(USES[use], GradNorm(bare, 2)) == outcome(USES[use], bare)


@pytest.mark.parametrize("container", ["Sequential", "LayerList", "LayerDict"])
def test_items_are_set_and_deleted_in_the_network(container):
    bare, key = CONTAINERS[container](), "a" if container == "LayerDict" else 1
    net, number, new = GradNorm(bare, 2), len(bare), linear()
    net[key] = new
    assert bare[key] is new
    del net[key]
    assert len(bare) == len(net) == number - 1 and new not in bare.sublayers()


def test_a_network_with_some_of_the_methods_has_these_alone():
    class Stack(WithOptions):
        def __len__(self):
            return 0

    net = GradNorm(Stack(), 2)
    assert len(net) == 0
    with pytest.raises(TypeError, match="not subscriptable"):
        net[0]
    assert not isinstance(net, Iterable)


class OwnLength(GradNorm):
    def __len__(self):
        return 77


@pytest.mark.parametrize("cls", [GradNorm, OwnLength])
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=["deepcopy", "copy", "pickle"],
)
def test_a_copy_of_a_wrapped_container_is_one(cls, duplicate):
    net = cls(CONTAINERS["Sequential"](), 2)
    twin = duplicate(net)
    assert type(twin) is type(net) and isinstance(twin, cls)
    assert len(twin) == (3 if cls is GradNorm else 77)
    assert twin[2] is twin.net[2] and twin[2] is not net[2]
    assert repr(twin) == repr(net) and repr(net).startswith(f"{cls.__name__}(")
    x = paddle.rand([4, 2])
    np.testing.assert_array_equal(twin(x).numpy(), net(x).numpy())
    (outer,) = pickle.loads(pickle.dumps([net]))
    assert type(outer) is type(net)


def test_wrapped_containers_of_one_kind_are_of_one_class():
    first, second = (GradNorm(CONTAINERS["Sequential"](), 2) for _ in range(2))
    assert type(first) is type(second)
    assert type(GradNorm(FCNet(2, 1, 2, 4), 2)) is GradNorm


def test_a_wrapped_container_exports(tmp_path):
    bare = paddle.nn.Sequential(linear(), paddle.nn.Tanh())
    net = GradNorm(bare, 2)
    net.eval()
    spec = [paddle.static.InputSpec([None, 2], "float32")]
    paddle.jit.save(net, str(tmp_path / "exported"), input_spec=spec)
    x = paddle.rand([4, 2])
    exported = paddle.jit.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported(x).numpy(), bare(x).numpy(), rtol=1e-6)


# What cannot be wrapped.


class Around(paddle.nn.Layer):
    def __init__(self, inner):
        super().__init__()
        self.part = inner


def rotograd():
    return RotoGrad(FCNet(2, 4, 2, 4), [paddle.nn.Linear(4, 1) for _ in range(2)], 4)


@pytest.mark.parametrize(
    "inner, kind, advice",
    [
        (lambda: GradNorm(FCNet(2, 1, 2, 4), 2), "GradNorm", "take the network in it, {}.net"),
        (lambda: LossBalancer(FCNet(2, 1, 2, 4), 2), "LossBalancer", "outside of the network"),
        (rotograd, "RotoGrad", "do not wrap it"),
    ],
)
def test_what_weighs_losses_itself_is_not_wrapped(inner, kind, advice):
    for net, where in (
        (inner(), "net"),
        (Around(inner()), "net.part"),
        (paddle.nn.Sequential(linear(), Around(inner())), "net.1.part"),
    ):
        with pytest.raises(TypeError, match=f"but {where} is a {kind}: .*{advice.format(where)}"):
            GradNorm(net, 2)


def test_missing_attributes_and_real_errors_are_told_apart():
    net = GradNorm(WithOptions(), 2, 1.0)
    with pytest.raises(AttributeError, match="nope"):
        net.nope  # noqa: B018
    assert not hasattr(net, "nope")
    with pytest.raises(AttributeError, match="no_such_thing"):
        net.broken  # noqa: B018
    with pytest.raises(AttributeError, match="anything"):
        GradNorm.__new__(GradNorm).anything  # noqa: B018 # before __init__: an error, not recursion


def test_train_and_eval_reach_the_network():
    net = GradNorm(
        paddle.nn.Sequential(paddle.nn.Linear(2, 1), paddle.nn.Dropout()), 2, 1.0, shared="all"
    )
    net.eval()
    assert not net.net[1].training
    net.train()
    assert net.net[1].training


@pytest.mark.parametrize("method", ["to", "astype"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_to_converts_the_network_and_keeps_weights_and_counts_precise(
    net, make_losses, dtype, method
):
    train(net, make_losses, 2)
    weights, initial = net.get_weights(), net.initial_losses.numpy()
    parameter = net.loss_weights
    getattr(net, method)(dtype=dtype)
    assert net.linears[0].weight.dtype == getattr(paddle, dtype)
    assert net.loss_weights is parameter
    assert net.loss_weights.dtype == (paddle.float64 if dtype == "float64" else paddle.float32)
    assert net.balancer.step_count.dtype == paddle.int64
    np.testing.assert_allclose(net.get_weights(), weights, rtol=1e-6)
    np.testing.assert_allclose(net.initial_losses.numpy(), initial, rtol=1e-6)
    if dtype == "float64":
        train(net, make_losses, 2)
        assert net.get_weights().sum() == pytest.approx(3, abs=1e-12)


# Copies and states.


@pytest.mark.parametrize("weight_lr", [None, 1e-3])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict", "file"])
def test_a_copy_continues_as_the_original(fc_net, make_losses, tmp_path, how, weight_lr):
    def build(network):
        return GradNorm(network, 3, 1.0, weight_lr=weight_lr, update_every=2)

    def sgd(net):
        return paddle.optimizer.SGD(1e-4, parameters=net.parameters())

    net = build(fc_net)
    train(net, make_losses, 3, sgd(net))
    if how == "deepcopy":
        twin = copy.deepcopy(net)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(net))
    else:
        twin = build(FCNet(2, 1, 3, 16))
        state = net.state_dict()
        if how == "file":
            paddle.save(state, str(tmp_path / "net.pdparams"))
            state = paddle.load(str(tmp_path / "net.pdparams"))
        twin.set_state_dict(state)
    for each in (net, twin):
        train(each, make_losses, 4, sgd(each), start=3)
    np.testing.assert_array_equal(net.get_weights(), twin.get_weights())
    np.testing.assert_array_equal(net.initial_losses.numpy(), twin.initial_losses.numpy())
    for one, other in zip(net.parameters(), twin.parameters()):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_copy_learns_apart_from_the_original(net, make_losses):
    train(net, make_losses, 2)
    before = net.get_weights()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        train(twin, make_losses, 3, start=5)
        assert (twin.get_weights() != before).any()
        assert twin.loss_weights.need_clip is False
        np.testing.assert_array_equal(net.get_weights(), before)


def test_state_dict_loads_while_nested_in_another_layer(fc_net, make_losses):
    outer = paddle.nn.LayerList([GradNorm(fc_net, 3, 1.0)])
    train(outer[0], make_losses, 3)
    state = {key: value.clone() for key, value in outer.state_dict().items()}
    assert state["0.balancer.loss_weights"].numpy().sum() == pytest.approx(3, abs=1e-5)
    twin = paddle.nn.LayerList([GradNorm(FCNet(2, 1, 3, 16), 3, 1.0)])
    twin.set_state_dict(state)
    twin[0].backward(make_losses(twin[0]))
    assert int(twin[0].balancer.step_count) == 4
    np.testing.assert_array_equal(twin[0].initial_losses.numpy(), outer[0].initial_losses.numpy())


@pytest.mark.parametrize("weight_lr", [None, 1e-3])
def test_loading_through_an_outer_layer_while_training(fc_net, make_losses, weight_lr):
    outer = paddle.nn.LayerList([GradNorm(fc_net, 3, 1.0, weight_lr=weight_lr)])
    untrained = {key: value.clone() for key, value in outer.state_dict().items()}
    train(outer[0], make_losses, 3)
    with pytest.warns(RuntimeWarning):
        outer[0].backward([loss * float("nan") for loss in make_losses(outer[0])])
    untrained["0.balancer.loss_weights"] = paddle.to_tensor([0.5, 0.5, 2.0])
    outer.set_state_dict(untrained)
    assert outer[0].get_weights().tolist() == [0.5, 0.5, 2.0]
    outer[0].clear_gradients()
    losses = make_losses(outer[0])
    outer[0].backward(losses)
    assert int(outer[0].balancer.step_count) == 1
    np.testing.assert_allclose(
        outer[0].initial_losses.numpy(), [loss.item() for loss in losses], rtol=1e-6
    )


def test_a_state_of_the_bare_network_loads(net):
    bare = FCNet(2, 1, 3, 16)
    net.set_state_dict(bare.state_dict())
    x = paddle.rand([4, 2])
    np.testing.assert_array_equal(net(x).numpy(), bare(x).numpy())
    again = FCNet(2, 1, 3, 16)
    again.set_state_dict(net.net.state_dict())
    np.testing.assert_array_equal(again(x).numpy(), bare(x).numpy())


class OwnNet(NetworkBase):
    """A network whose own layer has the name under which GradNorm keeps a network."""

    def __init__(self):
        super().__init__()
        self.net = FCNet(2, 1, 2, 4)

    def nn_func(self, ins):
        return self.net(ins)


@pytest.mark.parametrize("method", ["set_state_dict", "set_dict", "load_dict"])
@pytest.mark.parametrize("network", [lambda: FCNet(2, 1, 3, 16), OwnNet])
def test_a_state_of_the_wrapped_network_loads_into_the_bare_one(network, method, recorded_warnings):
    net, bare, x = GradNorm(network(), 2), network(), paddle.rand([4, 2])
    del recorded_warnings[:]  # that OwnNet has a layer of the name net
    missing, unexpected = getattr(bare, method)(net.state_dict())
    assert not missing and not unexpected and not recorded_warnings
    np.testing.assert_array_equal(bare(x).numpy(), net(x).numpy())
    before = net(x).numpy()
    net.set_state_dict(network().state_dict())
    assert (net(x).numpy() != before).any()


def test_a_network_of_paddles_takes_the_state_of_the_wrapped_one_by_its_own_names():
    net, bare, x = GradNorm(linear(), 2), linear(), paddle.rand([4, 2])
    bare.set_state_dict(net.net.state_dict())
    np.testing.assert_array_equal(bare(x).numpy(), net(x).numpy())


def test_what_is_missing_in_the_state_of_a_wrapped_network_is_said():
    deeper = FCNet(2, 1, 3, 4)
    before = deeper.linears[2].weight.numpy()
    with pytest.warns(UserWarning, match=r"linears\.2\.weight is not found"):
        missing, _ = deeper.set_state_dict(GradNorm(FCNet(2, 4, 2, 4), 2).state_dict())
    assert missing == ["linears.2.weight", "linears.2.bias"]
    np.testing.assert_array_equal(deeper.linears[2].weight.numpy(), before)


# The shared layer.


def test_hooks_are_found_in_order(fc_net):
    assert GradNorm(fc_net, 2, 1.0).balancer.shared == (fc_net.linears[-1].weight,)
    other = WithOptions()  # which has get_shared_layer() alone, and it returns a layer
    expected = (other.linear.weight, other.linear.bias)
    assert_same(GradNorm(other, 2, 1.0).balancer.shared, expected)


@pytest.mark.parametrize(
    "shared, expected",
    [
        (lambda net: net.linears[0].weight, lambda net: [net.linears[0].weight]),
        (lambda net: net.linears[1], lambda net: net.linears[1].parameters()),
        (
            lambda net: [net.linears[0], net.linears[1].bias],
            lambda net: [*net.linears[0].parameters(), net.linears[1].bias],
        ),
    ],
    ids=["parameter", "layer", "list"],
)
@pytest.mark.parametrize("through", ["value", "callable"])
def test_shared_as_given(fc_net, shared, expected, through):
    given = shared if through == "callable" else shared(fc_net)
    assert_same(GradNorm(fc_net, 2, 1.0, shared=given).balancer.shared, expected(fc_net))


def test_shared_all_takes_every_parameter(fc_net):
    assert_same(GradNorm(fc_net, 2, 1.0, shared="all").balancer.shared, fc_net.parameters())


def assert_same(found, expected):
    assert [id(p) for p in found] == [id(p) for p in expected]


@pytest.mark.parametrize(
    "build, error, match",
    [
        (lambda net: GradNorm(lambda x: x, 2, 1.0), TypeError, "net must be a paddle.nn.Layer"),
        (lambda net: GradNorm(None, 2, 1.0), TypeError, "net must be .* got NoneType"),
        (lambda net: GradNorm(paddle.nn.Linear(2, 1), 2, 1.0), ValueError, "pass shared="),
        (lambda net: GradNorm(net, 2, 1.0, shared="last"), ValueError, "got 'last'"),
        (lambda net: GradNorm(net, 2, 1.0, shared=3), TypeError, "shared must be .* got int 3"),
        (lambda net: GradNorm(net, 2, 1.0, shared=lambda n: None), TypeError, "got NoneType None"),
        (lambda net: GradNorm(net, 1, 1.0), ValueError, "n_loss must be at least 2, got 1"),
        (lambda net: GradNorm(net, 2, -1.0), ValueError, "alpha .* got -1.0"),
        (lambda net: GradNorm(net, 2, 1.0, [1.0]), ValueError, "weight_attr .* 2 entries"),
    ],
)
def test_bad_arguments_are_named(fc_net, build, error, match):
    with pytest.raises(error, match=match):
        build(fc_net)


def test_a_loss_that_misses_the_shared_layer_is_named(net, make_losses):
    losses = dict(zip(["pde", "bc", "data"], make_losses(net)))
    losses["bc"] = net.linears[0].weight.mean()
    with pytest.warns(RuntimeWarning, match="loss 'bc' has no gradient on the shared parameters"):
        net.backward(losses)


def test_without_alpha_it_steps_its_weights_itself_by_the_pinn_rule(fc_net, make_losses):
    net = GradNorm(fc_net, n_loss=3, equations=[0])
    assert not any(p is net.loss_weights for p in net.parameters())
    optimizer = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
    assert len(net.balancer.shared) == len(fc_net.parameters())
    for step in range(20):
        losses = make_losses(net, seed=step)
        net.backward(losses)
        optimizer.step()
        optimizer.clear_grad()
    weights = net.get_weights()
    assert weights[0] == 1 and weights[1] > 1  # the equation's, and a condition's
    assert weights[2] > 1 and losses[2] < 0.01 * losses[0]  # small, but it has not fallen


def test_by_the_pinn_rule_a_network_needs_no_shared_layer():
    bare = paddle.nn.Sequential(paddle.nn.Linear(2, 4), paddle.nn.Tanh(), paddle.nn.Linear(4, 1))
    assert len(GradNorm(bare, n_loss=2).balancer.shared) == 4
    with pytest.raises(ValueError, match="Sequential has neither get_last_shared_layer"):
        GradNorm(bare, n_loss=2, alpha=1.0)


def call(net, times):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(times):
            net(paddle.ones([1, 2]))
    return [(warning.filename, str(warning.message)) for warning in record]


def test_a_training_that_never_balances_is_warned_of(fc_net, make_losses):
    net = GradNorm(fc_net, n_loss=3, equations=[0])
    with paddle.no_grad():
        assert call(net, 300) == []
    net.eval()
    assert call(net, 300) == []
    net.train()
    assert call(net, 199) == []
    ((file, message),) = call(net, 300)  # once, in the line of the user
    assert file == __file__
    assert message.startswith("the network has been called 200 times, but none of its losses has")

    net = GradNorm(FCNet(2, 1, 3, 8), n_loss=3, equations=[0])
    net.backward(make_losses(net))
    assert call(net, 300) == []
