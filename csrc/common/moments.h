// Means and variances over pixels and channels of maps [pixels][channels], which cannot cancel: of some pixels first the
// means, then the squared differences from them; several such parts are added up with their means taken into account.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/cpu.h"

namespace fgaseg {

// Mean and sum of squared differences from it, of all values of a group in some pixels.
struct Moments {
  double mean, squares;
};

// f(i, c) summed over `pixels` pixels i for the `count` channels c from `first` on, at most a vector.
template <class T, class F>
FGASEG_INLINE void over_pixels(int64_t pixels, int64_t first, int64_t count, T* sums, const F& f) {
  constexpr int64_t L = LANES<T>;
  if (count < L) {
    for (int64_t c = first; c < first + count; ++c) {
      sums[c] = 0;
      for (int64_t i = 0; i < pixels; ++i) sums[c] += f(i, c);
    }
    return;
  }
  T parts[4][L] = {};  // four chains of additions, kept in registers
  int64_t i = 0;
  for (; i + 4 <= pixels; i += 4)
    _Pragma("GCC unroll 4") for (int64_t k = 0; k < 4; ++k)
      _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) parts[k][j] += f(i + k, first + j);
  for (; i < pixels; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) parts[0][j] += f(i, first + j);
  _Pragma("omp simd") for (int64_t j = 0; j < L; ++j)
    sums[first + j] = (parts[0][j] + parts[1][j]) + (parts[2][j] + parts[3][j]);
}

// Of every group in some pixels; sums: memory for two values a channel.
template <class T>
FGASEG_INLINE void moments(const T* y, int64_t pixels, int64_t channels, int64_t groups, T* sums, Moments* to) {
  T *means = sums, *squares = sums + channels;
  for (int64_t c = 0; c < channels; c += LANES<T>) {
    const int64_t count = std::min(LANES<T>, channels - c);
    over_pixels(pixels, c, count, means, [=](int64_t i, int64_t j) FGASEG_LAMBDA { return y[i * channels + j]; });
    for (int64_t j = c; j < c + count; ++j) means[j] /= pixels;
    over_pixels(pixels, c, count, squares, [=](int64_t i, int64_t j) FGASEG_LAMBDA {
      const T d = y[i * channels + j] - means[j];
      return d * d;
    });
  }
  const int64_t size = channels / groups;
  for (int64_t g = 0; g < groups; ++g) {
    double mean = 0, sum = 0;
    for (int64_t c = g * size; c < (g + 1) * size; ++c) mean += means[c];
    mean /= size;
    for (int64_t c = g * size; c < (g + 1) * size; ++c) sum += squares[c] + pixels * (means[c] - mean) * (means[c] - mean);
    to[g] = {mean, sum};
  }
}

// Of a group in all of `count` parts, the i-th of which holds values(i) values and is at parts[i * stride].
template <class F>
Moments together(const Moments* parts, int64_t count, int64_t stride, const F& values) {
  double all = 0, mean = 0, squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    all += values(i);
    mean += values(i) * parts[i * stride].mean;
  }
  mean /= all;
  for (int64_t i = 0; i < count; ++i) {
    const double d = parts[i * stride].mean - mean;
    squares += parts[i * stride].squares + values(i) * d * d;
  }
  return {mean, squares};
}

}  // namespace fgaseg
