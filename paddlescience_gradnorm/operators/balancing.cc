// What balancing does with T numbers, in an operator for each moment of a step: the mathematics
// of balancing/algorithm.py and the norms of balancing/task_gradients.py. After a pass through
// the network an operator of Paddle's takes 10 us, whatever it does, and there are thirty of them.
//
// Inside all is double. Real attributes come as the bits of a double in an int64, because
// Paddle 2.6 has no attribute of that type and would round a float.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
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
  const auto positive = [&](int64_t i) { return std::clamp(double(weights[i]), 1e-20, 1e30); };
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

std::vector<Tensor> PinnReferences(const Tensor& references, const Tensor& losses,
                                   int64_t memory_bits) {
  auto result = paddle::empty(references.shape(), references.dtype(), references.place());
  PD_DISPATCH_FLOATING_TYPES(references.dtype(), "gradnorm_pinn_references", ([&] {
    const data_t *then = references.data<data_t>(), *now = losses.data<data_t>();
    for (int64_t i = 0; i < references.numel(); ++i) {
      const bool valid = std::isfinite(now[i]) && now[i] >= std::numeric_limits<data_t>::min();
      const data_t average = then[i] + (double(now[i]) - then[i]) * (1 - real(memory_bits));
      result.data<data_t>()[i] = !valid ? then[i] : then[i] > 0 && average > 0 ? average : now[i];
    }
  }));
  return {result};
}

std::vector<Tensor> PinnStep(const Tensor& weights, const Tensor& losses, const Tensor& references,
                             const Tensor& gradient_norms, int64_t alpha_bits,
                             int64_t strength_bits, int64_t bound_bits, int64_t rate_bits,
                             int64_t floor_bits, const std::vector<int64_t>& residuals) {
  const int64_t n = weights.numel();
  const double alpha = real(alpha_bits), limit = std::log(real(bound_bits));
  auto loss = paddle::empty({}, weights.dtype(), weights.place());
  auto result = paddle::empty(weights.shape(), weights.dtype(), weights.place());
  auto usable = paddle::empty({}, DataType::BOOL, weights.place());
  PD_DISPATCH_FLOATING_TYPES(weights.dtype(), "gradnorm_pinn_step", ([&] {
    const data_t *w = weights.data<data_t>(), *value = losses.data<data_t>(),
                 *reference = references.data<data_t>(), *norm = gradient_norms.data<data_t>();
    std::vector<double> target(n), now(n);
    const auto centre = [n](std::vector<double>& logs) {
      double mean = 0;
      for (double x : logs) mean += x / n;
      for (double& x : logs) x -= mean;
    };
    double mean_ratio = 0, mean = 0;
    for (int64_t i = 0; i < n; ++i) mean_ratio += double(value[i]) / reference[i] / n;
    bool finite = true;
    int64_t n_known = 0;
    for (int64_t i = 0; i < n; ++i) {
      // By way of the root, which is NaN for a negative rate, whatever alpha.
      const double root = std::sqrt(double(value[i]) / reference[i] / mean_ratio);
      const double power = std::pow(root, 2 * alpha) + (alpha == 0 ? 0 * root : 0);
      finite = finite && std::isfinite(power) && std::isfinite(norm[i]);
      const double ratio = power / norm[i];
      const bool known = ratio > 0 && std::isfinite(ratio);
      target[i] = known ? std::log(ratio) * real(strength_bits) : NAN;
      if (known) mean += target[i], ++n_known;
      now[i] = std::log(double(w[i]));
    }
    for (double& x : target) x = std::isnan(x) ? 0 : x - mean / n_known;
    if (!residuals.empty() && int64_t(residuals.size()) < n) {
      double highest = 0;
      for (double x : target) highest += x;
      for (int64_t i : residuals) highest -= target[i];
      highest /= n - residuals.size();
      for (int64_t i : residuals) target[i] = std::min(target[i], highest);
    }
    centre(target);
    for (double& x : target) x = std::clamp(x, -limit, limit);
    centre(target);
    centre(now);
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double missing = target[i] - now[i];
      total += std::abs(missing);
      result.data<data_t>()[i] = w[i] * std::exp(std::clamp(missing, -1., 1.) * real(rate_bits));
    }
    finite = finite && std::isfinite(total);
    if (finite) renormalize(result.data<data_t>(), n, real(floor_bits));
    else std::copy_n(w, n, result.data<data_t>());
    *loss.data<data_t>() = total;
    *usable.data<bool>() = finite;
  }));
  return {loss, result, usable};
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

std::vector<Shape> StepShape(const Shape& weights, const Shape& losses, const Shape& initial_losses,
                             const Shape& gradient_norms) {
  return {{}, weights, {}};
}

std::vector<DataType> StepDtype(const DataType& weights, const DataType& losses,
                                const DataType& initial_losses, const DataType& gradient_norms) {
  return {weights, weights, DataType::BOOL};
}

std::vector<Shape> LikeFirst(const Shape& first, const Shape& second) { return {first}; }

std::vector<DataType> OfFirst(const DataType& first, const DataType& second) { return {first}; }

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
    .SetInferShapeFn(PD_INFER_SHAPE(StepShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(StepDtype));

PD_BUILD_OP(gradnorm_pinn_references)
    .Inputs({"References", "Losses"})
    .Outputs({"Result"})
    .Attrs({"memory_bits: int64_t"})
    .SetKernelFn(PD_KERNEL(PinnReferences))
    .SetInferShapeFn(PD_INFER_SHAPE(LikeFirst))
    .SetInferDtypeFn(PD_INFER_DTYPE(OfFirst));

PD_BUILD_OP(gradnorm_pinn_step)
    .Inputs({"Weights", "Losses", "References", "GradientNorms"})
    .Outputs({"Loss", "Result", "Usable"})
    .Attrs({"alpha_bits: int64_t", "strength_bits: int64_t", "bound_bits: int64_t",
            "rate_bits: int64_t", "floor_bits: int64_t", "residuals: std::vector<int64_t>"})
    .SetKernelFn(PD_KERNEL(PinnStep))
    .SetInferShapeFn(PD_INFER_SHAPE(StepShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(StepDtype));

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
