// Activations of one value, as plain arithmetic that the compiler vectorises.
#pragma once
#include <string>

#include "common/cpu.h"
#include "common/exp.h"

namespace fgaseg {

enum class Activation { none, relu, gelu, quick_gelu };

inline Activation activation_named(const std::string& name) {
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "quick_gelu") return Activation::quick_gelu;
  STD_TORCH_CHECK(name == "none", "unknown activation ", name);
  return Activation::none;
}

// erf(x / sqrt(2)) is y p(y^2), p a polynomial of degree 14 for |y| < 3.8, beyond which it is 1 in float32. The
// polynomial was fitted to the smallest largest error; its variable runs from -1 to 1, because in powers of y^2 the
// terms would cancel.
FGASEG_INLINE float erf_of_normal(float x) {
  constexpr float coefficients[] = {
      0x1.7d09c8p-2f, -0x1.7c3174p-3f, 0x1.1a172ep-3f,  -0x1.c76a86p-4f, 0x1.740cfcp-4f,
      -0x1.290614p-4f, 0x1.c30626p-5f, -0x1.3efdccp-5f, 0x1.b55558p-6f,  -0x1.2c6194p-6f,
      0x1.460ba8p-7f,  -0x1.b06710p-9f, 0x1.36364cp-9f, -0x1.615c94p-9f, 0x1.0bfbd6p-10f};
  constexpr float limit = 3.8f;
  const float y = x * 0x1.6a09e6p-1f;
  const float square = y * y < limit * limit ? y * y : limit * limit;
  const float t = square * (2 / (limit * limit)) - 1;
  float p = coefficients[14];
  _Pragma("GCC unroll 14") for (int i = 14; i-- > 0;) p = p * t + coefficients[i];
  float erf = y * p;
  erf = y >= limit ? 1.0f : erf;
  return y <= -limit ? -1.0f : erf;
}

// x / 2 (1 + erf(x / sqrt(2))). Largest error for |x| <= 6: 6e-7, PyTorch's: 1.2e-6.
FGASEG_INLINE float gelu(float x) {
  const float half = 0.5f * x;
  return half * erf_of_normal(x) + half;
}

// x sigmoid(1.702 x), OpenAI's activation
FGASEG_INLINE float quick_gelu(float x) {
  const float z = 1.702f * x, e = exp_of(z > 0 ? -z : z);
  return (z > 0 ? x : x * e) / (1 + e);
}

FGASEG_INLINE float relu(float x) { return x < 0 ? 0.0f : x; }

// An activation, and its derivative.
struct Slope {
  float value, slope;
};

FGASEG_INLINE Slope gelu_slope(float x) {
  const float half = 0.5f * erf_of_normal(x) + 0.5f, density = 0x1.988454p-2f * exp_of(-0.5f * x * x);
  return {gelu(x), half + x * density};
}

FGASEG_INLINE Slope quick_gelu_slope(float x) {
  const float z = 1.702f * x, e = exp_of(z > 0 ? -z : z), scale = 1 / (1 + e);
  const float sigmoid = (z > 0 ? 1.0f : e) * scale, rest = (z > 0 ? e : 1.0f) * scale;
  return {x * sigmoid, sigmoid + z * sigmoid * rest};
}

FGASEG_INLINE Slope relu_slope(float x) { return {relu(x), x <= 0 ? 0.0f : 1.0f}; }

// Calls f with a function that gives the activation and its derivative.
template <class F>
FGASEG_INLINE void with_slope(Activation activation, const F& f) {
  switch (activation) {
    case Activation::none: return f([](float x) FGASEG_LAMBDA { return Slope{x, 1.0f}; });
    case Activation::relu: return f([](float x) FGASEG_LAMBDA { return relu_slope(x); });
    case Activation::gelu: return f([](float x) FGASEG_LAMBDA { return gelu_slope(x); });
    case Activation::quick_gelu: return f([](float x) FGASEG_LAMBDA { return quick_gelu_slope(x); });
  }
}

// Calls f with the activation as a function.
template <class F>
FGASEG_INLINE void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::none: return f([](float x) FGASEG_LAMBDA { return x; });
    case Activation::relu: return f([](float x) FGASEG_LAMBDA { return relu(x); });
    case Activation::gelu: return f([](float x) FGASEG_LAMBDA { return gelu(x); });
    case Activation::quick_gelu: return f([](float x) FGASEG_LAMBDA { return quick_gelu(x); });
  }
}

}  // namespace fgaseg
