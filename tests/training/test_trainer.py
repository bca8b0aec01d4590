import copy
import os
import signal
import warnings

import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, GradNorm, LossBalancer
from paddlescience_gradnorm.balancing import PinnRule
from paddlescience_gradnorm.pde.problems import problem
from paddlescience_gradnorm.point_weights import SelfAdaptiveWeights
from paddlescience_gradnorm.training import CheckpointError, Checkpoints, StopOnSignals, Trainer
from paddlescience_gradnorm.training.history import QUANTITIES

NAMES = ["pde", "boundary", "data"]


@pytest.fixture
def named_losses(make_losses):
    """Losses by name; a batch is the seed of their points."""

    def losses(net, seed=0):
        return dict(zip(NAMES, make_losses(net, seed=int(seed))))

    return losses


def adam(*layers, rate=1e-3):
    return paddle.optimizer.Adam(rate, parameters=[p for x in layers for p in x.parameters()])


def test_it_is_the_loop_a_user_would_write(fc_net, named_losses):
    batches, epochs = [3, 1, 2], 2
    net = GradNorm(copy.deepcopy(fc_net), n_loss=3, alpha=1.0)
    trainer = Trainer(net, named_losses, adam(net))
    history = trainer.fit(batches, epochs)

    twin = GradNorm(fc_net, n_loss=3, alpha=1.0)
    optimizer = adam(twin)
    rows = {quantity: [] for quantity in QUANTITIES}
    for seed in batches * epochs:
        losses = named_losses(twin, seed)
        rows["losses"].append([loss.item() for loss in losses.values()])
        rows["weights"].append(twin.get_weights())
        norms = [
            paddle.grad([loss], [twin.get_last_shared_layer()], retain_graph=True)[0].norm().item()
            for loss in losses.values()
        ]
        rows["gradient_norms"].append(norms)
        twin.backward(losses)
        ratios = np.array(rows["losses"][-1]) / rows["losses"][0]
        rows["training_rates"].append(ratios / ratios.mean())
        optimizer.step()
        optimizer.clear_grad()
    for quantity in QUANTITIES:
        np.testing.assert_allclose(history.to_numpy()[quantity], rows[quantity], rtol=1e-5)
    assert history.names == NAMES and history is trainer.history
    for mine, theirs in zip(net.parameters(), twin.parameters()):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    assert (trainer.step, trainer.epoch) == (6, 2)


def test_it_says_what_it_is(fc_net, named_losses):
    trainer = Trainer(fc_net, named_losses, adam(fc_net))
    assert repr(trainer) == (
        "<Trainer of FCNet: 0 steps, 0 epochs, losses not known yet; not balanced; Adam>"
    )
    trainer.fit()
    assert "1 step, 1 epoch, losses pde, boundary, data; not" in repr(trainer)


def test_fit_tells_the_balancer_how_long_the_run_is(tmp_path, fc_net, named_losses):
    net = GradNorm(fc_net, n_loss=3, equations=["pde"])
    trainer = Trainer(net, named_losses, adam(net))
    trainer.fit(epochs=20)
    assert net.balancer.total_steps == 20 and net.balancer.last_measurement.progress == 10 / 20
    trainer.fit([3, 1, 2], epochs=4)
    assert net.balancer.total_steps == 32 and net.balancer.last_measurement.progress == 30 / 32

    class Endless(paddle.io.IterableDataset):
        def __iter__(self):
            return iter([np.zeros([])] * 3)

    trainer.fit(paddle.io.DataLoader(Endless(), batch_size=None))
    assert net.balancer.total_steps is None and np.isnan(net.balancer._schedule.progress(7))
    trainer.fit_lbfgs(max_iter=1)
    assert net.balancer.total_steps is None


def test_what_a_resumed_run_has_had_counts(tmp_path, fc_net, named_losses):
    totals = []
    for stop_at in (7, None):
        net = GradNorm(copy.deepcopy(fc_net), n_loss=3, equations=["pde"])
        stop = [] if stop_at is None else [StopAt(stop_at)]
        trainer = Trainer(net, named_losses, adam(net), callbacks=stop)
        resume = None if stop_at else "latest"
        trainer.fit([3, 1, 2], 5, checkpoints=Checkpoints(tmp_path, every=100), resume=resume)
        totals.append(net.balancer.total_steps)
    assert totals == [15, 15] and trainer.step == 15
    given = GradNorm(copy.deepcopy(fc_net), n_loss=3, equations=["pde"], total_steps=99)
    Trainer(given, named_losses, adam(given)).fit(3)
    assert given.balancer.total_steps == 99


def test_a_second_fit_goes_on(fc_net, named_losses):
    runs = []
    for parts in ([4], [1, 3]):
        net = GradNorm(copy.deepcopy(fc_net), n_loss=3, alpha=1.0)
        trainer = Trainer(net, named_losses, adam(net))
        for epochs in parts:
            trainer.fit([0, 1], epochs)
        runs.append(trainer)
    np.testing.assert_array_equal(*(run.history.to_numpy()["weights"] for run in runs))
    assert runs[0].step == runs[1].step == 8 and runs[0].epoch == runs[1].epoch == 4


@pytest.mark.parametrize(
    "form, names",
    [
        (list, ["losses[0]", "losses[1]", "losses[2]"]),
        (paddle.stack, ["losses[0]", "losses[1]", "losses[2]"]),
        (lambda losses: dict(zip(NAMES, losses)), NAMES),
    ],
    ids=["list", "tensor", "dict"],
)
def test_every_form_of_losses(fc_net, make_losses, form, names):
    balancer = LossBalancer(fc_net.get_last_shared_layer(), 3, 1.0, weight_lr=1e-3)
    trainer = Trainer(fc_net, lambda net: form(make_losses(net)), adam(fc_net), balancer)
    assert trainer.fit(epochs=3).names == names
    losses = [loss.item() for loss in make_losses(fc_net)]
    trainer.fit(epochs=1)
    assert [values[-1] for values in trainer.history.losses.values()] == pytest.approx(losses)


def test_without_a_balancer_the_weights_are_one(fc_net, named_losses):
    twin = copy.deepcopy(fc_net)
    history = Trainer(fc_net, named_losses, adam(fc_net)).fit(epochs=4)
    optimizer = adam(twin)
    for _ in range(4):
        sum(named_losses(twin).values()).backward()
        optimizer.step()
        optimizer.clear_grad()
    for mine, theirs in zip(fc_net.parameters(), twin.parameters()):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    assert (history.to_numpy()["weights"] == 1).all()
    assert np.isnan(history.to_numpy()["gradient_norms"]).all()


def test_a_single_loss_needs_no_balancer(fc_net, named_losses):
    history = Trainer(
        fc_net, lambda net: {"pde": named_losses(net)["pde"]}, adam(fc_net, rate=1e-2)
    ).fit(epochs=30)
    assert history.losses["pde"][-1] < 0.5 * history.losses["pde"][0]


