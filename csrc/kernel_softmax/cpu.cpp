// kernel_softmax on the CPU. The schema is in kernels/kernel_softmax/op.py.
//
// A softmax over 9 taps is too short for vectors, so the work is laid out as columns: in each of `lanes` adjacent
// lanes, `rows` elements are normalised. Taps: blocks of 64 channels are transposed in the first-level cache. Channels:
// memory already has that layout, with K*K lanes; taking several channels at once makes the rows of lanes long enough.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/arguments.h"
#include "common/exp.h"
#include "kernel_softmax/softmax.h"

namespace fgaseg {
namespace {

constexpr int64_t BLOCK = 64;  // channels that are transposed together
constexpr int64_t LONG = 25;   // from so many taps (K = 5) on a row is vectorised by itself; measured
constexpr int64_t WIDE = 16;   // channels taken at once, at most

// Lanes that are `period` apart belong to one softmax: reduces them, and gives the result to all of them.
template <class T, class F>
FGASEG_INLINE void fold(T* values, int64_t lanes, int64_t period, F combine) {
  for (int64_t i = period; i < lanes; i += period)
    for (int64_t j = 0; j < period; ++j) values[j] = combine(values[j], values[i + j]);
  for (int64_t i = period; i < lanes; i += period) std::copy(values, values + period, values + i);
}

template <class T>
FGASEG_INLINE void columns(const T* x, T* y, int64_t rows, int64_t lanes, int64_t period, T* top, T* sum) {
  std::copy(x, x + lanes, top);
  for (int64_t i = 1; i < rows; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < lanes; ++j) {
      top[j] = x[i * lanes + j] > top[j] ? x[i * lanes + j] : top[j];
    }
  fold(top, lanes, period, [](T a, T b) { return b > a ? b : a; });
  std::fill(sum, sum + lanes, T(0));
  for (int64_t i = 0; i < rows; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < lanes; ++j) {
      const T e = exp_of(x[i * lanes + j] - top[j]);
      y[i * lanes + j] = e;
      sum[j] += e;
    }
  fold(sum, lanes, period, [](T a, T b) { return a + b; });
  for (int64_t j = 0; j < lanes; ++j) sum[j] = T(1) / sum[j];
  for (int64_t i = 0; i < rows; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < lanes; ++j) y[i * lanes + j] *= sum[j];
}

template <class T>
FGASEG_INLINE void columns_backward(const T* p, const T* g, T* y, int64_t rows, int64_t lanes, int64_t period, T* dot) {
  std::fill(dot, dot + lanes, T(0));
  for (int64_t i = 0; i < rows; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < lanes; ++j) dot[j] += p[i * lanes + j] * g[i * lanes + j];
  fold(dot, lanes, period, [](T a, T b) { return a + b; });
  for (int64_t i = 0; i < rows; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < lanes; ++j) {
      y[i * lanes + j] = p[i * lanes + j] * (g[i * lanes + j] - dot[j]);
    }
}

// Calls f(first index) for the whole vectors among n elements. A scalar loop over the remainder, up to 15 elements,
// would take as long as all vectors: instead the caller treats the last WIDE elements, which overlap these, as one
// vector.
template <class F>
FGASEG_INLINE int64_t vectors(int64_t n, F f) {
  const int64_t whole = n / WIDE * WIDE;
  for (int64_t i = 0; i < whole; i += WIDE) f(i);
  return whole;
}

template <class T, class F>
FGASEG_INLINE T combined(const T* lanes, F f) {
  T part[4];
  for (int64_t j = 0; j < 4; ++j) part[j] = f(f(lanes[j], lanes[j + 4]), f(lanes[j + 8], lanes[j + 12]));
  return f(f(part[0], part[1]), f(part[2], part[3]));
}

// The softmax of one row of n >= WIDE adjacent elements; y may be x.
template <class T>
FGASEG_INLINE void row(const T* x, T* y, int64_t n) {
  T tail[WIDE], tops[WIDE], sums[WIDE] = {};
  std::copy(x + n - WIDE, x + n, tail);
  std::copy(tail, tail + WIDE, tops);
  vectors(n, [&](int64_t i) {
    _Pragma("omp simd") for (int64_t j = 0; j < WIDE; ++j) tops[j] = x[i + j] > tops[j] ? x[i + j] : tops[j];
  });
  const T top = combined(tops, [](T a, T b) { return b > a ? b : a; });
  const int64_t whole = vectors(n, [&](int64_t i) {
    _Pragma("omp simd") for (int64_t j = 0; j < WIDE; ++j) {
      const T e = exp_of(x[i + j] - top);
      y[i + j] = e;
      sums[j] += e;
    }
  });
  _Pragma("omp simd") for (int64_t j = 0; j < WIDE; ++j) {
    tail[j] = exp_of(tail[j] - top);
    sums[j] += n - WIDE + j >= whole ? tail[j] : T(0);
  }
  const T inverse = T(1) / combined(sums, [](T a, T b) { return a + b; });
  vectors(n, [&](int64_t i) { _Pragma("omp simd") for (int64_t j = 0; j < WIDE; ++j) y[i + j] *= inverse; });
  _Pragma("omp simd") for (int64_t j = 0; j < WIDE; ++j) y[n - WIDE + j] = tail[j] * inverse;
}

// y may be g.
template <class T>
FGASEG_INLINE void row_backward(const T* p, const T* g, T* y, int64_t n) {
  T tail[WIDE], dots[WIDE] = {};
  std::copy(g + n - WIDE, g + n, tail);
  const int64_t whole = vectors(n, [&](int64_t i) {
    _Pragma("omp simd") for (int64_t j = 0; j < WIDE; ++j) dots[j] += p[i + j] * g[i + j];
  });
  _Pragma("omp simd") for (int64_t j = 0; j < WIDE; ++j) {
    dots[j] += n - WIDE + j >= whole ? p[n - WIDE + j] * tail[j] : T(0);
  }
  const T dot = combined(dots, [](T a, T b) { return a + b; });
  vectors(n, [&](int64_t i) {
    _Pragma("omp simd") for (int64_t j = 0; j < WIDE; ++j) y[i + j] = p[i + j] * (g[i + j] - dot);
  });
  _Pragma("omp simd") for (int64_t j = 0; j < WIDE; ++j) y[n - WIDE + j] = p[n - WIDE + j] * (tail[j] - dot);
}

// x [n][taps] -> y [taps][BLOCK]; lanes from n on are zero.
template <class T>
FGASEG_INLINE void transpose_in(const T* x, T* y, int64_t n, int64_t taps) {
  if (n < BLOCK) std::fill(y, y + taps * BLOCK, T(0));
  for (int64_t i = 0; i < taps; ++i)
    for (int64_t c = 0; c < n; ++c) y[i * BLOCK + c] = x[c * taps + i];
}

template <class T>
FGASEG_INLINE void transpose_out(const T* x, T* y, int64_t n, int64_t taps) {
  for (int64_t c = 0; c < n; ++c)
    for (int64_t i = 0; i < taps; ++i) y[c * taps + i] = x[i * BLOCK + c];
}

int64_t channels_at_once(int64_t channels) {
  int64_t wide = WIDE;
  while (channels % wide) wide /= 2;
  return wide;
}

// Elements of scratch memory for one class.
int64_t scratch_size(int64_t taps) { return 2 * taps * std::max(BLOCK, WIDE) + 2 * BLOCK; }

template <class T>
FGASEG_INLINE void one_class(Norm norm, const T* x, T* y, int64_t channels, int64_t taps, int64_t wide, T* scratch) {
  if (norm == Norm::channels) {
    const int64_t lanes = wide * taps;
    return columns(x, y, channels / wide, lanes, taps, scratch, scratch + lanes);
  }
  if (taps >= LONG) {
    for (int64_t c = 0; c < channels; ++c) row(x + c * taps, y + c * taps, taps);
    return;
  }
  T* block = scratch + 2 * BLOCK;
  for (int64_t c = 0; c < channels; c += BLOCK) {
    const int64_t n = std::min(BLOCK, channels - c);
    transpose_in(x + c * taps, block, n, taps);
    columns(block, block, taps, BLOCK, BLOCK, scratch, scratch + BLOCK);
    transpose_out(block, y + c * taps, n, taps);
  }
}

template <class T>
FGASEG_INLINE void one_class_backward(Norm norm, const T* p, const T* g, T* y, int64_t channels, int64_t taps,
                                      int64_t wide, T* scratch) {
  if (norm == Norm::channels) return columns_backward(p, g, y, channels / wide, wide * taps, taps, scratch);
  if (taps >= LONG) {
    for (int64_t c = 0; c < channels; ++c) row_backward(p + c * taps, g + c * taps, y + c * taps, taps);
    return;
  }
  T *blocks_p = scratch + 2 * BLOCK, *blocks_g = blocks_p + taps * BLOCK;
  for (int64_t c = 0; c < channels; c += BLOCK) {
    const int64_t n = std::min(BLOCK, channels - c);
    transpose_in(p + c * taps, blocks_p, n, taps);
    transpose_in(g + c * taps, blocks_g, n, taps);
    columns_backward(blocks_p, blocks_g, blocks_g, taps, BLOCK, BLOCK, scratch);
    transpose_out(blocks_g, y + c * taps, n, taps);
  }
}

// target_clones needs functions that are not templates.
FGASEG_CLONES void softmax_class(Norm norm, const float* x, float* y, int64_t c, int64_t k, int64_t w, float* s) {
  one_class(norm, x, y, c, k, w, s);
}
FGASEG_CLONES void softmax_class(Norm norm, const double* x, double* y, int64_t c, int64_t k, int64_t w, double* s) {
  one_class(norm, x, y, c, k, w, s);
}
FGASEG_CLONES void softmax_class_backward(Norm norm, const float* p, const float* g, float* y, int64_t c, int64_t k,
                                          int64_t w, float* s) {
  one_class_backward(norm, p, g, y, c, k, w, s);
}
FGASEG_CLONES void softmax_class_backward(Norm norm, const double* p, const double* g, double* y, int64_t c, int64_t k,
                                          int64_t w, double* s) {
  one_class_backward(norm, p, g, y, c, k, w, s);
}

// Calls f(offset of a class, scratch) for every class, on all threads.
template <class T, class F>
void for_each_class(int64_t classes, int64_t size, int64_t taps, const F& f) {
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(size, 1));
  torch::stable::parallel_for(0, classes, grain, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(scratch_size(taps));
    for (int64_t i = begin; i < end; ++i) f(i * size, scratch.data());
  });
}

}  // namespace

