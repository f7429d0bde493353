// window_attention on the GPU: the host side. The schema is in kernels/window_attention/op.py, the kernels are in
// kernel.cu.
#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "common/arguments.h"
#include "common/gpu.h"

using Forward = int(const void* const*, const int64_t (*)[2], void*, const int64_t*, void*);
using Backward = int(const void* const*, const int64_t (*)[2], void* const*, const int64_t*, void*);
extern "C" Forward fgaseg_window_attention_forward_float16, fgaseg_window_attention_forward_bfloat16;
extern "C" Backward fgaseg_window_attention_backward_float16, fgaseg_window_attention_backward_bfloat16;

namespace fgaseg {
namespace {

constexpr char OP[] = "window_attention";

// The distance of two pixels of maps [N, H, W, D] that follow each other, or -1 if it is not always the same.
int64_t pixel_stride(const Tensor& x) {
  if (x.size(2) == 1) return x.size(1) == 1 ? x.size(3) : x.stride(1);
  return x.size(1) == 1 || x.stride(1) == x.size(2) * x.stride(2) ? x.stride(2) : -1;
}

// Whether the kernels can read x: pieces of 16 bytes, and one stride for all pixels.
bool is_readable(const Tensor& x) {
  const int64_t piece = 16 / int64_t(x.element_size()), pixel = pixel_stride(x);
  const bool aligned = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  return aligned && x.stride(3) == 1 && pixel >= 0 && pixel <= INT32_MAX && (pixel | x.stride(0)) % piece == 0;
}

Tensor readable(const Tensor& x) {
  if (is_readable(x)) return x;
  const Tensor y = torch::stable::contiguous(x);
  return is_readable(y) ? y : torch::stable::clone(y);  // contiguous, but not aligned
}

// The tensors of a call as the launchers take them.
template <size_t COUNT>
struct Call {
  std::array<Tensor, COUNT> tensors;
  const void* data[COUNT];
  int64_t strides[COUNT][2];
  std::array<int64_t, 7> sizes;

  Call(std::array<Tensor, COUNT> inputs, int64_t heads, int64_t window, int64_t shift) : tensors(std::move(inputs)) {
    const Tensor &q = tensors[0], &guidance = tensors[3];
    STD_TORCH_CHECK(q.scalar_type() == ScalarType::Half || q.scalar_type() == ScalarType::BFloat16, OP,
                    ": CUDA takes float16 or bfloat16");
    STD_TORCH_CHECK(q.size(3) == 32 * heads && window <= 12, OP,
                    ": CUDA takes heads of 32 channels and windows of at most 12 pixels, not ", q.size(3) / heads,
                    " and ", window);
    sizes = {q.size(0), guidance.size(0), q.size(1), q.size(2), heads, window, shift};
    for (size_t i = 0; i < COUNT; ++i) {
      tensors[i] = readable(tensors[i]);
      data[i] = tensors[i].const_data_ptr();
      strides[i][0] = tensors[i].stride(0);
      strides[i][1] = pixel_stride(tensors[i]);
    }
  }
  template <class Launcher>
  Launcher* of(Launcher* float16, Launcher* bfloat16) const {
    return tensors[0].scalar_type() == ScalarType::Half ? float16 : bfloat16;
  }
};

Tensor window_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_guidance,
                        const Tensor& k_guidance, int64_t heads, int64_t window, int64_t shift) {
  check_window_attention(q, k, v, q_guidance, k_guidance, heads, window, shift);
  const OnDevice device(q);
  const Call<5> call({q, k, v, q_guidance, k_guidance}, heads, window, shift);
  Tensor y = torch::stable::new_empty(q, q.sizes());
  Forward* forward = call.of(fgaseg_window_attention_forward_float16, fgaseg_window_attention_forward_bfloat16);
  check(OP, forward(call.data, call.strides, y.mutable_data_ptr(), call.sizes.data(), device.stream()));
  return y;
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
  const OnDevice device(q);
  const Call<6> call({q, k, v, q_guidance, k_guidance, grad}, heads, window, shift);
  const auto like = [](const Tensor& x) { return torch::stable::new_empty(x, x.sizes()); };
  Tensor dq = like(q), dk = like(k), dv = like(v);
  void* const out[] = {dq.mutable_data_ptr(), dk.mutable_data_ptr(), dv.mutable_data_ptr()};
  Backward* backward = call.of(fgaseg_window_attention_backward_float16, fgaseg_window_attention_backward_bfloat16);
  check(OP, backward(call.data, call.strides, out, call.sizes.data(), device.stream()));
  const int64_t images = q_guidance.size(0);
  return {dq, dk, dv, over_classes(dq, images), over_classes(dk, images)};
}

}  // namespace
}  // namespace fgaseg

FGASEG_GPU_LIBRARY(m) {
  m.impl("window_attention_cuda", TORCH_BOX(&fgaseg::window_attention));
  m.impl("window_attention_backward_cuda", TORCH_BOX(&fgaseg::window_attention_backward));
}