@pytest.mark.filterwarnings("ignore:.*parallel:UserWarning")
def test_a_network_in_data_parallel_is_balanced(fc_net, named_losses, tmp_path):
    runs = []
    for is_parallel in (False, True):
        net = GradNorm(copy.deepcopy(fc_net), equations=["pde"])
        wrapped = paddle.DataParallel(net) if is_parallel else net
        trainer = Trainer(wrapped, named_losses, adam(net))
        assert trainer.balancer is net.balancer
        assert "GradNorm(FCNet)" in repr(trainer) and "balanced by PinnRule" in repr(trainer)
        trainer.fit(epochs=25)
        trainer.save(tmp_path / f"{is_parallel}.ckpt")
        runs.append((net.get_weights(), trainer))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert not np.allclose(runs[0][0], 1)
    runs[1][1].load(tmp_path / "False.ckpt")  # nothing in it depends on the wrapper


class WithinAnother(paddle.nn.Layer):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, points):
        return self.part(points)


def test_what_would_balance_deeper_within_is_not_passed_over(fc_net, named_losses):
    inner = GradNorm(fc_net, equations=["pde"])
    net = WithinAnother(inner)
    with pytest.raises(ValueError, match=r"a GradNorm in net.part, .* pass balancer=net.part"):
        Trainer(net, named_losses, adam(net))
    trainer = Trainer(net, named_losses, adam(net), balancer=net.part)
    trainer.fit(epochs=25)
    assert not np.allclose(inner.get_weights(), 1)


class Fixed:
    """Anything with backward is a balancer."""

    def backward(self, losses):
        total = 2 * losses["pde"] + losses["data"]
        total.backward()
        return total


def test_any_balancer_will_do(fc_net, named_losses):
    trainer = Trainer(fc_net, named_losses, adam(fc_net), Fixed())
    assert np.isnan(trainer.fit(epochs=2).weights["pde"]).all()
    with pytest.raises(TypeError, match="the balancer has no loss_weights: Fixed"):
        trainer.fit_lbfgs()


class Doubling(Fixed):
    """Tells its weights by a parameter alone, and changes it in place."""

    def __init__(self):
        self.loss_weights = paddle.ones([3])

    def backward(self, losses):
        total = super().backward(losses)
        self.loss_weights.scale_(2.0)
        return total


def test_the_weights_of_a_step_are_those_before_it(fc_net, named_losses):
    trainer = Trainer(fc_net, named_losses, adam(fc_net), Doubling())
    assert trainer.fit(epochs=3).weights["data"].tolist() == [1, 2, 4]
    assert trainer.fit_lbfgs(max_iter=2).weights["data"].tolist() == [1, 2, 4, 8]


def test_several_optimizers_all_step(fc_net, named_losses):
    balancer = LossBalancer(fc_net.get_last_shared_layer(), 3, 1.0, weight_lr=None)
    trainer = Trainer(fc_net, named_losses, [adam(fc_net), adam(balancer, rate=1e-2)], balancer)
    before = fc_net.linears[0].weight.numpy()
    weights = trainer.fit(epochs=3).to_numpy()["weights"]
    assert (weights[2] != weights[1]).any() and (fc_net.linears[0].weight.numpy() != before).any()
    np.testing.assert_allclose(weights.sum(axis=1), 3, rtol=1e-6)


def test_float64_losses_are_recorded_to_the_last_bit(float64, fc_net):
    net = type(fc_net)(2, 1, 3, 8)
    values = []

    def losses(net):
        value = net(paddle.ones([1, 2])).square().mean()
        values.append(value.item())
        return {"a": value, "b": (2 * value).astype("float32")}

    history = Trainer(net, losses, adam(net)).fit(epochs=2)
    assert history.losses["a"].tolist() == values


# Data.


def test_batches_of_a_dataloader_are_the_arguments_of_the_losses(fc_net):
    x, y = paddle.rand([10, 2]), paddle.rand([10, 1])
    seen = []

    def losses(net, inputs, targets):
        seen.append((inputs, targets))
        return {"fit": (net(inputs) - targets).square().mean()}

    loader = paddle.io.DataLoader(paddle.io.TensorDataset([x, y]), batch_size=4)
    assert len(Trainer(fc_net, losses, adam(fc_net)).fit(loader, 2)) == 6
    np.testing.assert_array_equal(np.concatenate([i for i, _ in seen[:3]]), x.numpy())
    np.testing.assert_array_equal(np.concatenate([t for _, t in seen[3:]]), y.numpy())


def test_a_dataset_without_a_length(fc_net):
    class Stream(paddle.io.IterableDataset):
        def __iter__(self):
            return iter(np.ones((3, 5, 2), "float32"))

    def losses(net, x):
        return {"size": net(paddle.to_tensor(x)).square().mean()}

    loader = paddle.io.DataLoader(Stream(), batch_size=None)
    trainer = Trainer(fc_net, losses, adam(fc_net))
    assert len(trainer.fit(loader, 2)) == 6
    assert len(trainer.fit(Stream(), 2)) == 12


def test_data_that_has_run_out_is_an_error(fc_net, named_losses):
    trainer = Trainer(fc_net, named_losses, adam(fc_net))
    batches = iter([1, 2])
    with pytest.raises(TypeError, match="list_iterator for 2 epochs, which can be run through"):
        trainer.fit(batches, epochs=2)
    assert trainer.step == 0  # it is said before the first step
    assert len(trainer.fit(batches)) == 2
    with pytest.raises(ValueError, match="data has no batch, or none is left"):
        trainer.fit(batches)


@pytest.mark.parametrize("stage", ["fit", "fit_lbfgs"])
def test_a_number_in_place_of_data_is_epochs(fc_net, named_losses, stage):
    nets = [copy.deepcopy(fc_net) for _ in range(2)]
    trainers = [Trainer(net, named_losses, adam(net)) for net in nets]
    for trainer, arguments in zip(trainers, ({"data": 3}, {"epochs": 3})):
        getattr(trainer, stage)(**arguments)
        assert (trainer.step, trainer.epoch) == (3, 3)
    np.testing.assert_array_equal(*(t.history.to_numpy()["losses"] for t in trainers))
    with pytest.raises(TypeError, match="data is the number 3, beside epochs=2"):
        getattr(trainer, stage)(3, 2)


@pytest.mark.parametrize("stage", ["fit", "fit_lbfgs"])
def test_what_holds_no_batches_is_named_before_the_first_step(fc_net, named_losses, stage):
    trainer = Trainer(fc_net, named_losses, adam(fc_net))
    with pytest.raises(TypeError, match=r"got Tensor of shape \[8, 2\], whose rows would be"):
        getattr(trainer, stage)(paddle.ones([8, 2]))
    assert trainer.step == 0