Norm norm_of(const std::string& name) {
  if (name == "taps") return Norm::taps;
  if (name == "channels") return Norm::channels;
  STD_TORCH_CHECK(name == "none", "norm must be taps, channels or none, not ", name);
  return Norm::none;
}

template <class T>
void softmax_kernels(Norm norm, const T* logits, T* kernels, int64_t classes, int64_t channels, int64_t taps) {
  const int64_t size = channels * taps;
  if (classes * size == 0) return;
  if (norm == Norm::none) return void(std::copy(logits, logits + classes * size, kernels));
  const int64_t wide = channels_at_once(channels);
  for_each_class<T>(classes, size, taps, [&](int64_t offset, T* scratch) {
    softmax_class(norm, logits + offset, kernels + offset, channels, taps, wide, scratch);
  });
}

template <class T>
void softmax_kernels_backward(Norm norm, const T* kernels, const T* grad, T* logits_grad, int64_t classes,
                              int64_t channels, int64_t taps) {
  const int64_t size = channels * taps;
  if (classes * size == 0) return;
  if (norm == Norm::none) return void(std::copy(grad, grad + classes * size, logits_grad));
  const int64_t wide = channels_at_once(channels);
  for_each_class<T>(classes, size, taps, [&](int64_t offset, T* scratch) {
    softmax_class_backward(norm, kernels + offset, grad + offset, logits_grad + offset, channels, taps, wide, scratch);
  });
}

