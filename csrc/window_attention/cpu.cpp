// window_attention on the CPU. The schema is in kernels/window_attention/op.py.
//
// A window of one head is small: 144 tokens of 32 channels are 18 KB. So everything happens on tiles in cache: q and k
// are loaded with their guidance from wherever shift and window place them; 24 queries at a time get their scores,
// softmax and sum of values, and the scores never leave the first-level cache. Padding is not loaded at all: a window
// has as many tokens as it has pixels. Backward recomputes the scores, also 24 queries at a time.
//
// All matrix products are one loop: ROWS rows of up to three vectors are summed in registers, one operand lies along
// the vectors and the other is read element by element, with any stride. Scores need keys along the vectors, so that
// tile of k is transposed, and with it that of v for the gradient of the scores. Measured on one core with AVX-512,
// 144 tokens of 32: 136 GFLOP/s for scores, 156 for sums of values; ROWS = 8 is slower, and spills with AVX2.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "common/arguments.h"
#include "common/cpu.h"
#include "common/exp.h"
#include "common/storage.h"
#include "window_attention/forward.h"
#include "window_attention/windows.h"

namespace fgaseg {
namespace {

constexpr int64_t ROWS = 4;
constexpr int64_t QUERIES = 24;

// The left operand a [rows][depth] of a matrix product, with any strides.
template <class T>
struct Factor {
  const T* data;
  int64_t row, step;  // strides of the rows and along the depth
};

template <int V, bool ADD, class T>
FGASEG_INLINE void multiply_tile(const Factor<T>& a, const T* b, int64_t pitch_b, T* c, int64_t pitch_c,
                                 int64_t depth) {
  constexpr int64_t L = LANES<T>;
  T sum[ROWS][V][L] = {};
  for (int64_t k = 0; k < depth; ++k)
    _Pragma("GCC unroll 4") for (int64_t i = 0; i < ROWS; ++i) {
      const T factor = a.data[i * a.row + k * a.step];
      _Pragma("GCC unroll 4") for (int64_t v = 0; v < V; ++v) {
        _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) sum[i][v][j] += factor * b[k * pitch_b + v * L + j];
      }
    }
  _Pragma("GCC unroll 4") for (int64_t i = 0; i < ROWS; ++i) {
    _Pragma("GCC unroll 4") for (int64_t v = 0; v < V; ++v) {
      T* to = c + i * pitch_c + v * L;
      _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) to[j] = ADD ? to[j] + sum[i][v][j] : sum[i][v][j];
    }
  }
}

// c = a b, or c += a b, with b [depth][lanes] and c [rows][lanes]. `rows` is rounded up to a multiple of ROWS; `lanes`
// is a multiple of LANES.
template <bool ADD, class T>
FGASEG_INLINE void multiply(const Factor<T>& a, const T* b, int64_t pitch_b, T* c, int64_t pitch_c, int64_t rows,
                            int64_t lanes, int64_t depth) {
  for (int64_t i = 0; i < rows; i += ROWS) {
    const Factor<T> from{a.data + i * a.row, a.row, a.step};
    for (int64_t j = 0; j < lanes;) {
      const int64_t left = (lanes - j) / LANES<T>;
      T* to = c + i * pitch_c + j;
      const int64_t taken = left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3;
      if (taken == 1) multiply_tile<1, ADD>(from, b + j, pitch_b, to, pitch_c, depth);
      if (taken == 2) multiply_tile<2, ADD>(from, b + j, pitch_b, to, pitch_c, depth);
      if (taken == 3) multiply_tile<3, ADD>(from, b + j, pitch_b, to, pitch_c, depth);
      j += taken * LANES<T>;
    }
  }
}

// Reduces LANES lanes to one value; overwrites them.
template <class T, class F>
FGASEG_INLINE T combined(T* lanes, const F& f) {
  for (int64_t half = LANES<T> / 2; half > 0; half /= 2)
    _Pragma("omp simd") for (int64_t j = 0; j < half; ++j) lanes[j] = f(lanes[j], lanes[j + half]);
  return lanes[0];
}