@pytest.mark.parametrize("form", [list, lambda parts: dict(zip("xy", parts))], ids=["list", "dict"])
def test_batches_of_arrays_reach_any_network(form):
    rng = np.random.default_rng(0)
    arrays = [form([rng.random((6, 2)), rng.random((6, 1))]) for _ in range(3)]

    def losses(net, *batch):
        x, y = batch[0].values() if isinstance(batch[0], dict) else batch
        return {"fit": (net(x) - y).square().mean()}

    histories = []
    for as_tensors in (False, True):
        paddle.seed(0)
        net = paddle.nn.Sequential(paddle.nn.Linear(2, 4), paddle.nn.Linear(4, 1))
        data = arrays
        if as_tensors:
            parts = (b.values() if isinstance(b, dict) else b for b in arrays)
            data = [form([paddle.to_tensor(p, "float32") for p in batch]) for batch in parts]
        histories.append(Trainer(net, losses, adam(net)).fit(data, 2).losses["fit"])
    np.testing.assert_array_equal(*histories)


# Schedules.


@pytest.mark.parametrize("schedule_by, advances", [("step", 6), ("epoch", 2)])
def test_schedules_advance_by_step_or_epoch(fc_net, named_losses, schedule_by, advances):
    balancer = LossBalancer(fc_net.get_last_shared_layer(), 3, 1.0, weight_lr=None)
    shared = paddle.optimizer.lr.ExponentialDecay(1e-3, gamma=0.5)
    own = paddle.optimizer.lr.ExponentialDecay(1e-2, gamma=0.1)
    optimizers = [
        paddle.optimizer.Adam(shared, parameters=fc_net.parameters()[:2]),
        paddle.optimizer.Adam(shared, parameters=fc_net.parameters()[2:]),
        paddle.optimizer.Adam(own, parameters=balancer.parameters()),
    ]
    trainer = Trainer(fc_net, named_losses, optimizers, balancer, schedule_by=schedule_by)
    trainer.fit([1, 2, 3], 2)
    rates = [optimizer.get_lr() for optimizer in optimizers]
    expected = [1e-3 * 0.5**advances] * 2 + [1e-2 * 0.1**advances]
    assert rates == pytest.approx(expected)
    trainer.fit_lbfgs(epochs=2, max_iter=2)
    assert [optimizer.get_lr() for optimizer in optimizers] == rates


# Callbacks.


class Recorder(paddle.callbacks.Callback):
    def __init__(self, stop_at=None):
        super().__init__()
        self.events, self.stop_at = [], stop_at

    def on_train_begin(self, logs=None):
        self.events.append(("train begin", self.params["epochs"], self.params["steps"]))

    def on_epoch_begin(self, epoch, logs=None):
        self.events.append(("epoch begin", epoch))

    def on_train_batch_begin(self, step, logs=None):
        self.events.append(("batch begin", step))

    def on_train_batch_end(self, step, logs=None):
        self.events.append(("batch end", step, float(logs["loss"])))
        if self.model.step == self.stop_at:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        self.events.append(("epoch end", epoch))

    def on_eval_begin(self, logs=None):
        self.events.append(("eval begin", self.model.net.training))

    def on_eval_end(self, logs=None):
        self.events.append(("eval end", logs))

    def on_train_end(self, logs=None):
        self.events.append(("train end",))


def test_callbacks_are_called_as_by_paddle_model(fc_net, named_losses):
    recorder = Recorder()
    trainer = Trainer(fc_net, named_losses, adam(fc_net), callbacks=[recorder])
    modes = []

    def validate(net):
        modes.append(net.training)
        return {"loss": paddle.to_tensor(0.5)}

    trainer.fit([4, 5], 2, validate, validate_every=2)
    totals = trainer.history.to_numpy()["losses"].sum(axis=1)
    recorded = [event[2] for event in recorder.events if event[0] == "batch end"]
    np.testing.assert_allclose(recorded, totals, rtol=1e-5)
    one = [("batch begin", 0), ("batch end", 0), ("batch begin", 1), ("batch end", 1)]
    assert [event[:2] for event in recorder.events] == [
        ("train begin", 2),
        ("epoch begin", 0),
        *one,
        ("epoch end", 0),
        ("epoch begin", 1),
        *one,
        ("epoch end", 1),
        ("eval begin", True),
        ("eval end", {"loss": 0.5}),
        ("train end",),
    ]
    assert recorder.events[0][2] == 2
    assert modes == [False] and fc_net.training


def test_a_callback_can_stop_the_run_and_the_next_goes_on(fc_net, named_losses):
    recorder = Recorder(stop_at=5)
    trainer = Trainer(fc_net, named_losses, adam(fc_net), callbacks=[recorder])
    trainer.fit([1, 2, 3], 9)
    assert trainer.step == 5 and recorder.events[-2:] == [("epoch end", 1), ("train end",)]
    recorder.stop_at = None
    trainer.fit([1, 2, 3], 1)
    assert trainer.step == 8


def test_a_failing_step_ends_the_run_of_the_callbacks(fc_net):
    def fail(net):
        raise FloatingPointError("no such point")

    recorder = Recorder()
    with pytest.raises(FloatingPointError):
        Trainer(fc_net, fail, adam(fc_net), callbacks=[recorder]).fit()
    assert recorder.events[-1] == ("train end",)


@pytest.mark.parametrize("stage", ["fit", "fit_lbfgs"])
def test_early_stopping_by_paddles_own_callback(fc_net, named_losses, stage):
    numbers = iter([3.0, 2.0, 2.5, 1.9, 2.0, 2.1, 2.2, 0.0])
    stopping = paddle.callbacks.EarlyStopping("error", patience=3, verbose=0)
    trainer = Trainer(fc_net, named_losses, adam(fc_net), callbacks=[stopping])
    run = getattr(trainer, stage)
    run(epochs=50, validate=lambda net: {"error": next(numbers)})
    assert trainer.epoch == 7
    with pytest.raises(ValueError, match="EarlyStopping watches what validate returns"):
        run()


def test_paddles_plateau_callback_finds_the_optimizer(fc_net, named_losses):
    plateau = paddle.callbacks.ReduceLROnPlateau("error", factor=0.5, patience=1, verbose=0)
    trainer = Trainer(fc_net, named_losses, adam(fc_net), callbacks=[plateau])
    trainer.fit(epochs=3, validate=lambda net: {"error": 1.0})
    assert trainer.optimizers[0].get_lr() == pytest.approx(0.25e-3)


