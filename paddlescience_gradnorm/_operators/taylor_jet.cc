#include "taylor_jet.h"

#include "paddle/extension.h"

namespace {

// Points have the shape [N, ins], or [parts, N, ins] if all their parts are given. `terms` has for
// each part after the value: the number of terms, then of each the coefficient, the order and as
// many factors.
taylor_jet::Parts parts_of(const paddle::Tensor& points, const std::vector<int>& coordinates,
                           const std::vector<int>& terms) {
  taylor_jet::Parts parts;
  parts.given = points.shape().size() == 3;
  parts.coordinates = coordinates;
  parts.terms.resize(coordinates.size());
  const int* next = terms.data();
  for (size_t part = 1; part < coordinates.size(); ++part) {
    for (int n = *next++; n > 0; --n) {
      taylor_jet::Term term{};
      term.coefficient = *next++;
      term.order = *next++;
      std::copy_n(next, term.order, term.factors);
      next += term.order;
      parts.order = std::max(parts.order, term.order);
      parts.terms[part].push_back(term);
    }
  }
  return parts;
}

int64_t count(const std::vector<int64_t>& points) { return points[points.size() - 2]; }

template <typename T>
std::vector<taylor_jet::Layer<T>> layers_of(const std::vector<paddle::Tensor>& weights,
                                            const std::vector<paddle::Tensor>& biases,
                                            const std::vector<int>& activations) {
  std::vector<taylor_jet::Layer<T>> layers;
  for (size_t l = 0; l < weights.size(); ++l)
    layers.push_back({static_cast<int>(weights[l].shape()[0]),
                      static_cast<int>(weights[l].shape()[1]), weights[l].data<T>(),
                      biases[l].data<T>(), static_cast<taylor_jet::Activation>(activations[l])});
  return layers;
}

std::vector<paddle::Tensor> Forward(const paddle::Tensor& points,
                                    const std::vector<paddle::Tensor>& weights,
                                    const std::vector<paddle::Tensor>& biases,
                                    const std::vector<int>& activations,
                                    const std::vector<int>& coordinates,
                                    const std::vector<int>& terms) {
  const auto parts = parts_of(points, coordinates, terms);
  const int64_t n = count(points.shape());
  auto jet = paddle::empty({weights.back().shape()[1], parts.count() * n}, points.dtype(),
                           points.place());
  PD_DISPATCH_FLOATING_TYPES(points.dtype(), "taylor_jet", ([&] {
    taylor_jet::forward<data_t>(layers_of<data_t>(weights, biases, activations), parts, points.data<data_t>(), n,
                              jet.data<data_t>());
  }));
  return {jet};
}

std::vector<paddle::Tensor> Backward(const paddle::Tensor& points,
                                     const std::vector<paddle::Tensor>& weights,
                                     const std::vector<paddle::Tensor>& biases,
                                     const paddle::Tensor& gradient,
                                     const std::vector<int>& activations,
                                     const std::vector<int>& coordinates,
                                     const std::vector<int>& terms) {
  const auto parts = parts_of(points, coordinates, terms);
  std::vector<paddle::Tensor> gradients;
  for (const auto* parameters : {&weights, &biases})
    for (const auto& p : *parameters)
      gradients.push_back(paddle::empty(p.shape(), p.dtype(), p.place()));
  PD_DISPATCH_FLOATING_TYPES(points.dtype(), "taylor_jet_grad", ([&] {
    std::vector<data_t*> of_weights, of_biases;
    for (size_t l = 0; l < weights.size(); ++l) {
      of_weights.push_back(gradients[l].data<data_t>());
      of_biases.push_back(gradients[weights.size() + l].data<data_t>());
    }
    taylor_jet::backward<data_t>(layers_of<data_t>(weights, biases, activations), parts, points.data<data_t>(),
                               count(points.shape()), gradient.data<data_t>(), of_weights, of_biases);
  }));
  return gradients;
}

// Without this, Paddle would leave the operator's part out of a second derivative in silence.
std::vector<paddle::Tensor> RefuseSecond(const paddle::Tensor& points,
                                         const std::vector<paddle::Tensor>& weights,
                                         const std::vector<paddle::Tensor>& biases,
                                         const paddle::Tensor& gradient,
                                         const std::vector<paddle::Tensor>& of_weights,
                                         const std::vector<paddle::Tensor>& of_biases,
                                         const std::vector<int>& activations,
                                         const std::vector<int>& coordinates,
                                         const std::vector<int>& terms) {
  PD_THROW(
      "the C++ operator for a network's derivatives can be differentiated once in the "
      "parameters, not twice; start without tune_cpu() for that");
}

std::vector<std::vector<int64_t>> Shape(const std::vector<int64_t>& points,
                                        const std::vector<std::vector<int64_t>>& weights,
                                        const std::vector<std::vector<int64_t>>& biases,
                                        const std::vector<int>& activations,
                                        const std::vector<int>& coordinates,
                                        const std::vector<int>& terms) {
  return {{weights.back()[1], static_cast<int64_t>(coordinates.size()) * count(points)}};
}

std::vector<paddle::DataType> Dtype(const paddle::DataType& points,
                                    const std::vector<paddle::DataType>& weights,
                                    const std::vector<paddle::DataType>& biases) {
  return {points};
}

}  // namespace

PD_BUILD_OP(gradnorm_taylor_jet)
    .Inputs({"Points", paddle::Vec("Weights"), paddle::Vec("Biases")})
    .Outputs({"Jet"})
    .Attrs({"activations: std::vector<int>", "coordinates: std::vector<int>",
            "terms: std::vector<int>"})
    .SetKernelFn(PD_KERNEL(Forward))
    .SetInferShapeFn(PD_INFER_SHAPE(Shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(Dtype));

PD_BUILD_GRAD_OP(gradnorm_taylor_jet)
    .Inputs({"Points", paddle::Vec("Weights"), paddle::Vec("Biases"), paddle::Grad("Jet")})
    .Outputs({paddle::Grad(paddle::Vec("Weights")), paddle::Grad(paddle::Vec("Biases"))})
    .Attrs({"activations: std::vector<int>", "coordinates: std::vector<int>",
            "terms: std::vector<int>"})
    .SetKernelFn(PD_KERNEL(Backward));

PD_BUILD_DOUBLE_GRAD_OP(gradnorm_taylor_jet)
    .Inputs({"Points", paddle::Vec("Weights"), paddle::Vec("Biases"), paddle::Grad("Jet"),
             paddle::Grad(paddle::Grad(paddle::Vec("Weights"))),
             paddle::Grad(paddle::Grad(paddle::Vec("Biases")))})
    .Outputs({paddle::Grad(paddle::Grad("Jet"))})
    .Attrs({"activations: std::vector<int>", "coordinates: std::vector<int>",
            "terms: std::vector<int>"})
    .SetKernelFn(PD_KERNEL(RefuseSecond));
