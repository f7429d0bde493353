// The types in which kernels read and write tensors without converting whole ones: float64, float32, and bfloat16,
// which is converted in registers. float16 is converted to float32 first.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/cpu.h"
#include "common/product.h"

namespace fgaseg {

inline ScalarType storage_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::BFloat16 ? ScalarType::BFloat16 : compute_type(x);
}

// x in its storage type, copied only if its last axis is not contiguous.
inline Tensor readable(const Tensor& x) {
  const Tensor y = x.scalar_type() == storage_type(x) ? x : torch::stable::to(x, storage_type(x));
  return y.stride(y.dim() - 1) == 1 ? y : torch::stable::contiguous(y);
}

// Calls f with values of the type that is computed in and of the type that x is stored in, uint16_t for bfloat16.
template <class F>
void for_storage_type(const Tensor& x, const F& f) {
  if (storage_type(x) == ScalarType::Double)
    f(double(), double());
  else if (storage_type(x) == ScalarType::BFloat16)
    f(float(), uint16_t());
  else
    f(float(), float());
}

template <class T, class S>
FGASEG_INLINE T loaded(S x) {
  if constexpr (std::is_same_v<S, uint16_t>)
    return from_bfloat16(x);
  else
    return x;
}

template <class S, class T>
FGASEG_INLINE S stored(T x) {
  if constexpr (std::is_same_v<S, uint16_t>)
    return to_bfloat16(x);
  else
    return x;
}

}  // namespace fgaseg
