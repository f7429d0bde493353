// lcs_conv on the GPU: the host side. The schema is in kernels/lcs_conv/op.py, the kernels are in kernel.cu.
#include <algorithm>
#include <array>
#include <string>
#include <tuple>

#include "common/arguments.h"
#include "common/gpu.h"
#include "kernel_softmax/cuda.h"

using Forward = int(const void*, const int64_t*, const void*, const int64_t*, const void*, const int64_t*, void*,
                    float*, const int64_t*, bool, void*);
using PixelGrad = int(const void*, const int64_t*, const void*, const int64_t*, void*, float*, const int64_t*, bool,
                      void*);
using LogitGrad = Forward;
extern "C" Forward fgaseg_lcs_conv_forward_float32, fgaseg_lcs_conv_forward_float16, fgaseg_lcs_conv_forward_bfloat16;
extern "C" PixelGrad fgaseg_lcs_conv_pixel_grad_float32, fgaseg_lcs_conv_pixel_grad_float16,
    fgaseg_lcs_conv_pixel_grad_bfloat16;
extern "C" LogitGrad fgaseg_lcs_conv_logit_grad_float32, fgaseg_lcs_conv_logit_grad_float16,
    fgaseg_lcs_conv_logit_grad_bfloat16;
extern "C" int64_t fgaseg_lcs_conv_parts(const int64_t* sizes, int64_t element_size, bool back);

