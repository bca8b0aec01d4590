"""``paddle.Model.fit`` on two losses, and the lines that let GradNorm balance them.

The problem is that of plain_loop.py. ``Model.fit`` runs the backward pass of the sum of what
the loss function returns, so that is where the weights go.
"""

from __future__ import annotations

from plain_loop import Network, Oscillators

from paddlescience_gradnorm import LossBalancer  # GradNorm: added

import paddle  # isort: skip, after the package that sees to its loading


class Errors(paddle.nn.Layer):
    """The losses: the mean squared error of each output."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.balancer = LossBalancer(net.second, 2, alpha=0.12, weight_lr=5e-4)  # GradNorm: added

    def forward(self, *outputs_and_labels: paddle.Tensor) -> list[paddle.Tensor]:
        outputs, labels = outputs_and_labels[:2], outputs_and_labels[2:]
        losses = [(output - label).square().mean() for output, label in zip(outputs, labels)]
        if paddle.is_grad_enabled():  # GradNorm: added; in training, not in evaluation
            weights = self.balancer.loss_weights.detach().clone()  # GradNorm: added
            self.balancer.step(losses)  # GradNorm: added
            losses = [weights[i] * loss for i, loss in enumerate(losses)]  # GradNorm: added
        return losses


def main(epochs: int = 60) -> tuple[paddle.nn.Layer, Oscillators]:
    paddle.seed(0)
    data = Oscillators(1000)
    net = Network()
    errors = Errors(net)
    vector, number = [None, 2], [None, 1]
    model = paddle.Model(
        net,
        inputs=[paddle.static.InputSpec(vector, "float32", "inputs")],
        labels=[paddle.static.InputSpec(number, "float32", name) for name in ("u", "a")],
    )
    model.prepare(paddle.optimizer.Adam(3e-3, parameters=net.parameters()), errors)
    model.fit(data, epochs=epochs, batch_size=100, verbose=0)
    print("losses", model.evaluate(data, batch_size=1000, verbose=0)["loss"])
    print("weights", errors.balancer.get_weights())  # GradNorm: added
    return net, data


if __name__ == "__main__":
    main()
