// Shared by all CPU kernels. Only torch's stable ABI and no ATen, so that one build serves torch >= 2.11.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "common/library.h"

// Compiles a function once per instruction set; the loader picks the best that the processor has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FGASEG_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FGASEG_CLONES
#endif
#define FGASEG_INLINE inline __attribute__((always_inline))
#define FGASEG_LAMBDA __attribute__((always_inline))  // a lambda is inlined into the caller, and compiled for its processor

namespace fgaseg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// float64 is computed in float64, all other types in float32.
inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// x in its compute type, contiguous.
inline Tensor prepared(const Tensor& x) {
  const Tensor y = x.scalar_type() == compute_type(x) ? x : torch::stable::to(x, compute_type(x));
  return y.is_contiguous() ? y : torch::stable::contiguous(y);  // the check is cheaper than a call that does nothing
}

// A result, converted back to the dtype of the input.
inline Tensor finished(const Tensor& y, const Tensor& like) {
  return y.scalar_type() == like.scalar_type() ? y : torch::stable::to(y, like.scalar_type());
}

// Calls f with a float or a double, according to the compute type of x.
template <class F>
void for_compute_type(const Tensor& x, const F& f) {
  if (compute_type(x) == ScalarType::Double)
    f(double());
  else
    f(float());
}

// Elements in 64 bytes: one register with AVX-512, two or four without. The compiler vectorises loops over so many
// adjacent elements for any instruction set; its own vector types of 64 bytes are 5 times slower with AVX2.
template <class T>
constexpr int64_t LANES = 64 / sizeof(T);

inline int64_t whole_vectors(int64_t n, int64_t lanes) { return (n + lanes - 1) / lanes * lanes; }

// An array of zeros, aligned so that no vector straddles two cache lines.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t n) : lines_((n + LANES<T> - 1) / LANES<T>) {}
  T* data() { return lines_.data()->elements; }

 private:
  struct alignas(64) Line {
    T elements[LANES<T>];
  };
  std::vector<Line> lines_;
};

// Uninitialised memory for one call, aligned so that no vector straddles two cache lines.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n)
      : memory_(static_cast<T*>(::operator new(std::max<int64_t>(n, 1) * sizeof(T), std::align_val_t(64)))) {}
  ~Scratch() { ::operator delete(memory_, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() { return memory_; }

 private:
  T* memory_;
};

template <class T>
constexpr ScalarType scalar_type() {
  return sizeof(T) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
}

// A tensor over contiguous memory of ours, for an ATen call.
template <class T>
Tensor wrapped(const T* from, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
  return torch::stable::from_blob(const_cast<T*>(from), sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), scalar_type<T>());
}

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* mutable_data(Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// out = beta * out + a * b for matrices of any strides. The dispatcher's stable ABI cannot pass beta, a Scalar.
inline void add_product(const Tensor& a, const Tensor& b, double beta, const Tensor& out) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), beta, 1));
}

}  // namespace fgaseg
