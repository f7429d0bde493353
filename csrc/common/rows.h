// What linear layers have around their products, whatever these are computed in: rows that are loaded and normalised,
// sums that get bias, activation and residual, and the cut into parts for the threads.
#pragma once
#include <algorithm>
#include <cmath>
#include <optional>

#include "common/activation.h"
#include "common/product.h"

namespace fgaseg {

// A matrix of float (or bfloat16: uint16_t) with any strides.
template <class T>
struct Matrix {
  const T* data;
  int64_t rows, depth, row, step;

  explicit Matrix(const Tensor& x)
      : data(fgaseg::data<T>(x)), rows(x.size(0)), depth(x.size(1)), row(x.stride(0)), step(x.stride(1)) {}
};

struct Norm {
  const float* weight = nullptr;  // none: no norm
  const float* bias = nullptr;
  float eps = 0;
};

// One row as float32, normalised if asked for.
template <class T>
FGASEG_INLINE void load_values(const Matrix<T>& x, int64_t i, const Norm& norm, float* values) {
  const T* from = x.data + i * x.row;
  const int64_t n = x.depth, step = x.step;
  if (step == 1) {
    _Pragma("omp simd") for (int64_t k = 0; k < n; ++k) values[k] = to_float(from[k]);
  } else {
    for (int64_t k = 0; k < n; ++k) values[k] = to_float(from[k * step]);
  }
  if (norm.weight) {
    float sum = 0, squares = 0;
    _Pragma("omp simd reduction(+ : sum)") for (int64_t k = 0; k < n; ++k) sum += values[k];
    const float mean = sum / n;
    _Pragma("omp simd reduction(+ : squares)") for (int64_t k = 0; k < n; ++k) {
      values[k] -= mean;
      squares += values[k] * values[k];
    }
    const float scale = 1 / std::sqrt(squares / n + norm.eps);
    _Pragma("omp simd") for (int64_t k = 0; k < n; ++k) values[k] = values[k] * scale * norm.weight[k] + norm.bias[k];
  }
}

// y = activation(sums + bias) + residual for n rows
template <class T>
struct Ending {
  const float* bias;  // may be null
  Activation activation;
  const T* residual;  // may be null
  int64_t residual_row;
  T* y;
  int64_t row;  // of y

  FGASEG_INLINE void operator()(const float* sums, int64_t pitch, int64_t first, int64_t n, int64_t column,
                                int64_t columns) const {
    with_activation(activation, [&](auto activate) FGASEG_LAMBDA {
      for (int64_t i = 0; i < n; ++i) {
        const float *s = sums + i * pitch, *b = bias ? bias + column : nullptr;
        const T* r = residual ? residual + (first + i) * residual_row + column : nullptr;
        T* to = y + (first + i) * row + column;
        if (b && r) {
          _Pragma("omp simd") for (int64_t j = 0; j < columns; ++j)
            from_float(activate(s[j] + b[j]) + to_float(r[j]), to[j]);
        } else if (b) {
          _Pragma("omp simd") for (int64_t j = 0; j < columns; ++j) from_float(activate(s[j] + b[j]), to[j]);
        } else if (r) {
          _Pragma("omp simd") for (int64_t j = 0; j < columns; ++j)
            from_float(activate(s[j]) + to_float(r[j]), to[j]);
        } else {
          _Pragma("omp simd") for (int64_t j = 0; j < columns; ++j) from_float(activate(s[j]), to[j]);
        }
      }
    });
  }
};

// What one thread computes: rows and panels.
struct Part {
  int64_t row, rows, panel, panels;
};

// How many parts the rows are cut into; the panels are cut into threads / parts. Every part packs its panels and loads
// its rows, so the sum of the two is what the best cut has least of.
inline int64_t cut_rows(int64_t rows, int64_t panels, int64_t threads) {
  int64_t best = std::clamp<int64_t>(rows / ROWS_OF_TILE, 1, threads), least = -1;
  for (int64_t r = 1; r <= threads; ++r) {
    const int64_t across = threads / r, work = rows / r + panels * COLUMNS / across;
    if (threads % r || across > panels || r * ROWS_OF_TILE > rows || (least >= 0 && work >= least)) continue;
    least = work;
    best = r;
  }
  return best;
}

// A small vector in float32, kept for the call.
struct Vector {
  std::optional<Tensor> kept;
  const float* data = nullptr;

  explicit Vector(const std::optional<Tensor>& x) {
    if (!x) return;
    kept = x->scalar_type() == ScalarType::Float ? *x : torch::stable::to(*x, ScalarType::Float);
    if (!kept->is_contiguous()) kept = torch::stable::contiguous(*kept);
    data = fgaseg::data<float>(*kept);
  }
};

template <class F>
void for_storage(const Tensor& x, const F& f) {
  if (x.scalar_type() == ScalarType::Float)
    f(float());
  else
    f(uint16_t());
}

template <class T>
Ending<T> ending_of(const Vector& bias, Activation activation, const Tensor* residual, Tensor& y) {
  return {bias.data, activation, residual ? data<T>(*residual) : nullptr, residual ? residual->stride(0) : 0,
          mutable_data<T>(y), y.size(1)};
}

}  // namespace fgaseg
