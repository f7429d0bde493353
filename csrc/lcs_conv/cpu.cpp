// lcs_conv on the CPU. The schema is in kernels/lcs_conv/op.py.
//
// The convolution is bound by arithmetic, and oneDNN, called through ATen, runs it near the processor's peak. PyTorch's
// softmax over K*K taps takes longer than that convolution, so the kernels are normalised by our own, a bounded number
// of classes at a time: the normalised kernels of a whole batch are never in memory. Small maps take less time than
// oneDNN's set-up, so plain loops convolve them. Large kernels are convolved by Fourier transforms, in spectral.h.
#include "lcs_conv/conv.h"

#include <array>
#include <optional>
#include <tuple>
#include <utility>

#include "common/arguments.h"
#include "kernel_softmax/softmax.h"
#include "lcs_conv/spectral.h"

namespace fgaseg {
namespace {

// Kernels normalised at a time: what the second-level caches hold, but enough classes for oneDNN to be efficient;
// measured.
constexpr int64_t CHUNK_BYTES = 8 << 20, CHUNK_CLASSES = 128;
// Multiplications up to which the plain loops win: they run at half of oneDNN's speed or less, without set-up;
// measured.
constexpr int64_t SMALL = 1 << 20;
// The time of an operation in a transform, relative to one in oneDNN's convolution and in its gradients; measured.
constexpr double SPECTRAL_FORWARD = 6, SPECTRAL_BACKWARD = 4;

using Ints = std::vector<int64_t>;
using torch::stable::detail::from;
using torch::stable::detail::to;

Tensor conv2d(const Tensor& pixels, const Tensor& kernels, const Tensor& bias, int64_t padding) {
  std::array<StableIValue, 7> stack{from(pixels),       from(kernels),  from(std::optional<Tensor>(bias)),
                                    from(Ints{1, 1}),   from(Ints{padding, padding}),
                                    from(Ints{1, 1}),   from(int64_t(1))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::conv2d", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::contiguous(to<Tensor>(stack[0]));
}

// Gradients of conv2d with respect to pixels and kernels, both contiguous.
std::pair<Tensor, Tensor> conv2d_backward(const Tensor& grad, const Tensor& pixels, const Tensor& kernels,
                                          int64_t padding) {
  const bool wanted[] = {true, true, false};  // the bias's gradient is a plain sum
  std::array<StableIValue, 11> stack{from(grad),
                                     from(pixels),
                                     from(kernels),
                                     from(std::optional<Ints>()),
                                     from(Ints{1, 1}),
                                     from(Ints{padding, padding}),
                                     from(Ints{1, 1}),
                                     from(false),
                                     from(Ints{0, 0}),
                                     from(int64_t(1)),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted, 3))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::contiguous(to<Tensor>(stack[0])), torch::stable::contiguous(to<Tensor>(stack[1]))};
}

// The plain loops. Maps get a border of zeros, so that a tap is a shift of the whole map; results for the border are
// discarded. The sums stay in the first-level cache, and four products are added at once.
struct Small {
  int64_t height, width, kernel_size, pitch, plane;

  explicit Small(const Convolution& c)
      : height(c.height),
        width(c.width),
        kernel_size(c.kernel_size),
        pitch(width + kernel_size - 1),
        plane((height + kernel_size - 1) * pitch) {}

  int64_t offset(int64_t y, int64_t x) const { return y * pitch + x; }

  // Calls f(index in the map, index in the bordered map) for every pixel.
  template <class F>
  void for_each_pixel(int64_t border, const F& f) const {
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x) f(y * width + x, offset(y + border, x + border));
  }

  template <class T>
  Aligned<T> bordered(const T* maps, int64_t channels) const {
    Aligned<T> out(channels * plane + LANES<T>);  // the last vector extends beyond the last map
    for (int64_t c = 0; c < channels; ++c)
      for_each_pixel(kernel_size / 2, [&](int64_t i, int64_t j) {
        out.data()[c * plane + j] = maps[c * height * width + i];
      });
    return out;
  }
};

