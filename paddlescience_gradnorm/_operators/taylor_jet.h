// Derivatives of a network's layers in their inputs, carried forward through the layers, and the
// gradient of that in the parameters; the mathematics is in network/_taylor.py.
//
// Points are worked on in blocks that stay in the processor's cache, and nothing of a block
// outlives it: the backward pass carries the block forward again, which is cheaper than to
// write the layers' values to memory and read them back. In a block the points lie side by
// side, [unit][part][point], with the value and each derivative as parts: vector instructions
// then need no padding whatever the width of the layers, and all parts go through a layer as
// one matrix product.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace taylor_jet {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 6, kTileVectors = 4, kDotTile = 5;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kTileRows = 3, kTileVectors = 4, kDotTile = 3;
#else
constexpr int kVectorBytes = 16, kTileRows = 3, kTileVectors = 4, kDotTile = 3;
#endif
constexpr int kBlock = 64;  // points, a multiple of kTileVectors vectors

template <typename T>
struct Vector {
  static constexpr int kLanes = kVectorBytes / sizeof(T);
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <typename T>
using Lanes = typename Vector<T>::type;

template <typename T>
inline Lanes<T> load(const T* from) {
  return *reinterpret_cast<const Lanes<T>*>(from);
}
template <typename T>
inline void store(T* to, Lanes<T> value) {
  *reinterpret_cast<Lanes<T>*>(to) = value;
}
template <typename T>
inline T sum_lanes(Lanes<T> v) {
  T total = 0;
  for (int k = 0; k < Vector<T>::kLanes; ++k) total += v[k];
  return total;
}

// e^y - 1 = 2^n (e^r - 1) + (2^n - 1) with y = n log 2 + r, and of that tanh: relative
// rounding stays small near zero too.
template <typename T>
struct Expm1;
template <>
struct Expm1<float> {
  typedef int32_t Int;
  static constexpr int kTerms = 8, kMantissa = 23, kBias = 127;
  static constexpr float kHigh = 0.693359375f, kLow = -2.12194440e-4f, kLimit = 10.f;
  static constexpr float kRound = 12582912.f;  // 1.5 * 2^23
};
template <>
struct Expm1<double> {
  typedef int64_t Int;
  static constexpr int kTerms = 14, kMantissa = 52, kBias = 1023;
  static constexpr double kHigh = 0.693147180369123816490, kLow = 1.90821492927058770002e-10;
  static constexpr double kLimit = 20., kRound = 6755399441055744.;  // 1.5 * 2^52
};

constexpr double kInverseFactorial[] = {
    1., 1., 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880,
    1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800., 1. / 87178291200.,
    1. / 1307674368000., 1. / 20922789888000., 1. / 355687428096000., 1. / 6402373705728000.};

template <typename T>
using Int = typename Expm1<T>::Int;
template <typename T>
using IntLanes __attribute__((vector_size(kVectorBytes))) = Int<T>;

// Two parts of e^y for y of at most 0, so large that e^y is a normal number.
template <typename T>
inline void expm1_of(Lanes<T> y, Lanes<T>* small, Lanes<T>* scale) {
  using E = Expm1<T>;
  const Lanes<T> shifted = y * T(1.44269504088896340736) + E::kRound;
  const Lanes<T> n = shifted - E::kRound;
  const Lanes<T> r = (y - n * E::kHigh) - n * E::kLow;
  Lanes<T> series = Lanes<T>{} + T(kInverseFactorial[E::kTerms]);
  for (int k = E::kTerms - 1; k >= 1; --k) series = series * r + T(kInverseFactorial[k]);
  *small = series * r;
  const IntLanes<T> power = ((IntLanes<T>)shifted + E::kBias) << E::kMantissa;
  *scale = (Lanes<T>)power;
}

template <typename T>
inline Lanes<T> tanh_of(Lanes<T> x) {
  using E = Expm1<T>;
  Lanes<T> size = x < 0 ? -x : x;
  size = size > E::kLimit ? Lanes<T>{} + E::kLimit : size;
  Lanes<T> small, scale;
  expm1_of<T>(size * T(-2), &small, &scale);
  const Lanes<T> expm1 = scale * small + (scale - 1);
  const Lanes<T> result = -expm1 / (expm1 + 2);
  return x < 0 ? -result : result;
}

// Sine and cosine: z = n pi/2 + r, and the series of both at r.
template <typename T>
struct Quarters;
template <>
struct Quarters<float> {
  static constexpr float kFirst = 1.5703125f, kSecond = 4.8375129699707031e-4f;
  static constexpr float kThird = 7.5497899548918822e-8f, kLimit = 4096.f;
  static constexpr int kTerms = 10;
};
template <>
struct Quarters<double> {
  static constexpr double kFirst = 1.57079625129699707031, kSecond = 7.54978941586159635336e-8;
  static constexpr double kThird = 5.39030285815811905290e-15, kLimit = 1e5;
  static constexpr int kTerms = 18;
};

template <typename T>
inline void sine_and_cosine_of(Lanes<T> z, Lanes<T>* sine, Lanes<T>* cosine) {
  using Q = Quarters<T>;
  const Lanes<T> shifted = z * T(0.63661977236758134308) + Expm1<T>::kRound;
  const Lanes<T> n = shifted - Expm1<T>::kRound;
  const Lanes<T> r = ((z - n * Q::kFirst) - n * Q::kSecond) - n * Q::kThird, square = r * r;
  Lanes<T> odd = Lanes<T>{} + T(kInverseFactorial[Q::kTerms - 1]);
  Lanes<T> even = Lanes<T>{} + T(kInverseFactorial[Q::kTerms]);
  for (int k = Q::kTerms - 3; k >= 1; k -= 2) odd = T(kInverseFactorial[k]) - odd * square;
  for (int k = Q::kTerms - 2; k >= 0; k -= 2) even = T(kInverseFactorial[k]) - even * square;
  odd *= r;
  const IntLanes<T> quarter = (IntLanes<T>)shifted;
  const Lanes<T> s = (quarter & 1) == 1 ? even : odd, c = (quarter & 1) == 1 ? odd : even;
  *sine = (quarter & 2) == 2 ? -s : s;
  *cosine = ((quarter + 1) & 2) == 2 ? -c : c;
}

// The standard normal density phi and distribution Phi. With y = |z| the distribution at -y is
// e^(-y^2/2) p((y - 4) / (y + 4)) / (y + 4); p is a Chebyshev series, exact to rounding.
template <typename T>
struct Normal;
template <>
struct Normal<float> {
  static constexpr float kLargest = 80.f;  // of y^2 / 2
  static constexpr float kSeries[] = {0.7552851305f,     -0.6078964038f,   0.3871373939f,
                                      -0.1865267109f,    0.06039664828f,   -0.007512231382f,
                                      -0.003479954637f,  0.001563786899f,  0.0001336533871f,
                                      -0.0001573205696f, -1.731082301e-6f};
};
template <>
struct Normal<double> {
  static constexpr double kLargest = 700.;
  static constexpr double kSeries[] = {
      0.755285130415751492,       -0.6078966419718922996,     0.3871374007422149194,
      -0.1865218579596366192,     0.06039657489091777581,     -0.007540188967386137365,
      -0.003479692367046123357,   0.001630818467407939982,    0.0001333443093936714098,
      -0.000231095017350825402,   -1.908246247225879456e-6,   0.00003514511186001353219,
      7.166583886122725662e-7,    -5.921610951637342363e-6,   -6.298358506123211012e-7,
      1.024784973894784843e-6,    2.724615949749095576e-7,    -1.597738595608969654e-7,
      -8.686506817043557439e-8,   1.784488655365511969e-8,    2.14267035614976442e-8,
      -5.873586738588392782e-10,  -3.73031522493686572e-9,    -1.199763157540071847e-10,
      3.402786898903122638e-10};
};

template <typename T>
inline void normal_of(Lanes<T> z, Lanes<T>* distribution, Lanes<T>* density) {
  using N = Normal<T>;
  constexpr int kTerms = sizeof(N::kSeries) / sizeof(T);
  const Lanes<T> y = z < 0 ? -z : z;
  Lanes<T> half = z * z * T(0.5), small, scale;
  half = half > N::kLargest ? Lanes<T>{} + N::kLargest : half;
  expm1_of<T>(-half, &small, &scale);
  const Lanes<T> bell = scale * small + scale, t = 1 - 8 / (y + 4);
  Lanes<T> series = Lanes<T>{} + N::kSeries[kTerms - 1];
  for (int k = kTerms - 2; k >= 0; --k) series = series * t + N::kSeries[k];
  const Lanes<T> tail = bell * series / (y + 4);
  *distribution = z < 0 ? tail : 1 - tail;
  *density = bell * T(0.39894228040143267794);
}

// The logistic function at -|z|, with a small relative error however large z is.
template <typename T>
inline Lanes<T> tail_of(Lanes<T> z) {
  Lanes<T> size = z < 0 ? -z : z, small, scale;
  size = size > Normal<T>::kLargest ? Lanes<T>{} + Normal<T>::kLargest : size;
  expm1_of<T>(-size, &small, &scale);
  const Lanes<T> exp = scale * small + scale;
  return exp / (1 + exp);
}

// log(1 + e^z), from the tail t: max(z, 0) - log(1 - t), and of that the series of the inverse
// hyperbolic tangent.
template <typename T>
inline Lanes<T> softplus_of(Lanes<T> z, Lanes<T> tail) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;
  const Lanes<T> w = tail / (2 - tail), square = w * w;
  Lanes<T> series = Lanes<T>{} + T(1. / (2 * kTerms + 1));
  for (int k = kTerms - 1; k >= 0; --k) series = series * square + T(1. / (2 * k + 1));
  return (z < 0 ? Lanes<T>{} : z) + 2 * w * series;
}