// scores = exp(scores + mask - their maximum); returns 1 / the sum. n is a multiple of LANES.
template <class T>
FGASEG_INLINE T exponentials(T* scores, const T* mask, int64_t n) {
  constexpr int64_t L = LANES<T>;
  T tops[L], sums[L] = {};
  std::fill(tops, tops + L, -std::numeric_limits<T>::infinity());
  for (int64_t i = 0; i < n; i += L)
    _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) {
      const T x = scores[i + j] + mask[i + j];
      scores[i + j] = x;
      tops[j] = x > tops[j] ? x : tops[j];
    }
  const T top = combined(tops, [](T a, T b) { return a > b ? a : b; });
  for (int64_t i = 0; i < n; i += L)
    _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) {
      const T e = exp_of(scores[i + j] - top);
      scores[i + j] = e;
      sums[j] += e;
    }
  return T(1) / combined(sums, [](T a, T b) { return a + b; });
}

// Turns the exponentials into the weights and the weights' gradient into that of the scores, both in place.
template <class T>
FGASEG_INLINE void softmax_backward(T* weights, T* grad, T inverse, int64_t n) {
  constexpr int64_t L = LANES<T>;
  T dots[L] = {};
  for (int64_t i = 0; i < n; i += L)
    _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) {
      weights[i + j] *= inverse;
      dots[j] += weights[i + j] * grad[i + j];
    }
  const T dot = combined(dots, [](T a, T b) { return a + b; });
  for (int64_t i = 0; i < n; i += L)
    _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) grad[i + j] = weights[i + j] * (grad[i + j] - dot);
}

// x [n][pitch_x] -> y [columns][pitch_y], n a multiple of ROWS
template <class T>
FGASEG_INLINE void transpose(const T* x, int64_t pitch_x, T* y, int64_t pitch_y, int64_t n, int64_t columns) {
  for (int64_t i = 0; i < n; i += ROWS) {
    const T* from = x + i * pitch_x;
    for (int64_t c = 0; c < columns; ++c)
      _Pragma("GCC unroll 4") for (int64_t j = 0; j < ROWS; ++j) y[c * pitch_y + i + j] = from[j * pitch_x + c];
  }
}

// One window of one row, and the tiles [tokens][width] and [size][length] that one of its heads needs.
template <class T>
struct Work {
  int64_t size, width, length;  // channels of a head; the same in whole vectors; the most tokens, in whole vectors
  int64_t n = 0, lanes = 0;     // tokens of this window; the same in whole vectors
  const std::vector<Token>* tokens = nullptr;
  T *q, *k, *v, *k_across, *q_sum, *scores, *masks;
  T *grad = nullptr, *v_across = nullptr, *k_sum = nullptr, *v_sum = nullptr, *scores_grad = nullptr;  // for backward

  Work(int64_t size_, int64_t most, bool backward)
      : size(size_),
        width(whole_vectors(size, LANES<T>)),
        length(whole_vectors(most, LANES<T>)),
        scratch_((backward ? 8 : 4) * length * width + 2 * QUERIES * (length + width) + 4 * length) {
    const int64_t tile = length * width;
    T* from = scratch_.data();
    const auto take = [&from](int64_t elements) { return (from += elements) - elements; };
    for (T** one : {&q, &k, &v, &k_across}) *one = take(tile);
    q_sum = take(QUERIES * width);
    scores = take(QUERIES * length);
    masks = take(4 * length);
    if (!backward) return;
    for (T** one : {&grad, &v_across, &k_sum, &v_sum}) *one = take(tile);
    scores_grad = take(QUERIES * length);
  }

  // Sets the masks: -100 for keys of another region, -inf beyond the last token.
  void enter(const std::vector<Token>& window) {
    tokens = &window;
    n = window.size();
    lanes = whole_vectors(n, LANES<T>);
    for (int64_t region = 0; region < 4; ++region)
      for (int64_t i = 0; i < lanes; ++i)
        masks[region * length + i] = i >= n ? -std::numeric_limits<T>::infinity()
                                            : window[i].region == region ? T(0)
                                                                         : T(-100);
  }