// sums[i] += sum_n factors[n] * x[offset(n) + i] for n < count, i < size
template <class T, class F>
FGASEG_INLINE void add_multiples(const T* x, const T* factors, int64_t count, const F& offset, T* sums, int64_t size) {
  int64_t n = 0;
  for (; n + 4 <= count; n += 4) {
    const T *a = x + offset(n), *b = x + offset(n + 1), *c = x + offset(n + 2), *d = x + offset(n + 3);
    const T* f = factors + n;
    _Pragma("omp simd") for (int64_t i = 0; i < size; ++i) {
      sums[i] += (f[0] * a[i] + f[1] * b[i]) + (f[2] * c[i] + f[3] * d[i]);
    }
  }
  for (; n < count; ++n) {
    const T *a = x + offset(n), f = factors[n];
    _Pragma("omp simd") for (int64_t i = 0; i < size; ++i) sums[i] += f * a[i];
  }
}

// out [classes, H, W] += convolution of bordered maps; `sums` has H rows of the bordered map's pitch, in whole vectors.
template <class T>
FGASEG_INLINE void small_forward(const Small& s, const T* maps, const T* kernels, T* out, T* sums, int64_t channels,
                                 int64_t classes) {
  const int64_t k = s.kernel_size, size = whole_vectors(s.offset(s.height - 1, s.width), LANES<T>);
  for (int64_t t = 0; t < classes; ++t, out += s.height * s.width) {
    std::fill(sums, sums + size, T(0));
    for (int64_t c = 0; c < channels; ++c, kernels += k * k)
      for (int64_t i = 0; i < k; ++i)
        add_multiples(maps + c * s.plane + i * s.pitch, kernels + i * k, k, [](int64_t n) { return n; }, sums, size);
    for (int64_t y = 0; y < s.height; ++y)
      for (int64_t x = 0; x < s.width; ++x) out[y * s.width + x] += sums[s.offset(y, x)];
  }
}

// sums [tap][lanes] = sum over pixels of grad [H*W] * maps [plane][lanes], shifted by the tap
template <class T>
FGASEG_INLINE void small_kernel_grad(const Small& s, const T* grad, const T* maps, T* sums, int64_t lanes) {
  std::fill(sums, sums + s.kernel_size * s.kernel_size * lanes, T(0));
  for (int64_t i = 0; i < s.kernel_size; ++i)
    for (int64_t j = 0; j < s.kernel_size; ++j, sums += lanes)
      for (int64_t y = 0; y < s.height; ++y)
        add_multiples(maps + s.offset(y + i, j) * lanes, grad + y * s.width, s.width,
                      [lanes](int64_t n) { return n * lanes; }, sums, lanes);
}

// target_clones needs functions that are not templates.
#define FGASEG_FOR(T)                                                                                             \
  FGASEG_CLONES void forward_small(const Small& s, const T* maps, const T* kernels, T* out, T* sums, int64_t c,   \
                                   int64_t n) {                                                                   \
    small_forward(s, maps, kernels, out, sums, c, n);                                                             \
  }                                                                                                               \
  FGASEG_CLONES void kernel_grad_small(const Small& s, const T* grad, const T* maps, T* sums, int64_t lanes) {    \
    small_kernel_grad(s, grad, maps, sums, lanes);                                                                \
  }
FGASEG_FOR(float)
FGASEG_FOR(double)
#undef FGASEG_FOR

template <class T>
void convolve_small(const Small& s, const T* maps, const T* kernels, T* out, int64_t channels, int64_t classes) {
  Aligned<T> bordered = s.bordered(maps, channels), sums(s.plane + LANES<T>);
  forward_small(s, bordered.data(), kernels, out, sums.data(), channels, classes);
}

