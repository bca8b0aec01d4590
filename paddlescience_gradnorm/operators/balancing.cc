// What balancing does with T numbers, a function for each moment of a step: the mathematics of
// balancing/algorithm.py and balancing/rotograd.py, and the norms of balancing/task_gradients.py. A
// module of Python functions that take Paddle's tensors; no operators of Paddle's, for after a pass
// through the network, when no cache holds anything of it, each of these takes 15 to 50 us,
// whatever it does.
//
// Inside all is double.

#include "paddle/common/ddim.h"
#include "paddle/extension.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

// Where a norm is equal to its target the two must cancel, and with a product that is not
// rounded before it is subtracted they do not.
#pragma GCC optimize("fp-contract=off")

namespace {

// renormalized() of algorithm.py.
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

template <typename T>
bool can_be_reference(T loss) {
  return std::isfinite(loss) && loss >= std::numeric_limits<T>::min();
}

// By way of the root, which is NaN for a negative rate, whatever alpha.
double power_of_rate(double rate, double alpha) {
  const double root = std::sqrt(rate);
  return std::pow(root, 2 * alpha) + (alpha == 0 ? 0 * root : 0);
}

// Whether all losses are such as a loss should be.
template <typename T>
bool weigh(const T* weights, const std::vector<T*>& losses, T* total) {
  double sum = 0;
  bool usable = true;
  for (size_t i = 0; i < losses.size(); ++i) {
    const T loss = *losses[i];
    sum += double(weights[i]) * loss;
    usable = usable && std::isfinite(loss) && loss >= 0;
  }
  *total = sum;
  return usable;
}

// With sums of its own for each lane: in order, as the language has it, nothing is vectorized.
template <typename T>
double dot(const T* a, const T* b, int64_t size) {
  constexpr int64_t lanes = 16;
  double sums[lanes] = {};
  int64_t k = 0;
  for (; k + lanes <= size; k += lanes)
    for (int64_t lane = 0; lane < lanes; ++lane)
      sums[lane] += double(a[k + lane]) * b[k + lane];
  double sum = 0;
  for (; k < size; ++k) sum += double(a[k]) * b[k];
  for (const double of_lane : sums) sum += of_lane;
  return sum;
}

// The gradients task by task, as pointers and sizes, null where a loss does not depend on a
// parameter.
template <typename T>
void measure(const T* factors, const std::vector<T*>& losses,
             const std::vector<std::pair<T*, int64_t>>& gradients, T* values, T* norms,
             double* products) {
  const int64_t n = losses.size(), n_shared = gradients.size() / n;
  for (int64_t i = 0; i < n; ++i) {
    values[i] = *losses[i];
    for (int64_t j = 0; j <= i; ++j) {
      double product = 0;
      for (int64_t p = 0; p < n_shared; ++p) {
        const auto [a, size] = gradients[i * n_shared + p];
        const T* b = gradients[j * n_shared + p].first;
        if (a && b) product += dot(a, b, size);
      }
      products[i * n + j] = products[j * n + i] = product;
    }
    norms[i] = std::sqrt(products[i * n + i]) / factors[i];
  }
}

// GradNormRule: references and evaluate.
template <typename T>
bool published(int64_t n, const T* weights, const T* losses, T* references, const T* norms,
               bool usable, double alpha, double largest_norm, T* gradient, T* lgrad) {
  double mean_norm = 0, mean_ratio = 0, total = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!(references[i] > 0)) references[i] = can_be_reference(losses[i]) ? losses[i] : 0;
    mean_norm += double(weights[i]) * norms[i];
    mean_ratio += double(losses[i]) / references[i];
    usable = usable && norms[i] <= largest_norm;
  }
  mean_norm /= n;
  mean_ratio /= n;
  for (int64_t i = 0; i < n; ++i) {
    const double rate = double(losses[i]) / references[i] / mean_ratio;
    const double excess = double(weights[i]) * norms[i] - mean_norm * power_of_rate(rate, alpha);
    total += std::abs(excess);
    gradient[i] = ((excess > 0) - (excess < 0)) * norms[i];
  }
  *lgrad = total;
  usable = usable && std::isfinite(*lgrad);
  if (!usable) std::fill_n(gradient, n, 0);
  return usable;
}

