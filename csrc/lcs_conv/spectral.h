// Convolution with large kernels by Fourier transforms. A K x K kernel on an H x W map takes K*K*H*W multiplications
// per channel. In a frame of P x Q >= (H + K/2) x (W + K/2), powers of 2, the kernel's transform takes about (K*Q +
// P*Q) * log2(P*Q) / 2 steps of a few operations, and its product with the pixels' spectrum P*Q: K = 11 on 24x24, in a
// frame of 32x32, takes an eighth of the work.
//
// Two channels make one complex number, z = k_a + i*k_b and u = x_a + i*x_b, so that the real part of conj(z)*u is
// k_a*x_a + k_b*x_b: channels are summed as spectra, and no symmetry of real spectra is needed. 2*LANES channels go
// through a transform together, one pair per lane. Pixels lie K/2 from the frame's corner, kernels and maps in it:
//
//     maps = real(sum_c conj(z) u)      kernels' gradient = conj(g) u      pixels' gradient = sum_t z g
//
// all with the same spectra; what wraps around the frame is multiplied by zeros. Spectra stay in bit-reversed order,
// which makes no difference to products. Errors are a few roundings of the largest value; a NaN spreads over its whole
// image.
#pragma once
#include <cmath>
#include <vector>

#include "lcs_conv/conv.h"

namespace fgaseg {

// Elements of LANES complex numbers in memory: the real parts, then the imaginary parts. Inside the loops over lanes,
// real and imaginary parts are separate variables, because the compiler does not vectorise structures.
template <class T>
constexpr int64_t SIZE = 2 * LANES<T>;

// *to = x * (c - i*s), the rotation by a negative angle, of one lane
template <class T>
FGASEG_INLINE void store_rotated(T re, T im, T c, T s, T* to) {
  to[0] = re * c + im * s;
  to[LANES<T>] = im * c - re * s;
}

// Transforms of n = 2^m >= 4 complex numbers in radix-4 steps.
template <class T>
class Fourier {
 public:
  explicit Fourier(int64_t n) : n_(n), cos_(n), sin_(n) {
    for (int64_t k = 0; k < n; ++k) {
      cos_[k] = T(std::cos(2 * M_PI * k / n));
      sin_[k] = T(std::sin(2 * M_PI * k / n));
    }
  }
  int64_t size() const { return n_; }

  // x -> its spectrum in bit-reversed order; the elements from `count` on are zero.
  FGASEG_INLINE void forward(T* x, int64_t count) const {
    const int64_t n = n_;  // the compiler cannot know that the writes do not change n_
    int64_t quarter = n / 4;
    if (count <= n / 2)
      forward_steps<true>(x, n, quarter);
    else
      forward_steps<false>(x, n, quarter);
    for (quarter /= 4; quarter > 0; quarter /= 4) forward_steps<false>(x, n, quarter);
    if (odd()) pairs(x, n);
  }

  // The inverse transform, times n.
  FGASEG_INLINE void inverse(T* x) const {
    const int64_t n = n_;
    if (odd()) pairs(x, n);
    for (int64_t quarter = odd() ? 2 : 1; quarter < n; quarter *= 4)
      for (int64_t i = 0; i < quarter; ++i) {
        const Rotations w(*this, i * (n / (4 * quarter)));
        for (int64_t j = i; j < n; j += 4 * quarter) inverse_step(x + j * SIZE<T>, quarter * SIZE<T>, w);
      }
  }

 private:
  struct Rotations {  // exp(2 pi i m k / n) for m = 1, 2, 3
    T cos1, sin1, cos2, sin2, cos3, sin3;
    FGASEG_INLINE Rotations(const Fourier& f, int64_t k)
        : cos1(f.cos_[k]),
          sin1(f.sin_[k]),
          cos2(f.cos_[2 * k]),
          sin2(f.sin_[2 * k]),
          cos3(f.cos_[3 * k]),
          sin3(f.sin_[3 * k]) {}
  };

  bool odd() const { return (n_ & 0x5555555555555555) == 0; }

