// class_summary and class_lookup on the CPU. The schemas are in kernels/class_attention/op.py.
//
// A pixel needs all rows of its image but only heads*d*d sums (16 KB), so a pixel is finished before the next one: the
// sums stay in the first-level cache. The rows, P*D elements apart, are loaded ROWS at a time into scratch memory,
// where the features phi = elu + 1 are computed. This also avoids cache conflicts: if a row is a multiple of 4 KB, all
// rows of a pixel map to the same few cache lines. In scratch memory heads are padded with zeros to whole vectors, so
// that one product without remainders serves all sizes. Backward recomputes phi. Gradients of the guidance are summed
// within PIXELS pixels, then over the blocks in order.
#include <algorithm>
#include <tuple>

#include "common/arguments.h"
#include "common/cpu.h"
#include "common/exp.h"
#include "common/storage.h"

namespace fgaseg {
namespace {

constexpr int64_t ROWS = 32;    // loaded together; a multiple of TILE
constexpr int64_t PIXELS = 16;  // adjacent pixels that one thread processes one after the other
constexpr int64_t TILE = 8;     // rows of sums in registers: with two AVX-512 vectors each, half of the registers

template <class T>
struct Sizes {
  int64_t rows, pixels, channels, heads, width, padded;  // the last two: channels of a head, in memory and in scratch

  Sizes(const Tensor& x, int64_t heads_)
      : rows(x.size(0)),
        pixels(x.size(1)),
        channels(x.size(2)),
        heads(heads_),
        width(channels / heads),
        padded(whole_vectors(width, LANES<T>)) {}

  int64_t offset(int64_t row, int64_t pixel) const { return (row * pixels + pixel) * channels; }  // in a result
  int64_t pitch() const { return heads * padded; }  // of a row in scratch memory
  int64_t chunk() const { return ROWS * pitch(); }
  int64_t square() const { return padded * padded; }
  int64_t sums() const { return heads * square(); }
  int64_t blocks() const { return (pixels + PIXELS - 1) / PIXELS; }
};

// The rows [first, last) of one pixel of an image.
struct Span {
  int64_t first, last, pixel;
};

// Maps [R, P, D] with contiguous channels.
template <class S>
struct Maps {
  Tensor tensor;
  const S* first;
  int64_t stride_row, stride_pixel, channels;

  explicit Maps(const Tensor& x) : tensor(readable(x)), first(data<S>(tensor)) {
    stride_row = tensor.stride(0);
    stride_pixel = tensor.stride(1);
    channels = tensor.size(2);
  }