constexpr int kMostOrder = 4;  // of derivatives, here and in network/_taylor.py

// In the order of _operators.ACTIVATIONS.
enum class Activation : int { kTanh, kSin, kSigmoid, kSilu, kGelu, kSoftplus };

// The derivatives d[k] of tanh for k from 1 to `order`, from a = tanh.
template <typename T>
inline void tanh_derivatives(Lanes<T> a, int order, Lanes<T>* d) {
  const Lanes<T> square = a * a, s = 1 - square;
  d[0] = a;
  d[1] = s;
  d[2] = -2 * a * s;
  if (order > 2) d[3] = s * (6 * square - 2);
  if (order > 3) d[4] = a * s * (16 - 24 * square);
  if (order > 4) d[5] = s * (16 + square * (120 * square - 120));
}

// Those of the logistic function, from its value at -|z|.
template <typename T>
inline void sigmoid_derivatives(Lanes<T> z, Lanes<T> tail, int order, Lanes<T>* d) {
  const Lanes<T> s = tail * (1 - tail), value = z < 0 ? tail : 1 - tail;
  const Lanes<T> bend = s * (z < 0 ? 1 - 2 * tail : 2 * tail - 1);
  d[0] = value;
  d[1] = s;
  d[2] = bend;
  if (order > 2) d[3] = s * (1 - 6 * s);
  if (order > 3) d[4] = bend * (1 - 12 * s);
  if (order > 4) d[5] = s * (1 + s * (120 * s - 30));
}

