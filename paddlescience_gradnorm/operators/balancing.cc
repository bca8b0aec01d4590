// What balancing does with T numbers, a function for each moment of a step: the mathematics of
// balancing/algorithm.py and the norms of balancing/task_gradients.py, in place, on pointers that
// operators/balancing.py hands over. Not operators of Paddle's: after a pass through the network,
// when no cache holds anything of it, each of these takes 15 to 50 us, whatever it does.
//
// Inside all is double.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
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

// The pointers: weights, total, losses. Whether all losses are such as a loss should be.
template <typename T>
bool weigh(int64_t n, T* const* pointers) {
  double sum = 0;
  bool usable = true;
  for (int64_t i = 0; i < n; ++i) {
    const T loss = *pointers[2 + i];
    sum += double(pointers[0][i]) * loss;
    usable = usable && std::isfinite(loss) && loss >= 0;
  }
  *pointers[1] = sum;
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

// The pointers: those of weigh, then factors, values, norms, gradients task by task, null where
// a loss does not depend on a parameter.
template <typename T>
void measure(int64_t n, int64_t n_shared, const int64_t* sizes, T* const* pointers,
             double* products) {
  weigh(n, pointers);
  const T* const* losses = pointers + 2;
  const T* factors = losses[n];
  T *values = pointers[n + 3], *norms = pointers[n + 4];
  const T* const* gradients = pointers + n + 5;
  for (int64_t i = 0; i < n; ++i) {
    values[i] = *losses[i];
    for (int64_t j = 0; j <= i; ++j) {
      double product = 0;
      for (int64_t p = 0; p < n_shared; ++p) {
        const T *a = gradients[i * n_shared + p], *b = gradients[j * n_shared + p];
        if (a && b) product += dot(a, b, sizes[p]);
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
          int64_t n_residuals, const int64_t* residuals, T* loss) {
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

}  // namespace

// Each for float and double, by a suffix.
#define FOR_TYPE(T, SUFFIX)                                                                        \
  extern "C" bool gradnorm_weigh_##SUFFIX(int64_t n, T* const* pointers) {                         \
    return weigh(n, pointers);                                                                     \
  }                                                                                                \
  extern "C" void gradnorm_measure_##SUFFIX(                                                       \
      int64_t n, int64_t n_shared, const int64_t* sizes, T* const* pointers, double* products) {   \
    measure(n, n_shared, sizes, pointers, products);                                               \
  }                                                                                                \
  extern "C" bool gradnorm_gradient_##SUFFIX(                                                      \
      int64_t n, const T* weights, const T* losses, T* references, const T* norms,                 \
      const bool* finite, double alpha, double largest_norm, T* gradient, T* lgrad,                \
      bool* usable) {                                                                              \
    return *usable = published(n, weights, losses, references, norms, *finite, alpha,              \
                               largest_norm, gradient, lgrad);                                     \
  }                                                                                                \
  extern "C" bool gradnorm_step_##SUFFIX(int64_t n, T* weights, const T* losses, T* references,    \
                                         const T* norms, double alpha, double rate, double floor,  \
                                         T* lgrad) {                                               \
    std::vector<T> slope(n);                                                                       \
    const double any = std::numeric_limits<double>::infinity();                                    \
    const bool usable = published(n, weights, losses, references, norms, true, alpha, any,         \
                                  slope.data(), lgrad);                                            \
    if (usable) {                                                                                  \
      for (int64_t i = 0; i < n; ++i) weights[i] -= slope[i] * rate;                               \
      renormalize(weights, n, floor);                                                              \
    }                                                                                              \
    return usable;                                                                                 \
  }                                                                                                \
  extern "C" bool gradnorm_pinn_step_##SUFFIX(                                                     \
      int64_t n, T* weights, const T* losses, T* references, const T* norms, double alpha,         \
      double strength, double lead, double bound, double memory, double rate, double floor,        \
      int64_t n_residuals, const int64_t* residuals, T* loss) {                                    \
    return pinn(n, weights, losses, references, norms, alpha, strength, lead, bound, memory,       \
                rate, floor, n_residuals, residuals, loss);                                        \
  }                                                                                                \
  extern "C" void gradnorm_settle_##SUFFIX(int64_t n, T* weights, T* acted, const bool* usable,    \
                                           bool* finite, double floor) {                           \
    settle(n, weights, acted, *usable, finite, floor);                                             \
  }

FOR_TYPE(float, float32)
FOR_TYPE(double, float64)
