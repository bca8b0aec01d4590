import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, RotateOnly, RotoGrad, RotoGradNorm, cached
from paddlescience_gradnorm.rotograd import rotate_only

WIDTH = 6


def trunk(width=WIDTH):
    return paddle.nn.Sequential(paddle.nn.Linear(2, width), paddle.nn.Tanh())


def heads(tasks=3, width=WIDTH):
    return [paddle.nn.Linear(width, 1) for _ in range(tasks)]


def some_rotations(tasks=3, size=WIDTH):
    rng = np.random.default_rng(0)
    return np.stack([np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(tasks)])


@pytest.fixture
def model():
    made = RotoGradNorm(trunk(), heads(), WIDTH)
    made.set_rotation(some_rotations())
    return made


@pytest.fixture
def points():
    return paddle.rand([8, 2])


# The model as a network.


@pytest.mark.parametrize("training", [True, False])
def test_predictions_are_those_of_the_rotated_representation(model, points, training):
    (model.train if training else model.eval)()
    latent = model.backbone(points).numpy()
    predictions = model(points)
    assert isinstance(predictions, list) and len(predictions) == len(model) == 3
    for k, prediction in enumerate(predictions):
        head = model.heads[k]
        expected = latent @ some_rotations()[k].T @ head.weight.numpy() + head.bias.numpy()
        np.testing.assert_allclose(prediction.numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(model[k](points).numpy(), expected, atol=1e-5)


def test_the_model_of_one_task_is_end_to_end(model, points):
    single = model[-1]
    single(points).mean().backward()
    assert model.backbone[0].weight.grad is not None
    assert model.heads[2].weight.grad is not None and model.heads[0].weight.grad is None
    assert model.mtl_parameters()[0].grad is None
    assert [id(m.head) for m in model] == [id(head) for head in model.heads]
    for task in (3, -4):
        with pytest.raises(IndexError, match="there are 3 tasks"):
            model[task]


def test_the_users_list_stays_as_it_was():
    given = heads()
    before = list(given)
    model = RotateOnly(trunk(), given, WIDTH)
    model.heads.append(paddle.nn.Linear(WIDTH, 1))
    assert [id(head) for head in given] == [id(head) for head in before]
    assert [type(head) for head in given] == [paddle.nn.Linear] * 3


def test_parameters_are_divided_between_two_optimizers(model):
    network = [*model.backbone.parameters(), *model.heads.parameters()]
    assert {id(p) for p in model.model_parameters()} == {id(p) for p in network}
    own = model.mtl_parameters()
    assert [list(p.shape) for p in own] == [[3, WIDTH, WIDTH], [3]]
    assert {id(p) for p in model.parameters()} == {id(p) for p in [*network, *own]}


def test_train_and_eval_reach_backbone_and_heads():
    model = RotateOnly(trunk(), [paddle.nn.Dropout(), paddle.nn.Dropout()], WIDTH)
    model.eval()
    assert not any(layer.training for layer in (model.backbone, *model.heads))
    model.train()
    assert all(layer.training for layer in (model.backbone, *model.heads))


# Extras.


class WithExtras(paddle.nn.Layer):
    def __init__(self, layer, *extras):
        super().__init__()
        self.layer, self.extras = layer, extras

    def forward(self, ins):
        return (self.layer(ins), *self.extras)


@pytest.mark.parametrize("training", [True, False])
def test_extras_are_handed_on(points, training):
    layers = heads()
    model = RotateOnly(
        WithExtras(trunk(), "a", "b"), [layers[0], WithExtras(layers[1], "c"), layers[2]], WIDTH
    )
    (model.train if training else model.eval)()
    predictions, extras = model(points)
    assert [list(u.shape) for u in predictions] == [[8, 1]] * 3
    assert extras == ["a", "b", ("c",)]
    if training:
        model.backward([u.mean() for u in predictions])
        assert model.backbone.layer[0].weight.grad is not None
    assert model[1](points)[1] == "c"


# How often what runs.


def test_backbone_and_heads_are_differentiated_once(as_layer, points):
    class Counting(paddle.autograd.PyLayer):
        @staticmethod
        def forward(ctx, x, calls, name):
            ctx.calls, ctx.name = calls, name
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            ctx.calls.append(ctx.name)
            return gradient

    class Counted(paddle.nn.Layer):
        def __init__(self, layer, name):
            super().__init__()
            self.layer, self.name = layer, name

        def forward(self, ins):
            return Counting.apply(self.layer(ins), calls, self.name)

    calls = []
    layers = [
        as_layer(paddle.nn.Sequential(layer, Counted(paddle.nn.Tanh(), k)))
        for k, layer in enumerate(heads())
    ]
    model = RotoGradNorm(Counted(trunk(), "backbone"), layers, WIDTH)
    model.backward([u.square().mean() for u in model(points)])
    assert sorted(calls[:-1]) == [0, 1, 2] and calls[-1] == "backbone"


def test_cached_computes_the_rotations_once_a_step(model, points, monkeypatch):
    calls = []
    settled = type(model.rotations)._settled
    monkeypatch.setattr(type(model.rotations), "_settled", lambda r: calls.append(1) or settled(r))
    with cached():
        inside, edge = model(points), model(points + 1)
        model.backward([u.square().mean() + v.square().mean() for u, v in zip(inside, edge)])
        assert model.rotation is model.rotation
    assert calls == [1]


# A further loss of the backbone.


def test_a_backbone_loss_joins_the_one_pass(float64):
    points = paddle.rand([8, 2])
    gradients = {}
    model = RotateOnly(trunk(), heads(), WIDTH)
    for which in ("tasks", "backbone", "both"):
        model.clear_gradients()
        predictions = model(points)
        penalty = model._cuts[0].latent.square().mean()
        if which == "backbone":
            penalty.backward()
            model._cuts.clear()
        else:
            model.backward([u.mean() for u in predictions], penalty if which == "both" else None)
        gradients[which] = model.backbone[0].weight.grad.numpy().copy()
    np.testing.assert_allclose(
        gradients["both"], gradients["tasks"] + gradients["backbone"], rtol=1e-12
    )


def test_a_loss_with_another_way_to_the_backbone_needs_its_graph_kept(float64):
    class Returning(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.layer = trunk()

        def forward(self, ins):
            latent = self.layer(ins)
            return latent, latent.square().mean()

    points = paddle.rand([8, 2])
    model = RotateOnly(Returning(), heads(), WIDTH)

    def losses():
        predictions, (penalty,) = model(points)
        return [u.mean() + penalty for u in predictions]

    with pytest.raises(RuntimeError, match=r"graph of loss 'backbone' is gone.*retain_graph=True"):
        model.backward(losses())
    model.clear_gradients()
    model.backward(losses(), retain_graph=True)
    found = model.backbone.layer[0].weight.grad.numpy().copy()
    model.clear_gradients()
    latent = model.backbone.layer(points)
    sum(head(latent).mean() + latent.square().mean() for head in model.heads).backward()
    np.testing.assert_allclose(found, model.backbone.layer[0].weight.grad.numpy(), rtol=1e-10)


def test_a_frozen_backbone_or_head_is_no_fault(points):
    model = RotateOnly(trunk(), heads(), WIDTH)
    for parameter in model.backbone.parameters():
        parameter.stop_gradient = True
    model.backward([u.mean() for u in model(points)])
    assert model.heads[0].weight.grad is not None
    model = RotateOnly(trunk(), heads(), WIDTH)
    for parameter in model.heads.parameters():
        parameter.stop_gradient = True
    model.backward([u.mean() for u in model(points)])
    assert model.backbone[0].weight.grad.abs().max().item() > 0


# Shapes.


@pytest.mark.parametrize("latent, post", [((6,), (4,)), ((2, 3), ()), ((2, 3), (2, 2)), (6, ())])
def test_shapes_are_rotated_as_one_vector(latent, post, float64):
    shape = [*np.atleast_1d(latent), *post]

    class Reshaping(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.linear = paddle.nn.Linear(2, int(np.prod(shape)))

        def forward(self, ins):
            return self.linear(ins).reshape([-1, *map(int, shape)])

    class Summing(paddle.nn.Layer):
        def forward(self, z):
            return (z * paddle.arange(z[0].size, dtype=z.dtype).reshape(z.shape[1:])).sum()

    model = RotateOnly(Reshaping(), [Summing(), Summing()], latent, post_shape=post)
    rotations = some_rotations(2)
    model.set_rotation(rotations)
    points = paddle.rand([5, 2])
    latents = model.backbone(points).numpy().reshape(5, 6, -1)
    predictions = model(points)
    for rotation, prediction in zip(rotations, predictions):
        turned = np.einsum("ij,njp->nip", rotation, latents).reshape(5, -1)
        expected = (turned * np.arange(turned.shape[1])).sum()
        assert prediction.item() == pytest.approx(expected, rel=1e-12)
    # The gradients on the representation, by hand, and what they do to the rotations.
    model.backward(predictions)
    on_rotated = np.tile(np.arange(latents[0].size).reshape(6, -1), (5, 1, 1)).astype(float)
    gradients = np.einsum("kij,nip->knjp", rotations, on_rotated)
    total = gradients.sum(0).reshape(5, -1)
    np.testing.assert_allclose(
        model.backbone.linear.weight.grad.numpy(), points.numpy().T @ total, rtol=1e-10
    )
    norms = np.sqrt((gradients**2).sum(axis=(1, 2, 3), keepdims=True))
    mean_norm = np.linalg.norm(gradients.mean(0))
    direction = (gradients / norms).mean(0) * mean_norm
    for k, found in enumerate(model.rotation_gradient.numpy()):
        distance = np.einsum("ij,njp->nip", rotations[k], direction - gradients[k])
        expected = 2 * np.einsum("nip,njp->ij", distance, direction) / (5 if post else 1)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


# What users get wrong.


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"backbone": None}, TypeError, "backbone must be a paddle.nn.Layer, got None"),
        ({"heads": heads(1)}, ValueError, "heads must be at least 2.*got 1"),
        ({"heads": paddle.nn.Linear(6, 1)}, TypeError, "heads must be a list.*got Linear"),
        ({"heads": [paddle.nn.Tanh(), 3]}, TypeError, r"heads\[1\] must be .* got 3"),
        ({"latent_size": 0}, ValueError, "latent_size must be at least 1, got 0"),
        ({"latent_size": 6.0}, TypeError, "latent_size must be an integer, got 6.0"),
        ({"latent_size": (2, 0)}, ValueError, r"latent_size\[1\] must be at least 1"),
        ({"latent_size": ()}, ValueError, "latent_size must have at least one dimension"),
        ({"post_shape": (0,)}, ValueError, r"post_shape\[0\] must be at least 1"),
        ({"burn_in_period": -1}, ValueError, "burn_in_period must be at least 0, got -1"),
        ({"normalize_losses": 1}, TypeError, "normalize_losses must be True or False, got 1"),
        ({"alpha": -1.0}, ValueError, "alpha must be finite and at least 0, got -1.0"),
        ({"version": "2"}, ValueError, "version must be one of .* got '2'"),
    ],
)
@pytest.mark.parametrize("cls", [RotateOnly, RotoGrad, RotoGradNorm])
def test_bad_arguments_are_named(cls, change, error, match):
    options = {"backbone": trunk(), "heads": heads(), "latent_size": WIDTH, **change}
    with pytest.raises(error, match=match):
        cls(**options)