// PinnRule: references and step.
template <typename T>
bool pinn(int64_t n, T* weights, const T* losses, T* references, const T* norms, double alpha,
          double strength, double lead, double bound, double memory, double rate, double floor,
          const std::vector<int64_t>& residuals, T* loss) {
  const int64_t n_residuals = residuals.size();
  const double limit = std::log(bound);
  std::vector<double> target(n);
  double mean_ratio = 0, mean = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (can_be_reference(losses[i])) {
      const T then = references[i];
      const T average = then + (double(losses[i]) - then) * (1 - memory);
      // The second where a loss has fallen so far that the difference is all that is left.
      references[i] = then > 0 && average > 0 ? average : losses[i];
    }
    mean_ratio += double(losses[i]) / references[i] / n;
  }
  bool usable = true;
  int64_t n_known = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double power = power_of_rate(double(losses[i]) / references[i] / mean_ratio, alpha);
    usable = usable && std::isfinite(power) && std::isfinite(norms[i]);
    const double ratio = power / norms[i];
    const bool known = ratio > 0 && std::isfinite(ratio);
    target[i] = known ? std::log(ratio) * strength : NAN;
    if (known) mean += target[i], ++n_known;
  }
  for (double& x : target) x = std::isnan(x) ? 0 : x - mean / n_known;
  double unit = 0;
  if (n_residuals > 0 && n_residuals < n) {
    std::vector<double> to_add(n, std::log(lead));
    for (int64_t k = 0; k < n_residuals; ++k) {
      to_add[residuals[k]] = 0;
      unit += target[residuals[k]] / n_residuals;
    }
    for (int64_t i = 0; i < n; ++i) target[i] += to_add[i];
  } else {
    for (double x : target) unit += x / n;
  }
  std::vector<double> missing(n);
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    missing[i] = std::clamp(target[i] - unit, -limit, limit) - std::log(double(weights[i]));
    total += std::abs(missing[i]);
  }
  *loss = total;
  usable = usable && std::isfinite(total);
  for (int64_t i = 0; usable && i < n; ++i) {
    const double factor = std::exp(std::clamp(missing[i], -1., 1.) * std::min(1., rate));
    weights[i] = std::max(weights[i] * factor, floor);
  }
  return usable;
}

// settled() of algorithm.py; the values are both the weights and those that act from now on.
template <typename T>
void settle(int64_t n, T* weights, T* acted, bool usable, bool* finite, double floor) {
  *finite = std::all_of(weights, weights + n, [](T x) { return std::isfinite(x); });
  if (usable && *finite && !std::equal(weights, weights + n, acted)) {
    renormalize(weights, n, floor);
    std::copy_n(weights, n, acted);
  } else {
    std::copy_n(acted, n, weights);
  }
}

// What Python calls. Not by Paddle's own conversion of tensors to C++, which also switches how its
// derivatives of higher order are recorded.

// Thrown where a tensor is not such as is asked for, before anything has been changed.
struct Unsuited {};

paddle::Tensor& tensor_of(py::handle object) {
  if (!paddle::pybind::PyCheckTensor(object.ptr())) throw Unsuited();
  return paddle::pybind::CastPyArg2Tensor(object.ptr(), 0);
}

template <typename T>
constexpr paddle::DataType type_of() {
  if constexpr (std::is_same_v<T, bool>) return paddle::DataType::BOOL;
  return std::is_same_v<T, float> ? paddle::DataType::FLOAT32 : paddle::DataType::FLOAT64;
}

// Values on the host, without gaps, of this type, and how many.
template <typename T>
std::pair<T*, int64_t> values_of(py::handle object) {
  auto& tensor = tensor_of(object);
  if (!tensor.is_cpu() || tensor.dtype() != type_of<T>()) throw Unsuited();
  const int64_t *shape = tensor.dims().Get(), *strides = tensor.strides().Get();
  int64_t size = 1;
  for (int axis = tensor.dims().size(); axis-- > 0; size *= shape[axis])
    if (shape[axis] != 1 && strides[axis] != size) throw Unsuited();
  return {tensor.data<T>(), size};
}

