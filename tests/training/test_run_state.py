import copy
import hashlib
import json
import pickle
import random
from pathlib import Path

import numpy as np
import paddle
import pytest
import sympy

from paddlescience_gradnorm import (
    FCNet,
    GradNorm,
    LossBalancer,
    RotateOnly,
    RotoGrad,
    RotoGradNorm,
    _operators,
)
from paddlescience_gradnorm._layers import PicklableLayer
from paddlescience_gradnorm.pde import Residual
from paddlescience_gradnorm.training import (
    CheckpointError,
    History,
    RunState,
    Trainer,
    _checkpoint_file,
    run_state,
)
from paddlescience_gradnorm.training._checkpoint_file import Values


def adam(*layers, rate=1e-2, **options):
    return paddle.optimizer.Adam(
        rate, parameters=[p for layer in layers for p in layer.parameters()], **options
    )


class Wrapped:
    """A network whose weights an optimizer steps, or it does itself; losses come as a dict."""

    def __init__(self, **options):
        self.net = GradNorm(FCNet(2, 1, 3, 8), n_loss=3, alpha=1.0, **options)
        self.parts = {"net": self.net, "optimizer": adam(self.net)}

    def step(self, make_losses, number):
        losses = dict(zip("abc", make_losses(self.net, seed=number)))
        if number == 0:
            losses["c"] = 0 * losses["c"]  # which cannot be L(0)
        if number > 4:
            losses = dict(reversed(losses.items()))
        self.net.backward(losses)
        self.parts["optimizer"].step()
        self.parts["optimizer"].clear_grad()


class Beside(Wrapped):
    """A balancer of its own, momentum, and a weight that gets a gradient now and then only."""

    def __init__(self):
        self.net = FCNet(2, 1, 3, 8)
        self.balancer = LossBalancer(self.net.get_last_shared_layer(), 3, 1.0, weight_lr=None)
        optimizers = [
            adam(self.net),
            paddle.optimizer.Momentum(1e-3, parameters=self.balancer.parameters()),
        ]
        self.coefficient = paddle.create_parameter([1], "float32")
        optimizers.append(paddle.optimizer.Adam(0.1, parameters=[self.coefficient]))
        self.parts = {"net": self.net, "balancer": self.balancer, "optimizers": optimizers}

    def step(self, make_losses, number):
        losses = make_losses(self.net, seed=number)
        if number in (0, 2):
            losses[0] = losses[0] * (1 + self.coefficient).square().sum()
        self.balancer.backward(losses)
        for optimizer in self.parts["optimizers"]:
            optimizer.step()
            # Not to zeros the first two times, for which no step is made.
            optimizer.clear_grad(set_to_zero=number > 1)


class Rotated(Wrapped):
    def __init__(self, kind):
        heads = [paddle.nn.Linear(4, 1) for _ in range(3)]
        options = {"alpha": 1.0} if kind is RotoGradNorm else {}
        self.net = kind(FCNet(2, 4, 2, 8), heads, 4, **options)
        self.parts = {"net": self.net, "optimizer": adam(self.net)}

    def step(self, make_losses, number):
        x = paddle.to_tensor(np.random.default_rng(number).random((5, 2)), dtype="float32")
        predictions = self.net(x)
        losses = {str(i): (p * 10**i - 1).square().mean() for i, p in enumerate(predictions)}
        if number > 4:
            losses = dict(reversed(losses.items()))
        self.net.backward(losses)
        self.parts["optimizer"].step()
        self.parts["optimizer"].clear_grad()


class Normalized(Wrapped):
    """Running means, dropout, half precision, and no balancer."""

    def __init__(self):
        nn = paddle.nn
        self.net = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1D(6), nn.Dropout(0.5))
        self.net.add_sublayer("last", nn.Linear(6, 1))
        self.extra = nn.Linear(2, 2).to(dtype="bfloat16")
        self.parts = {"net": self.net, "extra": self.extra, "optimizer": adam(self.net)}

    def step(self, make_losses, number):
        sum(make_losses(self.net, seed=number)).backward()
        self.parts["optimizer"].step()
        self.parts["optimizer"].clear_grad()