  const T* mask(int64_t query) { return masks + (*tokens)[query].region * length; }

  // tile = f(token, channel), zeros beyond the last token
  template <class F>
  FGASEG_INLINE void fill(T* tile, const F& f) {
    for (int64_t i = 0; i < n; ++i)
      _Pragma("omp simd") for (int64_t c = 0; c < size; ++c) tile[i * width + c] = f((*tokens)[i], c);
    std::fill(tile + n * width, tile + lanes * width, T(0));
  }

  template <class S>
  FGASEG_INLINE void load(T* tile, const Maps<const S>& x, int64_t row, int64_t first) {
    fill(tile, [&](const Token& t, int64_t c) { return loaded<T>(x.pixel(row, t)[first + c]); });
  }

  template <class S>
  FGASEG_INLINE void load(T* tile, const Maps<const S>& x, int64_t row, const Maps<const S>& guidance, int64_t image,
                          int64_t first, T scale) {
    fill(tile, [&](const Token& t, int64_t c) {
      return scale * (loaded<T>(x.pixel(row, t)[first + c]) + loaded<T>(guidance.pixel(image, t)[first + c]));
    });
  }

  // Prefetches what the next head will load, while this one is computed: a head is two cache lines of every pixel, too
  // short for the processor to detect a pattern. Without this, loading takes a quarter of the time.
  template <class S>
  FGASEG_INLINE void prefetch(const Maps<const S>& x, int64_t row, int64_t from, int64_t to, int64_t first) const {
    for (int64_t i = from; i < to; ++i)
      for (int64_t c = 0; c < size; c += LANES<S>) __builtin_prefetch(x.pixel(row, (*tokens)[i]) + first + c);
  }

  template <class S>
  FGASEG_INLINE void store(const T* tile, S* to, T factor) const {
    _Pragma("omp simd") for (int64_t c = 0; c < size; ++c) to[c] = stored<S>(factor * tile[c]);
  }

 private:
  Aligned<T> scratch_;
};

template <class S>
struct Gradients {
  Maps<const S> out;
  Maps<S> q, k, v;
};

// Loads the tiles of one head, with q scaled, and the transposed tile of k.
template <class T, class S>
FGASEG_INLINE void load_head(const Inputs<S>& in, int64_t row, int64_t first, Work<T>& w) {
  const int64_t image = row / in.classes;
  w.load(w.q, in.q, row, in.q_guidance, image, first, T(in.scale));
  w.load(w.k, in.k, row, in.k_guidance, image, first, T(1));
  w.load(w.v, in.v, row, first);
  transpose(w.k, w.width, w.k_across, w.length, w.lanes, w.size);
}

template <class T>
FGASEG_INLINE void window_forward(const Inputs<T>& in, const Maps<T>& out, int64_t row, Work<T>& w) {
  T inverse[QUERIES];
  for (int64_t first = 0; first < in.heads * w.size; first += w.size) {
    load_head(in, row, first, w);
    for (int64_t i = 0; i < w.n; i += QUERIES) {
      const int64_t queries = std::min(QUERIES, w.n - i);
      T* scores = w.scores;
      for (const Maps<const T>* x : {&in.q, &in.k, &in.v}) w.prefetch(*x, row, i, i + queries, first + w.size);
      multiply<false>({w.q + i * w.width, w.width, 1}, w.k_across, w.length, scores, w.length, queries,
                      w.lanes, w.size);
      for (int64_t j = 0; j < queries; ++j)
        inverse[j] = exponentials(scores + j * w.length, w.mask(i + j), w.lanes);
      multiply<false>({scores, w.length, 1}, w.v, w.width, w.q_sum, w.width, queries, w.width, w.n);
      for (int64_t j = 0; j < queries; ++j)
        w.store(w.q_sum + j * w.width, out.pixel(row, (*w.tokens)[i + j]) + first, inverse[j]);
    }
  }
}