namespace fgaseg {
namespace {

constexpr char OP[] = "lcs_conv";
constexpr int64_t SCRATCH = 32 << 20;  // float32 elements of kernel gradients before their softmax: 128 MB

std::array<int64_t, 6> sizes_of(const Tensor& pixels, const Tensor& logits, int64_t kernel_size) {
  return {pixels.size(0), pixels.size(1), logits.size(1), pixels.size(2), pixels.size(3), kernel_size};
}

// Memory for the partial sums of the convolution; may be empty.
Tensor partial_sums(const Tensor& out, const std::array<int64_t, 6>& sizes, bool back) {
  const int64_t elements = fgaseg_lcs_conv_parts(sizes.data(), int64_t(out.element_size()), back);
  return torch::stable::new_empty(out, {elements}, ScalarType::Float);
}

float* pointer(Tensor& x) { return x.numel() ? static_cast<float*>(x.mutable_data_ptr()) : nullptr; }

Tensor lcs_conv(const Tensor& pixels, const Tensor& kernel_logits, const Tensor& bias, int64_t kernel_size,
                std::string norm) {
  const Arguments call = check_lcs_conv("lcs_conv", pixels, kernel_logits, kernel_size, norm);
  call.tensor("bias", bias, {pixels.size(0), kernel_logits.size(1)});
  // "channels" normalises over all channels of a class, of which a block of lcs_conv's kernels has only some:
  // kernel_softmax does that, and lcs_conv takes its result as it is ("none").
  if (norm == "channels") {
    const Tensor kernels = kernel_softmax(kernel_logits, kernel_size, norm);
    const Tensor flat = torch::stable::view(kernels, {kernels.size(0), kernels.size(1), kernel_logits.size(2)});
    return lcs_conv(pixels, flat, bias, kernel_size, "none");
  }
  const OnDevice device(pixels);
  const auto sizes = sizes_of(pixels, kernel_logits, kernel_size);
  Tensor y = torch::stable::new_empty(pixels, {sizes[0], sizes[2], sizes[3], sizes[4]});
  Tensor parts = partial_sums(y, sizes, false);
  Forward* forward = for_dtype(OP, y, fgaseg_lcs_conv_forward_float32, fgaseg_lcs_conv_forward_float16,
                               fgaseg_lcs_conv_forward_bfloat16);
  check(OP, forward(pixels.const_data_ptr(), pixels.strides().data(), kernel_logits.const_data_ptr(),
                    kernel_logits.strides().data(), bias.const_data_ptr(), bias.strides().data(), y.mutable_data_ptr(),
                    pointer(parts), sizes.data(), norm == "taps", device.stream()));
  return y;
}

Tensor pixel_grad(const Tensor& grad, const Tensor& pixels, const Tensor& logits, int64_t kernel_size, bool softmax,
                  void* stream) {
  const auto sizes = sizes_of(pixels, logits, kernel_size);
  Tensor y = torch::stable::new_empty(pixels, {sizes[0], sizes[1], sizes[3], sizes[4]});
  Tensor parts = partial_sums(y, sizes, true);
  PixelGrad* launcher = for_dtype(OP, y, fgaseg_lcs_conv_pixel_grad_float32, fgaseg_lcs_conv_pixel_grad_float16,
                                  fgaseg_lcs_conv_pixel_grad_bfloat16);
  check(OP, launcher(grad.const_data_ptr(), grad.strides().data(), logits.const_data_ptr(), logits.strides().data(),
                     y.mutable_data_ptr(), pointer(parts), sizes.data(), softmax, stream));
  return y;
}

Tensor part_of(Tensor x, int64_t image, int64_t images, int64_t first_class, int64_t classes) {
  x = torch::stable::narrow(x, 0, image, images);
  return torch::stable::narrow(x, 1, first_class, classes);
}

// Processes as many images, or if one is too large as many of its classes, as the scratch memory holds.
Tensor logit_grad(const Tensor& grad, const Tensor& pixels, const Tensor& logits, int64_t kernel_size, bool softmax,
                  void* stream) {
  const int64_t batch = logits.size(0), all = logits.size(1), length = logits.size(2);
  Tensor y = torch::stable::new_empty(logits, {batch, all, length});
  if (y.numel() == 0) return y;
  const bool direct = kernel_size == 3;  // the kernel applies the softmax itself
  const int64_t classes = direct ? all : std::clamp<int64_t>(SCRATCH / length, 1, all);
  const int64_t images = direct ? batch : std::clamp<int64_t>(SCRATCH / (classes * length), 1, batch);
  Tensor scratch = torch::stable::new_empty(logits, {direct ? 0 : images * classes * length}, ScalarType::Float);
  LogitGrad* launcher = for_dtype(OP, y, fgaseg_lcs_conv_logit_grad_float32, fgaseg_lcs_conv_logit_grad_float16,
                                  fgaseg_lcs_conv_logit_grad_bfloat16);
  for (int64_t b = 0; b < batch; b += images)
    for (int64_t t = 0; t < all; t += classes) {
      const int64_t n = std::min(images, batch - b), m = std::min(classes, all - t);
      const Tensor g = part_of(grad, b, n, t, m), x = torch::stable::narrow(const_cast<Tensor&>(pixels), 0, b, n);
      const Tensor rows = part_of(logits, b, n, t, m);
      Tensor result = part_of(y, b, n, t, m);
      const auto sizes = sizes_of(x, rows, kernel_size);
      check(OP, launcher(g.const_data_ptr(), g.strides().data(), x.const_data_ptr(), x.strides().data(),
                         rows.const_data_ptr(), rows.strides().data(), result.mutable_data_ptr(), pointer(scratch),
                         sizes.data(), softmax, stream));
    }
  return y;
}

std::tuple<Tensor, Tensor, Tensor> lcs_conv_backward(const Tensor& grad, const Tensor& pixels,
                                                     const Tensor& kernel_logits, int64_t kernel_size,
                                                     std::string norm) {
  const Arguments call = check_lcs_conv("lcs_conv_backward", pixels, kernel_logits, kernel_size, norm);
  call.tensor("grad", grad, {pixels.size(0), kernel_logits.size(1), pixels.size(2), pixels.size(3)});
  if (norm == "channels") {
    const Tensor kernels = kernel_softmax(kernel_logits, kernel_size, norm);
    const Tensor flat = torch::stable::view(kernels, {kernels.size(0), kernels.size(1), kernel_logits.size(2)});
    const auto [dx, dk, db] = lcs_conv_backward(grad, pixels, flat, kernel_size, "none");
    const Tensor kernels_grad = torch::stable::view(dk, kernels.sizes());
    return {dx, kernel_softmax_backward(kernels_grad, kernels, norm), db};
  }
  const OnDevice device(pixels);
  const bool softmax = norm == "taps";
  return {pixel_grad(grad, pixels, kernel_logits, kernel_size, softmax, device.stream()),
          logit_grad(grad, pixels, kernel_logits, kernel_size, softmax, device.stream()),
          torch::stable::sum(grad, std::vector<int64_t>{2, 3})};
}

}  // namespace
}  // namespace fgaseg

FGASEG_GPU_LIBRARY(m) {
  m.impl("lcs_conv_cuda", TORCH_BOX(&fgaseg::lcs_conv));
  m.impl("lcs_conv_backward_cuda", TORCH_BOX(&fgaseg::lcs_conv_backward));
}