RUNS = {
    "caller's optimizer": Wrapped,
    "own steps": lambda: Wrapped(weight_lr=1e-4, warmup_steps=7),
    "every other step": lambda: Wrapped(update_every=2),
    "beside": Beside,
    "rotate only": lambda: Rotated(RotateOnly),
    "rotograd": lambda: Rotated(RotoGrad),
    "rotogradnorm": lambda: Rotated(RotoGradNorm),
    "normalized": Normalized,
}


def bits(state):
    """Everything, as text and bytes; the address in memory of Paddle's own is not in it."""
    arrays = []
    tree = _checkpoint_file._encoded(state, arrays, "")
    return json.dumps(tree), [array.tobytes() for _, array in arrays]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("steps", [0, 1, 2, 4])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_to_the_last_bit(tmp_path, make_losses, name, steps):
    run = RUNS[name]()
    for number in range(steps):
        run.step(make_losses, number)
    state = RunState(**run.parts)
    state.save(tmp_path / "a.ckpt", step=steps, remark=["x", None])

    other = RUNS[name]()
    for number in range(3):
        other.step(make_losses, number + 50)
    other_state = RunState(**other.parts)
    position = other_state.load(tmp_path / "a.ckpt")
    assert position == {"step": steps, "remark": ["x", None]}
    assert bits(other_state.state()) == bits(state.state())
    random_numbers = RunState()
    for number in range(steps, steps + 6):
        before = random_numbers.state()
        run.step(make_losses, number)
        random_numbers.prepare(before)()  # for both draw from the same generators
        other.step(make_losses, number)
        assert bits(other_state.state()) == bits(state.state()), number


def test_saving_changes_nothing(tmp_path, make_losses):
    runs = [Wrapped(), Wrapped()]
    runs[1].net.set_state_dict(runs[0].net.state_dict())
    for number in range(5):
        for run in runs:
            run.step(make_losses, number + 1)
        RunState(**runs[0].parts).save(tmp_path / "a.ckpt")
    state = [bits(RunState(**run.parts).state()) for run in runs]
    assert state[0] == state[1]


def test_gradients_that_are_there_come_back(tmp_path, fc_net, make_losses):
    sum(make_losses(fc_net)).backward()
    expected = [parameter.grad.numpy() for parameter in fc_net.parameters()]
    RunState(net=fc_net).save(tmp_path / "a.ckpt")
    sum(make_losses(fc_net)).backward()
    RunState(net=fc_net).load(tmp_path / "a.ckpt")
    for parameter, gradient in zip(fc_net.parameters(), expected):
        np.testing.assert_array_equal(parameter.grad.numpy(), gradient)


def test_between_micro_batches_there_is_no_checkpoint(tmp_path, fc_net, make_losses):
    net = GradNorm(fc_net, n_loss=3, alpha=1.0)
    net.backward(make_losses(net), update=False)
    with pytest.raises(RuntimeError, match="between the micro-batches"):
        RunState(net=net).save(tmp_path / "a.ckpt")


class Sampler:
    def __init__(self):
        self.position, self.order = 0, np.arange(3)

    def state_dict(self):
        return {"position": self.position, "order": self.order, "mean": paddle.ones([2])}

    def set_state_dict(self, state):
        assert isinstance(state["mean"], paddle.Tensor)
        self.position, self.order = state["position"], state["order"]