// For each activation: what the backward pass keeps of a point, and the derivatives from that.
// `derive` sets d[0], which only the forward pass reads, to d[order].
template <typename T, Activation which>
struct Function;

template <typename T>
struct Function<T, Activation::kTanh> {
  static constexpr int kKept = 1;
  static void keep(Lanes<T> z, Lanes<T>* kept) { kept[0] = tanh_of<T>(z); }
  static void derive(Lanes<T> z, const Lanes<T>* kept, int order, Lanes<T>* d) {
    tanh_derivatives<T>(kept[0], order, d);
  }
};

template <typename T>
struct Function<T, Activation::kSin> {
  static constexpr int kKept = 2;
  static void keep(Lanes<T> z, Lanes<T>* kept) { sine_and_cosine_of<T>(z, &kept[0], &kept[1]); }
  static void derive(Lanes<T> z, const Lanes<T>* kept, int order, Lanes<T>* d) {
    for (int k = 0; k <= order; ++k) d[k] = k & 2 ? -kept[k & 1] : kept[k & 1];
  }
};

template <typename T>
struct Function<T, Activation::kSigmoid> {
  static constexpr int kKept = 1;
  static void keep(Lanes<T> z, Lanes<T>* kept) { kept[0] = tail_of<T>(z); }
  static void derive(Lanes<T> z, const Lanes<T>* kept, int order, Lanes<T>* d) {
    sigmoid_derivatives<T>(z, kept[0], order, d);
  }
};

template <typename T>
struct Function<T, Activation::kSilu> {
  static constexpr int kKept = 1;
  static void keep(Lanes<T> z, Lanes<T>* kept) { kept[0] = tail_of<T>(z); }
  static void derive(Lanes<T> z, const Lanes<T>* kept, int order, Lanes<T>* d) {
    sigmoid_derivatives<T>(z, kept[0], order, d);
    for (int k = std::max(order, 2); k >= 1; --k) d[k] = z * d[k] + T(k) * d[k - 1];
    d[0] *= z;
  }
};

