// What every CPU kernel of fgaseg shares. No ATen: only torch's stable ABI, so that one build serves torch >= 2.11.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

// Plain loops, compiled once per instruction set; the loader picks the best that the processor has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FGASEG_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FGASEG_CLONES
#endif
#define FGASEG_INLINE inline __attribute__((always_inline))

namespace fgaseg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// float64 is computed in float64, everything else in float32.
inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// x in its compute type, contiguous.
inline Tensor prepared(const Tensor& x) {
  const Tensor y = x.scalar_type() == compute_type(x) ? x : torch::stable::to(x, compute_type(x));
  return torch::stable::contiguous(y);
}

// A result back in the dtype of the input.
inline Tensor finished(const Tensor& y, const Tensor& like) {
  return y.scalar_type() == like.scalar_type() ? y : torch::stable::to(y, like.scalar_type());
}

// Runs f with a float or double as its argument, according to the compute type of x.
template <class F>
void for_compute_type(const Tensor& x, const F& f) {
  if (compute_type(x) == ScalarType::Double)
    f(double());
  else
    f(float());
}

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* mutable_data(Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

}  // namespace fgaseg