def test_other_parts(tmp_path):
    history = History()
    history.record(["a"], losses=paddle.to_tensor([0.1]))
    parts = {
        "history": history,
        "coefficient": paddle.to_tensor([2.0]),
        "generators": [np.random.default_rng(3), random.Random(3), np.random.RandomState(3)],
        "sampler": Sampler(),
    }
    parts["sampler"].position, parts["sampler"].order = 7, np.array([2, 0, 1])
    state = RunState(**parts)
    state.save(tmp_path / "a.ckpt")
    expected = [generator.random() for generator in parts["generators"]]
    other = {
        "history": History(),
        "coefficient": paddle.to_tensor([3.0]),
        "generators": [np.random.default_rng(4), random.Random(4), np.random.RandomState(4)],
        "sampler": Sampler(),
    }
    RunState(**other).load(tmp_path / "a.ckpt")
    assert [generator.random() for generator in other["generators"]] == expected
    assert other["history"].losses["a"].tolist() == history.losses["a"].tolist()
    assert len(other["history"]) == 1 and other["coefficient"].item() == 2
    assert other["sampler"].position == 7 and other["sampler"].order.tolist() == [2, 0, 1]


def test_what_is_no_part_is_named():
    with pytest.raises(TypeError, match=r"losses\[1\] must be a layer, .* got str 'x'"):
        RunState(losses=[paddle.nn.Linear(1, 1), "x"])


# Files that do not fit.


@pytest.fixture
def written(tmp_path, make_losses):
    run = Wrapped()
    for number in range(2):
        run.step(make_losses, number + 1)
    RunState(history=History(), **run.parts).save(tmp_path / "a.ckpt", step=2)
    return run, tmp_path / "a.ckpt"


@pytest.mark.parametrize(
    "other, match",
    [
        (lambda: {"net": FCNet(2, 1, 3, 8)}, r"holds \['history', 'net', .*but the run has"),
        (lambda: {"net": GradNorm(FCNet(2, 1, 3, 9), 3, 1.0)}, r"does not fit net: .*shape"),
        (lambda: {"net": GradNorm(FCNet(2, 1, 4, 8), 3, 1.0)}, "'net.linears.3.weight' missing"),
        (lambda: {"net": GradNorm(FCNet(2, 1, 3, 8), 2, 1.0)}, r"shape \[3\] .* \[2\]"),
        (lambda: {"net": FCNet(2, 1, 3, 8)}, "not known here"),
        (lambda: {"net": GradNorm(FCNet(2, 1, 3, 8).to(dtype="float64"), 3, 1.0)}, "float64"),
    ],
)
def test_another_networks_checkpoint_is_an_error(written, other, match):
    parts = other()
    if "holds" not in match:
        parts.update(optimizer=adam(parts["net"]), history=History())
    before = bits(RunState(**parts).state())
    with pytest.raises(CheckpointError, match=match) as info:
        RunState(**parts).load(written[1])
    assert str(written[1]) in str(info.value) and "nothing has been loaded" in str(info.value)
    assert bits(RunState(**parts).state()) == before


@pytest.mark.parametrize(
    "path, value, match",
    [
        (["position"], 3, "a position that is no dict"),
        (["random"], None, "no state of random numbers"),
        (["parts"], [], "holds"),
        (["parts", "net"], None, "net: it has no state of a layer"),
        (["parts", "net", "gradients"], None, "net: it has no gradients"),
        (["parts", "net", "gradients", "loss_weights"], "zeros", "which is no parameter here"),
        (["parts", "net", "gradients", "balancer.loss_weights"], 3, "no values of the gradient"),
        (["parts", "net", "extra", "balancer", "frozen"], 1, "frozen of type int"),
        (["parts", "net", "extra", "balancer", "names"], ["a"], "names, where 3 belong"),
        (["parts", "net", "extra", "balancer", "caller", "acted"], [1, 1, 1], "no values of extra"),
        (["parts", "net", "buffers", "balancer.step_count"], 3, "no values of buffers"),
        (["parts", "history", "names"], "abc", "no list of strings"),
        (["parts", "history", "names"], ["a"], r"rows of shape \(0, 0\) for 1 names"),
        (["parts", "history", "losses"], Values("float32", np.zeros((0, 0), "f")), "no float64"),
        (["parts", "history", "weights"], Values("float64", np.zeros(0)), "rows of shape"),
        (["more"], 1, "'more' of a run, which is not known here"),
    ],
)
def test_a_file_with_something_else_in_it_is_an_error(written, path, value, match):
    run, file = written
    state = _checkpoint_file.read(file)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    _checkpoint_file.write(file, state)
    own = RunState(history=History(), **run.parts)
    before = bits(own.state())
    with pytest.raises(CheckpointError, match=match):
        own.load(file)
    assert bits(own.state()) == before