template <typename T>
struct Function<T, Activation::kGelu> {
  static constexpr int kKept = 2;
  static void keep(Lanes<T> z, Lanes<T>* kept) { normal_of<T>(z, &kept[0], &kept[1]); }
  static void derive(Lanes<T> z, const Lanes<T>* kept, int order, Lanes<T>* d) {
    const Lanes<T> density = kept[1], square = z * z;
    d[0] = z * kept[0];
    d[1] = kept[0] + z * density;
    d[2] = density * (2 - square);
    if (order > 2) d[3] = density * z * (square - 4);
    if (order > 3) d[4] = density * (square * (7 - square) - 4);
    if (order > 4) d[5] = density * z * (square * (square - 11) + 18);
  }
};

template <typename T>
struct Function<T, Activation::kSoftplus> {
  static constexpr int kKept = 2;
  static void keep(Lanes<T> z, Lanes<T>* kept) {
    kept[0] = tail_of<T>(z);
    kept[1] = softplus_of<T>(z, kept[0]);
  }
  static void derive(Lanes<T> z, const Lanes<T>* kept, int order, Lanes<T>* d) {
    sigmoid_derivatives<T>(z, kept[0], order - 1, d + 1);
    d[0] = kept[1];
  }
};

// A unit's kKept numbers for each point of a block, [kept][kBlock].
template <typename T, Activation which>
void keep_unit(const T* z, T bias, T* kept) {
  using F = Function<T, which>;
  for (int p = 0; p < kBlock; p += Vector<T>::kLanes) {
    Lanes<T> of_point[F::kKept];
    F::keep(load(z + p) + bias, of_point);
    for (int k = 0; k < F::kKept; ++k) store(kept + k * kBlock + p, of_point[k]);
  }
  if constexpr (which == Activation::kSin) {
    for (int p = 0; p < kBlock; ++p) {
      const T at = z[p] + bias;
      if (std::abs(at) > Quarters<T>::kLimit) {
        kept[p] = std::sin(at);
        kept[kBlock + p] = std::cos(at);
      }
    }
  }
}

// The derivatives for each point, [order + 1][kBlock].
template <typename T, Activation which>
void derive_unit(const T* z, T bias, const T* kept, int order, T* derivatives) {
  using F = Function<T, which>;
  for (int p = 0; p < kBlock; p += Vector<T>::kLanes) {
    Lanes<T> of_point[F::kKept], d[kMostOrder + 3];
    for (int k = 0; k < F::kKept; ++k) of_point[k] = load(kept + k * kBlock + p);
    F::derive(load(z + p) + bias, of_point, order, d);
    for (int k = 0; k <= order; ++k) store(derivatives + k * kBlock + p, d[k]);
  }
}

template <typename T>
struct Unit {
  void (*keep)(const T* z, T bias, T* kept);
  void (*derive)(const T* z, T bias, const T* kept, int order, T* derivatives);
};

template <typename T>
inline Unit<T> unit_of(Activation activation) {
#define GRADNORM_UNIT(which) \
  case Activation::which:    \
    return {keep_unit<T, Activation::which>, derive_unit<T, Activation::which>};
  switch (activation) {
    GRADNORM_UNIT(kTanh)
    GRADNORM_UNIT(kSin)
    GRADNORM_UNIT(kSigmoid)
    GRADNORM_UNIT(kSilu)
    GRADNORM_UNIT(kGelu)
    GRADNORM_UNIT(kSoftplus)
  }
#undef GRADNORM_UNIT
  throw std::invalid_argument("unknown activation");
}