def test_the_steps_are_shorter_after_a_plateau(fc_net, named_losses):
    sizes = []

    class Measure(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            self.before = fc_net.linears[0].weight.numpy()

        def on_train_batch_end(self, step, logs=None):
            sizes.append(np.abs(fc_net.linears[0].weight.numpy() - self.before).max())

    plateau = paddle.callbacks.ReduceLROnPlateau("error", factor=0.01, patience=2, verbose=0)
    trainer = Trainer(fc_net, named_losses, adam(fc_net), callbacks=[plateau, Measure()])
    trainer.fit(epochs=5, validate=lambda net: {"error": 1.0})
    assert sizes[3] < 0.02 * sizes[2]


# Checkpoints.


class StopAt(paddle.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, step, logs=None):
        if self.model.step == self.step:
            self.model.stop_training = True


class Points:
    """Batches that are drawn as they are asked for, and an order drawn at first."""

    def __init__(self, n=4):
        self.n = n

    def __iter__(self):
        for seed in np.random.permutation(self.n):
            yield paddle.rand([]) + int(seed)


@pytest.fixture
def make_trainer(fc_net, named_losses):
    def make(stop_at=None, callbacks=(), **options):
        net = GradNorm(copy.deepcopy(fc_net), n_loss=3, alpha=1.0)
        schedule = paddle.optimizer.lr.ExponentialDecay(1e-2, 0.9)
        callbacks = [*callbacks, *([] if stop_at is None else [StopAt(stop_at)])]

        def losses(net, seed=0):
            named = named_losses(net, seed)
            return {name: loss * (1 + paddle.rand([])) for name, loss in named.items()}

        np.random.seed(2)
        paddle.seed(2)
        optimizer = adam(net, rate=schedule)
        return Trainer(net, losses, optimizer, callbacks=callbacks, **options)

    return make


def assert_same_run(one, other):
    for quantity in QUANTITIES:
        np.testing.assert_array_equal(
            one.history.to_numpy()[quantity], other.history.to_numpy()[quantity]
        )
    # This settles the weights after an optimizer's step, as writing a checkpoint does.
    np.testing.assert_array_equal(one.net.get_weights(), other.net.get_weights())
    for mine, theirs in zip(one.net.parameters(), other.net.parameters()):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    assert (one.step, one.epoch) == (other.step, other.epoch)
    assert one.optimizers[0].get_lr() == other.optimizers[0].get_lr()


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6, 12])
@pytest.mark.parametrize("schedule_by", ["step", "epoch"])
@pytest.mark.parametrize("data", [None, [3, 1, 2, 0], Points()], ids=["none", "list", "drawn"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path, make_trainer, data, schedule_by, stop_at
):
    epochs = 12 if data is None else 3
    checkpoints = Checkpoints(tmp_path, every=5)

    def validated(trainer, **options):
        # It draws too, and every second epoch.
        numbers = []
        trainer.fit(
            data, epochs, lambda net: {"x": numbers.append(paddle.rand([1])) or 0}, 2, **options
        )
        return [number.item() for number in numbers]

    whole = make_trainer(schedule_by=schedule_by)
    expected = validated(whole)
    last = whole._sources.state()["random"]["paddle"][0]["words"].array

    stopped = make_trainer(stop_at, schedule_by=schedule_by)
    validated(stopped, checkpoints=checkpoints)
    resumed = make_trainer(schedule_by=schedule_by)
    later = validated(resumed, checkpoints=checkpoints, resume="latest")
    assert_same_run(resumed, whole)
    assert later == expected[len(expected) - len(later) :]
    np.testing.assert_array_equal(
        resumed._sources.state()["random"]["paddle"][0]["words"].array, last
    )
    # And a run that has ended stays so.
    assert validated(resumed, checkpoints=checkpoints, resume="latest") == []
    assert_same_run(resumed, whole)


def test_a_file_can_be_written_and_loaded_by_hand(tmp_path, make_trainer):
    whole = make_trainer()
    whole.fit(Points(), 4)

    class Saving(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if self.model.step == 6:
                self.model.save(tmp_path / "a.ckpt")

    make_trainer(callbacks=[Saving()]).fit(Points(), 3)
    resumed = make_trainer()
    resumed.load(tmp_path / "a.ckpt")
    assert (resumed.step, resumed.epoch, len(resumed.history)) == (6, 1, 6)
    resumed.fit(Points(), 3)  # the rest of the second, the third and the fourth
    assert_same_run(resumed, whole)
    again = make_trainer()
    again.fit(Points(), 4, resume=tmp_path / "a.ckpt")
    assert_same_run(again, whole)


def test_losses_keep_the_order_of_the_first_process(tmp_path, fc_net, named_losses):
    def make(order):
        net = GradNorm(copy.deepcopy(fc_net), n_loss=3, alpha=1.0)
        return Trainer(
            net, lambda net: {name: named_losses(net)[name] for name in order}, adam(net)
        )

    whole = make(NAMES)
    whole.fit(epochs=6)
    first = make(NAMES)
    first.fit(epochs=3)
    first.save(tmp_path / "a.ckpt")
    resumed = make(NAMES[::-1])
    resumed.load(tmp_path / "a.ckpt")
    resumed.fit(epochs=3)
    assert_same_run(resumed, whole)
    assert resumed.history.names == NAMES
    other = make(["pde", "boundary", "other"])
    other.losses = lambda net: dict(zip(["pde", "boundary", "x"], named_losses(net).values()))
    other.load(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="on the first step they were"):
        other.fit()


def test_what_paddles_callbacks_have_counted_goes_on(tmp_path, make_trainer):
    errors = [3.0, 2.0, 2.5, 2.4, 2.3, 2.2, 2.1]

    def make(stop_at=None):
        callbacks = [
            paddle.callbacks.EarlyStopping("error", patience=4, verbose=0, save_best_model=False),
            paddle.callbacks.ReduceLROnPlateau("error", factor=0.5, patience=2, verbose=0),
        ]
        trainer = make_trainer(stop_at, callbacks)
        trainer.optimizers = [adam(trainer.net)]
        return Trainer(trainer.net, trainer.losses, trainer.optimizers, callbacks=trainer.callbacks)

    def fit(trainer, **options):
        def validate(net):
            return {"error": errors[trainer.epoch - 1]}

        return trainer.fit(None, 30, validate, **options)

    whole = make()
    fit(whole)
    assert whole.epoch == 6 and whole.optimizers[0].get_lr() == 2.5e-4
    checkpoints = Checkpoints(tmp_path, every=1)
    fit(make(stop_at=4), checkpoints=checkpoints)
    resumed = make()
    fit(resumed, checkpoints=checkpoints, resume="latest")
    assert_same_run(resumed, whole)
    fit(resumed, checkpoints=checkpoints, resume="latest")  # stopped early, so it has ended
    assert resumed.epoch == 6


class Counting(paddle.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.steps, self.losses = 0, np.zeros(2)

    def on_train_batch_end(self, step, logs=None):
        self.steps += 1
        self.losses += [1, float(logs["loss"])]

    def state_dict(self):
        return {"steps": self.steps, "losses": self.losses}

    def set_state_dict(self, state):
        self.steps, self.losses = state["steps"], state["losses"]


def test_other_callbacks_say_what_they_have_counted(tmp_path, make_trainer):
    checkpoints = Checkpoints(tmp_path)
    whole = make_trainer(99, [Counting()])
    whole.fit(epochs=9)
    make_trainer(5, [Counting()]).fit(epochs=9, checkpoints=checkpoints)
    resumed = make_trainer(99, [Counting()])
    resumed.fit(epochs=9, checkpoints=checkpoints, resume="latest")
    assert resumed.callbacks[0].steps == 9
    np.testing.assert_array_equal(resumed.callbacks[0].losses, whole.callbacks[0].losses)


def test_a_signal_stops_the_run_with_a_checkpoint(tmp_path, make_trainer):
    class Kill(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            if self.model.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    checkpoints = Checkpoints(tmp_path, every=None)
    with StopOnSignals() as stop:
        trainer = make_trainer(callbacks=[Kill(), stop])
        trainer.fit([1, 2, 3], 9, checkpoints=checkpoints)
    assert stop.exit_code == 143 and trainer.step == 6
    assert [path.name for path in checkpoints.paths()] == ["step_00000006.ckpt"]
    whole = make_trainer()
    whole.fit([1, 2, 3], 9)
    resumed = make_trainer(99, [Counting()])
    with pytest.raises(CheckpointError, match=r"'Counting\[0\]' missing"):
        resumed.fit([1, 2, 3], 9, checkpoints=checkpoints, resume="latest")
    resumed = make_trainer(99, [StopOnSignals()])
    resumed.fit([1, 2, 3], 9, checkpoints=checkpoints, resume="latest")
    assert_same_run(resumed, whole)


def test_resuming_where_there_is_nothing_starts_with_a_warning(tmp_path, make_trainer):
    trainer = make_trainer()
    with pytest.warns(RuntimeWarning, match="there is no checkpoint in .*; the run starts anew"):
        trainer.fit(epochs=2, checkpoints=Checkpoints(tmp_path / "a"), resume="latest")
    assert trainer.step == 2
    with pytest.raises(ValueError, match="resume is 'latest', but checkpoints is None"):
        trainer.fit(resume="latest")
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*none"):
        trainer.fit(resume=tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"the run is at step 0, but .* later steps"):
        make_trainer().fit(checkpoints=Checkpoints(tmp_path / "a"))


def test_other_data_and_another_run_are_named(tmp_path, make_trainer):
    checkpoints = Checkpoints(tmp_path)
    make_trainer(3).fit([1, 2, 3, 4], checkpoints=checkpoints)
    with pytest.raises(ValueError, match=r"data has 2 batches in an epoch, .* stopped after 3"):
        make_trainer(3).fit([1, 2], resume=checkpoints.paths()[0])
    other = make_trainer(3, schedule_by="epoch")
    with pytest.raises(CheckpointError, match="has schedule_by 'step'"):
        other.load(checkpoints.paths()[0])
    assert other.step == 0
    with pytest.raises(CheckpointError, match="'extras points'"):
        make_trainer(3, extras={"points": np.random.default_rng()}).load(checkpoints.paths()[0])


def test_a_failed_step_leaves_no_half_epoch_behind(make_trainer, named_losses):
    trainer = make_trainer()
    with pytest.raises(ValueError, match="invalid literal"):
        trainer.fit([1, 2, "x"])
    trainer.fit([1, 2], 1)
    assert trainer.step == 4


class Interrupted(paddle.optimizer.SGD):
    """Ctrl-C in the step of this number; it keeps the gradient that each step applies."""

    def __init__(self, at, net):
        super().__init__(0.1, parameters=net.parameters())
        self.at, self.applied = at, []

    def step(self):
        self.applied.append(gradient(self._parameter_list))
        if len(self.applied) == self.at:
            raise KeyboardInterrupt
        super().step()


def gradient(parameters):
    return np.concatenate([p.grad.numpy().ravel() for p in parameters])


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: GradNorm(net, 3, rule="config")])
def test_the_step_after_ctrl_c_has_its_own_gradient(fc_net, named_losses, wrap):
    net = wrap(fc_net)
    sgd = Interrupted(3, net)
    trainer = Trainer(net, named_losses, sgd)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(5)
    assert trainer.step == len(trainer.history) == 2
    assert not any(gradient(net.parameters()))  # for a loop of one's own, too
    trainer.fit(1)
    np.testing.assert_allclose(sgd.applied[3], sgd.applied[2], rtol=1e-6)  # nothing has moved
    assert trainer.step == len(trainer.history) == 3


def test_ctrl_c_within_lbfgs_leaves_nothing_either(fc_net, fit_a_sine):
    trainer, calls = Trainer(fc_net, fit_a_sine, adam(fc_net)), []

    def losses(net):
        calls.append(net)
        named = fit_a_sine(net)
        if len(calls) == 3:
            sum(named.values()).backward()
            raise KeyboardInterrupt
        return named

    trainer.losses = losses
    with pytest.raises(KeyboardInterrupt):
        trainer.fit_lbfgs()
    assert trainer.step == len(trainer.history) == 0
    assert not any(gradient(fc_net.parameters()))


def test_a_fit_begins_with_clean_gradients(fc_net, named_losses):
    sum(named_losses(fc_net).values()).backward()
    expected = gradient(fc_net.parameters())
    sgd = Interrupted(None, fc_net)
    Trainer(fc_net, named_losses, sgd).fit()
    np.testing.assert_array_equal(sgd.applied[0], expected)


def test_a_full_disk_ends_the_run(tmp_path, make_trainer, monkeypatch):
    checkpoints = Checkpoints(tmp_path, every=2)
    full = []

    def write(descriptor, data, write=os.write):
        if full:
            raise OSError(28, os.strerror(28))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write)

    class FillUp(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if self.model.step == 5:
                full.append(True)

    trainer = make_trainer(callbacks=[FillUp()])
    with pytest.raises(OSError, match=r"could not be written \(No space left .*earlier ones"):
        trainer.fit(epochs=9, checkpoints=checkpoints)
    assert trainer.step == 6
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "step_00000002.ckpt",
        "step_00000004.ckpt",
    ]
    make_trainer(callbacks=[StopOnSignals()]).load(checkpoints.paths()[-1])


@pytest.mark.parametrize("resume", ["latest", "file"])
def test_another_rate_in_the_checkpoint_is_named(tmp_path, fc_net, named_losses, resume):
    checkpoints = Checkpoints(tmp_path)

    def made(rate, callbacks=()):
        return Trainer(fc_net, named_losses, adam(fc_net, rate=rate), callbacks=callbacks)

    made(1e-2).fit(2, checkpoints=checkpoints)
    path = checkpoints.paths()[-1]
    to_resume = {"resume": path}
    if resume == "latest":
        to_resume = {"resume": "latest", "checkpoints": checkpoints}
    message = r"rate 0\.0001 in the program and 0\.01 in .*ckpt, .*optimizer\.set_lr\(0\.0001\)"
    with pytest.warns(UserWarning, match=message) as record:
        made(1e-4).fit(4, **to_resume)
    assert [w.filename for w in record] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(1e-2).fit(6, **to_resume)
        # A callback that lowers rates has done so, and a schedule has moved.
        plateau = paddle.callbacks.ReduceLROnPlateau("x", verbose=0)
        lowered = made(1e-2, [plateau])
        folder = Checkpoints(tmp_path / "lowered")
        lowered.fit(1, validate=lambda net: {"x": 0}, checkpoints=folder)
        lowered.optimizers[0].set_lr(1e-3)
        lowered.save(folder.paths()[-1])
        again = made(1e-2, [paddle.callbacks.ReduceLROnPlateau("x", verbose=0)])
        again.fit(2, validate=lambda net: {"x": 0}, checkpoints=folder, resume="latest")
        assert again.optimizers[0].get_lr() == 1e-3
        by_schedule = Checkpoints(tmp_path / "schedule")
        for epochs, options in ((2, {}), (4, {"resume": "latest"})):
            schedule = paddle.optimizer.lr.ExponentialDecay(1e-2, 0.5)
            made(schedule).fit(epochs, checkpoints=by_schedule, **options)
        # The way that the warning names.
        other = made(1e-4)
        other.load(checkpoints.paths()[-1])
        other.optimizers[0].set_lr(1e-4)
        other.fit(1)
        assert other.optimizers[0].get_lr() == 1e-4


# Unknown coefficients.


def test_an_interrupt_within_the_balancer_leaves_no_half_of_a_step(fc_net, named_losses):
    net, factors, end = GradNorm(fc_net, n_loss=3, equations=["pde"]), iter([9.0, 1.0]), None

    def losses(*_):
        factor = next(factors)
        return {name: factor * loss for name, loss in named_losses(net).items()}

    def interrupted(*_):
        net.balancer._end = end
        raise KeyboardInterrupt

    trainer, end = Trainer(net, losses, adam(net)), net.balancer._end
    net.balancer._end = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.fit()
    measured = net.balancer.last_measurement.losses
    assert measured == pytest.approx([x[-1] for x in trainer.history.losses.values()], rel=1e-5)


class Inverse(paddle.nn.Layer):
    """Losses with an unknown coefficient, in a layer within this one."""

    def __init__(self, frozen=False):
        super().__init__()
        self.inner = paddle.nn.Layer()
        self.inner.k = self.inner.create_parameter([1])
        self.inner.k.stop_gradient = frozen
        self.inner.unused = self.inner.create_parameter([1])
        self.x = paddle.rand([8, 2])

    def forward(self, net):
        u = net(self.x)
        return {"pde": (self.inner.k * u - 1).square().mean(), "data": u.square().mean()}

    def losses(self, net):
        return self(net)


def as_extra(inverse):
    class Losses:
        def __call__(self, net):
            return inverse(net)

    return Losses()


def of_a_script(inverse):
    """A function that has the layer in a global, as in a script."""
    script = {"residual": inverse}
    exec("def losses(net):\n    return residual(net)", script)
    return script["losses"]


FORMS = {
    "script": of_a_script,
    "layer": lambda inverse: inverse,
    "method": lambda inverse: inverse.losses,
    "closure": lambda inverse: lambda net: inverse(net),
    "extra": as_extra,
}


@pytest.mark.parametrize("stage", ["fit", "fit_lbfgs"])
@pytest.mark.parametrize("form", FORMS)
def test_a_coefficient_that_no_optimizer_holds_is_named_once(fc_net, form, stage):
    inverse = Inverse()
    extras = {"inverse": inverse} if form == "extra" else {}
    trainer = Trainer(fc_net, FORMS[form](inverse), adam(fc_net), extras=extras)
    message = (
        r"do not hold inner\.k of Inverse, on which .*\*net\.parameters\(\), \*residual\.param"
    )
    with pytest.warns(UserWarning, match=message) as record:
        getattr(trainer, stage)(epochs=2)
        trainer.fit()
    named = [w.filename for w in record if "do not hold" in str(w.message)]
    assert named == [__file__]  # once, at the call


@pytest.mark.parametrize("form", FORMS)
def test_a_coefficient_that_is_trained_or_frozen_is_not_named(fc_net, form):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for inverse, optimizers in (
            (held := Inverse(), adam(fc_net, held)),
            (own := Inverse(), [adam(fc_net), adam(own)]),
            (Inverse(frozen=True), adam(fc_net)),
        ):
            extras = {"inverse": inverse} if form == "extra" else {}
            Trainer(fc_net, FORMS[form](inverse), optimizers, extras=extras).fit(2)


def test_a_network_that_has_been_trained_before_is_no_coefficient(fc_net):
    x, teacher = paddle.rand([8, 2]), copy.deepcopy(fc_net)
    Trainer(teacher, lambda net: [net(x).square().mean()], adam(teacher)).fit(2)

    def losses(net):
        with paddle.no_grad():
            u = teacher(x)
        return [(net(x) - u).square().mean()]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(fc_net, losses, adam(fc_net)).fit()


# L-BFGS.


@pytest.fixture
def fit_a_sine(fc_net):
    x = paddle.rand([64, 2])
    targets = (x[:, :1] * 3).sin(), (x[:, 1:] * 2).cos()

    def losses(net):
        u = net(x)
        return {"a": (u - targets[0]).square().mean(), "b": 30 * (u - targets[1]).square().mean()}

    return losses


@pytest.mark.parametrize("weight_lr", [None, 1e-3], ids=["caller's optimizer", "own step"])
def test_lbfgs_minimises_the_weighted_sum_with_frozen_weights(fc_net, fit_a_sine, weight_lr):
    net = GradNorm(fc_net, n_loss=2, alpha=1.0, weight_lr=weight_lr)
    trainer = Trainer(net, fit_a_sine, adam(net, rate=1e-2))
    trainer.fit(epochs=50)
    weights = net.get_weights()
    assert abs(weights[0] - 1) > 1e-2
    step_count = int(net.balancer.step_count)

    history = trainer.fit_lbfgs(epochs=3, max_iter=30)

    np.testing.assert_array_equal(net.get_weights(), weights)
    assert int(net.balancer.step_count) == step_count
    assert len(history) == 53 == trainer.step
    rows = history.to_numpy()
    np.testing.assert_array_equal(rows["weights"][50:], [weights] * 3)
    assert np.isnan(rows["training_rates"][50:]).all()
    assert (np.diff(rows["losses"][50:] @ weights) < 0).all()
    # It ends at a stationary point of the weighted sum, which the plain sum's is not.
    trainer.fit_lbfgs(epochs=20, max_iter=50)
    steepest = []
    for factors in (weights, (1, 1)):
        net.clear_gradients()
        sum(float(f) * loss for f, loss in zip(factors, fit_a_sine(net).values())).backward()
        steepest.append(max(p.grad.abs().max().item() for p in fc_net.parameters()))
    assert steepest[0] < 0.05 * steepest[1]
    net.clear_gradients()

    trainer.fit(epochs=2)  # and the balancing goes on
    assert (net.get_weights() != weights).any()


def test_lbfgs_leaves_its_history_to_nobody(fc_net, fit_a_sine, monkeypatch):
    """Paddle's optimizers are in a cycle, so what they hold waits for the garbage collector."""
    made = []

    class Kept(paddle.optimizer.LBFGS):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(paddle.optimizer, "LBFGS", Kept)
    trainer = Trainer(fc_net, fit_a_sine, adam(fc_net))
    trainer.fit_lbfgs(epochs=2, max_iter=8)
    (lbfgs,) = made
    assert not lbfgs.state


def test_lbfgs_trains_what_the_optimizers_train(fc_net, fit_a_sine):
    coefficient = paddle.create_parameter([1], "float32")
    fixed = fc_net.linears[0].weight.numpy()
    groups = [
        {"params": fc_net.parameters()[1:]},
        {"params": [coefficient], "learning_rate": 0.1},
    ]

    def losses(net):
        return {**fit_a_sine(net), "c": (coefficient - 3).square().sum()}

    trainer = Trainer(fc_net, losses, paddle.optimizer.Adam(1e-3, parameters=groups))
    trainer.fit_lbfgs(epochs=2)
    assert coefficient.item() == pytest.approx(3, abs=1e-2)
    np.testing.assert_array_equal(fc_net.linears[0].weight.numpy(), fixed)


# Bad arguments.


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"net": 3}, TypeError, "net must be a paddle.nn.Layer, got int 3"),
        ({"losses": [1]}, TypeError, r"losses must be a function .* got \[1\]"),
        ({"optimizers": []}, ValueError, r"optimizers must hold one at least, got \[\]"),
        ({"optimizers": ["adam"]}, TypeError, "optimizers must be of paddle.optimizer, got str"),
        ({"callbacks": ["stop"]}, TypeError, "callbacks must be .* got 'stop'"),
        (
            {"callbacks": StopOnSignals()},
            TypeError,
            r"callbacks must be a list, got StopOnSignals .* \[callback\]",
        ),
        ({"callbacks": None}, TypeError, "callbacks must be a list, got NoneType None"),
        ({"balancer": "pinn"}, TypeError, r"balancer must .* got 'pinn'; .*rule=\"pinn\""),
        ({"balancer": LossBalancer}, TypeError, "balancer must be a LossBalancer .* got <class"),
        ({"extras": [1]}, TypeError, r"extras must be a dict name -> part, got \[1\]; give each"),
        (
            {"callbacks": [paddle.callbacks.LRScheduler()]},
            ValueError,
            "leave out callbacks.LRScheduler",
        ),
        ({"schedule_by": "batch"}, ValueError, "schedule_by must be .* got 'batch'"),
        ({"progress": 1}, TypeError, "progress must be True, False or None, got 1"),
    ],
)
def test_bad_arguments_are_named(fc_net, named_losses, arguments, error, match):
    defaults = {"net": fc_net, "losses": named_losses, "optimizers": adam(fc_net)}
    with pytest.raises(error, match=match):
        Trainer(**{**defaults, **arguments})


