import copy
import pickle

import numpy as np
import paddle
import pytest

import paddlescience_gradnorm
from paddlescience_gradnorm import RotateOnly, RotoGrad, RotoGradNorm

WIDTH, TASKS = 6, 3
CLASSES = [RotateOnly, RotoGrad, RotoGradNorm]


def trunk():
    return paddle.nn.Sequential(paddle.nn.Linear(2, WIDTH), paddle.nn.Tanh())


def heads(tasks=TASKS):
    return [paddle.nn.Linear(WIDTH, 1) for _ in range(tasks)]


def build(cls=RotoGradNorm, **options):
    return cls(trunk(), heads(), WIDTH, **options)


def losses(model, seed=0):
    """Of very different size."""
    points = np.random.default_rng(seed).random((8, 2))
    points = paddle.to_tensor(points, dtype=model.parameters()[0].dtype)
    return [
        10.0**k * (u - k * points[:, :1]).square().mean() for k, u in enumerate(model(points), -1)
    ]


def optimizers(model, rate=1e-2):
    return [
        paddle.optimizer.Adam(rate, parameters=model.model_parameters()),
        paddle.optimizer.Adam(rate, parameters=model.mtl_parameters()),
    ]


def train(model, steps, steppers=None, start=0):
    steppers = steppers or optimizers(model)
    for step in range(start, start + steps):
        model.backward(losses(model, seed=step))
        for stepper in steppers:
            stepper.step()
            stepper.clear_grad()


# The mathematics.


def test_reference_is_reproduced(rotograd_reference):
    arrays = rotograd_reference.arrays
    cls = getattr(paddlescience_gradnorm, rotograd_reference.class_name)
    model = cls(
        rotograd_reference.backbone,
        rotograd_reference.heads,
        latent_size=6,
        **rotograd_reference.options,
    )
    model.set_rotation(arrays["R"])
    model.coop(rotograd_reference.coop)
    for step in (0, 1):
        predictions = model(rotograd_reference.inputs(step))
        task_losses = rotograd_reference.losses(predictions, step)
        found = {
            "preds": paddle.stack(predictions).numpy(),
            "losses": [loss.item() for loss in task_losses],
        }
        model.backward(task_losses)
        found["backbone_w_grad"] = model.backbone[0].weight.grad.numpy()
        found["backbone_b_grad"] = model.backbone[0].bias.grad.numpy()
        for task, linear in enumerate(rotograd_reference.linears):
            found[f"head{task}_w_grad"] = linear.weight.grad.numpy()
            found[f"rotation{task}_grad"] = model.rotation_gradient[task].numpy()
        if cls is RotoGradNorm:
            found["weight"] = model.get_weights()
            found["weight_param_grad"] = model.mtl_parameters()[1].grad.numpy()
        assert {f"{name}{step}" for name in found} == {
            name for name in arrays.files if name.endswith(f"{step}") and not name.startswith("R")
        }
        for name, values in found.items():
            np.testing.assert_allclose(values, arrays[f"{name}{step}"], rtol=0, atol=1e-10)
        model.clear_gradients()


@pytest.mark.parametrize("cls", CLASSES)
def test_what_optimizers_see_of_the_rotations(cls, float64):
    # The tangent's gradient is the part of the matrices' that turns, seen from the matrix.
    model = build(cls)
    model.set_rotation([np.linalg.qr(np.random.default_rng(k).random((6, 6)))[0] for k in range(3)])
    model.backward(losses(model))
    seen = model.rotation.numpy().transpose(0, 2, 1) @ model.rotation_gradient.numpy()
    expected = np.tril(seen - seen.transpose(0, 2, 1), -1)
    np.testing.assert_allclose(model.mtl_parameters()[0].grad.numpy(), expected, rtol=1e-9)
    assert np.abs(expected).max() > 0


@pytest.mark.parametrize("cls", CLASSES)
def test_identical_heads_and_losses_change_nothing(cls, float64):
    bare, head = trunk(), paddle.nn.Linear(WIDTH, 1)
    model = cls(copy.deepcopy(bare), [copy.deepcopy(head) for _ in range(TASKS)], WIDTH)
    steppers = [
        paddle.optimizer.SGD(0.1, parameters=model.model_parameters()),
        paddle.optimizer.SGD(10.0, parameters=model.mtl_parameters()),
    ]
    stepper = paddle.optimizer.SGD(0.1, parameters=[*bare.parameters(), *head.parameters()])
    for seed in range(20):
        points = paddle.to_tensor(np.random.default_rng(seed).random((8, 2)))
        target = paddle.sin(points[:, :1])
        model.backward([(u - target).square().mean() for u in model(points)])
        prediction = head(bare(points))
        # As many equal gradients arrive at the backbone, and one at each head.
        loss = (prediction - target).square().mean()
        (TASKS * loss).backward()
        for parameter in head.parameters():
            parameter.grad = parameter.grad / TASKS
        for each in [*steppers, stepper]:
            each.step()
            each.clear_grad()
    np.testing.assert_allclose(
        model.rotation.numpy(), np.stack([np.eye(WIDTH)] * TASKS), atol=1e-12
    )
    for prediction in model(points):
        np.testing.assert_allclose(prediction.numpy(), head(bare(points)).numpy(), atol=1e-12)


