// The vocabulary of all CUDA kernels. One source, two compilers: nvcc, or g++ -DFGASEG_SHIM, where common/shim.h runs
// the same kernels on the CPU, one coroutine per CUDA thread, so that tests need no GPU.
//
// Kernels use CUDA's own names (threadIdx, __syncthreads, __shfl_xor_sync ...) and, where CUDA has only syntax or
// assembly, the functions below. Blocks consist of whole warps, and warp-wide operations take all 32 lanes.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef FGASEG_SHIM
#include "common/shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// FGASEG_SHARED(sums, float[32]): shared memory of a size known at compile time. FGASEG_DYNAMIC_SHARED(float, sums): a
// pointer to the bytes that the launch requested. Both are aligned to 128 bytes and uninitialised.
#define FGASEG_SHARED(name, ...)      \
  using name##_type = __VA_ARGS__;    \
  __shared__ __align__(128) name##_type name
#define FGASEG_DYNAMIC_SHARED(type, name)                                        \
  extern __shared__ __align__(128) unsigned char fgaseg_dynamic_shared_memory[]; \
  type* const name = reinterpret_cast<type*>(fgaseg_dynamic_shared_memory)

// Aborts the kernel with an error that the next synchronisation reports.
#define FGASEG_CHECK(condition, what) \
  if (!(condition)) __assert_fail(what, __FILE__, __LINE__, __func__)

#define FGASEG_DEVICE __device__ __forceinline__

// The message for a code that a launcher returned. Weak: every kernel.cu has it, and the linker keeps one.
extern "C" __attribute__((weak)) const char* fgaseg_error_text(int code) {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

namespace fgaseg {

// The multiprocessors of the current device.
inline int64_t processors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count > 0 ? count : 1;
}

template <class... Parameters, class... Arguments>
int start(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
          Arguments... arguments) {
  if (shared_bytes > 48 * 1024)  // above this, CUDA requires opting in
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return cudaGetLastError();
}

FGASEG_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 4, 8 or 16 bytes from global to shared memory asynchronously, or zeros if not `inside` (`from` is not read
// then, but must be a valid address). Both addresses are aligned to BYTES.
template <int BYTES>
FGASEG_DEVICE void copy_async(void* to, const void* from, bool inside = true) {
  if constexpr (BYTES == 16)  // bypasses the first-level cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
                 "r"(inside ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(to)), "l"(from), "n"(BYTES),
                 "r"(inside ? BYTES : 0)
                 : "memory");
}

// Closes a group of this thread's copies; wait_copies<N> waits until all but the last N groups have arrived. The other
// threads see the data after a barrier.
FGASEG_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

template <int N>
FGASEG_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// ldmatrix: 8x8 matrices of 16-bit elements. Lane 8i+j gives the address of row j of matrix i: 16 bytes, aligned. Lane
// l receives in r[i] element [l/4][2*(l%4)] and the one to its right, or transposed [2*(l%4)][l/4] and the one below.
FGASEG_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
FGASEG_DEVICE void load_matrices(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
FGASEG_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
FGASEG_DEVICE void load_matrices_transposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

// mma.m16n8k16: d [16][8] += a [16][16] b [16][8] in float32. In lane 4g+q, a[0] and a[1] are rows g and g+8 at columns
// 2q and 2q+1, a[2] and a[3] the same 8 columns to the right; b[0] is rows 2q and 2q+1 of column g, b[1] 8 rows below;
// d[0] and d[1] are row g at columns 2q and 2q+1, d[2] and d[3] row g+8.
template <class T>
FGASEG_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define FGASEG_MULTIPLY_ADD(type, name)                                                                         \
  template <>                                                                                                   \
  FGASEG_DEVICE void multiply_add<type>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {        \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                         \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"                                 \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                           \
  }
FGASEG_MULTIPLY_ADD(__half, "f16")
FGASEG_MULTIPLY_ADD(__nv_bfloat16, "bf16")
#undef FGASEG_MULTIPLY_ADD

FGASEG_DEVICE float to_float(float x) { return x; }
FGASEG_DEVICE float to_float(__half x) { return __half2float(x); }
FGASEG_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// Rounds to nearest, ties to even.
template <class T>
FGASEG_DEVICE T from_float(float x);
template <>
FGASEG_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
FGASEG_DEVICE __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
FGASEG_DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two 16-bit elements in one register, the first in the low half.
template <class T>
FGASEG_DEVICE uint32_t pack(float low, float high);
template <>
FGASEG_DEVICE uint32_t pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
FGASEG_DEVICE uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <class T>
FGASEG_DEVICE float2 unpack(uint32_t pair);
template <>
FGASEG_DEVICE float2 unpack<__half>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
template <>
FGASEG_DEVICE float2 unpack<__nv_bfloat16>(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}

// The sums of two pairs of 16-bit elements.
template <class T>
FGASEG_DEVICE uint32_t add_pairs(uint32_t a, uint32_t b);
template <>
FGASEG_DEVICE uint32_t add_pairs<__half>(uint32_t a, uint32_t b) {
  const __half2 pair = __hadd2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
FGASEG_DEVICE uint32_t add_pairs<__nv_bfloat16>(uint32_t a, uint32_t b) {
  const __nv_bfloat162 pair =
      __hadd2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// 2^x in one instruction, with a relative error of 2^-22; 0 below 2^-126.
FGASEG_DEVICE float exp2_approximately(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace fgaseg
#endif

namespace fgaseg {

struct Grid {
  int64_t x, y = 1, z = 1;
};

// Runs the kernel on the stream and returns a cudaError_t. An empty grid is not an error.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), Grid grid, dim3 block, size_t shared_bytes, void* stream,
           Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  const dim3 size(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  return start(kernel, size, block, shared_bytes, stream, arguments...);
}

}  // namespace fgaseg