// Kernels [classes][channels][taps] -> [channels][classes][taps], every kernel rotated by 180 degrees.
template <class T>
std::vector<T> rotated(const T* kernels, int64_t classes, int64_t channels, int64_t taps) {
  std::vector<T> out(classes * channels * taps);
  for (int64_t t = 0; t < classes; ++t)
    for (int64_t c = 0; c < channels; ++c) {
      const T* kernel = kernels + (t * channels + c) * taps;
      std::reverse_copy(kernel, kernel + taps, &out[(c * classes + t) * taps]);
    }
  return out;
}

template <class T>
void backward_small(const Convolution& conv, const T* grad, const T* pixels, const T* kernels, T* kernels_grad,
                    T* pixels_grad, int64_t classes) {
  const Small s(conv);
  const int64_t channels = conv.channels, taps = conv.taps(), border = conv.kernel_size / 2;
  const int64_t lanes = whole_vectors(channels, LANES<T>);
  convolve_small(s, grad, rotated(kernels, classes, channels, taps).data(), pixels_grad, classes, channels);
  Aligned<T> maps(s.plane * lanes), sums(taps * lanes);
  for (int64_t c = 0; c < channels; ++c)
    s.for_each_pixel(border, [&](int64_t i, int64_t j) { maps.data()[j * lanes + c] = pixels[c * conv.pixels() + i]; });
  for (int64_t t = 0; t < classes; ++t) {
    kernel_grad_small(s, grad + t * conv.pixels(), maps.data(), sums.data(), lanes);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < taps; ++i) kernels_grad[(t * channels + c) * taps + i] = sums.data()[i * lanes + c];
  }
}

// Whether transforms are expected to be faster, by their number of operations.
bool is_spectral(const Convolution& c, int64_t classes, double factor) {
  const double p = Spectral<float>::frame(c.height, c.kernel_size), q = Spectral<float>::frame(c.width, c.kernel_size);
  const double transforms = (c.kernel_size * q + p * q) * std::log2(p * q) / 2 * (classes + 2);
  return factor * transforms < double(classes * c.taps() * c.pixels());
}

#define FGASEG_FOR(T)                                                                                               \
  FGASEG_CLONES void spectral_pixels(const Spectral<T>& s, const T* pixels, int64_t group, T* spectrum, T* work) {  \
    s.transform_pixels(pixels, group, spectrum, work);                                                              \
  }                                                                                                                 \
  FGASEG_CLONES void spectral_forward(const Spectral<T>& s, const T* spectra, const T* kernels, const T* bias,      \
                                      T* maps, int64_t classes, T* work) {                                          \
    s.forward(spectra, kernels, bias, maps, classes, work);                                                         \
  }                                                                                                                 \
  FGASEG_CLONES void spectral_maps(const Spectral<T>& s, const T* grad, int64_t classes, T* out, T* work) {         \
    s.transform_maps(grad, classes, out, work);                                                                     \
  }                                                                                                                 \
  FGASEG_CLONES void spectral_backward(const Spectral<T>& s, const T* maps, const T* pixels, const T* kernels,      \
                                       T* kernels_grad, T* pixels_grad, int64_t group, int64_t classes, T* work) {  \
    s.backward(maps, pixels, kernels, kernels_grad, pixels_grad, group, classes, work);                             \
  }
FGASEG_FOR(float)
FGASEG_FOR(double)
#undef FGASEG_FOR

// Calls f(i, work) for 0 <= i < n, on all threads; every thread has its own work memory.
template <class T, class F>
void with_work(const Spectral<T>& s, int64_t n, const F& f) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    Aligned<T> work(s.work_size());
    for (int64_t i = begin; i < end; ++i) f(i, work.data());
  });
}