template void softmax_kernels(Norm, const float*, float*, int64_t, int64_t, int64_t);
template void softmax_kernels(Norm, const double*, double*, int64_t, int64_t, int64_t);
template void softmax_kernels_backward(Norm, const float*, const float*, float*, int64_t, int64_t, int64_t);
template void softmax_kernels_backward(Norm, const double*, const double*, double*, int64_t, int64_t, int64_t);

namespace {

Tensor kernel_softmax(const Tensor& kernel_logits, int64_t kernel_size, std::string norm) {
  check_kernel_softmax(kernel_logits, kernel_size, norm);
  const Tensor x = prepared(kernel_logits);
  const int64_t batch = x.size(0), classes = x.size(1), taps = kernel_size * kernel_size, channels = x.size(2) / taps;
  Tensor y = torch::stable::new_empty(x, {batch, classes, channels, kernel_size, kernel_size});
  for_compute_type(x, [&](auto t) {
    using T = decltype(t);
    softmax_kernels(norm_of(norm), data<T>(x), mutable_data<T>(y), batch * classes, channels, taps);
  });
  return finished(y, kernel_logits);
}

Tensor kernel_softmax_backward(const Tensor& grad, const Tensor& kernels, std::string norm) {
  check_kernel_softmax_backward(grad, kernels, norm);
  const Tensor g = prepared(grad), p = prepared(kernels);
  const int64_t batch = p.size(0), classes = p.size(1), channels = p.size(2), taps = p.size(3) * p.size(4);
  Tensor y = torch::stable::new_empty(p, {batch, classes, channels * taps});
  for_compute_type(p, [&](auto t) {
    using T = decltype(t);
    softmax_kernels_backward(norm_of(norm), data<T>(p), data<T>(g), mutable_data<T>(y), batch * classes, channels,
                             taps);
  });
  return finished(y, kernels);
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("kernel_softmax_cpp", TORCH_BOX(&fgaseg::kernel_softmax));
  m.impl("kernel_softmax_backward_cpp", TORCH_BOX(&fgaseg::kernel_softmax_backward));
}