def test_optimizers_that_need_more_than_a_gradient_are_refused(fc_net, named_losses):
    lbfgs = paddle.optimizer.LBFGS(parameters=fc_net.parameters())
    with pytest.raises(TypeError, match="for LBFGS call fit_lbfgs"):
        Trainer(fc_net, named_losses, lbfgs)
    plateau = paddle.optimizer.lr.ReduceOnPlateau(1e-3)
    with pytest.raises(ValueError, match="ReduceLROnPlateau in callbacks"):
        Trainer(fc_net, named_losses, paddle.optimizer.SGD(plateau, parameters=fc_net.parameters()))


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: GradNorm(net, 3, 1.0)])
def test_an_optimizer_of_another_network_is_refused(fc_net, named_losses, wrap):
    net, other = wrap(fc_net), wrap(copy.deepcopy(fc_net))
    with pytest.raises(
        ValueError, match=r"optimizers hold no parameter of net.*net.parameters\(\)"
    ):
        Trainer(net, named_losses, adam(other))
    Trainer(net, named_losses, [adam(other), adam(net)])
    for parameter in fc_net.parameters():
        parameter.stop_gradient = True
    assert Trainer(fc_net, named_losses, adam(other)).optimizers  # which trains something else


def test_loss_weights_that_no_optimizer_steps_are_refused(fc_net, named_losses):
    weights_alone = "optimizers hold no parameter of net"
    without_weights = "optimizers do not hold the loss weights.*weight_lr= to the balancer"
    net = GradNorm(fc_net, 3, 1.0)
    with pytest.raises(ValueError, match=without_weights):
        Trainer(net, named_losses, adam(fc_net))
    with pytest.raises(ValueError, match=weights_alone):
        Trainer(net, named_losses, paddle.optimizer.SGD(1e-3, parameters=[net.loss_weights]))
    balancer = LossBalancer(fc_net, 3, 1.0, weight_lr=None)
    with pytest.raises(ValueError, match=without_weights):
        Trainer(fc_net, named_losses, adam(fc_net), balancer)
    Trainer(fc_net, named_losses, adam(fc_net, balancer), balancer)
    Trainer(fc_net, named_losses, adam(fc_net), LossBalancer(fc_net, 3, 1.0, weight_lr=1e-3))


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer, got 1.5"),
        ({"validate_every": 0}, ValueError, "validate_every must be at least 1, got 0"),
        ({"validate": {"error": 1}}, TypeError, "validate must be a function of the network, got"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "fit_lbfgs"])