template <class T, class S>
FGASEG_INLINE void window_backward(const Inputs<S>& in, const Gradients<S>& grads, int64_t row, Work<T>& w) {
  T *scores = w.scores, *scores_grad = w.scores_grad;
  for (int64_t first = 0; first < in.heads * w.size; first += w.size) {
    load_head(in, row, first, w);
    w.load(w.grad, grads.out, row, first);
    transpose(w.v, w.width, w.v_across, w.length, w.lanes, w.size);
    std::fill(w.k_sum, w.k_sum + w.lanes * w.width, T(0));
    std::fill(w.v_sum, w.v_sum + w.lanes * w.width, T(0));
    for (int64_t i = 0; i < w.n; i += QUERIES) {
      const int64_t queries = std::min(QUERIES, w.n - i);
      const T *q = w.q + i * w.width, *grad = w.grad + i * w.width;
      for (const Maps<const S>* x : {&in.q, &in.k, &in.v, &grads.out})
        w.prefetch(*x, row, i, i + queries, first + w.size);
      multiply<false>({q, w.width, 1}, w.k_across, w.length, scores, w.length, queries, w.lanes, w.size);
      multiply<false>({grad, w.width, 1}, w.v_across, w.length, scores_grad, w.length, queries, w.lanes,
                      w.size);
      for (int64_t j = 0; j < queries; ++j) {
        const T inverse = exponentials(scores + j * w.length, w.mask(i + j), w.lanes);
        softmax_backward(scores + j * w.length, scores_grad + j * w.length, inverse, w.lanes);
      }
      multiply<true>({scores, 1, w.length}, grad, w.width, w.v_sum, w.width, w.n, w.width, queries);
      multiply<true>({scores_grad, 1, w.length}, q, w.width, w.k_sum, w.width, w.n, w.width, queries);
      multiply<false>({scores_grad, w.length, 1}, w.k, w.width, w.q_sum, w.width, queries, w.width,
                      w.n);
      for (int64_t j = 0; j < queries; ++j)
        w.store(w.q_sum + j * w.width, grads.q.pixel(row, (*w.tokens)[i + j]) + first, T(in.scale));
    }
    for (int64_t i = 0; i < w.n; ++i) {
      w.store(w.k_sum + i * w.width, grads.k.pixel(row, (*w.tokens)[i]) + first, T(1));
      w.store(w.v_sum + i * w.width, grads.v.pixel(row, (*w.tokens)[i]) + first, T(1));
    }
  }
}

// target_clones needs functions that are not templates.
FGASEG_CLONES void forward(const Inputs<double>& in, const Maps<double>& out, int64_t row, Work<double>& work) {
  window_forward(in, out, row, work);
}

#define FGASEG_FOR(T, S)                                                                                    \
  FGASEG_CLONES void backward(const Inputs<S>& in, const Gradients<S>& grads, int64_t row, Work<T>& work) { \
    window_backward(in, grads, row, work);                                                                  \
  }
FGASEG_FOR(float, float)
FGASEG_FOR(float, uint16_t)
FGASEG_FOR(double, double)
#undef FGASEG_FOR

#define FGASEG_FOR(S, U)                                                                             \
  FGASEG_CLONES void forward(const Inputs<S>& in, const Maps<S>& out, int64_t row, Heads<U>& work) { \
    window_forward(in, out, row, work);                                                              \
  }
FGASEG_FOR(float, float)
FGASEG_FOR(uint16_t, uint16_t)
FGASEG_FOR(uint16_t, float)
#undef FGASEG_FOR

// The inputs, and a loop over the windows of all rows on all threads.
struct Call {
  Tensor q, k, v, q_guidance, k_guidance;
  int64_t heads, size;
  std::vector<std::vector<Token>> windows;
  size_t most = 0;  // pixels of a window

  Call(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& q_guidance_, const Tensor& k_guidance_,
       int64_t heads_, int64_t window, int64_t shift)
      : q(readable(q_)),
        k(readable(k_)),
        v(readable(v_)),
        q_guidance(readable(q_guidance_)),
        k_guidance(readable(k_guidance_)),
        heads(heads_),
        size(q.size(3) / heads),
        windows(windows_of(q.size(1), q.size(2), window, shift)) {
    for (const auto& one : windows) most = std::max(most, one.size());
  }