template <class T>
void forward_spectral(const Convolution& conv, const T* pixels, const T* kernels, const T* bias, T* maps,
                      int64_t classes) {
  const Spectral<T> s(conv);
  Aligned<T> spectra(s.groups() * s.spectrum_size());
  with_work(s, s.groups(), [&](int64_t group, T* work) {
    spectral_pixels(s, pixels, group, spectra.data() + group * s.spectrum_size(), work);
  });
  with_work(s, (classes + LANES<T> - 1) / LANES<T>, [&](int64_t i, T* work) {
    const int64_t t = i * LANES<T>;
    spectral_forward(s, spectra.data(), kernels + t * conv.weights(), bias + t, maps + t * conv.pixels(),
                     std::min(LANES<T>, classes - t), work);
  });
}

template <class T>
void backward_spectral(const Convolution& conv, const T* grad, const T* pixels, const T* kernels, T* kernels_grad,
                       T* pixels_grad, int64_t classes) {
  const Spectral<T> s(conv);
  const int64_t map_size = s.spectrum_size() / LANES<T>;
  std::vector<T> maps(classes * map_size);
  with_work(s, (classes + LANES<T> - 1) / LANES<T>, [&](int64_t i, T* work) {
    const int64_t t = i * LANES<T>;
    spectral_maps(s, grad + t * conv.pixels(), std::min(LANES<T>, classes - t), &maps[t * map_size], work);
  });
  with_work(s, s.groups(), [&](int64_t group, T* work) {
    spectral_backward(s, maps.data(), pixels, kernels, kernels_grad, pixels_grad, group, classes, work);
  });
}

bool is_small(const Convolution& c, int64_t classes) { return classes * c.weights() * c.pixels() <= SMALL; }

template <class T>
void add(const T* x, T* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

}  // namespace

int64_t Convolution::classes_at_a_time(int64_t classes, int64_t element_size) const {
  const int64_t bytes = std::max<int64_t>(weights() * element_size, 1);
  return std::max<int64_t>(1, std::min(classes, std::max(CHUNK_CLASSES, CHUNK_BYTES / bytes)));
}

template <class T>
void Convolution::forward(const T* x, const T* kernels, const T* bias, T* maps, int64_t classes) const {
  if (is_small(*this, classes)) {
    for (int64_t t = 0; t < classes; ++t) std::fill(maps + t * pixels(), maps + (t + 1) * pixels(), bias[t]);
    return convolve_small(Small(*this), x, kernels, maps, channels, classes);
  }
  if (is_spectral(*this, classes, SPECTRAL_FORWARD)) return forward_spectral(*this, x, kernels, bias, maps, classes);
  const Tensor y = conv2d(wrapped(x, {1, channels, height, width}),
                          wrapped(kernels, {classes, channels, kernel_size, kernel_size}), wrapped(bias, {classes}),
                          kernel_size / 2);
  std::copy(data<T>(y), data<T>(y) + classes * pixels(), maps);
}

template <class T>
Tensor Convolution::backward(const T* grad, const T* x, const T* kernels, T* pixels_grad, int64_t classes) const {
  const Tensor w = wrapped(kernels, {classes, channels, kernel_size, kernel_size});
  const bool small = is_small(*this, classes);
  if (small || is_spectral(*this, classes, SPECTRAL_BACKWARD)) {
    Tensor dw = torch::stable::new_empty(w, w.sizes());
    const auto run = small ? backward_small<T> : backward_spectral<T>;
    run(*this, grad, x, kernels, mutable_data<T>(dw), pixels_grad, classes);
    return dw;
  }
  const auto [dx, dw] = conv2d_backward(wrapped(grad, {1, classes, height, width}),
                                        wrapped(x, {1, channels, height, width}), w, kernel_size / 2);
  add(data<T>(dx), pixels_grad, channels * pixels());
  return dw;
}

template void Convolution::forward(const float*, const float*, const float*, float*, int64_t) const;
template void Convolution::forward(const double*, const double*, const double*, double*, int64_t) const;
template Tensor Convolution::backward(const float*, const float*, const float*, float*, int64_t) const;
template Tensor Convolution::backward(const double*, const double*, const double*, double*, int64_t) const;