template <typename T>
T* data(py::handle object) {
  return values_of<T>(object).first;
}

template <typename T>
std::vector<T*> data_of_all(const py::sequence& objects) {
  std::vector<T*> all;
  for (py::handle object : objects) all.push_back(data<T>(object));
  return all;
}

py::object to_python(const paddle::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(paddle::pybind::ToPyObject(tensor));
}

// A tensor of this shape, filled by the function.
template <typename T, typename Function>
py::object made(const std::vector<int64_t>& shape, const Function& fill) {
  auto tensor = paddle::empty(shape, type_of<T>());
  fill(tensor.template data<T>());
  return to_python(tensor);
}

// The function for the weights' type; None if a tensor is none that it is made for.
template <typename Function>
py::object for_type_of(py::handle weights, const Function& function) {
  try {
    const auto type = tensor_of(weights).dtype();
    if (type == paddle::DataType::FLOAT32) return function(float());
    if (type == paddle::DataType::FLOAT64) return function(double());
  } catch (const Unsuited&) {
  }
  return py::none();
}

py::object py_weigh(py::handle weights, py::sequence losses) {
  return for_type_of(weights, [&](auto of_type) -> py::object {
    using T = decltype(of_type);
    const T* factors = data<T>(weights);
    const auto values = data_of_all<T>(losses);
    auto total = paddle::empty(std::vector<int64_t>(), type_of<T>());
    const bool usable = weigh(factors, values, total.template data<T>());
    return py::make_tuple(to_python(total), usable);
  });
}

py::object py_measure(py::handle weights, py::handle factors, py::sequence losses,
                      py::sequence gradients, py::handle values, py::handle norms) {
  return for_type_of(weights, [&](auto of_type) -> py::object {
    using T = decltype(of_type);
    const auto scalars = data_of_all<T>(losses);
    std::vector<std::pair<T*, int64_t>> flat;
    for (py::handle of_task : gradients)
      for (py::handle gradient : py::reinterpret_borrow<py::sequence>(of_task))
        flat.push_back(gradient.is_none() ? std::pair<T*, int64_t>() : values_of<T>(gradient));
    T *in_sum = data<T>(weights), *in_gradients = data<T>(factors);
    T *into_values = data<T>(values), *into_norms = data<T>(norms);
    const int64_t n = scalars.size();
    auto total = paddle::empty(std::vector<int64_t>(), type_of<T>());
    auto products = paddle::empty({n, n}, paddle::DataType::FLOAT64);
    weigh(in_sum, scalars, total.template data<T>());
    measure(in_gradients, scalars, flat, into_values, into_norms,
            products.template data<double>());
    return py::make_tuple(to_python(total), to_python(products));
  });
}

py::object py_gradient(py::handle weights, py::handle losses, py::handle references,
                       py::handle norms, py::handle finite, double alpha, double largest_norm,
                       py::handle into, py::handle loss, py::handle usable) {
  return for_type_of(weights, [&](auto of_type) -> py::object {
    using T = decltype(of_type);
    const auto [now, n] = values_of<T>(weights);
    const bool* good = data<bool>(finite);
    bool* result = data<bool>(usable);
    *result = published(n, now, data<T>(losses), data<T>(references), data<T>(norms), *good, alpha,
                        largest_norm, data<T>(into), data<T>(loss));
    return py::bool_(*result);
  });
}

py::object py_step(py::handle weights, py::handle losses, py::handle references, py::handle norms,
                   double alpha, double rate, double floor, py::handle loss) {
  return for_type_of(weights, [&](auto of_type) -> py::object {
    using T = decltype(of_type);
    const auto [now, n] = values_of<T>(weights);
    std::vector<T> slope(n);
    const double any = std::numeric_limits<double>::infinity();
    const bool usable = published(n, now, data<T>(losses), data<T>(references), data<T>(norms),
                                  true, alpha, any, slope.data(), data<T>(loss));
    if (usable) {
      for (int64_t i = 0; i < n; ++i) now[i] -= slope[i] * rate;
      renormalize(now, n, floor);
    }
    return py::bool_(usable);
  });
}