  template <bool HALF>
  FGASEG_INLINE void forward_steps(T* x, int64_t n, int64_t quarter) const {
    for (int64_t i = 0; i < quarter; ++i) {
      const Rotations w(*this, i * (n / (4 * quarter)));
      for (int64_t j = i; j < n; j += 4 * quarter) forward_step<HALF>(x + j * SIZE<T>, quarter * SIZE<T>, w);
    }
  }

  // A radix-4 step; the second half of x is zero if HALF.
  template <bool HALF>
  FGASEG_INLINE static void forward_step(T* x, int64_t stride, const Rotations& w) {
    constexpr int64_t IM = LANES<T>;
    T *x1 = x + stride, *x2 = x1 + stride, *x3 = x2 + stride;
    _Pragma("omp simd") for (int64_t l = 0; l < LANES<T>; ++l) {
      const T a = x[l], a_i = x[l + IM], b = x1[l], b_i = x1[l + IM];
      const T c = HALF ? T(0) : x2[l], c_i = HALF ? T(0) : x2[l + IM];
      const T d = HALF ? T(0) : x3[l], d_i = HALF ? T(0) : x3[l + IM];
      const T sum = a + c, sum_i = a_i + c_i, other = b + d, other_i = b_i + d_i;
      const T difference = a - c, difference_i = a_i - c_i, rotated = d_i - b_i, rotated_i = b - d;  // i * (b - d)
      x[l] = sum + other;
      x[l + IM] = sum_i + other_i;
      store_rotated(sum - other, sum_i - other_i, w.cos2, w.sin2, x1 + l);
      store_rotated(difference - rotated, difference_i - rotated_i, w.cos1, w.sin1, x2 + l);
      store_rotated(difference + rotated, difference_i + rotated_i, w.cos3, w.sin3, x3 + l);
    }
  }

  FGASEG_INLINE static void inverse_step(T* x, int64_t stride, const Rotations& w) {
    constexpr int64_t IM = LANES<T>;
    T *x1 = x + stride, *x2 = x1 + stride, *x3 = x2 + stride;
    _Pragma("omp simd") for (int64_t l = 0; l < LANES<T>; ++l) {
      const T a = x[l], a_i = x[l + IM];
      const T b = x1[l] * w.cos2 - x1[l + IM] * w.sin2, b_i = x1[l + IM] * w.cos2 + x1[l] * w.sin2;
      const T c = x2[l] * w.cos1 - x2[l + IM] * w.sin1, c_i = x2[l + IM] * w.cos1 + x2[l] * w.sin1;
      const T d = x3[l] * w.cos3 - x3[l + IM] * w.sin3, d_i = x3[l + IM] * w.cos3 + x3[l] * w.sin3;
      const T sum = a + b, sum_i = a_i + b_i, other = a - b, other_i = a_i - b_i;
      const T difference = c + d, difference_i = c_i + d_i, rotated = d_i - c_i, rotated_i = c - d;  // i * (c - d)
      x[l] = sum + difference;
      x[l + IM] = sum_i + difference_i;
      x1[l] = other + rotated;
      x1[l + IM] = other_i + rotated_i;
      x2[l] = sum - difference;
      x2[l + IM] = sum_i - difference_i;
      x3[l] = other - rotated;
      x3[l + IM] = other_i - rotated_i;
    }
  }

  // A radix-2 step of adjacent elements.
  FGASEG_INLINE static void pairs(T* x, int64_t n) {
    for (int64_t i = 0; i < n; i += 2, x += 2 * SIZE<T>)
      _Pragma("omp simd") for (int64_t l = 0; l < SIZE<T>; ++l) {
        const T a = x[l], b = x[l + SIZE<T>];
        x[l] = a + b;
        x[l + SIZE<T>] = a - b;
      }
  }

  int64_t n_;
  std::vector<T> cos_, sin_;
};

// Transforms of frames of P rows and Q columns of which only rows [above, above + rows) are non-zero, or are needed.
// The intermediate `lines`, after the transforms of the rows, are [Q][rows]. A spectrum is [Q][P].
template <class T>
class Frames {
 public:
  Frames(int64_t height, int64_t width) : rows_(width), columns_(height) {}
  int64_t height() const { return columns_.size(); }
  int64_t width() const { return rows_.size(); }
  int64_t size() const { return height() * width(); }