namespace {

Convolution convolution(const Tensor& pixels, int64_t kernel_size) {
  return {pixels.size(1), pixels.size(2), pixels.size(3), kernel_size};
}

Tensor lcs_conv(const Tensor& pixels, const Tensor& kernel_logits, const Tensor& bias, int64_t kernel_size,
                std::string norm_name) {
  const Arguments call = check_lcs_conv("lcs_conv", pixels, kernel_logits, kernel_size, norm_name);
  call.tensor("bias", bias, {pixels.size(0), kernel_logits.size(1)});
  const Tensor x = prepared(pixels), logits = prepared(kernel_logits), shift = prepared(bias);
  const Convolution conv = convolution(x, kernel_size);
  const int64_t batch = x.size(0), classes = logits.size(1);
  const Norm norm = norm_of(norm_name);
  Tensor y = torch::stable::new_empty(x, {batch, classes, conv.height, conv.width});
  for_compute_type(x, [&](auto type) {
    using T = decltype(type);
    const int64_t part = conv.classes_at_a_time(classes, sizeof(T)), size = conv.channels * conv.pixels();
    Tensor scratch = torch::stable::new_empty(x, {part * conv.weights()});
    T* kernels = mutable_data<T>(scratch);
    for_each_part(batch, classes, part, [&](int64_t b, int64_t first, int64_t n) {
      const int64_t t = b * classes + first;
      softmax_kernels(norm, data<T>(logits) + t * conv.weights(), kernels, n, conv.channels, conv.taps());
      conv.forward(data<T>(x) + b * size, kernels, data<T>(shift) + t, mutable_data<T>(y) + t * conv.pixels(), n);
    });
  });
  return finished(y, pixels);
}

std::tuple<Tensor, Tensor, Tensor> lcs_conv_backward(const Tensor& grad, const Tensor& pixels,
                                                     const Tensor& kernel_logits, int64_t kernel_size,
                                                     std::string norm_name) {
  const Arguments call = check_lcs_conv("lcs_conv_backward", pixels, kernel_logits, kernel_size, norm_name);
  call.tensor("grad", grad, {pixels.size(0), kernel_logits.size(1), pixels.size(2), pixels.size(3)});
  const Tensor g = prepared(grad), x = prepared(pixels), logits = prepared(kernel_logits);
  const Convolution conv = convolution(x, kernel_size);
  const int64_t batch = x.size(0), classes = logits.size(1);
  const Norm norm = norm_of(norm_name);
  Tensor pixels_grad = torch::stable::new_zeros(x, x.sizes()), logits_grad = torch::stable::empty_like(logits);
  const Tensor bias_grad = torch::stable::sum(g, Ints{2, 3});
  for_compute_type(x, [&](auto type) {
    using T = decltype(type);
    const int64_t part = conv.classes_at_a_time(classes, sizeof(T)), size = conv.channels * conv.pixels();
    Tensor scratch = torch::stable::new_empty(x, {part * conv.weights()});
    T* kernels = mutable_data<T>(scratch);
    for_each_part(batch, classes, part, [&](int64_t b, int64_t first, int64_t n) {
      const int64_t t = b * classes + first, offset = t * conv.weights();
      softmax_kernels(norm, data<T>(logits) + offset, kernels, n, conv.channels, conv.taps());
      const Tensor dk = conv.backward(data<T>(g) + t * conv.pixels(), data<T>(x) + b * size, kernels,
                                      mutable_data<T>(pixels_grad) + b * size, n);
      softmax_kernels_backward(norm, kernels, data<T>(dk), mutable_data<T>(logits_grad) + offset, n, conv.channels,
                               conv.taps());
    });
  });
  return {finished(pixels_grad, pixels), finished(logits_grad, pixels), finished(bias_grad, pixels)};
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("lcs_conv_cpp", TORCH_BOX(&fgaseg::lcs_conv));
  m.impl("lcs_conv_backward_cpp", TORCH_BOX(&fgaseg::lcs_conv_backward));
}
