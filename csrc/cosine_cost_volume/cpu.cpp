// cosine_cost_volume on the CPU. The schema is in kernels/cosine_cost_volume/op.py.
//
// The matrix product is ATen's; everything around it is a single pass of our own. The pixels are never copied to be
// normalised: their lengths divide the product instead, whose maps are smaller than the pixels if P*T < C; in backward
// they divide the gradient before its two products.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "common/arguments.h"
#include "common/cpu.h"

namespace fgaseg {
namespace {

constexpr int64_t BLOCK = 128;  // adjacent pixels: C rows of BLOCK floats are read with a stride, 512 bytes at a time

// 1 / max(length, eps) of `n` adjacent columns of x [channels][stride].
template <class T>
FGASEG_INLINE void inverse_columns(const T* x, T* inverse, int64_t channels, int64_t n, int64_t stride, T eps) {
  T sum[BLOCK] = {};
  for (int64_t c = 0; c < channels; ++c)
    _Pragma("omp simd") for (int64_t j = 0; j < n; ++j) sum[j] += x[c * stride + j] * x[c * stride + j];
  for (int64_t j = 0; j < n; ++j) inverse[j] = T(1) / std::max(std::sqrt(sum[j]), eps);
}

template <class T>
FGASEG_INLINE void scaled(const T* x, const T* scale, T* y, int64_t n) {
  _Pragma("omp simd") for (int64_t j = 0; j < n; ++j) y[j] = x[j] * scale[j];
}

// g -= u <u, g> for the unit columns u = x * inverse, in place; a length that was raised to eps is a constant.
template <class T>
FGASEG_INLINE void project_columns(const T* x, T* g, const T* inverse, int64_t channels, int64_t n, int64_t stride,
                                   T eps) {
  T dot[BLOCK] = {};
  for (int64_t c = 0; c < channels; ++c)
    _Pragma("omp simd") for (int64_t j = 0; j < n; ++j) dot[j] += x[c * stride + j] * inverse[j] * g[c * stride + j];
  for (int64_t j = 0; j < n; ++j) {
    const bool free = inverse[j] * eps < T(1);  // not raised to eps
    dot[j] = free ? dot[j] * inverse[j] : T(0);
    if (channels == 1 && free) g[j] = dot[j] = T(0);  // in one dimension the gradient is exactly 0
  }
  for (int64_t c = 0; c < channels; ++c)
    _Pragma("omp simd") for (int64_t j = 0; j < n; ++j) g[c * stride + j] -= x[c * stride + j] * dot[j];
}

// y = the unit vector of the row x; returns 1 / max(length, eps).
template <class T>
FGASEG_INLINE T unit_row(const T* x, T* y, int64_t channels, T eps) {
  T sum = 0;
  _Pragma("omp simd reduction(+ : sum)") for (int64_t c = 0; c < channels; ++c) sum += x[c] * x[c];
  const T length = std::max(std::sqrt(sum), eps);
  _Pragma("omp simd") for (int64_t c = 0; c < channels; ++c) y[c] = x[c] / length;
  return T(1) / length;
}

// y = (g - u <u, g>) / length
template <class T>
FGASEG_INLINE void project_row(const T* u, const T* g, T* y, T inverse, int64_t channels, T eps) {
  T dot = 0;
  _Pragma("omp simd reduction(+ : dot)") for (int64_t c = 0; c < channels; ++c) dot += u[c] * g[c];
  if (inverse * eps >= T(1)) dot = 0;
  _Pragma("omp simd") for (int64_t c = 0; c < channels; ++c) y[c] = inverse * (g[c] - u[c] * dot);
}

// target_clones needs functions that are not templates.
#define FGASEG_FOR(T)                                                                                            \
  FGASEG_CLONES void inverse_pixels(const T* x, T* r, int64_t c, int64_t n, int64_t stride, T eps) {             \
    inverse_columns(x, r, c, n, stride, eps);                                                                    \
  }                                                                                                              \
  FGASEG_CLONES void scale_map(const T* x, const T* scale, T* y, int64_t n) { scaled(x, scale, y, n); }          \
  FGASEG_CLONES void project_pixels(const T* x, T* g, const T* r, int64_t c, int64_t n, int64_t stride, T eps) { \
    project_columns(x, g, r, c, n, stride, eps);                                                                 \
  }                                                                                                              \
  FGASEG_CLONES T unit_text(const T* x, T* y, int64_t c, T eps) { return unit_row(x, y, c, eps); }               \
  FGASEG_CLONES void project_text(const T* u, const T* g, T* y, T r, int64_t c, T eps) {                         \
    project_row(u, g, y, r, c, eps);                                                                             \
  }
FGASEG_FOR(float)
FGASEG_FOR(double)
#undef FGASEG_FOR

// Calls f(image, first pixel, number of pixels) for blocks of pixels, on all threads.
template <class F>
void for_each_block(int64_t batch, int64_t pixels, int64_t channels, const F& f) {
  const int64_t blocks = (pixels + BLOCK - 1) / BLOCK, grain = 1 + 16384 / (BLOCK * std::max<int64_t>(channels, 1));
  torch::stable::parallel_for(0, batch * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * BLOCK;
      f(i / blocks, first, std::min(BLOCK, pixels - first));
    }
  });
}

