// cosine_cost_volume on the GPU: the host side. The schema is in kernels/cosine_cost_volume/op.py, the kernels are in
// kernel.cu. They take any strides, so nothing is copied.
#include <array>
#include <tuple>

#include "common/arguments.h"
#include "common/gpu.h"

using Forward = int(const void*, const int64_t*, const void*, const int64_t*, void*, const int64_t*, double, void*);
using Backward = int(const void*, const int64_t*, const void*, const int64_t*, const void*, const int64_t*, void*,
                     void*, float*, const int64_t*, double, void*);
extern "C" Forward fgaseg_cosine_cost_volume_forward_float32, fgaseg_cosine_cost_volume_forward_float16,
    fgaseg_cosine_cost_volume_forward_bfloat16;
extern "C" Backward fgaseg_cosine_cost_volume_backward_float32, fgaseg_cosine_cost_volume_backward_float16,
    fgaseg_cosine_cost_volume_backward_bfloat16;

namespace fgaseg {
namespace {

constexpr char OP[] = "cosine_cost_volume";

std::array<int64_t, 6> sizes_of(const Tensor& pixels, const Tensor& texts) {
  return {pixels.size(0), pixels.size(1), texts.size(1), texts.size(2), pixels.size(2), pixels.size(3)};
}

Tensor cosine_cost_volume(const Tensor& pixels, const Tensor& texts, double eps) {
  check_cosine_cost_volume(pixels, texts);
  const OnDevice device(pixels);
  const auto n = sizes_of(pixels, texts);
  Tensor y = torch::stable::new_empty(pixels, {n[0], n[3], n[2], n[4], n[5]});
  Forward* forward = for_dtype(OP, y, fgaseg_cosine_cost_volume_forward_float32,
                               fgaseg_cosine_cost_volume_forward_float16, fgaseg_cosine_cost_volume_forward_bfloat16);
  check(OP, forward(pixels.const_data_ptr(), pixels.strides().data(), texts.const_data_ptr(), texts.strides().data(),
                    y.mutable_data_ptr(), n.data(), eps, device.stream()));
  return y;
}

std::tuple<Tensor, Tensor> cosine_cost_volume_backward(const Tensor& grad, const Tensor& pixels, const Tensor& texts,
                                                       double eps) {
  check_cosine_cost_volume(pixels, texts, &grad);
  const OnDevice device(pixels);
  const auto n = sizes_of(pixels, texts);
  Tensor pixels_grad = torch::stable::new_empty(pixels, pixels.sizes());
  Tensor texts_grad = torch::stable::new_empty(texts, texts.sizes());
  // Both gradients in float32 before they are projected, and the inverse lengths of the vectors.
  const int64_t elements = n[0] * (n[2] * n[3] + n[4] * n[5]) * (n[1] + 1);
  Tensor scratch = torch::stable::new_empty(pixels, {elements}, ScalarType::Float);
  Backward* backward =
      for_dtype(OP, pixels, fgaseg_cosine_cost_volume_backward_float32, fgaseg_cosine_cost_volume_backward_float16,
                fgaseg_cosine_cost_volume_backward_bfloat16);
  check(OP, backward(grad.const_data_ptr(), grad.strides().data(), pixels.const_data_ptr(), pixels.strides().data(),
                     texts.const_data_ptr(), texts.strides().data(), pixels_grad.mutable_data_ptr(),
                     texts_grad.mutable_data_ptr(), static_cast<float*>(scratch.mutable_data_ptr()), n.data(), eps,
                     device.stream()));
  return {pixels_grad, texts_grad};
}

}  // namespace
}  // namespace fgaseg

FGASEG_GPU_LIBRARY(m) {
  m.impl("cosine_cost_volume_cuda", TORCH_BOX(&fgaseg::cosine_cost_volume));
  m.impl("cosine_cost_volume_backward_cuda", TORCH_BOX(&fgaseg::cosine_cost_volume_backward));
}