  // fill(y, row) writes the first `count` elements of a row of the frame.
  template <class F>
  FGASEG_INLINE void rows_forward(T* lines, int64_t rows, int64_t count, T* row, const F& fill) const {
    const int64_t q = width();
    for (int64_t y = 0; y < rows; ++y) {
      std::fill(row, row + q * SIZE<T>, T(0));
      fill(y, row);
      rows_.forward(row, count);
      for (int64_t x = 0; x < q; ++x) copy(row + x * SIZE<T>, lines + (x * rows + y) * SIZE<T>);
    }
  }

  FGASEG_INLINE void column_forward(const T* lines, int64_t x, int64_t above, int64_t rows, T* column) const {
    std::fill(column, column + height() * SIZE<T>, T(0));
    std::copy(lines + x * rows * SIZE<T>, lines + (x + 1) * rows * SIZE<T>, column + above * SIZE<T>);
    columns_.forward(column, above + rows);
  }

  FGASEG_INLINE static void copy(const T* from, T* to) {
    _Pragma("omp simd") for (int64_t l = 0; l < SIZE<T>; ++l) to[l] = from[l];
  }

  // Overwrites the column.
  FGASEG_INLINE void column_inverse(T* lines, int64_t x, int64_t above, int64_t rows, T* column) const {
    columns_.inverse(column);
    std::copy(column + above * SIZE<T>, column + (above + rows) * SIZE<T>, lines + x * rows * SIZE<T>);
  }

  // Calls use(y, row) with the rows of the inverse transform, times size().
  template <class F>
  FGASEG_INLINE void rows_inverse(const T* lines, int64_t rows, T* row, const F& use) const {
    const int64_t q = width();
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < q; ++x) copy(lines + (x * rows + y) * SIZE<T>, row + x * SIZE<T>);
      rows_.inverse(row);
      use(y, row);
    }
  }

 private:
  Fourier<T> rows_, columns_;
};

// The convolution of one image by Fourier transforms. `work` of every function has work_size() elements.
template <class T>
class Spectral {
 public:
  explicit Spectral(const Convolution& conv)
      : conv_(conv),
        h_(conv.kernel_size / 2),
        groups_((conv.channels + SIZE<T> - 1) / SIZE<T>),
        frames_(frame(conv.height, conv.kernel_size), frame(conv.width, conv.kernel_size)),
        p_(frames_.height()),
        q_(frames_.width()) {}

  static int64_t frame(int64_t size, int64_t kernel_size) {
    int64_t n = 4;
    while (n < size + kernel_size / 2) n *= 2;
    return n;
  }

  int64_t groups() const { return groups_; }
  int64_t spectrum_size() const { return p_ * q_ * SIZE<T>; }
  int64_t work_size() const { return (2 + FEW) * spectrum_size() + (2 * p_ + q_ + conv_.taps()) * SIZE<T>; }

  // The spectrum of the pixels of 2*LANES channels.
  FGASEG_INLINE void transform_pixels(const T* pixels, int64_t group, T* spectrum, T* work) const {
    const Work w(*this, work);
    const int64_t height = conv_.height, width = conv_.width;
    frames_.rows_forward(w.lines, height, h_ + width, w.row, [&](int64_t y, T* row) {
      gather_lanes(pixels + group * SIZE<T> * height * width + y * width, height * width, width, channels(group),
               row + h_ * SIZE<T>);
    });
    for (int64_t x = 0; x < q_; ++x) frames_.column_forward(w.lines, x, h_, height, spectrum + x * p_ * SIZE<T>);
  }

