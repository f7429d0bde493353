// kernel_softmax on the GPU: the host side. The schema is in kernels/kernel_softmax/op.py, the kernels in kernel.cu.
#include <string>

#include "common/arguments.h"
#include "common/gpu.h"
#include "kernel_softmax/cuda.h"

using Forward = int(const void*, void*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, void*);
using Backward = int(const void*, const void*, void*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                     void*);
extern "C" Forward fgaseg_kernel_softmax_forward_float32, fgaseg_kernel_softmax_forward_float16,
    fgaseg_kernel_softmax_forward_bfloat16;
extern "C" Backward fgaseg_kernel_softmax_backward_float32, fgaseg_kernel_softmax_backward_float16,
    fgaseg_kernel_softmax_backward_bfloat16;

namespace fgaseg {
namespace {

constexpr int64_t LONGEST = 1024;  // the most taps that the kernel for taps takes

bool has_long_rows(const std::string& norm, int64_t taps) { return norm == "taps" && taps > LONGEST; }

// x if the elements of a class are contiguous (all of x, where rows become classes), else a contiguous copy.
Tensor prepared(const Tensor& x, int64_t taps, const std::string& norm) {
  return dense(x, has_long_rows(norm, taps) ? 0 : 2);
}

// What the kernels are told about a prepared tensor: class (b, t) begins at b * stride_b + t * stride_t.
struct Classes {
  int64_t images, classes, channels, taps, stride_b, stride_t, over_channels;

  Classes(const Tensor& x, int64_t channels, int64_t taps, const std::string& norm)
      : images(x.size(0)), classes(x.size(1)), channels(channels), taps(taps), stride_b(x.stride(0)),
        stride_t(x.stride(1)), over_channels(norm == "channels") {
    if (has_long_rows(norm, taps))  // each row becomes a class of one column: the kernel for channels takes any length
      *this = Classes(images * classes * channels, taps);
  }

 private:
  Classes(int64_t rows, int64_t length)
      : images(1), classes(rows), channels(length), taps(1), stride_b(0), stride_t(length), over_channels(1) {}
};

}  // namespace

Tensor kernel_softmax(const Tensor& kernel_logits, int64_t kernel_size, std::string norm) {
  check_kernel_softmax(kernel_logits, kernel_size, norm);
  const int64_t batch = kernel_logits.size(0), classes = kernel_logits.size(1), taps = kernel_size * kernel_size;
  const int64_t channels = kernel_logits.size(2) / taps;
  Tensor y = torch::stable::new_empty(kernel_logits, {batch, classes, channels, kernel_size, kernel_size});
  if (y.numel() == 0) return y;
  if (norm == "none") {
    Tensor flat = torch::stable::view(y, {batch, classes, channels * taps});
    torch::stable::copy_(flat, kernel_logits);
    return y;
  }
  const Tensor x = prepared(kernel_logits, taps, norm);
  const Classes all(x, channels, taps, norm);
  const OnDevice device(x);
  Forward* launcher = for_dtype("kernel_softmax", x, fgaseg_kernel_softmax_forward_float32,
                                fgaseg_kernel_softmax_forward_float16, fgaseg_kernel_softmax_forward_bfloat16);
  check("kernel_softmax",
        launcher(x.const_data_ptr(), y.mutable_data_ptr(), all.images, all.classes, all.channels, all.taps,
                 all.stride_b, all.stride_t, all.over_channels, device.stream()));
  return y;
}

Tensor kernel_softmax_backward(const Tensor& grad, const Tensor& kernels, std::string norm) {
  check_kernel_softmax_backward(grad, kernels, norm);
  const int64_t batch = kernels.size(0), classes = kernels.size(1), channels = kernels.size(2);
  const int64_t taps = kernels.size(3) * kernels.size(4);
  Tensor y = torch::stable::new_empty(kernels, {batch, classes, channels * taps});
  if (y.numel() == 0) return y;
  if (norm == "none") {
    Tensor whole = torch::stable::view(y, {batch, classes, channels, kernels.size(3), kernels.size(4)});
    torch::stable::copy_(whole, grad);
    return y;
  }
  const Tensor p = torch::stable::contiguous(kernels), g = prepared(grad, taps, norm);  // p is contiguous already
  const Classes all(g, channels, taps, norm);
  const OnDevice device(p);
  Backward* launcher = for_dtype("kernel_softmax", p, fgaseg_kernel_softmax_backward_float32,
                                 fgaseg_kernel_softmax_backward_float16, fgaseg_kernel_softmax_backward_bfloat16);
  check("kernel_softmax",
        launcher(g.const_data_ptr(), p.const_data_ptr(), y.mutable_data_ptr(), all.images, all.classes, all.channels,
                 all.taps, all.stride_b, all.stride_t, all.over_channels, device.stream()));
  return y;
}

}  // namespace fgaseg

FGASEG_GPU_LIBRARY(m) {
  m.impl("kernel_softmax_cuda", TORCH_BOX(&fgaseg::kernel_softmax));
  m.impl("kernel_softmax_backward_cuda", TORCH_BOX(&fgaseg::kernel_softmax_backward));
}