  // Row r of a pixel. Prefetches what is needed ROWS rows later, because rows are too far apart for the hardware.
  FGASEG_INLINE const S* row(Span span, int64_t r) const {
    const int64_t rows = span.last - span.first, later = r + ROWS;
    const S* next = first + (later < span.last ? later : later - rows) * stride_row +
                    (later < span.last ? span.pixel : span.pixel + 1) * stride_pixel;
    for (int64_t c = 0; c < channels; c += LANES<S>) __builtin_prefetch(next + c);
    return first + r * stride_row + span.pixel * stride_pixel;
  }
};

// Prefetches rows of a result that are about to be written.
template <class T, class S>
FGASEG_INLINE void prefetch_result(const Sizes<T>& s, const S* y, int64_t pixel, int64_t row, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < s.channels; c += LANES<S>) __builtin_prefetch(y + s.offset(row + i, pixel) + c, 1);
}

// Calls f(channel in memory, channel in scratch) for all channels of a row.
template <class T, class F>
FGASEG_INLINE void for_channels(const Sizes<T>& s, const F& f) {
  const bool apart = s.width != s.padded;
  const int64_t runs = apart ? s.heads : 1, length = apart ? s.width : s.channels;
  for (int64_t h = 0; h < runs; ++h)
    _Pragma("omp simd") for (int64_t i = 0; i < length; ++i) f(h * length + i, h * s.padded + i);
}

template <class T>
FGASEG_INLINE T positive(T x) {
  const T e = exp_of(x > T(0) ? T(0) : x);
  return x > T(0) ? x + T(1) : e;
}

template <class T, class S>
FGASEG_INLINE void features(const Sizes<T>& s, const S* x, const T* guidance, T* phi) {
  for_channels(s, [&](int64_t c, int64_t i) { phi[i] = positive(loaded<T>(x[c]) + guidance[c]); });
}

template <class T, class S>
FGASEG_INLINE void fetch(const Sizes<T>& s, const S* x, T* y) {
  for_channels(s, [&](int64_t c, int64_t i) { y[i] = loaded<T>(x[c]); });
}

// y = dphi * phi'; the slope of elu + 1 is 1 above zero and exp(x) = phi < 1 below.
template <class T, class S>
FGASEG_INLINE void features_backward(const Sizes<T>& s, const T* phi, const T* dphi, S* y, T* guidance_grad) {
  for_channels(s, [&](int64_t c, int64_t i) {
    const T g = dphi[i] * (phi[i] < T(1) ? phi[i] : T(1));
    y[c] = stored<S>(g);
    guidance_grad[c] += g;
  });
}

// c[i][j] += sum_k a(i, k) b[k][j] for TILE rows i, j < N
template <class T, int64_t N>
FGASEG_INLINE void add_tile(const T* a, int64_t a_i, int64_t a_k, const T* b, T* c, int64_t pitch_b, int64_t pitch_c,
                            int64_t depth) {
  T sums[TILE][N];
  _Pragma("GCC unroll 8") for (int64_t i = 0; i < TILE; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < N; ++j) sums[i][j] = c[i * pitch_c + j];
  for (int64_t k = 0; k < depth; ++k)
    _Pragma("GCC unroll 8") for (int64_t i = 0; i < TILE; ++i) {
      const T factor = a[i * a_i + k * a_k];
      _Pragma("omp simd") for (int64_t j = 0; j < N; ++j) sums[i][j] += factor * b[k * pitch_b + j];
    }
  _Pragma("GCC unroll 8") for (int64_t i = 0; i < TILE; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < N; ++j) c[i * pitch_c + j] = sums[i][j];
}

// The same for `height` rows, rounded up to a multiple of TILE, and all channels j of a head.
template <class T>
FGASEG_INLINE void add_product(const Sizes<T>& s, const T* a, int64_t a_i, int64_t a_k, const T* b, int64_t pitch_b,
                               T* c, int64_t pitch_c, int64_t height, int64_t depth) {
  constexpr int64_t one = LANES<T>;
  for (int64_t i = 0; i < height; i += TILE) {
    int64_t j = 0;
    for (; j + 2 * one <= s.padded; j += 2 * one)
      add_tile<T, 2 * one>(a + i * a_i, a_i, a_k, b + j, c + i * pitch_c + j, pitch_b, pitch_c, depth);
    for (; j < s.padded; j += one)
      add_tile<T, one>(a + i * a_i, a_i, a_k, b + j, c + i * pitch_c + j, pitch_b, pitch_c, depth);
  }
}

// sums[h] += x^T y over `n` rows, [d, d] for every head
template <class T>
FGASEG_INLINE void add_outer(const Sizes<T>& s, const T* x, const T* y, T* sums, int64_t n) {
  for (int64_t h = 0, first = 0; h < s.heads; ++h, first += s.padded)
    add_product(s, x + first, 1, s.pitch(), y + first, s.pitch(), sums + h * s.square(), s.padded, s.padded, n);
}

// y += x sums[h] for `n` rows
template <class T>
FGASEG_INLINE void add_rows_times_sums(const Sizes<T>& s, const T* x, const T* sums, T* y, int64_t n) {
  for (int64_t h = 0, first = 0; h < s.heads; ++h, first += s.padded)
    add_product(s, x + first, s.pitch(), 1, sums + h * s.square(), s.padded, y + first, s.pitch(), n, s.width);
}

// Calls f(index in memory, index in scratch, index in the transposed scratch) for the sums of a pixel.
template <class T, class F>
FGASEG_INLINE void for_sums(const Sizes<T>& s, const F& f) {
  for (int64_t h = 0; h < s.heads; ++h)
    for (int64_t i = 0; i < s.width; ++i) {
      const int64_t to = (h * s.padded + i) * s.padded, across = h * s.square() + i;
      for (int64_t j = 0; j < s.width; ++j) f((h * s.width + i) * s.width + j, to + j, across + j * s.padded);
    }
}

template <class T>
FGASEG_INLINE T dot(const T* x, const T* y, int64_t n) {
  T sum = 0;
  _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

template <class T, class S>
struct Summary {
  Sizes<T> s;
  Maps<S> k, v;
  Tensor guidance_;
  const T* guidance;
  int64_t scratch() const { return 2 * s.chunk() + s.sums() + s.pitch(); }
  int64_t backward_scratch() const { return 4 * s.chunk() + 2 * s.sums() + s.pitch(); }

  Summary(const Tensor& k_, const Tensor& v_, const Tensor& k_guidance, int64_t heads)
      : s(k_, heads), k(k_), v(v_), guidance_(prepared(k_guidance)), guidance(data<T>(guidance_)) {}

  FGASEG_INLINE void forward(Span span, T* summary, T* total, T* scratch) const {
    T *phi = scratch, *values = phi + s.chunk(), *sums = values + s.chunk(), *z = sums + s.sums();
    std::fill(sums, z + s.pitch(), T(0));
    for (int64_t r = span.first; r < span.last; r += ROWS) {
      const int64_t n = std::min(ROWS, span.last - r);
      for (int64_t i = 0; i < n; ++i) {
        features(s, k.row(span, r + i), guidance + (r + i) * s.channels, phi + i * s.pitch());
        fetch(s, v.row(span, r + i), values + i * s.pitch());
        for_channels(s, [&](int64_t, int64_t c) { z[c] += phi[i * s.pitch() + c]; });
      }
      add_outer(s, phi, values, sums, n);
    }
    for_sums(s, [&](int64_t to, int64_t from, int64_t) { summary[to] = sums[from]; });
    for_channels(s, [&](int64_t to, int64_t from) { total[to] = z[from]; });
  }

  FGASEG_INLINE void backward(Span span, const T* summary_grad, const T* total_grad, S* dk, S* dv, T* dguidance,
                              T* scratch) const {
    T *phi = scratch, *values = phi + s.chunk(), *dphi = values + s.chunk(), *dvalues = dphi + s.chunk();
    T *sums = dvalues + s.chunk(), *across = sums + s.sums(), *z = across + s.sums();
    for_sums(s, [&](int64_t from, int64_t to, int64_t transposed) {
      sums[to] = across[transposed] = summary_grad[from];
    });
    fetch(s, total_grad, z);
    for (int64_t r = span.first; r < span.last; r += ROWS) {
      const int64_t n = std::min(ROWS, span.last - r);
      for (int64_t i = 0; i < n; ++i) {
        features(s, k.row(span, r + i), guidance + (r + i) * s.channels, phi + i * s.pitch());
        fetch(s, v.row(span, r + i), values + i * s.pitch());
        std::copy(z, z + s.pitch(), dphi + i * s.pitch());
      }
      prefetch_result(s, dk, span.pixel, r, n);
      prefetch_result(s, dv, span.pixel, r, n);
      std::fill(dvalues, dvalues + n * s.pitch(), T(0));
      add_rows_times_sums(s, values, across, dphi, n);
      add_rows_times_sums(s, phi, sums, dvalues, n);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t to = s.offset(r + i, span.pixel), from = i * s.pitch();
        features_backward(s, phi + from, dphi + from, dk + to, dguidance + (r + i) * s.channels);
        for_channels(s, [&](int64_t c, int64_t j) { dv[to + c] = stored<S>(dvalues[from + j]); });
      }
    }
  }
};

template <class T, class S>
struct Lookup {
  Sizes<T> s;
  Maps<S> q;
  Tensor guidance_;
  const T* guidance;
  T eps;
  int64_t scratch() const { return 2 * s.chunk() + s.sums() + s.pitch(); }
  int64_t backward_scratch() const { return 3 * s.chunk() + 3 * s.sums() + 2 * s.pitch(); }