  // Maps of up to LANES classes, one per lane; spectra [groups][Q][P] of the pixels.
  FGASEG_INLINE void forward(const T* spectra, const T* kernels, const T* bias, T* maps, int64_t classes,
                             T* work) const {
    const Work w(*this, work);
    const int64_t height = conv_.height, width = conv_.width;
    std::fill(w.sums, w.sums + spectrum_size(), T(0));
    for (int64_t t = 0; t < classes; t += FEW) few_classes(spectra, kernels, t, std::min(FEW, classes - t), w);
    for (int64_t x = 0; x < q_; ++x) frames_.column_inverse(w.lines, x, 0, height, w.sums + x * p_ * SIZE<T>);
    const T scale = T(1) / T(frames_.size());
    frames_.rows_inverse(w.lines, height, w.row, [&](int64_t y, const T* row) {
      for (int64_t t = 0; t < classes; ++t)
        for (int64_t x = 0; x < width; ++x) maps[(t * height + y) * width + x] = bias[t] + scale * row[x * SIZE<T> + t];
    });
  }

  // Spectra of up to LANES maps' gradients, with separate real and imaginary parts: out [classes][2][Q*P].
  FGASEG_INLINE void transform_maps(const T* grad, int64_t classes, T* out, T* work) const {
    const Work w(*this, work);
    const int64_t height = conv_.height, width = conv_.width;
    frames_.rows_forward(w.lines, height, width, w.row, [&](int64_t y, T* row) {
      gather_lanes(grad + y * width, height * width, width, classes, row);
    });
    for (int64_t x = 0; x < q_; ++x) {
      frames_.column_forward(w.lines, x, 0, height, w.column);
      for (int64_t t = 0; t < classes; ++t)
        for (int64_t part = 0; part < 2; ++part)
          for (int64_t y = 0; y < p_; ++y)
            out[((2 * t + part) * q_ + x) * p_ + y] = w.column[y * SIZE<T> + part * LANES<T> + t];
    }
  }

  // Gradients of 2*LANES channels of all classes; maps [classes][2][Q*P] from transform_maps.
  FGASEG_INLINE void backward(const T* maps, const T* pixels, const T* kernels, T* kernels_grad, T* pixels_grad,
                              int64_t group, int64_t classes, T* work) const {
    const Work w(*this, work);
    const int64_t height = conv_.height, width = conv_.width;
    transform_pixels(pixels, group, w.spectrum(), work);
    std::fill(w.sums, w.sums + spectrum_size(), T(0));
    for (int64_t t = 0; t < classes; ++t) {
      const T* map = maps + 2 * t * q_ * p_;
      one_kernel_backward(map, kernels + t * conv_.weights(), kernels_grad + t * conv_.weights(), group, w);
    }
    for (int64_t x = 0; x < q_; ++x) frames_.column_inverse(w.lines, x, h_, height, w.sums + x * p_ * SIZE<T>);
    const T scale = T(1) / T(frames_.size());
    const int64_t n = channels(group);
    frames_.rows_inverse(w.lines, height, w.row, [&](int64_t y, const T* row) {
      for (int64_t i = 0; i < n; ++i)
        for (int64_t x = 0; x < width; ++x)
          pixels_grad[((group * SIZE<T> + i) * height + y) * width + x] += scale * row[(x + h_) * SIZE<T> + i];
    });
  }

 private:
  static constexpr int64_t FEW = 2;  // classes whose sums fit in the second-level cache; measured

  struct Work {
    T *sums, *lines, *few, *row, *column, *other, *taps;
    T* spectrum() const { return few; }  // shared: forward needs `few`, backward the spectrum
    FGASEG_INLINE Work(const Spectral& s, T* work)
        : sums(work),
          lines(sums + s.spectrum_size()),
          few(lines + s.spectrum_size()),
          row(few + FEW * s.spectrum_size()),
          column(row + s.q_ * SIZE<T>),
          other(column + s.p_ * SIZE<T>),
          taps(other + s.p_ * SIZE<T>) {}
  };

  int64_t channels(int64_t group) const { return std::min(SIZE<T>, conv_.channels - group * SIZE<T>); }

  // out[x][i] = in[i][x]
  FGASEG_INLINE static void gather_lanes(const T* in, int64_t stride, int64_t width, int64_t lanes, T* out) {
    for (int64_t i = 0; i < lanes; ++i)
      for (int64_t x = 0; x < width; ++x) out[x * SIZE<T> + i] = in[i * stride + x];
  }