def test_training_turns_gradients_one_way(float64):
    # Two heads that read z by fixed vectors, nearly opposite ones: so are their gradients.
    model = RotateOnly(trunk(), heads(2), WIDTH)
    vectors = np.random.default_rng(0).standard_normal((2, WIDTH))
    vectors[1] -= 3 * vectors[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for vector, head in zip(vectors, model.heads):
        head.weight.set_value(vector[:, None])
    stepper = paddle.optimizer.SGD(1.0, parameters=model.mtl_parameters())
    points = paddle.to_tensor(np.random.default_rng(1).random((8, 2)))
    cosines = []
    for _ in range(200):
        model.backward([u.mean() for u in model(points)])
        stepper.step()
        stepper.clear_grad()
        turned = (model.rotation.numpy().transpose(0, 2, 1) @ vectors[:, :, None])[:, :, 0]
        cosines.append(turned[0] @ turned[1])
    assert vectors[0] @ vectors[1] < -0.7
    assert cosines[-1] > 0.999
    assert np.abs(model.rotation.numpy()[0] - np.eye(WIDTH)).max() > 0.1  # each goes its half


def test_several_passes_count_as_one(float64, as_layer):
    # A pass over all points, and one over each half of them, with the same losses.
    layers = heads()
    whole = RotoGradNorm(trunk(), [as_layer(head) for head in layers], WIDTH)
    halves = copy.deepcopy(whole)
    points = paddle.to_tensor(np.random.default_rng(0).random((8, 2)))
    outputs = whole(points)
    whole.backward([(u - k).square().sum() for k, u in enumerate(outputs)])
    first, second = halves(points[:4]), halves(points[4:])
    halves(points)  # not used in a loss
    halves.backward(
        [
            ((u - k).square().sum() + (v - k).square().sum())
            for k, (u, v) in enumerate(zip(first, second))
        ]
    )
    for one, other in zip(whole.parameters(), halves.parameters()):
        np.testing.assert_allclose(one.grad.numpy(), other.grad.numpy(), rtol=1e-9, atol=1e-14)


def test_a_head_that_one_of_two_passes_does_not_use(float64, as_layer):
    model = RotoGrad(trunk(), [as_layer(head) for head in heads()], WIDTH)
    points = paddle.to_tensor(np.random.default_rng(0).random((8, 2)))
    inside, edge = model(points[:5]), model(points[5:])
    model.backward([inside[0].mean() + edge[0].mean(), inside[1].mean(), edge[2].mean()])
    weights = [(getattr(head, "layer", head)).weight.grad for head in model.heads]
    latent = model.backbone(points).numpy()
    for found, rows in zip(
        weights, (latent[:5].mean(0) + latent[5:].mean(0), latent[:5].mean(0), latent[5:].mean(0))
    ):
        np.testing.assert_allclose(found.numpy()[:, 0], rows, rtol=1e-10)


def test_a_loss_may_depend_on_several_heads(float64, as_layer):
    # At rotations of 1, RotateOnly gives the gradients of the sum, whatever the losses.
    layers = heads()
    model = RotateOnly(trunk(), [as_layer(head) for head in layers], WIDTH)
    points = paddle.to_tensor(np.random.default_rng(0).random((8, 2)))

    def coupled(u, v, p):
        return [(u * v).mean(), (v - p).square().mean(), (u + v + p).abs().mean()]

    model.backward(coupled(*model(points)))
    found = [p.grad.numpy().copy() for p in model.model_parameters()]
    model.clear_gradients()
    latent = model.backbone(points)
    sum(coupled(*[head(latent) for head in layers])).backward()
    for gradient, parameter in zip(found, model.model_parameters()):
        np.testing.assert_allclose(gradient, parameter.grad.numpy(), rtol=1e-10)


def test_normalized_losses_reach_the_heads_too(float64):
    model = build(RotateOnly, normalize_losses=True)
    bare = copy.deepcopy(model)
    bare.normalize_losses = False
    initial = [loss.item() for loss in losses(model)]
    for each in (model, bare):
        each.backward(losses(each))
    for head, other, value in zip(model.heads, bare.heads, initial):
        np.testing.assert_allclose(
            value * head.weight.grad.numpy(), other.weight.grad.numpy(), rtol=1e-10
        )
    for each in (model, bare):
        each.clear_gradients()
        each.backward(
            [0 * loss for loss in losses(each)], 3 * each.backbone[0].weight.square().sum()
        )
    ratio = bare.backbone[0].weight.grad / model.backbone[0].weight.grad
    np.testing.assert_allclose(
        ratio.numpy(), 3 * bare.backbone[0].weight.square().sum().item(), rtol=1e-10
    )


def test_references_are_taken_again_after_the_burn_in():
    model = build(burn_in_period=2)
    seen = []
    for step in range(4):
        values = losses(model, seed=step)
        model.backward(values)
        seen.append([loss.item() for loss in values])
        expected = seen[2 if step >= 2 else 0]
        np.testing.assert_allclose(model.references.initial_losses.numpy(), expected, rtol=1e-6)


def test_gradnorm_weights_learn_and_sum_to_their_number():
    model = build()
    train(model, 30)
    weights = model.get_weights()
    assert weights.sum() == pytest.approx(TASKS, abs=1e-5)
    assert weights[0] > weights[1] > weights[2]  # the losses are of rising size
    np.testing.assert_array_equal(weights, model.weight.numpy())


@pytest.mark.parametrize("cls", CLASSES)
def test_cooperation_trains_rotations_on_the_tasks_too(cls, float64):
    gradients = []
    for coop in (False, True):
        model = build(cls)
        paddle.seed(0)
        model = build(cls)
        assert model.coop(coop) is model
        model.backward(losses(model))
        gradients.append(model.rotation_gradient.numpy())
    assert np.abs(gradients[0] - gradients[1]).max() > 1e-3


# Faults.


@pytest.mark.parametrize("cls", CLASSES)
def test_a_nan_loss_is_reported_and_not_learned_from(cls):
    model = build(cls)
    train(model, 2)
    rotations = model.rotation.numpy()
    bad = losses(model)
    bad[1] = bad[1] * float("nan")
    with pytest.warns(RuntimeWarning, match="step 2: losses .*nan") as record:
        model.backward(bad)
    assert record[0].filename == __file__
    assert np.isnan(model.backbone[0].weight.grad.numpy()).any()
    assert (model.rotation_gradient.numpy() == 0).all()  # what the optimizer has got
    for parameter in model.mtl_parameters():
        assert (parameter.grad.numpy() == 0).all()
    assert np.isfinite(rotations).all()


def test_a_loss_that_starts_at_zero_gets_its_reference_later(recorded_warnings):
    model = build(RotoGradNorm)
    for step in range(3):
        values = losses(model)
        if step == 0:
            values[1] = 0 * values[1]
        model.backward(values)
        assert (model.references.initial_losses.numpy() > 0).all() == (step > 0)
        assert (np.abs(model.mtl_parameters()[1].grad.numpy()).max() > 0) == (step > 0)
    messages = [str(w.message) for w in recorded_warnings if w.category is RuntimeWarning]
    assert len(messages) == 1 and messages[0].startswith("step 0: losses")


# Copies and states.


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict", "file"])
def test_a_copy_continues_as_the_original(cls, how, tmp_path):
    def sgd(model):
        return [paddle.optimizer.SGD(1e-2, parameters=model.parameters())]

    model = build(cls, burn_in_period=4)
    train(model, 3, sgd(model))
    model(paddle.rand([4, 2]))  # a pass that waits for its backward
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        twin = build(cls, burn_in_period=4)
        state = model.state_dict()
        if how == "file":
            paddle.save(state, str(tmp_path / "model.pdparams"))
            state = paddle.load(str(tmp_path / "model.pdparams"))
        twin.set_state_dict(state)
    for each in (model, twin):
        train(each, 4, sgd(each), start=3)
    np.testing.assert_array_equal(model.rotation.numpy(), twin.rotation.numpy())
    for one, other in zip(model.parameters(), twin.parameters()):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), twin.state_dict()[key].numpy())
    train(twin, 1)
    assert (twin.backbone[0].weight - model.backbone[0].weight).abs().max().item() > 0


def test_conversion_keeps_rotations_and_counts_precise():
    model = build()
    train(model, 2)
    rotations = model.rotation.numpy()
    for dtype in ("bfloat16", "float64", "float32"):
        model.to(dtype=dtype)
        assert model.backbone[0].weight.dtype == getattr(paddle, dtype)
        np.testing.assert_allclose(model.rotation.numpy(), rotations, rtol=1e-6)
        assert model.references.step_count.dtype == paddle.int64
        assert model.references.initial_losses.dtype == paddle.float64
    assert model.rotation.dtype == paddle.float32
    model.to(dtype="float64")
    train(model, 2)
    assert model.rotation.dtype == paddle.float64


@pytest.mark.parametrize("cls", CLASSES)
def test_backward_returns_the_sum_of_the_losses(cls):
    model = build(cls, normalize_losses=True)
    scalars = losses(model)
    expected = sum(loss.item() for loss in scalars)
    total = model.backward(scalars)
    assert total.stop_gradient and total.shape == []
    assert total.item() == pytest.approx(expected, rel=1e-5)