class Unknown(Wrapped):
    """A network whose balancer learns the number of losses in the first step, or from a file."""

    def __init__(self, **options):
        self.net = GradNorm(FCNet(2, 1, 3, 8), **options)
        self.parts = {"net": self.net, "optimizer": adam(self.net)}

    def own(self):
        return RunState(generator=random.Random(0), **self.parts)


@pytest.mark.parametrize(
    "path, value, match",
    [
        (["random"], None, "no state of random numbers"),
        (["parts", "generator", "words"], 3, "does not fit generator"),
        (["parts", "net", "extra", "balancer"], 3, "'balancer.loss_weights'.*not known"),
        (["parts", "net", "extra", "balancer", "names"], 3, "'balancer.loss_weights'.*not known"),
        (["parts", "net", "extra", "balancer", "names"], [], "'balancer.loss_weights'.*not known"),
        (["parts", "net", "extra", "balancer", "names"], ["a"], "net: it has an extra state"),
        (["parts", "net", "extra", "balancer", "names"], ["a", "b"], r"shape \[3\] .* \[2\]"),
        (["parts", "net", "extra", "balancer", "frozen"], 1, "frozen of type int"),
        (["parts", "net", "parameters"], {}, "'balancer.loss_weights'"),
        (["parts", "optimizer"], None, "does not fit optimizer"),
    ],
)
def test_a_failed_load_leaves_the_number_of_losses_unknown(
    tmp_path, make_losses, path, value, match
):
    file, whole = tmp_path / "a.ckpt", Unknown(equations=["a"])
    whole.step(make_losses, 1)
    whole.own().save(file)
    undamaged = file.read_bytes()
    state = _checkpoint_file.read(file)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    assert path[-1] in inner
    inner[path[-1]] = value
    _checkpoint_file.write(file, state)
    run = Unknown(equations=["a"])
    before, shown = bits(run.own().state()), repr(run.net)
    with pytest.raises(CheckpointError, match=match):
        run.own().load(file)
    assert run.net.balancer.n_loss is None and repr(run.net) == shown
    assert bits(run.own().state()) == before
    with pytest.raises(AttributeError, match="there are no loss_weights yet"):
        run.net.balancer.loss_weights  # noqa: B018
    # As if nothing had happened, the balancer takes another number, and the whole file.
    other = copy.deepcopy(run)
    other.net.backward(dict(zip("ab", make_losses(other.net))))
    assert other.net.balancer.n_loss == 2
    file.write_bytes(undamaged)
    run.own().load(file)
    assert bits(run.own().state()) == bits(whole.own().state())


def test_a_file_of_fewer_losses_than_the_equations_have_is_an_error(tmp_path, make_losses):
    whole, run = Unknown(equations=[0]), Unknown(equations=[3])
    whole.step(make_losses, 1)
    whole.own().save(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"net: it has.*equations has 3, but n_loss is 3"):
        run.own().load(tmp_path / "a.ckpt")
    assert run.net.balancer.n_loss is None


# Versions.


class Remembering(PicklableLayer):
    """A layer with an extra state of every kind that there may be."""

    def __init__(self, **more):
        super().__init__()
        self.linear = paddle.nn.Linear(2, 1)
        self.extra = {
            "array": np.arange(3.0),
            "flags": np.array([True, False]),
            "nested": {"words": ["a", "b"], "rate": None},
            "count": 3,
            **more,
        }

    def extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def test_an_extra_state_comes_back_in_its_types(tmp_path):
    layer, other = Remembering(), Remembering()
    layer.extra["array"] = np.array([0.1, np.nan, np.inf])
    layer.extra["nested"] = {"words": ["c", "d"], "rate": 0.5}
    layer.extra["count"] = 4
    RunState(layer=layer).save(tmp_path / "a.ckpt")
    RunState(layer=other).load(tmp_path / "a.ckpt")
    array, flags = other.extra.pop("array"), other.extra.pop("flags")
    assert array.dtype == np.float64 and array.tobytes() == layer.extra["array"].tobytes()
    assert flags.dtype == bool and flags.tolist() == [True, False]
    assert other.extra == {"nested": layer.extra["nested"], "count": 4}


