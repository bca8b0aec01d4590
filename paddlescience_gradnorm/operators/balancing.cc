// The mathematics of balancing/algorithm.py and the norms of balancing/task_gradients.py in
// one operator each: on a handful of numbers an operator of Paddle's takes 5 us whatever it
// does, and there are thirty of them in a step.
//
// Inside all is double. Real attributes come as the bits of a double in an int64, because
// Paddle 2.6 has no attribute of that type and would round a float.

#include <cmath>
#include <cstring>

#include "paddle/extension.h"

// Where a norm is equal to its target the two must cancel, and with a product that is not
// rounded before it is subtracted they do not.
#pragma GCC optimize("fp-contract=off")

namespace {

double real(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::vector<paddle::Tensor> Norms(const std::vector<paddle::Tensor>& gradients, int64_t n_tasks) {
  const auto& first = gradients[0];
  const size_t n_shared = gradients.size() / n_tasks;
  auto norms = paddle::empty({n_tasks}, first.dtype(), first.place());
  PD_DISPATCH_FLOATING_TYPES(first.dtype(), "gradnorm_norms", ([&] {
    for (int64_t i = 0; i < n_tasks; ++i) {
      double sum = 0;
      for (size_t p = 0; p < n_shared; ++p) {
        const auto& gradient = gradients[i * n_shared + p];
        const data_t* values = gradient.data<data_t>();
        for (int64_t k = 0; k < gradient.numel(); ++k) sum += double(values[k]) * values[k];
      }
      norms.data<data_t>()[i] = std::sqrt(sum);
    }
  }));
  return {norms};
}

std::vector<paddle::Tensor> Rule(const paddle::Tensor& weights, const paddle::Tensor& losses,
                                 const paddle::Tensor& initial_losses,
                                 const paddle::Tensor& gradient_norms, int64_t alpha_bits) {
  const int64_t n = weights.numel();
  const double alpha = real(alpha_bits);
  auto loss = paddle::empty({}, weights.dtype(), weights.place());
  auto gradient = paddle::empty(weights.shape(), weights.dtype(), weights.place());
  auto usable = paddle::empty({}, paddle::DataType::BOOL, weights.place());
  PD_DISPATCH_FLOATING_TYPES(weights.dtype(), "gradnorm_rule", ([&] {
    const data_t *w = weights.data<data_t>(), *now = losses.data<data_t>(),
                 *initial = initial_losses.data<data_t>(), *norms = gradient_norms.data<data_t>();
    double mean_norm = 0, mean_ratio = 0, total = 0;
    for (int64_t i = 0; i < n; ++i) {
      mean_norm += double(w[i]) * norms[i];
      mean_ratio += double(now[i]) / initial[i];
    }
    mean_norm /= n;
    mean_ratio /= n;
    for (int64_t i = 0; i < n; ++i) {
      // By way of the root, which is NaN for a negative rate, whatever alpha.
      const double root = std::sqrt((double(now[i]) / initial[i]) / mean_ratio);
      const double power = std::pow(root, 2 * alpha) + (alpha == 0 ? 0 * root : 0);
      const double excess = double(w[i]) * norms[i] - mean_norm * power;
      total += std::abs(excess);
      gradient.data<data_t>()[i] = ((excess > 0) - (excess < 0)) * norms[i];
    }
    *loss.data<data_t>() = total;
    *usable.data<bool>() = std::isfinite(*loss.data<data_t>());
  }));
  return {loss, gradient, usable};
}

std::vector<paddle::Tensor> Renormalized(const paddle::Tensor& weights, int64_t floor_bits) {
  const int64_t n = weights.numel();
  const double floor = real(floor_bits);
  auto result = paddle::empty(weights.shape(), weights.dtype(), weights.place());
  PD_DISPATCH_FLOATING_TYPES(weights.dtype(), "gradnorm_renormalized", ([&] {
    const data_t* from = weights.data<data_t>();
    data_t* to = result.data<data_t>();
    double sum = 0, total = 0;
    const auto positive = [&](int64_t i) { return from[i] < 1e-20 ? 1e-20 : double(from[i]); };
    const auto above = [&](int64_t i) {
      const double value = positive(i) * n - sum * floor;
      return value < 0 ? 0 : value;
    };
    for (int64_t i = 0; i < n; ++i) sum += positive(i);
    for (int64_t i = 0; i < n; ++i) total += above(i);
    for (int64_t i = 0; i < n; ++i) to[i] = floor + above(i) * (n * (1 - floor)) / total;
  }));
  return {result};
}

std::vector<std::vector<int64_t>> NormsShape(const std::vector<std::vector<int64_t>>& gradients,
                                             int64_t n_tasks) {
  return {{n_tasks}};
}

std::vector<paddle::DataType> NormsDtype(const std::vector<paddle::DataType>& gradients) {
  return {gradients[0]};
}

std::vector<std::vector<int64_t>> RuleShape(const std::vector<int64_t>& weights,
                                            const std::vector<int64_t>& losses,
                                            const std::vector<int64_t>& initial_losses,
                                            const std::vector<int64_t>& gradient_norms) {
  return {{}, weights, {}};
}

std::vector<paddle::DataType> RuleDtype(const paddle::DataType& weights,
                                        const paddle::DataType& losses,
                                        const paddle::DataType& initial_losses,
                                        const paddle::DataType& gradient_norms) {
  return {weights, weights, paddle::DataType::BOOL};
}

}  // namespace

PD_BUILD_OP(gradnorm_norms)
    .Inputs({paddle::Vec("Gradients")})
    .Outputs({"Norms"})
    .Attrs({"n_tasks: int64_t"})
    .SetKernelFn(PD_KERNEL(Norms))
    .SetInferShapeFn(PD_INFER_SHAPE(NormsShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(NormsDtype));

PD_BUILD_OP(gradnorm_rule)
    .Inputs({"Weights", "Losses", "InitialLosses", "GradientNorms"})
    .Outputs({"Loss", "WeightGradient", "Usable"})
    .Attrs({"alpha_bits: int64_t"})
    .SetKernelFn(PD_KERNEL(Rule))
    .SetInferShapeFn(PD_INFER_SHAPE(RuleShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(RuleDtype));

PD_BUILD_OP(gradnorm_renormalized)
    .Inputs({"Weights"})
    .Outputs({"Result"})
    .Attrs({"floor_bits: int64_t"})
    .SetKernelFn(PD_KERNEL(Renormalized));