  template <class S>
  Inputs<S> inputs() const {
    const auto maps = [](const Tensor& x) { return Maps<const S>(data<S>(x), x); };
    const int64_t classes = q.size(0) / std::max<int64_t>(q_guidance.size(0), 1);
    return {maps(q), maps(k), maps(v), maps(q_guidance), maps(k_guidance), classes, heads, 1 / std::sqrt(double(size))};
  }

  // f(row, window, memory of the thread)
  template <class Memory, class F>
  void for_each_window(const F& f, bool backward) const {
    const int64_t count = windows.size(), grain = 1 + 16384 / (most * heads * size);
    torch::stable::parallel_for(0, q.size(0) * count, grain, [&](int64_t begin, int64_t end) {
      Memory memory(size, most, backward);
      for (int64_t i = begin; i < end; ++i) {
        memory.enter(windows[i % count]);
        f(i / count, memory);
      }
    });
  }

  template <class S, class Memory>
  void run_forward(Tensor& y) const {
    const Inputs<S> in = inputs<S>();
    const Maps<S> out(mutable_data<S>(y), y);
    for_each_window<Memory>([&](int64_t row, Memory& memory) { forward(in, out, row, memory); }, false);
  }
};

Tensor window_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_guidance,
                        const Tensor& k_guidance, int64_t heads, int64_t window, int64_t shift) {
  check_window_attention(q, k, v, q_guidance, k_guidance, heads, window, shift);
  const Call call(q, k, v, q_guidance, k_guidance, heads, window, shift);
  Tensor y = torch::stable::new_empty(call.q, call.q.sizes());
  for_storage_type(y, [&](auto type, auto storage) {
    using S = decltype(storage);
    if constexpr (std::is_same_v<decltype(type), double>)
      call.run_forward<S, Work<double>>(y);
    else if (sizeof(S) == 2 && product_of_bfloat16() == Arithmetic::bfloat16)
      call.run_forward<S, Heads<S>>(y);
    else
      call.run_forward<S, Heads<float>>(y);
  });
  return finished(y, q);
}

// The gradient of the guidance, which is added to all classes of an image.
Tensor over_classes(const Tensor& grad, int64_t images) {
  const int64_t classes = grad.size(0) / std::max<int64_t>(images, 1);
  const Tensor parts = torch::stable::view(grad, {images, classes, grad.size(1), grad.size(2), grad.size(3)});
  const int64_t axis[] = {1};
  return torch::stable::sum(parts, axis);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> window_attention_backward(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_guidance,
    const Tensor& k_guidance, int64_t heads, int64_t window, int64_t shift) {
  check_window_attention(q, k, v, q_guidance, k_guidance, heads, window, shift, &grad);
  const Call call(q, k, v, q_guidance, k_guidance, heads, window, shift);
  const Tensor g = readable(grad);
  const auto like = [](const Tensor& x) { return torch::stable::new_empty(x, x.sizes()); };
  Tensor dq = like(call.q), dk = like(call.k), dv = like(call.v);
  for_storage_type(g, [&](auto type, auto storage) {
    using T = decltype(type);
    using S = decltype(storage);
    const Inputs<S> in = call.inputs<S>();
    const Gradients<S> grads{{data<S>(g), g}, {mutable_data<S>(dq), dq}, {mutable_data<S>(dk), dk},
                             {mutable_data<S>(dv), dv}};
    call.for_each_window<Work<T>>([&](int64_t row, Work<T>& work) { backward(in, grads, row, work); }, true);
  });
  const int64_t images = q_guidance.size(0);
  return {finished(dq, q), finished(dk, q), finished(dv, q), finished(over_classes(dq, images), q),
          finished(over_classes(dk, images), q)};
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("window_attention_cpp", TORCH_BOX(&fgaseg::window_attention));
  m.impl("window_attention_backward_cpp", TORCH_BOX(&fgaseg::window_attention_backward));
}