  // Transforms the rows of 2*LANES channels of a kernel.
  FGASEG_INLINE void kernel_rows(const T* kernel, int64_t group, T* lines, const Work& w) const {
    const int64_t k = conv_.kernel_size;
    if (channels(group) < SIZE<T>) std::fill(w.taps, w.taps + k * k * SIZE<T>, T(0));  // of the previous kernel
    gather_lanes(kernel + group * SIZE<T> * k * k, k * k, k * k, channels(group), w.taps);
    frames_.rows_forward(lines, k, k, w.row, [&](int64_t y, T* row) {
      std::copy(w.taps + y * k * SIZE<T>, w.taps + (y + 1) * k * SIZE<T>, row);
    });
  }

  // Lanes [t, t + n) of w.sums = sum_c conj(z) u: a few classes at a time, while the pixels' spectrum is in the cache.
  FGASEG_INLINE void few_classes(const T* spectra, const T* kernels, int64_t t, int64_t n, const Work& w) const {
    const int64_t size = spectrum_size(), column = p_ * SIZE<T>;
    std::fill(w.few, w.few + n * size, T(0));
    for (int64_t group = 0; group < groups_; ++group)
      for (int64_t i = 0; i < n; ++i) {
        kernel_rows(kernels + (t + i) * conv_.weights(), group, w.lines, w);
        for (int64_t x = 0; x < q_; ++x) {
          frames_.column_forward(w.lines, x, 0, conv_.kernel_size, w.column);
          add_products(w.column, spectra + group * size + x * column, column, w.few + i * size + x * column);
        }
      }
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < size; j += LANES<T>) {
        T sum = 0;
        _Pragma("omp simd reduction(+ : sum)") for (int64_t l = 0; l < LANES<T>; ++l) sum += w.few[i * size + j + l];
        w.sums[j + t + i] = sum;
      }
  }

  // sums += conj(z) u
  FGASEG_INLINE static void add_products(const T* z, const T* u, int64_t size, T* sums) {
    for (int64_t i = 0; i < size; i += SIZE<T>) {
      _Pragma("omp simd") for (int64_t l = i; l < i + LANES<T>; ++l) {
        const T re = z[l], im = z[l + LANES<T>];
        sums[l] += u[l] * re + u[l + LANES<T>] * im;
        sums[l + LANES<T>] += u[l + LANES<T>] * re - u[l] * im;
      }
    }
  }

  // w.sums += z g and kernel_grad = conj(g) u
  FGASEG_INLINE void one_kernel_backward(const T* map, const T* kernel, T* kernel_grad, int64_t group,
                                         const Work& w) const {
    const int64_t p = p_, q = q_, k = conv_.kernel_size;
    T* lines = w.lines;
    kernel_rows(kernel, group, lines, w);
    for (int64_t x = 0; x < q; ++x) {
      const T *re = map + x * p, *im = re + q * p, *u = w.spectrum() + x * p * SIZE<T>;
      T* sums = w.sums + x * p * SIZE<T>;
      frames_.column_forward(lines, x, 0, k, w.column);
      for (int64_t y = 0; y < p; ++y) {
        const T c = re[y], s = im[y];
        _Pragma("omp simd") for (int64_t l = y * SIZE<T>; l < y * SIZE<T> + LANES<T>; ++l) {
          const T re = w.column[l], im = w.column[l + LANES<T>];
          sums[l] += re * c - im * s;
          sums[l + LANES<T>] += im * c + re * s;
          store_rotated(u[l], u[l + LANES<T>], c, s, w.other + l);
        }
      }
      frames_.column_inverse(lines, x, 0, k, w.other);
    }
    frames_.rows_inverse(lines, k, w.row, [&](int64_t y, const T* row) {
      std::copy(row, row + k * SIZE<T>, w.taps + y * k * SIZE<T>);
    });
    const T scale = T(1) / T(frames_.size());
    T* to = kernel_grad + group * SIZE<T> * k * k;
    for (int64_t i = 0; i < channels(group); ++i)
      for (int64_t x = 0; x < k * k; ++x) to[i * k * k + x] = scale * w.taps[x * SIZE<T> + i];
  }

  Convolution conv_;
  int64_t h_, groups_;
  Frames<T> frames_;
  int64_t p_, q_;
};

}  // namespace fgaseg
