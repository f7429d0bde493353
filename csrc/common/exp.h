// exp as plain arithmetic, which the compiler vectorises: a library's exp is one call per element.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/cpu.h"

namespace fgaseg {

template <class T>
struct Exp;  // exp(x) = 2^n exp(r), |r| <= ln(2)/2, by a Taylor polynomial

template <>
struct Exp<float> {
  using Bits = uint32_t;
  static constexpr float round = 0x1.8p23f, log2e = 0x1.715476p0f, ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr float lowest = -87.3f;  // below, the result would be subnormal: 0
  static constexpr int mantissa = 23, bias = 127, degree = 7;
};

template <>
struct Exp<double> {
  using Bits = uint64_t;
  static constexpr double round = 0x1.8p52, log2e = 0x1.71547652b82fep0, ln2_high = 0x1.62e42fee00000p-1,
                          ln2_low = 0x1.a39ef35793c76p-33, lowest = -708.3;
  static constexpr int mantissa = 52, bias = 1023, degree = 13;
};

// For x <= 0. NaN stays NaN.
template <class T>
FGASEG_INLINE T exp_of(T x) {
  using E = Exp<T>;
  const T shifted = x * E::log2e + E::round;  // the low bits now hold n
  const T n = shifted - E::round;
  const T r = (x - n * E::ln2_high) - n * E::ln2_low;
  T inverse_factorial[E::degree + 1] = {1};
  for (int i = 1; i <= E::degree; ++i) inverse_factorial[i] = inverse_factorial[i - 1] / i;  // folded by the compiler
  T p = inverse_factorial[E::degree];
  for (int i = E::degree; i-- > 0;) p = p * r + inverse_factorial[i];
  typename E::Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << E::mantissa) + (typename E::Bits(E::bias) << E::mantissa);
  T scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x < E::lowest ? T(0) : p * scale;
}

}  // namespace fgaseg