py::object py_pinn_step(py::handle weights, py::handle losses, py::handle references,
                        py::handle norms, double alpha, double strength, double lead, double bound,
                        double memory, double rate, double floor, std::vector<int64_t> residuals,
                        py::handle loss) {
  return for_type_of(weights, [&](auto of_type) -> py::object {
    using T = decltype(of_type);
    const auto [now, n] = values_of<T>(weights);
    return py::bool_(pinn(n, now, data<T>(losses), data<T>(references), data<T>(norms), alpha,
                          strength, lead, bound, memory, rate, floor, residuals, data<T>(loss)));
  });
}

py::object py_rate_powers(py::handle losses, py::handle references, double alpha) {
  return for_type_of(losses, [&](auto of_type) -> py::object {
    using T = decltype(of_type);
    const auto [now, n] = values_of<T>(losses);
    const T* then = data<T>(references);
    double mean_ratio = 0;
    for (int64_t i = 0; i < n; ++i) mean_ratio += double(now[i]) / then[i] / n;
    return made<T>({n}, [&](T* powers) {
      for (int64_t i = 0; i < n; ++i)
        powers[i] = power_of_rate(double(now[i]) / then[i] / mean_ratio, alpha);
    });
  });
}

// The norm of the sum of factors times gradients, from the inner products of these.
py::object py_norm_of_sum(py::handle products, py::handle factors) {
  return for_type_of(products, [&](auto of_type) -> py::object {
    using T = decltype(of_type);
    const T* product = data<T>(products);
    const int64_t n = tensor_of(products).dims().Get()[0];
    const T* given = factors.is_none() ? nullptr : data<T>(factors);
    double square = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        square += (given ? double(given[i]) * given[j] : 1.) * product[i * n + j];
    return made<T>({}, [&](T* norm) { *norm = std::sqrt(std::abs(square)); });
  });
}

py::object py_direction_shares(py::handle norm_of_sum, py::handle norms, double smallest_norm) {
  return for_type_of(norms, [&](auto of_type) -> py::object {
    using T = decltype(of_type);
    const auto [of_task, n] = values_of<T>(norms);
    const double mean = *data<T>(norm_of_sum) / double(n * n);
    return made<T>({n}, [&](T* shares) {
      for (int64_t i = 0; i < n; ++i) shares[i] = mean / (of_task[i] + smallest_norm);
    });
  });
}

py::object py_logit_gradient(py::handle weights, py::handle norms, py::handle common_norm,
                             py::handle rate_powers, bool through_sum) {
  return for_type_of(weights, [&](auto of_type) -> py::object {
    using T = decltype(of_type);
    const auto [now, n] = values_of<T>(weights);
    const T *of_task = data<T>(norms), *common = data<T>(common_norm);
    const T* powers = data<T>(rate_powers);
    std::vector<double> slope(n);
    double mean = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double excess = double(now[i]) * of_task[i] - double(*common) * powers[i];
      slope[i] = std::isnan(excess) ? NAN : ((excess > 0) - (excess < 0)) * double(of_task[i]);
      mean += slope[i] * now[i] / n;
    }
    return made<T>({n}, [&](T* gradient) {
      for (int64_t i = 0; i < n; ++i)
        gradient[i] = now[i] * (slope[i] - (through_sum ? mean : 0));
    });
  });
}

py::object py_settle(py::handle weights, py::handle acted, py::handle usable, py::handle finite,
                     double floor) {
  return for_type_of(weights, [&](auto of_type) -> py::object {
    using T = decltype(of_type);
    const auto [now, n] = values_of<T>(weights);
    settle(n, now, data<T>(acted), *data<bool>(usable), data<bool>(finite), floor);
    return py::bool_(true);
  });
}

}  // namespace

PYBIND11_MODULE(gradnorm_operators, module) {
  module.def("weigh", &py_weigh);
  module.def("measure", &py_measure);
  module.def("gradient", &py_gradient);
  module.def("step", &py_step);
  module.def("pinn_step", &py_pinn_step);
  module.def("settle", &py_settle);
  module.def("rate_powers", &py_rate_powers);
  module.def("norm_of_sum", &py_norm_of_sum);
  module.def("direction_shares", &py_direction_shares);
  module.def("logit_gradient", &py_logit_gradient);
}
