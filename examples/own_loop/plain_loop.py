"""A plain Paddle training loop on two losses, and the lines that let GradNorm balance them.

A network learns the displacement and the acceleration of oscillators from time and
frequency. Accelerations are 16 to 36 times as large, and squared in the loss.
"""

from __future__ import annotations

from paddlescience_gradnorm import LossBalancer  # GradNorm: added

import paddle  # isort: skip, after the package that sees to its loading


class Oscillators(paddle.io.Dataset):
    """(time [s], frequency [1/s]), displacement [m], acceleration [m/s^2]."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.inputs = paddle.concat([paddle.rand([n, 1]), 4 + 2 * paddle.rand([n, 1])], axis=1)
        time, frequency = self.inputs[:, :1], self.inputs[:, 1:]
        self.displacement = (frequency * time).sin()
        self.acceleration = -frequency.square() * self.displacement

    def __getitem__(self, i: int) -> tuple[paddle.Tensor, ...]:
        return self.inputs[i], self.displacement[i], self.acceleration[i]

    def __len__(self) -> int:
        return len(self.inputs)


class Network(paddle.nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.first = paddle.nn.Linear(2, 64)
        self.second = paddle.nn.Linear(64, 64)
        self.displacement = paddle.nn.Linear(64, 1)
        self.acceleration = paddle.nn.Linear(64, 1)

    def forward(self, inputs: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        hidden = self.second(self.first(inputs).tanh()).tanh()
        return self.displacement(hidden), self.acceleration(hidden)


def main(epochs: int = 60) -> tuple[paddle.nn.Layer, Oscillators]:
    paddle.seed(0)
    data = Oscillators(1000)
    loader = paddle.io.DataLoader(data, batch_size=100, shuffle=True)
    net = Network()
    optimizer = paddle.optimizer.Adam(3e-3, parameters=net.parameters())
    balancer = LossBalancer(net.second, n_loss=2, alpha=0.12, weight_lr=5e-4)  # GradNorm: added
    for epoch in range(epochs):
        for inputs, displacement, acceleration in loader:
            outputs = net(inputs)
            losses = [
                (outputs[0] - displacement).square().mean(),
                (outputs[1] - acceleration).square().mean(),
            ]
            balancer.backward(losses)  # GradNorm: instead of sum(losses).backward()
            optimizer.step()
            optimizer.clear_grad()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: losses", *(f"{float(loss):.3g}" for loss in losses))
            print("  weights", balancer.get_weights())  # GradNorm: added
    return net, data


if __name__ == "__main__":
    main()