// Calls f(row of [B, T, P], row of [B, P, T]) for every text, on all threads.
template <class F>
void for_each_text(int64_t batch, int64_t classes, int64_t prompts, int64_t channels, const F& f) {
  const int64_t grain = 1 + 16384 / std::max<int64_t>(channels, 1);
  torch::stable::parallel_for(0, batch * classes * prompts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = i % prompts, t = i / prompts % classes, b = i / prompts / classes;
      f(i, (b * prompts + p) * classes + t);
    }
  });
}

// The operands of a batched matrix product: unit texts, and the pixels as they are with their inverse lengths.
struct Operands {
  int64_t batch, channels, pixels, classes, prompts;
  Tensor x, x_inverse;  // [B, C, H*W], [B, H*W]
  Tensor t, t_inverse;  // [B, P*T, C], [B, P*T]

  Operands(const Tensor& pixels_, const Tensor& texts, double eps)
      : batch(pixels_.size(0)),
        channels(pixels_.size(1)),
        pixels(pixels_.size(2) * pixels_.size(3)),
        classes(texts.size(1)),
        prompts(texts.size(2)),
        x(torch::stable::view(pixels_, {batch, channels, pixels})),
        x_inverse(torch::stable::new_empty(pixels_, {batch, pixels})),
        t(torch::stable::new_empty(pixels_, {batch, prompts * classes, channels})),
        t_inverse(torch::stable::new_empty(pixels_, {batch, prompts * classes})) {
    for_compute_type(x, [&](auto type) {
      using T = decltype(type);
      for_each_block(batch, pixels, channels, [&](int64_t b, int64_t first, int64_t n) {
        inverse_pixels(data<T>(x) + b * channels * pixels + first, mutable_data<T>(x_inverse) + b * pixels + first,
                       channels, n, pixels, T(eps));
      });
      for_each_text(batch, classes, prompts, channels, [&](int64_t from, int64_t to) {
        const T* text = data<T>(texts) + from * channels;
        mutable_data<T>(t_inverse)[to] = unit_text(text, mutable_data<T>(t) + to * channels, channels, T(eps));
      });
    });
  }

  // to = maps [B, P*T, H*W] / length of every pixel
  void divide_by_length(const Tensor& maps, Tensor& to) const {
    const int64_t rows = prompts * classes, grain = 1 + 16384 / std::max<int64_t>(pixels, 1);
    for_compute_type(maps, [&](auto type) {
      using T = decltype(type);
      torch::stable::parallel_for(0, batch * rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          scale_map(data<T>(maps) + i * pixels, data<T>(x_inverse) + i / rows * pixels,
                    mutable_data<T>(to) + i * pixels, pixels);
      });
    });
  }
};

Tensor cosine_cost_volume(const Tensor& pixels, const Tensor& texts, double eps) {
  check_cosine_cost_volume(pixels, texts);
  const Operands of(prepared(pixels), prepared(texts), eps);
  Tensor y = torch::stable::matmul(of.t, of.x);
  of.divide_by_length(y, y);
  return finished(torch::stable::view(y, {of.batch, of.prompts, of.classes, pixels.size(2), pixels.size(3)}), pixels);
}

std::tuple<Tensor, Tensor> cosine_cost_volume_backward(const Tensor& grad, const Tensor& pixels, const Tensor& texts,
                                                       double eps) {
  check_cosine_cost_volume(pixels, texts, &grad);
  const Operands of(prepared(pixels), prepared(texts), eps);
  Tensor g = torch::stable::new_empty(of.x, {of.batch, of.prompts * of.classes, of.pixels});
  of.divide_by_length(prepared(grad), g);
  Tensor dx = torch::stable::matmul(torch::stable::transpose(of.t, 1, 2), g);  // [B, C, H*W]
  const Tensor dt = torch::stable::matmul(g, torch::stable::transpose(of.x, 1, 2));  // [B, P*T, C]
  Tensor texts_grad = torch::stable::new_empty(dt, {of.batch, of.classes, of.prompts, of.channels});
  for_compute_type(dx, [&](auto type) {
    using T = decltype(type);
    for_each_block(of.batch, of.pixels, of.channels, [&](int64_t b, int64_t first, int64_t n) {
      const int64_t offset = b * of.channels * of.pixels + first;
      project_pixels(data<T>(of.x) + offset, mutable_data<T>(dx) + offset,
                     data<T>(of.x_inverse) + b * of.pixels + first, of.channels, n, of.pixels, T(eps));
    });
    for_each_text(of.batch, of.classes, of.prompts, of.channels, [&](int64_t to, int64_t from) {
      const int64_t offset = from * of.channels;
      project_text(data<T>(of.t) + offset, data<T>(dt) + offset, mutable_data<T>(texts_grad) + to * of.channels,
                   data<T>(of.t_inverse)[from], of.channels, T(eps));
    });
  });
  const Tensor pixels_grad = torch::stable::view(dx, {of.batch, of.channels, pixels.size(2), pixels.size(3)});
  return {finished(pixels_grad, pixels), finished(texts_grad, texts)};
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("cosine_cost_volume_cpp", TORCH_BOX(&fgaseg::cosine_cost_volume));
  m.impl("cosine_cost_volume_backward_cpp", TORCH_BOX(&fgaseg::cosine_cost_volume_backward));
}