  Lookup(const Tensor& q_, const Tensor& q_guidance, int64_t heads, double eps_)
      : s(q_, heads), q(q_), guidance_(prepared(q_guidance)), guidance(data<T>(guidance_)), eps(T(eps_)) {}

  // Computes phi of n rows from r on, and out = phi S.
  FGASEG_INLINE void numerators(Span span, int64_t r, int64_t n, const T* sums, T* phi, T* out) const {
    for (int64_t i = 0; i < n; ++i)
      features(s, q.row(span, r + i), guidance + (r + i) * s.channels, phi + i * s.pitch());
    std::fill(out, out + n * s.pitch(), T(0));
    add_rows_times_sums(s, phi, sums, out, n);
  }

  FGASEG_INLINE void forward(Span span, const T* summary, const T* total, S* y, T* scratch) const {
    T *phi = scratch, *out = phi + s.chunk(), *sums = out + s.chunk(), *z = sums + s.sums();
    for_sums(s, [&](int64_t from, int64_t to, int64_t) { sums[to] = summary[from]; });
    fetch(s, total, z);
    for (int64_t r = span.first; r < span.last; r += ROWS) {
      const int64_t n = std::min(ROWS, span.last - r);
      prefetch_result(s, y, span.pixel, r, n);
      numerators(span, r, n, sums, phi, out);
      for (int64_t i = 0; i < n; ++i) {
        S* to = y + s.offset(r + i, span.pixel);
        for (int64_t h = 0; h < s.heads; ++h) {
          const int64_t from = i * s.pitch() + h * s.padded;
          const T inverse = T(1) / (dot(phi + from, z + h * s.padded, s.padded) + eps);
          _Pragma("omp simd") for (int64_t j = 0; j < s.width; ++j)
            to[h * s.width + j] = stored<S>(out[from + j] * inverse);
        }
      }
    }
  }