// to[r][c] (+)= sum_k left[r * row_step + k * inner_step] right[k][c], for kTileVectors
// vectors of columns.
template <typename T, int rows>
inline void multiply_tile(int inner, const T* left, int row_step, int inner_step, const T* right,
                          int right_width, T* to, int to_width) {
  constexpr int lanes = Vector<T>::kLanes;
  Lanes<T> sum[rows][kTileVectors] = {};
  for (int k = 0; k < inner; ++k) {
    Lanes<T> column[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) column[v] = load(right + k * right_width + v * lanes);
    for (int r = 0; r < rows; ++r) {
      const T factor = left[r * row_step + k * inner_step];
      for (int v = 0; v < kTileVectors; ++v) sum[r][v] += factor * column[v];
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < kTileVectors; ++v) store(to + r * to_width + v * lanes, sum[r][v]);
}

template <typename T, int rows = kTileRows>
inline void multiply_rows(int n_rows, int inner, const T* left, int row_step, int inner_step,
                          const T* right, int width, T* to) {
  if (n_rows == rows) {
    constexpr int tile = kTileVectors * Vector<T>::kLanes;
    for (int c = 0; c < width; c += tile)
      multiply_tile<T, rows>(inner, left, row_step, inner_step, right + c, width, to + c, width);
  } else if constexpr (rows > 1) {
    multiply_rows<T, rows - 1>(n_rows, inner, left, row_step, inner_step, right, width, to);
  }
}

// to[n_rows][width] = left[n_rows][inner] right[inner][width]; the width is a multiple of kBlock.
template <typename T>
void multiply(int n_rows, int inner, const T* left, int row_step, int inner_step, const T* right,
              int width, T* to) {
  for (int r = 0; r < n_rows; r += kTileRows)
    multiply_rows<T>(std::min(kTileRows, n_rows - r), inner, left + r * row_step, row_step,
                     inner_step, right, width, to + r * width);
}

template <typename T, int rows, int columns>
inline void dot_tile(int width, const T* left, const T* right, T* to, int to_width) {
  constexpr int lanes = Vector<T>::kLanes;
  Lanes<T> sum[rows][columns] = {};
  for (int c = 0; c < width; c += lanes) {
    Lanes<T> column[columns];
    for (int k = 0; k < columns; ++k) column[k] = load(right + k * width + c);
    for (int r = 0; r < rows; ++r) {
      const Lanes<T> row = load(left + r * width + c);
      for (int k = 0; k < columns; ++k) sum[r][k] += row * column[k];
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int k = 0; k < columns; ++k) to[r * to_width + k] += sum_lanes<T>(sum[r][k]);
}

// to[i][j] += sum_c left[i][c] right[j][c]: the products of all pairs of rows.
template <typename T>
void add_dots(int n_left, int n_right, int width, const T* left, const T* right, T* to) {
  constexpr int tile = kDotTile;
  int i = 0;
  for (; i + tile <= n_left; i += tile) {
    int j = 0;
    for (; j + tile <= n_right; j += tile)
      dot_tile<T, tile, tile>(width, left + i * width, right + j * width, to + i * n_right + j, n_right);
    for (; j < n_right; ++j)
      dot_tile<T, tile, 1>(width, left + i * width, right + j * width, to + i * n_right + j, n_right);
  }
  for (; i < n_left; ++i) {
    int j = 0;
    for (; j + tile <= n_right; j += tile)
      dot_tile<T, 1, tile>(width, left + i * width, right + j * width, to + i * n_right + j, n_right);
    for (; j < n_right; ++j)
      dot_tile<T, 1, 1>(width, left + i * width, right + j * width, to + i * n_right + j, n_right);
  }
}

// A summand of the chain rule: a whole number times the k-th derivative of the activation times
// k parts of what it is applied to.
struct Term {
  int coefficient, order;
  int factors[kMostOrder];
};

// Which derivatives: the parts are the value, then each derivative.
struct Parts {
  std::vector<int> coordinates;          // of each part, if it is a first derivative, else -1
  std::vector<std::vector<Term>> terms;  // of each part
  int order = 0;                         // the highest
  // Whether all parts of the inputs are given, [parts][point][ins], and not only the value, of
  // which the first derivatives are 1 and the others 0.
  bool given = false;
  int count() const { return coordinates.size(); }
};

template <typename T>
struct Layer {
  int ins, outs;
  const T* weight;  // [ins][outs]
  const T* bias;    // [outs]
  Activation activation;
};

// Memory for vectors, aligned to them, and not filled with zeros as a std::vector's is.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t size)
      : data_(static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64)),
              &std::free) {
    if (!data_) throw std::bad_alloc();
  }
  T* data() const { return data_.get(); }
  T& operator[](size_t k) const { return data_.get()[k]; }

 private:
  std::unique_ptr<T, decltype(&std::free)> data_;
};

