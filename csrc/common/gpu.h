// Shared by the host side of all CUDA kernels. Only torch's stable ABI and no CUDA header: the launchers in kernel.cu
// take a stream as void* and return a cudaError_t as int. With -DFGASEG_SHIM it serves CPU tensors.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "common/library.h"

#ifdef FGASEG_SHIM
#define FGASEG_GPU_LIBRARY(m) FGASEG_LIBRARY(CPU, m)
#else
#define FGASEG_GPU_LIBRARY(m) FGASEG_LIBRARY(CUDA, m)
// torch declares it only under USE_CUDA
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

extern "C" const char* fgaseg_error_text(int code);  // in common/cuda.h

namespace fgaseg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Makes the device of x the current device during its lifetime.
class __attribute__((visibility("hidden"))) OnDevice {
 public:
#ifdef FGASEG_SHIM
  explicit OnDevice(const Tensor&) {}
  void* stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& x) : device_(x.get_device_index()), guard_(device_) {}

  // PyTorch's current stream on that device.
  void* stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return stream;
  }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// Throws if a launcher returned an error.
inline void check(const char* op, int code) {
  STD_TORCH_CHECK(code == 0, op, ": the CUDA kernel failed: ", fgaseg_error_text(code), " (error ", code, ")");
}

// The launcher for the dtype of x.
template <class Launcher>
Launcher* for_dtype(const char* op, const Tensor& x, Launcher* float32, Launcher* float16, Launcher* bfloat16) {
  if (x.scalar_type() == ScalarType::Float) return float32;
  if (x.scalar_type() == ScalarType::Half) return float16;
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, op, ": CUDA takes float32, float16 or bfloat16");
  return bfloat16;
}

// Whether the dimensions from `first` on are contiguous.
inline bool is_dense(const Tensor& x, int64_t first) {
  int64_t expected = 1;
  for (int64_t d = x.dim(); d-- > first;) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

// x, or a contiguous copy if its dimensions from `first` on are not contiguous.
inline Tensor dense(const Tensor& x, int64_t first) { return is_dense(x, first) ? x : torch::stable::contiguous(x); }

}  // namespace fgaseg
