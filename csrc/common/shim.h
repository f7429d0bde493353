// CUDA's names on the CPU, for tests: see common/shim_machine.h.
#pragma once
#include <bit>
#include <cmath>
#include <cstdlib>
#include <type_traits>
#include <utility>

#include "common/shim_machine.h"
#include "common/shim_record.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};

#define FGASEG_DEVICE inline
#define FGASEG_SHARED(name, ...) auto& name = fgaseg::shim::shared<__VA_ARGS__, decltype([] {})>(#name)
#define FGASEG_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(fgaseg::shim::machine.shared)
#define FGASEG_CHECK(condition, what) \
  if (!(condition)) fgaseg::shim::fail(what, std::source_location::current())

namespace fgaseg::shim {

inline float half_to_float(uint16_t bits) { return float(std::bit_cast<_Float16>(bits)); }
inline uint16_t float_to_half(float x) { return std::bit_cast<uint16_t>(_Float16(x)); }
inline float bfloat16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }
inline uint16_t float_to_bfloat16(float x) {
  if (std::isnan(x)) return 0x7fff;
  const auto bits = std::bit_cast<uint32_t>(x);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace fgaseg::shim

inline void __syncthreads(fgaseg::shim::Location location = fgaseg::shim::Location::current()) {
  fgaseg::shim::wait(fgaseg::shim::State::at_block_barrier, location, true);
}
inline void __syncwarp(unsigned mask = ~0u, fgaseg::shim::Location location = fgaseg::shim::Location::current()) {
  fgaseg::shim::check_warp(mask, location);
  fgaseg::shim::wait(fgaseg::shim::State::at_warp_barrier, location, true);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              fgaseg::shim::Location location = fgaseg::shim::Location::current()) {
  const int segment = fgaseg::shim::lane() / width * width;
  return fgaseg::shim::shuffle(mask, value, segment + (source & (width - 1)), width, location);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32,
                  fgaseg::shim::Location location = fgaseg::shim::Location::current()) {
  return fgaseg::shim::shuffle(mask, value, fgaseg::shim::lane() ^ flip, width, location);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   fgaseg::shim::Location location = fgaseg::shim::Location::current()) {
  return fgaseg::shim::shuffle(mask, value, fgaseg::shim::lane() + int(by), width, location);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                 fgaseg::shim::Location location = fgaseg::shim::Location::current()) {
  return fgaseg::shim::shuffle(mask, value, fgaseg::shim::lane() - int(by), width, location);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              fgaseg::shim::Location location = fgaseg::shim::Location::current()) {
  fgaseg::shim::check_warp(mask, location);
  const fgaseg::shim::Slot* slots = fgaseg::shim::show(&predicate, sizeof predicate, location);
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i) votes |= unsigned(fgaseg::shim::shown<int>(slots[i]) != 0) << i;
  return votes;
}

// Integers only: sums of floats in varying order would not be reproducible.
int atomicOr(int* to, int bits);
unsigned atomicOr(unsigned* to, unsigned bits);
int atomicAdd(int* to, int value);
int atomicMax(int* to, int value);

template <class T>
T __ldg(const T* from) {
  return *from;
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return ffs(bits); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}
inline int __clz(int bits) { return std::countl_zero(unsigned(bits)); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
using std::max;
using std::min;

extern "C" __attribute__((weak)) const char* fgaseg_error_text(int code) {
  if (code == cudaErrorLaunchFailure) return fgaseg::shim::machine.last_failure.c_str();
  return code == cudaErrorInvalidConfiguration ? "invalid configuration" : "invalid value";
}

namespace fgaseg {

// An H100's, or as many as a test asks for.
inline int64_t processors() {
  const char* wanted = std::getenv("FGASEG_SHIM_PROCESSORS");
  return wanted ? std::atoi(wanted) : 132;
}

template <class... Parameters, class... Arguments>
int start(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void*, Arguments... arguments) {
  using namespace shim;
  const std::lock_guard lock(machine.mutex);
  if (const char* file = std::getenv("FGASEG_SHIM_RECORD")) {  // nothing is run
    const auto address = reinterpret_cast<const void*>(kernel);
    const bool written = record(file, address, grid, block, shared_bytes, Parameters(arguments)...);
    return written ? cudaSuccess : cudaErrorInvalidValue;
  }
  const unsigned threads = block.x * block.y * block.z;
  if (threads < 1 || threads > 1024 || threads % WARP) return cudaErrorInvalidConfiguration;
  if (shared_bytes > MOST_SHARED) return cudaErrorInvalidValue;
  machine.kernel = [=] { kernel(arguments...); };
  return run(grid, block, shared_bytes) ? cudaSuccess : cudaErrorLaunchFailure;
}

template <int BYTES>
void copy_async(void* to, const void* from, bool inside = true, shim::Location location = shim::Location::current()) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
  shim::start_copy(to, from, BYTES, inside, location);
}

inline void commit_copies() { ++shim::machine.threads[shim::machine.current].groups; }

template <int N>
void wait_copies() {
  shim::wait_copies(N);
}

template <int COUNT>
void load_matrices(uint32_t (&r)[COUNT], const void* row, shim::Location location = shim::Location::current()) {
  shim::load_matrices(r, COUNT, false, row, location);
}
template <int COUNT>
void load_matrices_transposed(uint32_t (&r)[COUNT], const void* row,
                              shim::Location location = shim::Location::current()) {
  shim::load_matrices(r, COUNT, true, row, location);
}

inline float to_float(float x) { return x; }
inline float to_float(__half x) { return shim::half_to_float(x.bits); }
inline float to_float(__nv_bfloat16 x) { return shim::bfloat16_to_float(x.bits); }

template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, __half>)
    return {shim::float_to_half(x)};
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return {shim::float_to_bfloat16(x)};
  else
    return x;
}

template <class T>
uint32_t pack(float low, float high) {
  return uint32_t(from_float<T>(low).bits) | uint32_t(from_float<T>(high).bits) << 16;
}

template <class T>
float2 unpack(uint32_t pair) {
  return {to_float(T{uint16_t(pair)}), to_float(T{uint16_t(pair >> 16)})};
}

template <class T>
uint32_t add_pairs(uint32_t a, uint32_t b) {
  const float2 x = unpack<T>(a), y = unpack<T>(b);
  return pack<T>(x.x + y.x, x.y + y.y);
}

inline float exp2_approximately(float x) { return std::exp2(x); }

template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  shim::Location location = shim::Location::current()) {
  shim::Fragments own;
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<T>(a[i]);
    own.a[2 * i] = pair.x;
    own.a[2 * i + 1] = pair.y;
  }
  for (int i = 0; i < 2; ++i) {
    const float2 pair = unpack<T>(b[i]);
    own.b[2 * i] = pair.x;
    own.b[2 * i + 1] = pair.y;
  }
  const shim::Sums sums = shim::multiply_add({d[0], d[1], d[2], d[3]}, own, location);
  for (int i = 0; i < 4; ++i) d[i] = sums.d[i];
}

}  // namespace fgaseg