  FGASEG_INLINE void backward(Span span, const Maps<S>& grad, const T* summary, const T* total, S* dq, T* dguidance,
                              T* summary_grad, T* total_grad, T* scratch) const {
    T *phi = scratch, *dphi = phi + s.chunk(), *dout = dphi + s.chunk();
    T *sums = dout + s.chunk(), *across = sums + s.sums(), *z = across + s.sums();
    T *dsums = z + s.pitch(), *dz = dsums + s.sums();
    for_sums(s, [&](int64_t from, int64_t to, int64_t transposed) { sums[to] = across[transposed] = summary[from]; });
    fetch(s, total, z);
    std::fill(dsums, dz + s.pitch(), T(0));
    for (int64_t r = span.first; r < span.last; r += ROWS) {
      const int64_t n = std::min(ROWS, span.last - r);
      prefetch_result(s, dq, span.pixel, r, n);
      numerators(span, r, n, sums, phi, dphi);
      for (int64_t i = 0; i < n; ++i) {
        fetch(s, grad.row(span, r + i), dout + i * s.pitch());
        for (int64_t h = 0; h < s.heads; ++h) {
          const int64_t from = i * s.pitch() + h * s.padded;
          T *f = phi + from, *g = dout + from, *d = dphi + from, *zh = z + h * s.padded, *dzh = dz + h * s.padded;
          const T inverse = T(1) / (dot(f, zh, s.padded) + eps), weight = -dot(g, d, s.padded) * inverse * inverse;
          _Pragma("omp simd") for (int64_t j = 0; j < s.padded; ++j) {
            g[j] *= inverse;
            d[j] = weight * zh[j];
            dzh[j] += weight * f[j];
          }
        }
      }
      add_rows_times_sums(s, dout, across, dphi, n);
      add_outer(s, phi, dout, dsums, n);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t to = s.offset(r + i, span.pixel), from = i * s.pitch();
        features_backward(s, phi + from, dphi + from, dq + to, dguidance + (r + i) * s.channels);
      }
    }
    for_sums(s, [&](int64_t to, int64_t from, int64_t) { summary_grad[to] = dsums[from]; });
    for_channels(s, [&](int64_t to, int64_t from) { total_grad[to] = dz[from]; });
  }
};