@pytest.mark.parametrize("cls", [RotateOnly, RotoGrad])
def test_alpha_without_the_version_that_has_it_is_named(cls):
    with pytest.raises(ValueError, match=r"no alpha in version '0\.1\.6', got 0\.5.*'0\.1\.2'"):
        cls(trunk(), heads(), WIDTH, alpha=0.5)
    assert cls(trunk(), heads(), WIDTH, alpha=0.5, version="0.1.2").alpha == 0.5


def test_a_representation_of_another_size_is_named(points):
    for size, post, match in (
        (5, (), r"\[\.\.\., 5\], but it returned \[8, 6\]"),
        (6, (2,), r"\[\.\.\., 6, 2\], but it returned \[8, 6\]"),
    ):
        model = RotateOnly(trunk(), heads(), size, post_shape=post)
        with pytest.raises(ValueError, match=f"latent_size.*{match}"):
            model(points)
        with pytest.raises(ValueError, match="latent_size"):
            model[0](points)
    model = RotateOnly(WithExtras(paddle.nn.Identity()), heads(), 2)
    with pytest.raises(TypeError, match="backbone must return a tensor first, got 'text'"):
        model("text")


def test_misuse_of_backward_is_named(model, points):
    with pytest.raises(RuntimeError, match="before a forward pass"):
        model.backward([points.mean()] * 3)
    with paddle.no_grad():
        values = [u.mean() for u in model(points)]
    with pytest.raises(RuntimeError, match="before a forward pass"):
        model.backward(values)
    model.eval()
    values = [u.mean() for u in model(points)]
    with pytest.raises(RuntimeError, match=r"evaluation mode; call train\(\)"):
        model.backward(values)
    model.train()
    u, v, p = (u.square().mean() for u in model(points))
    with pytest.raises(ValueError, match="losses has 2 entries, but there are 3 heads"):
        model.backward([u, v])
    with pytest.raises(ValueError, match=r"loss 'losses\[1\]' does not depend on a prediction"):
        model.backward([u, v.detach(), p])
    model.backward([u, v, p])  # the mistakes have used nothing up
    with pytest.raises(RuntimeError, match="before a forward pass"):
        model.backward([u, v, p])


