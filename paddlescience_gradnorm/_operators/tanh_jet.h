// Derivatives of tanh layers in their inputs, carried forward through the layers, and the
// gradient of that in the parameters; the mathematics is in network/taylor.py.
//
// Points are worked on in blocks that stay in the processor's cache, and nothing of a block
// outlives it: the backward pass carries the block forward again, which is cheaper than to
// write the layers' values to memory and read them back. In a block the points lie side by
// side, [unit][part][point], with the value, the first and the second derivatives as parts:
// vector instructions then need no padding whatever the width of the layers, and all parts
// go through a layer as one matrix product.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace tanh_jet {

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
    1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800., 1. / 87178291200.};

template <typename T>
inline Lanes<T> tanh_of(Lanes<T> x) {
  using E = Expm1<T>;
  typedef typename E::Int Int;
  typedef Int IntLanes __attribute__((vector_size(kVectorBytes)));
  Lanes<T> size = x < 0 ? -x : x;
  size = size > E::kLimit ? Lanes<T>{} + E::kLimit : size;
  const Lanes<T> y = size * T(-2);
  const Lanes<T> shifted = y * T(1.44269504088896340736) + E::kRound;
  const Lanes<T> n = shifted - E::kRound;
  const Lanes<T> r = (y - n * E::kHigh) - n * E::kLow;
  Lanes<T> series = Lanes<T>{} + T(kInverseFactorial[E::kTerms]);
  for (int k = E::kTerms - 1; k >= 1; --k) series = series * r + T(kInverseFactorial[k]);
  const Lanes<T> small = series * r;
  const IntLanes power = ((IntLanes)shifted + E::kBias) << E::kMantissa;
  const Lanes<T> scale = (Lanes<T>)power;
  const Lanes<T> expm1 = scale * small + (scale - 1);
  const Lanes<T> result = -expm1 / (expm1 + 2);
  return x < 0 ? -result : result;
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

// Which derivatives: the parts are the value, then `firsts`, then `pairs` of numbers in firsts.
struct Parts {
  std::vector<int> firsts;                 // coordinates
  std::vector<std::pair<int, int>> pairs;  // numbers of entries of firsts
  int count() const { return 1 + firsts.size() + pairs.size(); }
};

template <typename T>
struct Layer {
  int ins, outs;
  const T* weight;  // [ins][outs]
  const T* bias;    // [outs]
};

constexpr int kMostFirsts = 16;

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
        points_(layers[0].ins * kBlock) {
    int widest = 0;
    for (const auto& layer : layers) widest = std::max(widest, layer.outs);
    // Without a gradient to come, a layer's parts make room for those of the one after the next.
    const size_t kept = for_gradient ? layers.size() : std::min<size_t>(2, layers.size());
    for (size_t l = 0; l < kept; ++l) {
      jets_.emplace_back(widest * width_);
      if (for_gradient || l == 0) linear_.emplace_back(widest * width_);
    }
    if (for_gradient) {
      for (const auto& layer : layers) {
        weight_gradients_.emplace_back(layer.ins * layer.outs, T(0));
        bias_gradients_.emplace_back(layer.outs, T(0));
      }
    }
  }

  // Points [n][ins] of the block into jet(): [outs][parts][kBlock].
  void forward(const T* points, int n) {
    const int n_ins = layers_[0].ins;
    for (int k = 0; k < n_ins; ++k)
      for (int p = 0; p < kBlock; ++p) points_[k * kBlock + p] = p < n ? points[p * n_ins + k] : T(0);
    for (size_t l = 0; l < layers_.size(); ++l) {
      const auto& layer = layers_[l];
      T* z = linear(l);
      if (l == 0)
        first_linear(z);
      else
        multiply<T>(layer.outs, layer.ins, layer.weight, 1, layer.outs, jet(l - 1), width_, z);
      for (int o = 0; o < layer.outs; ++o) activate(layer.bias[o], z + o * width_, jet(l) + o * width_);
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
        bias_gradients_[l][o] +=
            deactivate(jet(l) + o * width_, linear(l) + o * width_, upper + o * width_);
      if (l == 0) {
        first_linear_gradient(upper);
      } else {
        add_dots<T>(layer.ins, layer.outs, width_, jet(l - 1), upper, weight_gradients_[l].data());
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
  static constexpr int kLanes = Vector<T>::kLanes;

  T* linear(int layer) { return linear_[layer % linear_.size()].data(); }

  // The first derivatives of a linear function of the points are its weights, the second zero.
  void first_linear(T* z) {
    const auto& layer = layers_[0];
    for (int o = 0; o < layer.outs; ++o) {
      T* row = z + o * width_;
      for (int p = 0; p < kBlock; ++p) {
        T sum = 0;
        for (int k = 0; k < layer.ins; ++k) sum += layer.weight[k * layer.outs + o] * points_[k * kBlock + p];
        row[p] = sum;
      }
      row += kBlock;
      for (int first : parts_.firsts) {
        std::fill_n(row, kBlock, layer.weight[first * layer.outs + o]);
        row += kBlock;
      }
      std::fill_n(row, parts_.pairs.size() * kBlock, T(0));
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
      row += kBlock;
      for (int first : parts_.firsts) {
        Lanes<T> sum = {};
        for (int p = 0; p < kBlock; p += kLanes) sum += load(row + p);
        weight_gradients_[0][first * layer.outs + o] += sum_lanes<T>(sum);
        row += kBlock;
      }
    }
  }

  // One unit: a = tanh(z), a_i = s z_i, a_ij = s (z_ij - 2 a z_i z_j), s = 1 - a^2.
  void activate(T bias, const T* z, T* jet) {
    const int n_firsts = parts_.firsts.size();
    for (int p = 0; p < kBlock; p += kLanes) {
      const Lanes<T> a = tanh_of<T>(load(z + p) + bias);
      const Lanes<T> s = 1 - a * a, twice = a * 2;
      store(jet + p, a);
      const T* from = z + kBlock + p;
      T* to = jet + kBlock + p;
      for (int i = 0; i < n_firsts; ++i) store(to + i * kBlock, s * load(from + i * kBlock));
      for (size_t k = 0; k < parts_.pairs.size(); ++k) {
        const auto [i, j] = parts_.pairs[k];
        const int at = (n_firsts + k) * kBlock;
        store(to + at, s * (load(from + at) - twice * load(from + i * kBlock) * load(from + j * kBlock)));
      }
    }
  }

  // The gradient in a's parts into that in z's parts, in place; returns the bias's.
  T deactivate(const T* jet, const T* z, T* gradient) {
    const int n_firsts = parts_.firsts.size();
    Lanes<T> bias = {};
    for (int p = 0; p < kBlock; p += kLanes) {
      const Lanes<T> a = load(jet + p), s = 1 - a * a, twice = a * 2;
      const T* from = z + kBlock + p;
      T* g = gradient + kBlock + p;
      Lanes<T> in_slope = {}, in_value = load(gradient + p);
      Lanes<T> in_firsts[kMostFirsts];
      for (int i = 0; i < n_firsts; ++i) {
        const Lanes<T> upper = load(g + i * kBlock);
        in_slope += upper * load(from + i * kBlock);
        in_firsts[i] = s * upper;
      }
      for (size_t k = 0; k < parts_.pairs.size(); ++k) {
        const auto [i, j] = parts_.pairs[k];
        const int at = (n_firsts + k) * kBlock;
        const Lanes<T> upper = load(g + at), zi = load(from + i * kBlock), zj = load(from + j * kBlock);
        in_slope += upper * (load(from + at) - twice * zi * zj);
        const Lanes<T> bend = s * upper;
        in_value -= 2 * bend * zi * zj;
        in_firsts[i] -= bend * twice * zj;
        in_firsts[j] -= bend * twice * zi;
        store(g + at, bend);
      }
      for (int i = 0; i < n_firsts; ++i) store(g + i * kBlock, in_firsts[i]);
      const Lanes<T> in_z = s * (in_value - twice * in_slope);
      store(gradient + p, in_z);
      bias += in_z;
    }
    return sum_lanes<T>(bias);
  }

  const std::vector<Layer<T>>& layers_;
  const Parts& parts_;
  const int width_;
  Buffer<T> points_;
  std::vector<Buffer<T>> jets_, linear_;
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
      block.forward(points + begin * n_ins, n);
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
      block->forward(points + begin * n_ins, n);
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

}  // namespace tanh_jet
