// lcs_conv on the CPU. The schema lives in kernels/lcs_conv/op.py.
//
// 2*B*T*C*K*K*H*W operations (0.9 G for one image, 171 classes, 512 channels, 24x24, K = 3) against B*T*C*K*K numbers
// read: the convolution is bound by arithmetic, and oneDNN, reached through ATen, runs it near the processor's peak.
// PyTorch's softmax over K*K taps takes longer than that convolution, so the kernels are normalised by our own, a
// bounded number of classes at a time: the normalised kernels of a whole batch never exist.
#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "kernel_softmax/softmax.h"

namespace fgaseg {
namespace {

// Normalised at a time: what the second-level caches hold, but enough classes for oneDNN to be efficient; measured.
constexpr int64_t CHUNK_BYTES = 8 << 20, CHUNK_CLASSES = 128;

using Ints = std::vector<int64_t>;
using torch::stable::detail::from;
using torch::stable::detail::to;

// Elements [start, start + length) of dimension `dim`.
Tensor slice(Tensor x, int64_t dim, int64_t start, int64_t length) {
  return torch::stable::narrow(x, dim, start, length);
}

Tensor conv2d(const Tensor& pixels, const Tensor& kernels, const Tensor& bias, int64_t padding) {
  std::array<StableIValue, 7> stack{from(pixels),       from(kernels),  from(std::optional<Tensor>(bias)),
                                    from(Ints{1, 1}),   from(Ints{padding, padding}),
                                    from(Ints{1, 1}),   from(int64_t(1))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::conv2d", "", stack.data(), TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

// Gradients of conv2d in pixels and kernels, both contiguous.
std::pair<Tensor, Tensor> conv2d_backward(const Tensor& grad, const Tensor& pixels, const Tensor& kernels,
                                          int64_t padding) {
  const bool wanted[] = {true, true, false};  // the bias gradient is a plain sum
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

template <class T>
void add(const T* x, T* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

struct Sizes {
  int64_t batch, channels, classes, taps, kernel_size, chunk;
  Sizes(const Tensor& pixels, const Tensor& logits, int64_t k)
      : batch(pixels.size(0)), channels(pixels.size(1)), classes(logits.size(1)), taps(k * k), kernel_size(k) {
    const int64_t bytes = channels * taps * int64_t(pixels.element_size());
    chunk = std::max<int64_t>(1, std::min(classes, std::max(CHUNK_CLASSES, CHUNK_BYTES / std::max<int64_t>(bytes, 1))));
  }
  bool empty() const { return batch * channels * classes == 0; }
};

// The normalised kernels of classes [first, first + n) of image b, in `space`.
Tensor normalised(const Sizes& s, const Tensor& logits, int64_t b, int64_t first, int64_t n, Norm norm, Tensor& space) {
  Tensor kernels = slice(space, 0, 0, n);
  for_compute_type(logits, [&](auto t) {
    using T = decltype(t);
    const T* x = data<T>(logits) + (b * s.classes + first) * s.channels * s.taps;
    softmax_kernels(norm, x, mutable_data<T>(kernels), n, s.channels, s.taps);
  });
  return kernels;
}

Tensor lcs_conv(const Tensor& pixels, const Tensor& kernel_logits, const Tensor& bias, int64_t kernel_size,
                std::string norm) {
  const Tensor x = prepared(pixels), logits = prepared(kernel_logits), beta = prepared(bias);
  const Sizes s(x, logits, kernel_size);
  Tensor y = torch::stable::new_empty(x, {s.batch, s.classes, x.size(2), x.size(3)});
  if (s.empty()) {
    torch::stable::copy_(y, torch::stable::view(beta, {s.batch, s.classes, 1, 1}));
    return finished(y, pixels);
  }
  Tensor space = torch::stable::new_empty(x, {s.chunk, s.channels, kernel_size, kernel_size});
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t first = 0; first < s.classes; first += s.chunk) {
      const int64_t n = std::min(s.chunk, s.classes - first);
      const Tensor kernels = normalised(s, logits, b, first, n, norm_of(norm), space);
      const Tensor image = slice(x, 0, b, 1), shift = torch::stable::select(beta, 0, b);
      Tensor place = slice(slice(y, 0, b, 1), 1, first, n);
      torch::stable::copy_(place, conv2d(image, kernels, slice(shift, 0, first, n), kernel_size / 2));
    }
  return finished(y, pixels);
}

std::tuple<Tensor, Tensor, Tensor> lcs_conv_backward(const Tensor& grad, const Tensor& pixels,
                                                     const Tensor& kernel_logits, int64_t kernel_size,
                                                     std::string norm) {
  const Tensor g = prepared(grad), x = prepared(pixels), logits = prepared(kernel_logits);
  const Sizes s(x, logits, kernel_size);
  Tensor pixels_grad = torch::stable::new_zeros(x, {s.batch, s.channels, x.size(2), x.size(3)});
  Tensor logits_grad = torch::stable::new_empty(x, {s.batch, s.classes, s.channels * s.taps});
  const Tensor bias_grad = torch::stable::sum(g, Ints{2, 3});
  Tensor space = torch::stable::new_empty(x, {s.chunk, s.channels, kernel_size, kernel_size});
  for (int64_t b = 0; b < s.batch && !s.empty(); ++b)
    for (int64_t first = 0; first < s.classes; first += s.chunk) {
      const int64_t n = std::min(s.chunk, s.classes - first);
      const Tensor kernels = normalised(s, logits, b, first, n, norm_of(norm), space);
      const Tensor image_grad = slice(slice(g, 0, b, 1), 1, first, n);
      const auto [dx, dk] = conv2d_backward(image_grad, slice(x, 0, b, 1), kernels, kernel_size / 2);
      Tensor image = slice(pixels_grad, 0, b, 1), rows = slice(torch::stable::select(logits_grad, 0, b), 0, first, n);
      for_compute_type(x, [&](auto t) {
        using T = decltype(t);
        add(data<T>(dx), mutable_data<T>(image), image.numel());
        softmax_kernels_backward(norm_of(norm), data<T>(kernels), data<T>(dk), mutable_data<T>(rows), n, s.channels,
                                 s.taps);
      });
    }
  return {finished(pixels_grad, pixels), finished(logits_grad, pixels), finished(bias_grad, pixels)};
}

}  // namespace
}  // namespace fgaseg

STABLE_TORCH_LIBRARY_IMPL(fgaseg, CPU, m) {
  m.impl("lcs_conv", TORCH_BOX(&fgaseg::lcs_conv));
  m.impl("lcs_conv_backward", TORCH_BOX(&fgaseg::lcs_conv_backward));
}
