import numpy as np
import paddle
import pytest

from paddlescience_gradnorm import FCNet, NetworkBase
from paddlescience_gradnorm.rotograd._gradients import FactoredGradients
from paddlescience_gradnorm.rotograd._latent_cut import LatentCut, LatentSpace, latent_gradients

N, D = 8, 6


@pytest.fixture
def latent(float64):
    made = paddle.rand([N, D])
    made.stop_gradient = False
    return made


@pytest.fixture
def rotation(float64):
    made, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))
    return paddle.to_tensor(made)


@pytest.mark.parametrize("shape, post", [((4,), ()), ((2, 3), ()), ((4,), (2, 5)), ((2, 2), (3,))])
def test_rows_are_undone(shape, post):
    space = LatentSpace(shape, post)
    latent = paddle.rand([3, 2, *shape, *post])
    space.check(latent)
    rows = space.to_rows(latent)
    assert list(rows.shape) == [3 * 2 * space.post_size, space.size]
    np.testing.assert_array_equal(space.from_rows(rows, latent.shape).numpy(), latent.numpy())


def known_heads():
    linear = paddle.nn.Linear
    return {
        "linear": linear(D, 2),
        "no bias": linear(D, 2, bias_attr=False),
        "sequential": paddle.nn.Sequential(linear(D, 4), paddle.nn.Tanh(), linear(4, 1)),
        "nested": paddle.nn.Sequential(paddle.nn.Sequential(linear(D, 4)), paddle.nn.Tanh()),
        "network": FCNet(D, 1, 3, 5),
    }


def opaque_heads():
    class Subclass(paddle.nn.Linear):
        def forward(self, ins):
            return super().forward(ins * ins)

    class Doubled(FCNet):
        def nn_func(self, ins):
            return super().nn_func(2 * ins)

    class Twice(NetworkBase):
        def __init__(self):
            super().__init__()
            self.linear = paddle.nn.Linear(D, D)

        def nn_func(self, ins):
            return self.linear(self.linear(ins)) + ins

    hooked, frozen = paddle.nn.Linear(D, 2), paddle.nn.Linear(D, 2)
    hooked.register_forward_pre_hook(lambda layer, ins: (ins[0] * ins[0],))
    frozen.weight.stop_gradient = True
    return {
        "subclass": Subclass(D, 2),
        "overridden": Doubled(D, 1, 3, 5),
        "used twice": Twice(),
        "hooked": hooked,
        "frozen": frozen,
        "activation first": paddle.nn.Sequential(paddle.nn.Tanh(), paddle.nn.Linear(D, 1)),
        "empty": paddle.nn.Sequential(),
    }


@pytest.mark.parametrize("name", [*known_heads(), *opaque_heads()])
def test_prediction_and_gradients_are_those_of_the_rotated_representation(latent, rotation, name):
    heads = {**known_heads(), **opaque_heads()}
    head = heads[name]
    cut = LatentCut(latent, LatentSpace((D,)))
    prediction = cut.enter(head, rotation)
    prediction.square().sum().backward()
    assert latent.grad is None
    assert cut._outputs[0].shape[-1] == D or name in known_heads()
    found = {p.name: p.grad.numpy().copy() for p in head.parameters() if p.grad is not None}
    on_latent = latent_gradients([cut], paddle.float64).combined(paddle.ones([1])).numpy()

    for parameter in head.parameters():
        parameter.clear_gradient(False)
    expected = head(paddle.matmul(latent, rotation, transpose_y=True))
    expected.square().sum().backward()
    np.testing.assert_allclose(prediction.numpy(), expected.numpy(), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(on_latent, latent.grad.numpy(), rtol=1e-9, atol=1e-13)
    assert set(found) == {p.name for p in head.parameters() if p.grad is not None}
    for parameter in head.parameters():
        if parameter.grad is not None:
            np.testing.assert_allclose(found[parameter.name], parameter.grad.numpy(), rtol=1e-9)


def test_a_layer_that_the_head_uses_again_gets_its_own_input(latent, rotation):
    linear = paddle.nn.Linear(D, D)
    head = paddle.nn.Sequential(linear, paddle.nn.Tanh(), linear)
    prediction = LatentCut(latent, LatentSpace((D,))).enter(head, rotation)
    expected = head(paddle.matmul(latent, rotation, transpose_y=True))
    np.testing.assert_allclose(prediction.numpy(), expected.numpy(), rtol=1e-11)
    assert "forward" not in linear.__dict__


def test_hooks_of_head_and_first_layer_run(latent, rotation):
    head = paddle.nn.Sequential(paddle.nn.Linear(D, 3), paddle.nn.Tanh())
    calls = []
    head.register_forward_post_hook(lambda *_: calls.append("head"))
    head[0].register_forward_post_hook(lambda layer, ins, output: 2 * output)
    prediction = LatentCut(latent, LatentSpace((D,))).enter(head, rotation)
    expected = head(paddle.matmul(latent, rotation, transpose_y=True))
    np.testing.assert_allclose(prediction.numpy(), expected.numpy(), rtol=1e-11)
    assert calls == ["head", "head"]


def test_a_head_that_fails_leaves_its_layer_as_it_was(latent, rotation):
    head = paddle.nn.Sequential(paddle.nn.Linear(D, 3), paddle.nn.Linear(4, 1))
    with pytest.raises(ValueError):
        LatentCut(latent, LatentSpace((D,))).enter(head, rotation)
    assert "forward" not in head[0].__dict__


@pytest.mark.parametrize("width, factored", [(1, True), (D, False)])
def test_narrow_heads_give_factored_gradients(latent, rotation, width, factored):
    cut = LatentCut(latent, LatentSpace((D,)))
    heads = [paddle.nn.Linear(D, width) for _ in range(2)]
    paddle.add_n([cut.enter(head, rotation).sum() for head in heads]).backward()
    found = latent_gradients([cut], paddle.float64)
    assert isinstance(found, FactoredGradients) == factored