// target_clones needs functions that are not templates.
#define FGASEG_FOR(T, S)                                                                                              \
  FGASEG_CLONES void summarise(const Summary<T, S>& of, Span span, T* summary, T* total, T* scratch) {                \
    of.forward(span, summary, total, scratch);                                                                        \
  }                                                                                                                   \
  FGASEG_CLONES void summarise_backward(const Summary<T, S>& of, Span span, const T* ds, const T* dz, S* dk, S* dv,   \
                                        T* dg, T* scratch) {                                                          \
    of.backward(span, ds, dz, dk, dv, dg, scratch);                                                                   \
  }                                                                                                                   \
  FGASEG_CLONES void look_up(const Lookup<T, S>& of, Span span, const T* summary, const T* total, S* y, T* scratch) { \
    of.forward(span, summary, total, y, scratch);                                                                     \
  }                                                                                                                   \
  FGASEG_CLONES void look_up_backward(const Lookup<T, S>& of, Span span, const Maps<S>& grad, const T* summary,       \
                                      const T* total, S* dq, T* dg, T* ds, T* dz, T* scratch) {                       \
    of.backward(span, grad, summary, total, dq, dg, ds, dz, scratch);                                                 \
  }
FGASEG_FOR(float, float)
FGASEG_FOR(float, uint16_t)
FGASEG_FOR(double, double)
#undef FGASEG_FOR

// The rows of every image. The offsets are checked, because wrong ones would read outside the maps.
struct Images {
  Tensor tensor;
  const int64_t* offsets;
  int64_t count;

  Images(const Tensor& offsets_, int64_t rows)
      : tensor(torch::stable::contiguous(offsets_)),
        offsets(static_cast<const int64_t*>(tensor.const_data_ptr())),
        count(tensor.size(0) - 1) {
    bool ascending = offsets[0] == 0 && offsets[count] == rows;
    for (int64_t b = 0; b < count; ++b) ascending = ascending && offsets[b] <= offsets[b + 1];
    STD_TORCH_CHECK(ascending, "offsets must ascend from 0 to R, the number of rows, ", rows);
  }

  // Calls f(span, index of the pixel in [B*P], block of pixels, scratch) for every pixel of every image, on all
  // threads.
  template <class T, class F>
  void for_each_pixel(const Sizes<T>& s, int64_t scratch_size, const F& f) const {
    const int64_t blocks = s.blocks(), elements = s.rows * s.channels * PIXELS / std::max<int64_t>(count, 1);
    const int64_t grain = 1 + 16384 / std::max<int64_t>(elements, 1);
    torch::stable::parallel_for(0, count * blocks, grain, [&](int64_t begin, int64_t end) {
      Aligned<T> scratch(scratch_size);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / blocks, block = i % blocks;
        for (int64_t p = block * PIXELS; p < std::min((block + 1) * PIXELS, s.pixels); ++p)
          f(Span{offsets[b], offsets[b + 1], p}, b * s.pixels + p, block, scratch.data());
      }
    });
  }
};