// One block of points on its way through the layers and back.
template <typename T>
class Block {
 public:
  Block(const std::vector<Layer<T>>& layers, const Parts& parts, bool for_gradient)
      : layers_(layers),
        parts_(parts),
        width_(parts.count() * kBlock),
        ins_width_(parts.given ? width_ : kBlock),
        points_(layers[0].ins * ins_width_),
        lower_(width_) {
    int widest = 0;
    for (const auto& layer : layers) {
      widest = std::max(widest, layer.outs);
      units_.push_back(unit_of<T>(layer.activation));
    }
    // Without a gradient to come, a layer's parts make room for those of the one after the next.
    const size_t kept = for_gradient ? layers.size() : std::min<size_t>(2, layers.size());
    for (size_t l = 0; l < kept; ++l) {
      jets_.emplace_back(widest * width_);
      if (for_gradient || l == 0) {
        linear_.emplace_back(widest * width_);
        kept_.emplace_back(widest * kMostKept * kBlock);
      }
    }
    if (for_gradient) {
      for (const auto& layer : layers) {
        weight_gradients_.emplace_back(layer.ins * layer.outs, T(0));
        bias_gradients_.emplace_back(layer.outs, T(0));
      }
    }
  }

  // Points [n][ins] of the block into jet(): [outs][parts][kBlock]. Their other parts, if given,
  // are `step` numbers apart.
  void forward(const T* points, int n, int64_t step) {
    const int n_ins = layers_[0].ins;
    for (int k = 0; k < n_ins; ++k)
      for (int part = 0; part * kBlock < ins_width_; ++part)
        for (int p = 0; p < kBlock; ++p)
          points_[k * ins_width_ + part * kBlock + p] =
              p < n ? points[part * step + p * n_ins + k] : T(0);
    for (size_t l = 0; l < layers_.size(); ++l) {
      const auto& layer = layers_[l];
      T* z = linear(l);
      if (l == 0 && !parts_.given)
        first_linear(z);
      else
        multiply<T>(layer.outs, layer.ins, layer.weight, 1, layer.outs, lower_jet(l), width_, z);
      for (int o = 0; o < layer.outs; ++o) activate(l, o, z + o * width_, jet(l) + o * width_);
    }
  }

  T* jet(int layer) { return jets_[layer % jets_.size()].data(); }
  T* jet() { return jet(layers_.size() - 1); }

  // After forward: takes the gradient in jet(), laid out alike, and adds to the parameters'.
  void backward(T* gradient) {
    T* upper = gradient;
    for (int l = layers_.size() - 1; l >= 0; --l) {
      const auto& layer = layers_[l];
      for (int o = 0; o < layer.outs; ++o)
        bias_gradients_[l][o] += deactivate(l, o, linear(l) + o * width_, upper + o * width_);
      if (l == 0 && !parts_.given) {
        first_linear_gradient(upper);
        continue;
      }
      add_dots<T>(layer.ins, layer.outs, width_, lower_jet(l), upper, weight_gradients_[l].data());
      if (l > 0) {
        // Its place is free: the parts of this layer are not needed any more.
        T* lower = jet(l);
        multiply<T>(layer.ins, layer.outs, layer.weight, layer.outs, 1, upper, width_, lower);
        upper = lower;
      }
    }
  }

  const std::vector<T>& weight_gradient(int layer) const { return weight_gradients_[layer]; }
  const std::vector<T>& bias_gradient(int layer) const { return bias_gradients_[layer]; }

 private:
  static constexpr int kLanes = Vector<T>::kLanes, kMostKept = 2;
  static constexpr int kChunk = kTileVectors * kLanes;  // points whose sums are in registers

  T* lower_jet(int layer) { return layer > 0 ? jet(layer - 1) : points_.data(); }
  T* linear(int layer) { return linear_[layer % linear_.size()].data(); }
  T* kept(int layer, int unit) {
    return kept_[layer % kept_.size()].data() + unit * kMostKept * kBlock;
  }

  // The first derivatives of a linear function of the points are its weights, the others zero.
  void first_linear(T* z) {
    const auto& layer = layers_[0];
    for (int o = 0; o < layer.outs; ++o) {
      T* row = z + o * width_;
      for (int p = 0; p < kBlock; ++p) {
        T sum = 0;
        for (int k = 0; k < layer.ins; ++k) sum += layer.weight[k * layer.outs + o] * points_[k * kBlock + p];
        row[p] = sum;
      }
      for (int part = 1; part < parts_.count(); ++part) {
        const int coordinate = parts_.coordinates[part];
        std::fill_n(row + part * kBlock, kBlock,
                    coordinate < 0 ? T(0) : layer.weight[coordinate * layer.outs + o]);
      }
    }
  }

