// Small kernels that are right, or with one fault: what the emulator must find, and what it must not.
#include "common/cuda.h"

namespace fgaseg {
namespace {

constexpr int THREADS = 64;

// out[i] = x[THREADS - 1 - i]; FAULT: without the barrier.
template <bool FAULT>
__global__ void reverse(const float* x, float* out) {
  FGASEG_SHARED(values, float[THREADS]);
  values[threadIdx.x] = x[threadIdx.x];
  if (!FAULT) __syncthreads();
  out[threadIdx.x] = values[THREADS - 1 - threadIdx.x];
}

// The same twice through one buffer; FAULT: the buffer is written again while others may still read it.
template <bool FAULT>
__global__ void reverse_twice(const float* x, float* out) {
  FGASEG_DYNAMIC_SHARED(float, values);
  float value = x[threadIdx.x];
  for (int i = 0; i < 2; ++i) {
    values[threadIdx.x] = value;
    __syncthreads();
    value = values[THREADS - 1 - threadIdx.x];
    if (!FAULT) __syncthreads();
  }
  out[threadIdx.x] = value;
}

// Reverses every warp by itself; FAULT: with a shuffle, which orders nothing, in place of __syncwarp.
template <bool FAULT>
__global__ void reverse_warps(const float* x, float* out) {
  FGASEG_SHARED(values, float[THREADS]);
  values[threadIdx.x] = x[threadIdx.x];
  if (FAULT)
    __shfl_xor_sync(~0u, x[threadIdx.x], 1);
  else
    __syncwarp();
  out[threadIdx.x] = values[threadIdx.x ^ 31];
}

// A quarter of the threads copies for all; FAULT: they wait for it only after the barrier.
template <bool FAULT>
__global__ void copy_for_all(const float* x, float* out) {
  FGASEG_SHARED(values, float[THREADS]);
  if (threadIdx.x < THREADS / 4) copy_async<16>(values + 4 * threadIdx.x, x + 4 * threadIdx.x);
  commit_copies();
  if (!FAULT) wait_copies<0>();
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
  if (FAULT) wait_copies<0>();
}

// Counts the elements above 0; FAULT: without an atomic operation.
template <bool FAULT>
__global__ void count(const float* x, float* out) {
  FGASEG_SHARED(sum, int[1]);
  if (threadIdx.x == 0) sum[0] = 0;
  __syncthreads();
  if (x[threadIdx.x] > 0) {
    if (FAULT)
      ++sum[0];
    else
      atomicAdd(sum, 1);
  }
  __syncthreads();
  out[threadIdx.x] = float(sum[0]);
}

// Every block writes its half of out; FAULT: one element more.
template <bool FAULT>
__global__ void halves(const float* x, float* out) {
  const int count = FAULT && blockIdx.x == 0 ? THREADS / 2 + 1 : THREADS / 2;
  const int i = blockIdx.x * THREADS / 2 + threadIdx.x;
  if (int(threadIdx.x) < count) out[i] = x[i];
}

// Reads its neighbour; FAULT: also the one that the last element does not have.
template <bool FAULT>
__global__ void shift(const float* x, float* out) {
  const bool inside = FAULT || threadIdx.x + 1 < THREADS;
  out[threadIdx.x] = inside ? x[threadIdx.x + 1] : 0;
}

}  // namespace
}  // namespace fgaseg

#define FGASEG_LAUNCHER(name, blocks)                                                                  \
  extern "C" int fgaseg_test_##name(bool fault, const float* x, float* out) {                          \
    using namespace fgaseg;                                                                            \
    return launch(fault ? name<true> : name<false>, {blocks}, THREADS, THREADS * 4, nullptr, x, out); \
  }
FGASEG_LAUNCHER(reverse, 1)
FGASEG_LAUNCHER(reverse_twice, 1)
FGASEG_LAUNCHER(reverse_warps, 1)
FGASEG_LAUNCHER(copy_for_all, 1)
FGASEG_LAUNCHER(count, 1)
FGASEG_LAUNCHER(halves, 2)
FGASEG_LAUNCHER(shift, 1)