def test_a_head_without_a_loss_is_named(model, points):
    u, v, _ = (u.mean() for u in model(points))
    with pytest.raises(ValueError, match=r"no loss depends on the prediction of heads\[2\]"):
        model.backward([u, v, u + v])


def test_a_used_graph_is_named(points):
    model = RotateOnly(FCNet(2, WIDTH, 2, 8), heads(), WIDTH)
    values = [u.mean() for u in model(points)]
    sum(values).backward()
    with pytest.raises(RuntimeError, match=r"graph of loss .* is gone"):
        model.backward(values)


def test_passes_that_nobody_takes_back_are_told_once(model, points):
    for _ in range(rotate_only.MANY_PASSES - 1):
        model(points)
    with pytest.warns(RuntimeWarning, match=r"called 200 times .* after model\.eval\(\)") as told:
        for _ in range(3):
            predictions = model(points)
    assert [warning.filename for warning in told] == [__file__]
    model.backward([prediction.square().mean() for prediction in predictions])
    model.eval()
    for _ in range(rotate_only.MANY_PASSES):
        model(points)
    model.train()
    with paddle.no_grad():
        for _ in range(rotate_only.MANY_PASSES):
            model(points)
    for _ in range(rotate_only.MANY_PASSES - 1):
        model(points)