// The gradient of the guidance [R, D]: a sum for every block of pixels, then the sum of these, in order.
template <class T>
class GuidanceGrad {
 public:
  GuidanceGrad(const Tensor& like, const Sizes<T>& s)
      : s_(s), parts_(torch::stable::new_zeros(like, {s.blocks(), s.rows, s.channels}, scalar_type<T>())) {}
  T* part(int64_t block) { return mutable_data<T>(parts_) + block * s_.rows * s_.channels; }
  Tensor sum() const { return torch::stable::sum(parts_, std::vector<int64_t>{0}); }

 private:
  Sizes<T> s_;
  Tensor parts_;
};

// Of the maps x [R, P, D], their guidance and the offsets, whose values Images checks.
Arguments check_rows(const char* op, const char* name, const Tensor& x, const Tensor& guidance, const Tensor& offsets,
                     int64_t heads) {
  const Arguments call(op, name, x, {ANY, ANY, SOME});
  call.require(heads >= 1 && x.size(2) % heads == 0, "heads must divide the channels");
  call.tensor("the guidance", guidance, {x.size(0), x.size(2)});
  call.tensor("offsets", offsets, {SOME}, ScalarType::Long);
  return call;
}

// Of the sums over the rows of every image, or of their gradients.
void check_sums(const Arguments& call, const Tensor& x, const Tensor& summary, const Tensor& total,
                const Tensor& offsets, int64_t heads) {
  const int64_t images = offsets.size(0) - 1, pixels = x.size(1), width = x.size(2) / heads;
  call.tensor("summary", summary, {images, pixels, heads, width, width}, compute_type(x));
  call.tensor("total", total, {images, pixels, heads, width}, compute_type(x));
}

std::tuple<Tensor, Tensor> class_summary(const Tensor& k, const Tensor& v, const Tensor& guidance,
                                         const Tensor& offsets, int64_t heads) {
  const Arguments call = check_rows("class_summary", "k", k, guidance, offsets, heads);
  call.tensor("v", v, {k.size(0), k.size(1), k.size(2)});
  const Images images(offsets, k.size(0));
  const int64_t pixels = k.size(1), width = k.size(2) / heads;
  Tensor summary = torch::stable::new_empty(k, {images.count, pixels, heads, width, width}, compute_type(k));
  Tensor total = torch::stable::new_empty(k, {images.count, pixels, heads, width}, compute_type(k));
  for_storage_type(k, [&](auto type, auto storage) {
    using T = decltype(type);
    using S = decltype(storage);
    const Summary<T, S> of(k, v, guidance, heads);
    T *s = mutable_data<T>(summary), *z = mutable_data<T>(total);
    images.for_each_pixel(of.s, of.scratch(), [&](Span span, int64_t i, int64_t, T* scratch) {
      summarise(of, span, s + i * of.s.channels * width, z + i * of.s.channels, scratch);
    });
  });
  return {summary, total};
}

std::tuple<Tensor, Tensor, Tensor> class_summary_backward(const Tensor& summary_grad, const Tensor& total_grad,
                                                          const Tensor& k, const Tensor& v, const Tensor& guidance,
                                                          const Tensor& offsets, int64_t heads) {
  const Arguments call = check_rows("class_summary_backward", "k", k, guidance, offsets, heads);
  call.tensor("v", v, {k.size(0), k.size(1), k.size(2)});
  check_sums(call, k, summary_grad, total_grad, offsets, heads);
  const Images images(offsets, k.size(0));
  const Tensor ds = prepared(summary_grad), dz = prepared(total_grad);
  Tensor dk = torch::stable::new_empty(k, {k.size(0), k.size(1), k.size(2)}, storage_type(k));
  Tensor dv = torch::stable::new_empty(k, {k.size(0), k.size(1), k.size(2)}, storage_type(k));
  Tensor dguidance = guidance;
  for_storage_type(k, [&](auto type, auto storage) {
    using T = decltype(type);
    using S = decltype(storage);
    const Summary<T, S> of(k, v, guidance, heads);
    GuidanceGrad<T> parts(k, of.s);
    S *to_k = mutable_data<S>(dk), *to_v = mutable_data<S>(dv);
    images.for_each_pixel(of.s, of.backward_scratch(), [&](Span span, int64_t i, int64_t block, T* scratch) {
      summarise_backward(of, span, data<T>(ds) + i * of.s.channels * of.s.width, data<T>(dz) + i * of.s.channels, to_k,
                         to_v, parts.part(block), scratch);
    });
    dguidance = parts.sum();
  });
  return {finished(dk, k), finished(dv, v), finished(dguidance, guidance)};
}

