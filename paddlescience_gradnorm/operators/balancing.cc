// What balancing does with T numbers, in an operator for each moment of a step: the mathematics
// of balancing/algorithm.py and the norms of balancing/task_gradients.py. After a pass through
// the network an operator of Paddle's takes 10 us, whatever it does, and there are thirty of them.
//
// Inside all is double. Real attributes come as the bits of a double in an int64, because
// Paddle 2.6 has no attribute of that type and would round a float.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "paddle/extension.h"

// Where a norm is equal to its target the two must cancel, and with a product that is not
// rounded before it is subtracted they do not.
#pragma GCC optimize("fp-contract=off")

namespace {

using paddle::Tensor;
using Shape = std::vector<int64_t>;
using paddle::DataType;

double real(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// renormalized() of algorithm.py, in place.
template <typename T>
void renormalize(T* weights, int64_t n, double floor) {
  double sum = 0, total = 0;
  const auto positive = [&](int64_t i) { return weights[i] < 1e-20 ? 1e-20 : double(weights[i]); };
  const auto above = [&](int64_t i) {
    const double value = positive(i) * n - sum * floor;
    return value < 0 ? 0 : value;
  };
  for (int64_t i = 0; i < n; ++i) sum += positive(i);
  for (int64_t i = 0; i < n; ++i) total += above(i);
  for (int64_t i = 0; i < n; ++i) weights[i] = floor + above(i) * (n * (1 - floor)) / total;
}

std::vector<Tensor> Measured(const Tensor& weights, const Tensor& factors,
                             const std::vector<Tensor>& losses,
                             const std::vector<Tensor>& gradients) {
  const int64_t n = weights.numel();
  const size_t n_shared = gradients.size() / n;
  auto total = paddle::empty({}, weights.dtype(), weights.place());
  auto values = paddle::empty({n}, weights.dtype(), weights.place());
  auto norms = paddle::empty({n}, weights.dtype(), weights.place());
  PD_DISPATCH_FLOATING_TYPES(weights.dtype(), "gradnorm_measured", ([&] {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const data_t value = *losses[i].data<data_t>();
      sum += double(weights.data<data_t>()[i]) * value;
      values.data<data_t>()[i] = value;
      double squares = 0;
      for (size_t p = i * n_shared; p < (i + 1) * n_shared; ++p) {
        const data_t* gradient = gradients[p].data<data_t>();
        for (int64_t k = 0; k < gradients[p].numel(); ++k) {
          squares += double(gradient[k]) * gradient[k];
        }
      }
      norms.data<data_t>()[i] = std::sqrt(squares) / factors.data<data_t>()[i];
    }
    *total.data<data_t>() = sum;
  }));
  return {total, values, norms};
}

std::vector<Tensor> Rule(const Tensor& weights, const Tensor& losses,
                                 const Tensor& initial_losses,
                                 const Tensor& gradient_norms, int64_t alpha_bits) {
  const int64_t n = weights.numel();
  const double alpha = real(alpha_bits);
  auto loss = paddle::empty({}, weights.dtype(), weights.place());
  auto gradient = paddle::empty(weights.shape(), weights.dtype(), weights.place());
  auto usable = paddle::empty({}, DataType::BOOL, weights.place());
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
    if (!*usable.data<bool>()) std::fill_n(gradient.data<data_t>(), n, 0);
  }));
  return {loss, gradient, usable};
}

std::vector<Tensor> Renormalized(const Tensor& weights, int64_t floor_bits) {
  const int64_t n = weights.numel();
  auto result = paddle::empty(weights.shape(), weights.dtype(), weights.place());
  PD_DISPATCH_FLOATING_TYPES(weights.dtype(), "gradnorm_renormalized", ([&] {
    std::copy_n(weights.data<data_t>(), n, result.data<data_t>());
    renormalize(result.data<data_t>(), n, real(floor_bits));
  }));
  return {result};
}