def test_what_a_file_lacks_of_an_extra_state_keeps_its_own_value(tmp_path):
    RunState(layer=Remembering(count=9)).save(tmp_path / "a.ckpt")
    nested = {"words": ["e", "f"], "rate": None, "since": 1}
    newer = Remembering(count=8, since=np.ones(2), nested=nested)
    RunState(layer=newer).load(tmp_path / "a.ckpt")
    assert newer.extra["count"] == 9 and newer.extra["since"].tolist() == [1, 1]
    assert newer.extra["nested"] == {"words": ["a", "b"], "rate": None, "since": 1}


def test_what_a_file_has_more_of_an_extra_state_is_named(tmp_path):
    path, layer = tmp_path / "a.ckpt", Remembering()
    RunState(layer=Remembering(since=1)).save(path)
    with pytest.raises(CheckpointError, match=r"layer: it has 'since' at extra, .*file is newer"):
        RunState(layer=layer).load(path)
    assert "since" not in layer.extra


@pytest.fixture
def file_of_all_kinds(tmp_path):
    """A file with every kind of part, and what makes another run of that kind."""

    def make():
        net = GradNorm(FCNet(2, 1, 2, 4), 2, 1.0)
        return RunState(
            net=net,
            optimizer=adam(net),
            history=History(),
            tensor=paddle.ones([2]),
            python=random.Random(1),
            numpy=np.random.default_rng(1),
            object=Sampler(),
            list=[paddle.zeros([1])],
        )

    make().save(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt", make


def versioned(tree, path=()):
    """Where in a state there are versions, but those of an object's own."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if key == "version":
            yield path
        yield from versioned(value, (*path, key))
    for i, value in enumerate(tree) if type(tree) is list else ():
        yield from versioned(value, (*path, i))


def test_every_part_has_a_version_of_its_own(file_of_all_kinds):
    path, make = file_of_all_kinds
    state = _checkpoint_file.read(path)
    assert set(state["parts"]) == {
        *("net", "optimizer", "history", "tensor", "python", "numpy", "object", "list"),
        "parameters outside of layers",
    }
    found = set(versioned(state))
    assert found == {
        *((), ("random",), ("random", "python"), ("random", "numpy")),
        *(("parts", name) for name in state["parts"]),
        ("parts", "list", "items", 0),
    }
    for place in found:
        altered = _checkpoint_file.read(path)
        inner = altered
        for key in place:
            inner = inner[key]
        # With the operators of the run, the numbers of the history's steps, and what an optimizer
        # keeps by parameter.
        known = 2 if place in ((), ("parts", "history"), ("parts", "optimizer")) else 1
        assert inner["version"] == known
        inner["version"] = known + 1
        run = make()
        before = bits(run.state())
        match = (
            rf"newer paddlescience_gradnorm: it holds version {known + 1} of .* up to {known}\. "
            "Update"
        )
        with pytest.raises(CheckpointError, match=match) as info:
            run.take(path, altered)
        assert str(path) in str(info.value) and "nothing has been loaded" in str(info.value)
        assert bits(run.state()) == before


@pytest.mark.parametrize("began", [False, True], ids=["without", "with"])
def test_the_operators_of_the_run_belong_to_it_to_the_last_bit(cpp, monkeypatch, tmp_path, began):
    monkeypatch.delenv(_operators.CHOICE)
    x = sympy.Symbol("x")
    u = sympy.Function("u")
    residual = Residual(u(x).diff(x, 2) + u(x), (x,), (u,))

    def begin():
        paddle.seed(1)
        net = FCNet(1, 1, 4, 20)
        return net, RunState(net=net, optimizer=(optimizer := adam(net))), optimizer

    def train(net, optimizer, steps):
        points = paddle.linspace(0, 1, 40).reshape([-1, 1])
        for _ in range(steps):
            (
                residual(net, points).square().mean() + (net(points[:1]) - 1).square().sum()
            ).backward()
            optimizer.step()
            optimizer.clear_grad()
        return [p.numpy().tobytes() for p in net.parameters()]

    cpp(not began)
    net, _, optimizer = begin()
    other = train(net, optimizer, 20)
    cpp(began)
    net, state, optimizer = begin()
    train(net, optimizer, 8)
    state.save(tmp_path / "a.ckpt")
    whole = train(net, optimizer, 12)
    assert whole != other  # they differ by rounding
    cpp(not began)  # as in a process that begins after they have been built, or with none
    net, state, optimizer = begin()
    state.load(tmp_path / "a.ckpt")
    assert train(net, optimizer, 12) == whole


def test_a_file_that_does_not_know_the_operators_leaves_them_as_they_are(cpp, fc_net):
    cpp(True)
    run = RunState(net=fc_net)
    state = run.state()
    by_older = {**state, "version": 1}
    del by_older["operators"]
    run.take("a.ckpt", by_older)
    assert _operators.loaded
    with pytest.raises(CheckpointError, match="operators that are neither true nor false"):
        run.take("a.ckpt", {**state, "operators": 1})


def state_with(state, **fields):
    return lambda part: {**state(part), **fields}


def test_an_older_file_gets_what_a_part_has_got_since(file_of_all_kinds, monkeypatch):
    path, make = file_of_all_kinds
    for name in ("_HISTORY", "_LAYER"):
        schema = getattr(run_state, name)
        newer = schema._replace(added=(*schema.added, {"since": 0}))
        monkeypatch.setattr(run_state, name, newer)
    run = make()
    monkeypatch.setattr(run_state._Layer, "state", state_with(run_state._Layer.state, since=0))
    run.load(path)
    # A field that has been dropped since is told from one that is still to come.
    state = _checkpoint_file.read(path)
    state["parts"]["net"]["extra"]["balancer"]["dropped"] = 1
    with pytest.raises(CheckpointError, match=r"'dropped' at extra\.balancer.*the file is older"):
        make().take(path, state)


BY_0_1_0 = Path(__file__).parents[1] / "data" / "checkpoint_0.1.0.ckpt"


def trainer_like_that_of_0_1_0():
    """The run of that file, but for its steps: 3 of them, with Adam on the weights too."""
    net = GradNorm(FCNet(2, 1, 2, 4), n_loss=2, alpha=1.0)
    points = paddle.rand([4, 2])

    def losses(net):
        u = net(points)
        return {"pde": u.square().mean(), "boundary": (u - 1).square().mean()}

    return Trainer(net, losses, adam(net))


def test_a_run_of_0_1_0_is_not_gone_on_with(tmp_path):
    trainer = trainer_like_that_of_0_1_0()
    before = bits(trainer._state.state())
    match = r"0\.1\.0\.ckpt was written by paddlescience_gradnorm 0\.1\.0, .* Finish the run with"
    with pytest.raises(CheckpointError, match=match) as info:
        trainer.load(BY_0_1_0)
    assert "RunState(net=net).load_parameters(path)" in str(info.value)
    assert bits(trainer._state.state()) == before


def test_the_parameters_of_0_1_0_begin_a_new_run(make_losses):
    trainer = trainer_like_that_of_0_1_0()
    net = trainer.net
    RunState(net=net, optimizer=trainer.optimizers[0]).load_parameters(BY_0_1_0)
    # What version 0.1.0 has given there.
    assert net(paddle.to_tensor([[0.5, 0.25]])).item() == pytest.approx(-0.5916255712509155)
    np.testing.assert_allclose(net.get_weights(), [1.029898, 0.970102], rtol=1e-4)
    assert not net.initial_losses.numpy().any()  # for which the next update takes its losses
    trainer.fit(epochs=2)
    assert net.get_weights().sum() == pytest.approx(2)


def test_parameters_alone(tmp_path, make_losses):
    run = Normalized()
    for number in range(3):
        run.step(make_losses, number)
    coefficient, list_of = paddle.to_tensor([2.0]), [paddle.nn.Linear(1, 1)]
    state = RunState(coefficient=coefficient, list_of=list_of, **run.parts)
    state.save(tmp_path / "a.ckpt")
    other, others = Normalized(), [paddle.nn.Linear(1, 1)]
    value = paddle.to_tensor([3.0])
    drawn = RunState().state()
    RunState(net=other.net, extra=other.extra, coefficient=value, list_of=others).load_parameters(
        tmp_path / "a.ckpt"
    )
    for mine, theirs in zip(run.net.parameters(), other.net.parameters()):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    for mine, theirs in zip(run.net.buffers(), other.net.buffers()):  # the running means
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    assert value.item() == 2 and others[0].weight.item() == list_of[0].weight.item()
    assert bits(RunState().state()) == bits(drawn)


@pytest.mark.parametrize(
    "parts, match",
    [
        (lambda: {"net": GradNorm(FCNet(2, 1, 2, 5), 3, 1.0)}, "does not fit net: it has"),
        (lambda: {"net": FCNet(2, 1, 2, 4)}, "missing"),
        (lambda: {"model": FCNet(2, 1, 2, 4)}, r"holds \['history', 'net', .*and no model"),
        (lambda: {"net": paddle.ones([2])}, "does not fit net: it has no value"),
        (lambda: {"history": FCNet(2, 1, 2, 4)}, "does not fit history: it has no parameters"),
        (
            lambda: {"net": [FCNet(2, 1, 2, 4)]},
            "does not fit net: it has no (state|items) of a list",
        ),
    ],
)
@pytest.mark.parametrize("old", [False, True], ids=["now", "0.1.0"])
def test_parameters_of_another_network_are_an_error(written, parts, match, old):
    parts = parts()
    before = bits(RunState(**parts).state())
    path = BY_0_1_0 if old else written[1]
    with pytest.raises(CheckpointError, match=match) as info:
        RunState(**parts).load_parameters(path)
    assert str(path) in str(info.value) and "nothing has been loaded" in str(info.value)
    assert bits(RunState(**parts).state()) == before


# Fuzzing.


def mutated(whole, header, values, rng):
    """A file with a few mistakes; half of them have the checksum that belongs to them."""
    kind = rng.randrange(8)
    if kind < 4:  # the file as bytes
        changed = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 9])):
            at = rng.randrange(len(changed))
            if kind == 0:
                changed[at] = rng.randrange(256)
            elif kind == 1:
                del changed[at : at + rng.choice([1, 8, 10**6])]
            elif kind == 2:
                changed[at:at] = rng.randbytes(rng.choice([1, 8, 64]))
            else:
                other = rng.randrange(len(changed))
                changed[at], changed[other] = changed[other], changed[at]
            if not changed:
                break
        if rng.random() < 0.5:
            return with_checksum(bytes(changed[_checkpoint_file._START :]))
        return bytes(changed)
    if kind < 6:  # a file without a fault, but another state
        state = _checkpoint_file.parse(whole)
        for _ in range(rng.choice([1, 1, 1, 3])):
            alter(state, rng)
        arrays = []
        tree = _checkpoint_file._encoded(state, arrays, "")
        described = [[dtype, list(array.shape)] for dtype, array in arrays]
        encoded = json.dumps({"arrays": described, "state": tree}).encode()
        values = b"".join(array.tobytes() for _, array in arrays)
        return with_checksum(len(encoded).to_bytes(8, "little") + encoded + values)
    # The header as what it says.
    tree = copy.deepcopy(header)
    for _ in range(rng.choice([1, 1, 1, 3])):
        alter(tree, rng)
    encoded = json.dumps(tree).encode()
    if rng.random() < 0.2:
        values = values[: rng.randrange(len(values))] + rng.randbytes(rng.choice([0, 4]))
    if rng.random() < 0.1:
        values = rng.randbytes(len(values))
    return with_checksum(len(encoded).to_bytes(8, "little") + encoded + values)


def with_checksum(body):
    return _checkpoint_file._MAGIC + hashlib.sha256(body).digest() + body


ODD = [None, True, -1, 0, 1, 2**31, 2**63, 10**18, 10**40, 0.5, float("nan"), "", "x", [], {}]
ODD += [[0], [[]], {"a": {"b": 1}}, "bfloat16", "object", "zeros", ["a", "b"], [10**18, 10**18]]


def alter(tree, rng):
    """Change something somewhere in it."""
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(tree)
    if not places:
        return
    node, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        node[key] = rng.choice(ODD)
    elif kind == 1:
        del node[key]
    elif kind == 2 and isinstance(node, dict):
        node[str(key)[:-1] + rng.choice(["", "_", "x", "2"])] = node.pop(key)
    elif kind == 3:
        other, place = rng.choice(places)
        if isinstance(other, dict) == isinstance(node, dict) and place in (
            other if isinstance(other, dict) else range(len(other))
        ):
            node[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(node[key])
    elif type(node[key]) is int:
        node[key] += rng.choice([-1, 1, 2**20])
    else:
        node[key] = [node[key]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_errors_or_states(tmp_path, number):
    rng = random.Random(number)
    data = paddle.io.DataLoader(
        paddle.io.TensorDataset([paddle.rand([8, 1])]), batch_size=2, shuffle=True
    )

    def make():
        net = GradNorm(paddle.nn.Linear(1, 1), 2, 1.0, shared=lambda net: net.weight)
        schedule = paddle.optimizer.lr.CosineAnnealingDecay(1e-2, 9)
        return Trainer(
            net,
            lambda net, x: {"a": net(x).square().mean(), "b": (net(x) - 1).square().mean()},
            paddle.optimizer.Adam(schedule, parameters=net.parameters()),
            extras={"points": np.random.default_rng(1)},
        )

    class StopAt(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if self.model.step == 2:
                self.model.save(tmp_path / "a.ckpt")

    trainer = make()
    trainer.callbacks.append(StopAt())
    trainer.fit(data)
    whole = (tmp_path / "a.ckpt").read_bytes()
    start = _checkpoint_file._START + 8
    length = int.from_bytes(whole[start - 8 : start], "little")
    header = json.loads(whole[start : start + length])
    values = whole[start + length :]
    path = tmp_path / "b.ckpt"
    trainer = make()
    trainer.callbacks.append(paddle.callbacks.Callback())
    assert header["state"]["parts"]["trainer"]["epoch_random"] is not None
    own = trainer._state
    before = bits(own.state())
    outcomes = {"damaged": 0, "does not fit": 0, "loaded": 0}
    for _ in range(number):
        try:
            state = _checkpoint_file.parse(mutated(whole, header, values, rng))
        except CheckpointError:
            outcomes["damaged"] += 1
            continue
        try:
            own.take(path, state)
        except CheckpointError as error:
            outcomes["does not fit"] += 1
            assert str(path) in str(error)
            if outcomes["does not fit"] % 10 == 0:
                assert bits(own.state()) == before
        else:
            outcomes["loaded"] += 1
            before = bits(own.state())
    print(outcomes)
    assert sum(outcomes.values()) == number and min(outcomes.values()) > number / 50


def test_pickles_are_no_checkpoints(tmp_path, fc_net):
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(fc_net))
    with pytest.raises(CheckpointError, match="is no checkpoint of paddlescience_gradnorm"):
        RunState(net=fc_net).load(tmp_path / "a.ckpt")
    paddle.save(fc_net.state_dict(), str(tmp_path / "net.pdparams"))
    with pytest.raises(CheckpointError, match="is no checkpoint of paddlescience_gradnorm"):
        RunState(net=fc_net).load(tmp_path / "net.pdparams")