Tensor class_lookup(const Tensor& q, const Tensor& guidance, const Tensor& summary, const Tensor& total,
                    const Tensor& offsets, int64_t heads, double eps) {
  const Arguments call = check_rows("class_lookup", "q", q, guidance, offsets, heads);
  check_sums(call, q, summary, total, offsets, heads);
  const Images images(offsets, q.size(0));
  const Tensor sums = prepared(summary), z = prepared(total);
  Tensor y = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)}, storage_type(q));
  for_storage_type(q, [&](auto type, auto storage) {
    using T = decltype(type);
    using S = decltype(storage);
    const Lookup<T, S> of(q, guidance, heads, eps);
    S* to = mutable_data<S>(y);
    images.for_each_pixel(of.s, of.scratch(), [&](Span span, int64_t i, int64_t, T* scratch) {
      look_up(of, span, data<T>(sums) + i * of.s.channels * of.s.width, data<T>(z) + i * of.s.channels, to, scratch);
    });
  });
  return finished(y, q);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> class_lookup_backward(const Tensor& grad, const Tensor& q,
                                                                 const Tensor& guidance, const Tensor& summary,
                                                                 const Tensor& total, const Tensor& offsets,
                                                                 int64_t heads, double eps) {
  const Arguments call = check_rows("class_lookup_backward", "q", q, guidance, offsets, heads);
  call.tensor("grad", grad, {q.size(0), q.size(1), q.size(2)});
  check_sums(call, q, summary, total, offsets, heads);
  const Images images(offsets, q.size(0));
  const Tensor sums = prepared(summary), z = prepared(total);
  Tensor dq = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)}, storage_type(q));
  const int64_t pixels = q.size(1), width = q.size(2) / heads;
  Tensor dsummary = torch::stable::new_empty(sums, {images.count, pixels, heads, width, width});
  Tensor dtotal = torch::stable::new_empty(sums, {images.count, pixels, heads, width});
  Tensor dguidance = guidance;
  for_storage_type(q, [&](auto type, auto storage) {
    using T = decltype(type);
    using S = decltype(storage);
    const Lookup<T, S> of(q, guidance, heads, eps);
    const Maps<S> g(grad);
    GuidanceGrad<T> parts(q, of.s);
    S* to = mutable_data<S>(dq);
    T *ds = mutable_data<T>(dsummary), *dz = mutable_data<T>(dtotal);
    images.for_each_pixel(of.s, of.backward_scratch(), [&](Span span, int64_t i, int64_t block, T* scratch) {
      const int64_t first = i * of.s.channels;
      look_up_backward(of, span, g, data<T>(sums) + first * width, data<T>(z) + first, to, parts.part(block),
                       ds + first * width, dz + first, scratch);
    });
    dguidance = parts.sum();
  });
  return {finished(dq, q), finished(dguidance, guidance), dsummary, dtotal};
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("class_summary_cpp", TORCH_BOX(&fgaseg::class_summary));
  m.impl("class_summary_backward_cpp", TORCH_BOX(&fgaseg::class_summary_backward));
  m.impl("class_lookup_cpp", TORCH_BOX(&fgaseg::class_lookup));
  m.impl("class_lookup_backward_cpp", TORCH_BOX(&fgaseg::class_lookup_backward));
}