def test_bad_numbers_are_named(fc_net, named_losses, stage, arguments, error, match):
    trainer = Trainer(fc_net, named_losses, adam(fc_net))
    with pytest.raises(error, match=match):
        getattr(trainer, stage)(**arguments)
    assert trainer.step == 0


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"checkpoints": "folder"}, r"got 'folder'; pass Checkpoints\(folder\)"),
        ({"resume": True}, "resume must be a file or 'latest', got True; pass resume='latest'"),
    ],
)
def test_what_is_no_checkpoint_is_named(fc_net, named_losses, arguments, match):
    trainer = Trainer(fc_net, named_losses, adam(fc_net))
    with pytest.raises(TypeError, match=match):
        trainer.fit(2, **arguments)
    assert trainer.step == 0


@pytest.mark.parametrize("given", [0.1, None, {"error": "x"}, {"error": np.ones(3)}])
def test_what_validate_must_give_is_named(fc_net, named_losses, given):
    trainer = Trainer(fc_net, named_losses, adam(fc_net))
    with pytest.raises(TypeError, match=r"validate must give numbers by name, such as {'error'"):
        trainer.fit(2, validate=lambda net: given)
    assert fc_net.training


def test_an_error_within_validate_leaves_the_network_in_training(fc_net, named_losses):
    trainer = Trainer(fc_net, named_losses, adam(fc_net))
    with pytest.raises(ZeroDivisionError):
        trainer.fit(2, validate=lambda net: 1 / 0)
    assert fc_net.training