  void first_linear_gradient(const T* upper) {
    const auto& layer = layers_[0];
    for (int o = 0; o < layer.outs; ++o) {
      const T* row = upper + o * width_;
      for (int k = 0; k < layer.ins; ++k) {
        Lanes<T> sum = {};
        for (int p = 0; p < kBlock; p += kLanes) sum += load(row + p) * load(&points_[k * kBlock + p]);
        weight_gradients_[0][k * layer.outs + o] += sum_lanes<T>(sum);
      }
      for (int part = 1; part < parts_.count(); ++part) {
        const int coordinate = parts_.coordinates[part];
        if (coordinate < 0) continue;
        Lanes<T> sum = {};
        for (int p = 0; p < kBlock; p += kLanes) sum += load(row + part * kBlock + p);
        weight_gradients_[0][coordinate * layer.outs + o] += sum_lanes<T>(sum);
      }
    }
  }

  // One unit: the chain rule.
  void activate(int layer, int unit, const T* z, T* jet) {
    alignas(64) T derivatives[(kMostOrder + 1) * kBlock];
    const T bias = layers_[layer].bias[unit];
    units_[layer].keep(z, bias, kept(layer, unit));
    units_[layer].derive(z, bias, kept(layer, unit), parts_.order, derivatives);
    std::copy_n(derivatives, kBlock, jet);
    for (int part = 1; part < parts_.count(); ++part) {
      for (int p = 0; p < kBlock; p += kChunk) {
        Lanes<T> sum[kTileVectors] = {};
        for (const Term& term : parts_.terms[part]) {
          const T* d = derivatives + term.order * kBlock + p;
          switch (term.order) {
            case 1: add_term<1>(term, z + p, d, sum); break;
            case 2: add_term<2>(term, z + p, d, sum); break;
            case 3: add_term<3>(term, z + p, d, sum); break;
            default: add_term<4>(term, z + p, d, sum);
          }
        }
        for (int v = 0; v < kTileVectors; ++v) store(jet + part * kBlock + p + v * kLanes, sum[v]);
      }
    }
  }

  template <int order>
  static void add_term(const Term& term, const T* z, const T* derivative, Lanes<T>* sum) {
    for (int v = 0; v < kTileVectors; ++v) {
      Lanes<T> product = load(derivative + v * kLanes) * T(term.coefficient);
      for (int j = 0; j < order - 1; ++j) product *= load(z + term.factors[j] * kBlock + v * kLanes);
      sum[v] += product * load(z + term.factors[order - 1] * kBlock + v * kLanes);
    }
  }

  // The gradient in the unit's parts into that in z's parts, in place; returns the bias's.
  T deactivate(int layer, int unit, const T* z, T* gradient) {
    alignas(64) T derivatives[(kMostOrder + 2) * kBlock];
    alignas(64) T in_derivatives[(kMostOrder + 1) * kBlock];
    units_[layer].derive(z, layers_[layer].bias[unit], kept(layer, unit), parts_.order + 1, derivatives);
    T* lower = lower_.data();
    std::fill_n(in_derivatives + kBlock, parts_.order * kBlock, T(0));
    std::fill_n(lower + kBlock, width_ - kBlock, T(0));
    for (int part = 1; part < parts_.count(); ++part) {
      const T* upper = gradient + part * kBlock;
      for (const Term& term : parts_.terms[part]) {
        const T* d = derivatives + term.order * kBlock;
        T* in_d = in_derivatives + term.order * kBlock;
        switch (term.order) {
          case 1: add_gradients<1>(term, z, d, upper, in_d, lower); break;
          case 2: add_gradients<2>(term, z, d, upper, in_d, lower); break;
          case 3: add_gradients<3>(term, z, d, upper, in_d, lower); break;
          default: add_gradients<4>(term, z, d, upper, in_d, lower);
        }
      }
    }
    Lanes<T> bias = {};
    for (int p = 0; p < kBlock; p += kLanes) {
      Lanes<T> in_z = load(gradient + p) * load(derivatives + kBlock + p);
      for (int k = 1; k <= parts_.order; ++k)
        in_z += load(in_derivatives + k * kBlock + p) * load(derivatives + (k + 1) * kBlock + p);
      store(gradient + p, in_z);
      bias += in_z;
    }
    std::copy_n(lower + kBlock, width_ - kBlock, gradient + kBlock);
    return sum_lanes<T>(bias);
  }