std::vector<Tensor> Stepped(const Tensor& weights, const Tensor& gradient, const Tensor& usable,
                            int64_t rate_bits, int64_t floor_bits) {
  const int64_t n = weights.numel();
  auto result = paddle::empty(weights.shape(), weights.dtype(), weights.place());
  PD_DISPATCH_FLOATING_TYPES(weights.dtype(), "gradnorm_stepped", ([&] {
    const data_t *from = weights.data<data_t>(), *slope = gradient.data<data_t>();
    data_t* to = result.data<data_t>();
    std::copy_n(from, n, to);
    if (*usable.data<bool>()) {
      for (int64_t i = 0; i < n; ++i) to[i] = from[i] - slope[i] * real(rate_bits);
      renormalize(to, n, real(floor_bits));
    }
  }));
  return {result};
}

std::vector<Tensor> Settled(const Tensor& weights, const Tensor& acted, const Tensor& usable,
                            int64_t floor_bits) {
  const int64_t n = weights.numel();
  auto result = paddle::empty(weights.shape(), weights.dtype(), weights.place());
  PD_DISPATCH_FLOATING_TYPES(weights.dtype(), "gradnorm_settled", ([&] {
    const data_t *now = weights.data<data_t>(), *then = acted.data<data_t>();
    data_t* to = result.data<data_t>();
    if (*usable.data<bool>() && !std::equal(now, now + n, then)) {
      std::copy_n(now, n, to);
      renormalize(to, n, real(floor_bits));
    } else {
      std::copy_n(then, n, to);
    }
  }));
  return {result};
}

std::vector<Shape> MeasuredShape(const Shape& weights, const Shape& factors,
                                 const std::vector<Shape>& losses,
                                 const std::vector<Shape>& gradients) {
  return {{}, weights, weights};
}

std::vector<DataType> MeasuredDtype(const DataType& weights, const DataType& factors,
                                    const std::vector<DataType>& losses,
                                    const std::vector<DataType>& gradients) {
  return {weights, weights, weights};
}

std::vector<Shape> RuleShape(const Shape& weights, const Shape& losses, const Shape& initial_losses,
                             const Shape& gradient_norms) {
  return {{}, weights, {}};
}

std::vector<DataType> RuleDtype(const DataType& weights, const DataType& losses,
                                const DataType& initial_losses, const DataType& gradient_norms) {
  return {weights, weights, DataType::BOOL};
}

std::vector<Shape> LikeWeights(const Shape& weights, const Shape& second, const Shape& usable) {
  return {weights};
}

std::vector<DataType> OfWeights(const DataType& weights, const DataType& second,
                                const DataType& usable) {
  return {weights};
}

}  // namespace

PD_BUILD_OP(gradnorm_measured)
    .Inputs({"Weights", "Factors", paddle::Vec("Losses"), paddle::Vec("Gradients")})
    .Outputs({"Total", "Values", "Norms"})
    .SetKernelFn(PD_KERNEL(Measured))
    .SetInferShapeFn(PD_INFER_SHAPE(MeasuredShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(MeasuredDtype));

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

PD_BUILD_OP(gradnorm_stepped)
    .Inputs({"Weights", "Gradient", "Usable"})
    .Outputs({"Result"})
    .Attrs({"rate_bits: int64_t", "floor_bits: int64_t"})
    .SetKernelFn(PD_KERNEL(Stepped))
    .SetInferShapeFn(PD_INFER_SHAPE(LikeWeights))
    .SetInferDtypeFn(PD_INFER_DTYPE(OfWeights));

PD_BUILD_OP(gradnorm_settled)
    .Inputs({"Weights", "Acted", "Usable"})
    .Outputs({"Result"})
    .Attrs({"floor_bits: int64_t"})
    .SetKernelFn(PD_KERNEL(Settled))
    .SetInferShapeFn(PD_INFER_SHAPE(LikeWeights))
    .SetInferDtypeFn(PD_INFER_DTYPE(OfWeights));