def test_diagnosis_of_a_run_is_the_historys_and_the_balancers(fc_net, tmp_path):
    rule = PinnRule(late=False)
    net = GradNorm(fc_net, n_loss=2, rule=rule, equations=["pde"], weight_lr=1e-3)
    x = paddle.rand([8, 2])

    def losses(net):
        u = net(x)
        return {"pde": (u - 3).square().mean(), "bc": (u - 4).square().mean()}

    trainer = Trainer(net, losses, paddle.optimizer.Adam(1e-2, parameters=net.parameters()))
    assert trainer.diagnose() == []
    trainer.fit(epochs=300)
    found = trainer.diagnose()
    assert len(found) == 2 and found[1:] == net.diagnose()
    assert found[0].startswith("The losses of 'pde' and 'bc' have come to rest against each other")
    assert found[1].startswith(
        "In the last update, in step 291, weights were still moving at the largest pace: 'bc'"
    )

    trainer.save(tmp_path / "run.ckpt")
    net.balancer.reset_initial_losses()
    trainer.load(tmp_path / "run.ckpt")  # in which the balancer's last measurement is
    assert trainer.diagnose() == found


def test_of_a_run_that_is_lost_only_that_is_said(fc_net):
    net = GradNorm(fc_net, n_loss=2, rule="pinn", equations=["pde"])

    def losses(net):
        u = net(paddle.ones([4, 2]))
        return {"pde": u.square().mean(), "bc": (u - 100).sqrt().mean()}

    trainer = Trainer(net, losses, paddle.optimizer.Adam(1e-2, parameters=net.parameters()))
    with pytest.warns(RuntimeWarning, match="loss 'bc' is nan"):
        trainer.fit(epochs=30)
    (finding,) = trainer.diagnose()
    assert finding.startswith("'bc' has been nan since step 0, and the others soon after.")