  // Of one term: to the derivative of the activation and to each factor.
  template <int order>
  static void add_gradients(const Term& term, const T* z, const T* derivative, const T* upper,
                            T* in_derivative, T* lower) {
    for (int p = 0; p < kBlock; p += kLanes) {
      Lanes<T> factor[order], before[order + 1];
      before[0] = load(upper + p) * T(term.coefficient);
      for (int j = 0; j < order; ++j) {
        factor[j] = load(z + term.factors[j] * kBlock + p);
        before[j + 1] = before[j] * factor[j];
      }
      store(in_derivative + p, load(in_derivative + p) + before[order]);
      Lanes<T> after = load(derivative + p);
      for (int j = order - 1; j >= 0; --j) {
        T* to = lower + term.factors[j] * kBlock + p;
        store(to, load(to) + before[j] * after);
        after *= factor[j];
      }
    }
  }

  const std::vector<Layer<T>>& layers_;
  const Parts& parts_;
  const int width_, ins_width_;
  Buffer<T> points_, lower_;
  std::vector<Unit<T>> units_;
  std::vector<Buffer<T>> jets_, linear_, kept_;
  std::vector<std::vector<T>> weight_gradients_, bias_gradients_;
};

#ifdef _OPENMP
inline int count_threads() { return omp_get_max_threads(); }
inline int this_thread() { return omp_get_thread_num(); }
#else
inline int count_threads() { return 1; }
inline int this_thread() { return 0; }
#endif

// jet: [outs of the last layer][parts][n_points].
template <typename T>
void forward(const std::vector<Layer<T>>& layers, const Parts& parts, const T* points,
             int64_t n_points, T* jet) {
  const int64_t n_blocks = (n_points + kBlock - 1) / kBlock;
  const int n_ins = layers[0].ins, rows = layers.back().outs * parts.count();
  const int n_threads = std::max<int64_t>(1, std::min<int64_t>(count_threads(), n_blocks));
#pragma omp parallel num_threads(n_threads) if (n_threads > 1)
  {
    Block<T> block(layers, parts, false);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < n_blocks; ++b) {
      const int64_t begin = b * kBlock;
      const int n = std::min<int64_t>(kBlock, n_points - begin);
      block.forward(points + begin * n_ins, n, n_points * n_ins);
      const T* from = block.jet();
      for (int row = 0; row < rows; ++row)
        std::copy_n(from + row * kBlock, n, jet + row * n_points + begin);
    }
  }
}

template <typename T>
void backward(const std::vector<Layer<T>>& layers, const Parts& parts, const T* points,
              int64_t n_points, const T* gradient, const std::vector<T*>& weight_gradients,
              const std::vector<T*>& bias_gradients) {
  const int64_t n_blocks = (n_points + kBlock - 1) / kBlock;
  const int n_ins = layers[0].ins, rows = layers.back().outs * parts.count();
  const int n_threads = std::max<int64_t>(1, std::min<int64_t>(count_threads(), n_blocks));
  // Each thread has its share of the points and a sum of its own, and these are added in the
  // order of the threads: the same number of threads gives the same result to the last bit.
  std::vector<std::unique_ptr<Block<T>>> blocks(n_threads);
#pragma omp parallel num_threads(n_threads) if (n_threads > 1)
  {
    auto block = std::make_unique<Block<T>>(layers, parts, true);
    Buffer<T> upper(size_t(rows) * kBlock);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < n_blocks; ++b) {
      const int64_t begin = b * kBlock;
      const int n = std::min<int64_t>(kBlock, n_points - begin);
      block->forward(points + begin * n_ins, n, n_points * n_ins);
      if (n < kBlock) std::fill_n(upper.data(), size_t(rows) * kBlock, T(0));
      for (int row = 0; row < rows; ++row)
        std::copy_n(gradient + row * n_points + begin, n, &upper[row * kBlock]);
      block->backward(upper.data());
    }
    blocks[this_thread()] = std::move(block);
  }
  for (size_t l = 0; l < layers.size(); ++l) {
    const int64_t size = int64_t(layers[l].ins) * layers[l].outs;
    std::fill_n(weight_gradients[l], size, T(0));
    std::fill_n(bias_gradients[l], layers[l].outs, T(0));
    for (const auto& block : blocks) {
      if (!block) continue;  // fewer threads came than were asked for
      for (int64_t k = 0; k < size; ++k) weight_gradients[l][k] += block->weight_gradient(l)[k];
      for (int k = 0; k < layers[l].outs; ++k) bias_gradients[l][k] += block->bias_gradient(l)[k];
    }
  }
}

}  // namespace taylor_jet