# Losses that are absent, and what is known only from the first step.


def in_turns(net):
    """The data come in every second step only."""
    in_turns.step += 1
    losses = {"pde": (10 * net(paddle.ones([4, 2]))).square().mean()}
    if in_turns.step % 2 == 0:
        losses["data"] = (net(paddle.zeros([4, 2])) - 1).square().mean()
    return losses


@pytest.mark.parametrize("n_loss", [2, None])
def test_a_loss_that_is_absent_is_nan_in_the_history(n_loss):
    in_turns.step = 0 if n_loss else 1  # without n_loss the first step must have all of them
    net = GradNorm(FCNet(2, 1, 2, 8), n_loss, absent="skip")
    adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
    history = Trainer(net, in_turns, adam).fit(epochs=8)
    assert history.names == ["pde", "data"]
    absent = [True, False] * 4 if n_loss else [False, True] * 4
    assert np.isnan(history.losses["data"]).tolist() == absent
    assert np.isfinite(history.losses["pde"]).all()
    assert history.weights["data"][0] == 1 and net.get_weights()[1] > 1


def test_a_run_whose_number_of_losses_the_first_step_tells_resumes_to_the_last_bit(tmp_path):
    def trainer():
        paddle.seed(0)
        net = GradNorm(FCNet(2, 1, 2, 8), absent="skip", total_steps=30)
        adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
        return Trainer(net, in_turns, adam)

    in_turns.step = 1
    whole = trainer()
    whole.fit(epochs=30)
    in_turns.step = 1
    first = trainer()
    first.fit(epochs=11)
    first.save(tmp_path / "run.ckpt")
    second = trainer()
    second.load(tmp_path / "run.ckpt")
    second.fit(epochs=19)
    assert second.net.get_weights().tolist() == whole.net.get_weights().tolist()
    assert second.net.get_weights()[1] > 1
    for one, other in zip(second.net.parameters(), whole.net.parameters()):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    np.testing.assert_array_equal(second.history.losses["data"], whole.history.losses["data"])


def test_losses_that_know_their_equations_pass_through():
    training = problem("plate").sample(20)
    net = GradNorm(FCNet(2, 1, 2, 8))  # "deflection" and "moment_x" do not tell
    adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
    Trainer(net, training.losses, adam).fit(epochs=1)
    assert net.balancer.last_measurement.equations.tolist() == [True, False, False, False]


def test_lbfgs_may_come_first_when_the_number_of_losses_is_not_known():
    net = GradNorm(FCNet(2, 1, 2, 8))
    parameters = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
    training = problem("laplace").sample(30)
    history = Trainer(net, training.losses, parameters).fit_lbfgs(epochs=2)
    assert history.to_numpy()["weights"].tolist() == [[1] * 5] * 2
    assert history.losses["pde"][1] != history.losses["pde"][0]


def test_a_validation_that_calls_the_losses_moves_no_weights_of_points():
    curves = []
    for watches in (False, True):
        paddle.seed(0)
        training = problem("heat").sample(20, seed=0, point_weights="self_adaptive")
        net = FCNet(2, 1, 2, 8)
        adam = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
        trainer = Trainer(net, training.losses, adam, progress=False)

        def watched(net, losses=training.losses):
            return {name: loss.item() for name, loss in losses(net).items()}

        trainer.fit(epochs=5, validate=watched if watches else None)
        curves.append(trainer.history.to_numpy()["losses"])
    np.testing.assert_array_equal(*curves)


def closing_over_weights(folder, epochs, names_the_layer, resume=None):
    """A run with weights of points that its function of losses names, or that another one calls."""
    paddle.seed(0)
    attention = SelfAdaptiveWeights(16, rate=0.1)
    x = paddle.rand([16, 2])

    def named(net):
        return {"pde": attention(net(x) - 1).square().mean()}

    def hidden(net):
        return named(net)

    net = FCNet(2, 1, 2, 4)
    losses = named if names_the_layer else hidden
    trainer = Trainer(net, losses, adam(net))
    trainer.fit(epochs=epochs, checkpoints=Checkpoints(folder, every=4), resume=resume)
    return trainer, attention


def test_checkpoints_hold_the_weights_of_points_that_the_losses_name(tmp_path):
    through, expected = closing_over_weights(tmp_path / "through", 7, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closing_over_weights(tmp_path / "parted", 4, True)
        resumed, found = closing_over_weights(tmp_path / "parted", 7, True, resume="latest")
    np.testing.assert_array_equal(found.weights.numpy(), expected.weights.numpy())
    np.testing.assert_array_equal(*(t.history.to_numpy()["losses"] for t in (through, resumed)))


def test_weights_of_points_that_no_checkpoint_holds_are_told_once(tmp_path):
    text = r"do not hold SelfAdaptiveWeights\(n_points=16\), .*extras=\{\"points\": layer\}"
    with pytest.warns(RuntimeWarning, match=text) as found:
        trainer, attention = closing_over_weights(tmp_path / "a", 9, False)
    assert len(found) == 1 and found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.save(tmp_path / "again.ckpt")
        named = Trainer(trainer.net, trainer.losses, trainer.optimizers, extras={"x": attention})
        named.fit(epochs=1, checkpoints=Checkpoints(tmp_path / "b"))
        other = Trainer(trainer.net, trainer.losses, trainer.optimizers)
        other.fit(epochs=1)  # which saves nothing
    with pytest.warns(RuntimeWarning, match=text) as found:
        other.save(tmp_path / "other.ckpt")
    assert found[0].filename == __file__


def test_a_balancer_that_the_losses_name_is_in_a_checkpoint_once():
    net = FCNet(2, 1, 2, 4)
    balancer = LossBalancer(net, 2)
    x = paddle.rand([4, 2])

    def losses(net):
        return [net(x).mean() * balancer.loss_weights[0], net(x).square().mean()]

    trainer = Trainer(net, losses, adam(net), balancer)
    assert not [name for name in trainer._state.state()["parts"] if name.startswith("losses")]
