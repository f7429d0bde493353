// CUDA on the CPU, for tests: kernels that include common/cuda.h run with every CUDA thread a coroutine, block after
// block. x86-64 and g++ only. What it finds, beside wrong indices and fragment layouts:
//
//   missing barriers      a warp runs on until it has to wait for another one, and a lane until it has to wait for its
//                         warp; shared memory starts as NaN. FGASEG_SHIM_ORDER=descending runs the last thread first:
//                         run the tests in both orders.
//   missing waits         the target of an asynchronous copy is NaN from its start until its thread has waited for it.
//   divergent barriers    threads that wait at different lines, or have ended while others wait, end the launch with
//                         an error. So do misaligned addresses and shared memory that is too large or written past.
//
// Built with -fsanitize=address it also finds accesses outside of tensors. It does not find races between blocks, nor
// what relies on the order of memory operations without a barrier.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <source_location>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#ifndef __x86_64__
#error "the shim switches between coroutines in x86-64 assembly"
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
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

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

#define FGASEG_DEVICE inline
#define FGASEG_SHARED(name, ...) auto& name = fgaseg::shim::shared<__VA_ARGS__, decltype([] {})>()
#define FGASEG_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(fgaseg::shim::machine.dynamic())
#define FGASEG_CHECK(condition, what) \
  if (!(condition)) fgaseg::shim::fail(what, std::source_location::current())

namespace fgaseg::shim {

using Location = std::source_location;

constexpr int WARP = 32;
constexpr size_t STACK = 128 << 10, MARGIN = 256;  // bytes; the margin behind shared memory has to stay NaN
constexpr size_t MOST_SHARED = 227 << 10;          // of sm_90; sm_80 has 163 KB
constexpr unsigned char NANS = 0xff;               // these bytes are NaN in every floating type

enum class State { ready, at_warp_barrier, at_block_barrier, ended };

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool inside;
  int group;
};

struct Thread {
  std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK]};
  void* stack_pointer = nullptr;
  dim3 index;
  State state = State::ended;
  Location at;               // where it waits
  std::vector<Copy> copies;  // not waited for yet
  int groups = 0;            // committed so far
};

struct Slot {
  alignas(16) unsigned char bytes[64];
};

// What the lanes of a warp tell each other. There are two sets of slots: a lane may be one operation ahead of another.
struct Warp {
  Slot slots[2][WARP];
  int phase = 0;
};

struct Region {
  unsigned char* begin;
  size_t bytes;  // without the margin
};

struct Machine {
  std::mutex mutex;
  std::function<void()> kernel;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int current = 0;  // the thread that runs
  void* scheduler = nullptr;
  std::string failure;
  std::vector<unsigned char> dynamic_memory;
  std::vector<Region> regions;  // of static shared memory
  size_t dynamic_bytes = 0;
  bool descending = false;

  unsigned char* dynamic() {
    const auto address = reinterpret_cast<uintptr_t>(dynamic_memory.data());
    return reinterpret_cast<unsigned char*>((address + 127) / 128 * 128);
  }
};
inline Machine machine;

// Keeps the registers that a function must preserve on this stack, and goes on from those on the other.
__attribute__((naked, noipa)) inline void switch_stacks(void** /*from*/, void* /*to*/) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}

inline std::string text(const Location& at) {
  const std::string file = at.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line());
}

inline std::string text(const dim3& i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

inline void leave() { switch_stacks(&machine.threads[machine.current].stack_pointer, machine.scheduler); }

// Ends the launch from inside a kernel; the thread never runs again.
[[noreturn]] inline void fail(const std::string& what, const Location& at) {
  machine.failure = what + " (" + text(at) + ", block " + text(blockIdx) + ", thread " + text(threadIdx) + ")";
  leave();
  std::abort();
}

inline void wait(State state, const Location& at) {
  Thread& thread = machine.threads[machine.current];
  thread.state = state;
  thread.at = at;
  leave();
}

inline void thread_main() {
  machine.kernel();
  Thread& thread = machine.threads[machine.current];
  if (!thread.copies.empty()) fail("a thread ended with copies that it never waited for", Location::current());
  thread.state = State::ended;
  leave();
  std::abort();
}

inline void prepare(Thread& thread, int i) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(thread.stack.get(), STACK);  // a thread that has ended never returned from its calls
#endif
  const auto end = reinterpret_cast<uintptr_t>(thread.stack.get() + STACK);
  void** top = reinterpret_cast<void**>(end / 16 * 16);
  *--top = nullptr;  // where thread_main would return to: never
  *--top = reinterpret_cast<void*>(&thread_main);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  thread.stack_pointer = top;
  thread.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
  thread.state = State::ready;
  thread.copies.clear();
  thread.groups = 0;
}

inline bool failed() { return !machine.failure.empty(); }

inline void resume(int i) {
  machine.current = i;
  threadIdx = machine.threads[i].index;
  switch_stacks(&machine.scheduler, machine.threads[i].stack_pointer);
}

// Lets threads [first, first + count) go on if all wait at one place; else says that they do not.
inline void release(int first, int count, const char* barrier) {
  const Thread& one = machine.threads[first];
  for (int i = first; i < first + count; ++i) {
    Thread& other = machine.threads[i];
    const bool together = other.state == one.state && other.at.line() == one.at.line() &&
                          std::strcmp(other.at.file_name(), one.at.file_name()) == 0;
    if (together) continue;
    const auto place = [](const Thread& t) { return t.state == State::ended ? "has ended" : "is at " + text(t.at); };
    machine.failure = std::string("not all threads reach one ") + barrier + ": in block " + text(blockIdx) +
                      " thread " + text(one.index) + " " + place(one) + ", thread " + text(other.index) + " " +
                      place(other);
    return;
  }
  for (int i = first; i < first + count; ++i) machine.threads[i].state = State::ready;
}

// Runs a warp until its lanes have ended or wait for the block.
inline void run_warp(int warp) {
  const int first = warp * WARP;
  for (;;) {
    bool waits = false;
    for (int i = 0; i < WARP; ++i) {
      const int thread = first + (machine.descending ? WARP - 1 - i : i);
      if (machine.threads[thread].state == State::ready) resume(thread);
      if (failed()) return;
      waits |= machine.threads[thread].state == State::at_warp_barrier;
    }
    if (!waits) return;
    release(first, WARP, "warp-wide operation");
    ++machine.warps[warp].phase;
    if (failed()) return;
  }
}

inline void run_block(int threads) {
  for (int i = 0; i < threads; ++i) prepare(machine.threads[i], i);
  const int warps = threads / WARP;
  for (;;) {
    for (int i = 0; i < warps && !failed(); ++i) run_warp(machine.descending ? warps - 1 - i : i);
    const auto ended = [](const Thread& thread) { return thread.state == State::ended; };
    if (failed() || std::all_of(machine.threads.begin(), machine.threads.begin() + threads, ended)) return;
    release(0, threads, "barrier");
  }
}

inline bool is_shared(const void* pointer) {
  const auto inside = [&](Region r) { return pointer >= r.begin && pointer < r.begin + r.bytes; };
  return inside({machine.dynamic(), machine.dynamic_bytes}) ||
         std::any_of(machine.regions.begin(), machine.regions.end(), inside);
}

inline void spoil_shared() {
  std::memset(machine.dynamic(), NANS, machine.dynamic_bytes + MARGIN);
  for (Region r : machine.regions) std::memset(r.begin, NANS, r.bytes + MARGIN);
}

inline void check_margins() {
  const auto written = [](const unsigned char* p) { return std::count(p, p + MARGIN, NANS) != int64_t(MARGIN); };
  const bool past_static = std::any_of(machine.regions.begin(), machine.regions.end(),
                                       [&](Region r) { return written(r.begin + r.bytes); });
  if (past_static || written(machine.dynamic() + machine.dynamic_bytes))
    machine.failure = "shared memory was written past its end in block " + text(blockIdx);
}

// Static shared memory: one object for every place that declares it, as there is one block at a time.
template <class T, class Place>
T& shared() {
  struct Memory {
    alignas(128) unsigned char bytes[sizeof(T) + MARGIN];
    Memory() {
      std::memset(bytes, NANS, sizeof bytes);
      machine.regions.push_back({bytes, sizeof(T)});
    }
  };
  static Memory memory;
  return *reinterpret_cast<T*>(memory.bytes);
}

// Shows `value` to the warp; returns what each lane showed.
template <class T>
const Slot* show(const T& value, const Location& at) {
  static_assert(sizeof(T) <= sizeof(Slot));
  Warp& warp = machine.warps[machine.current / WARP];
  Slot* slots = warp.slots[warp.phase % 2];
  std::memcpy(slots[machine.current % WARP].bytes, &value, sizeof(T));
  wait(State::at_warp_barrier, at);
  return slots;
}

template <class T>
T shown(const Slot& slot) {
  T value;
  std::memcpy(&value, slot.bytes, sizeof(T));
  return value;
}

inline int lane() { return machine.current % WARP; }

inline void check_warp(unsigned mask, const Location& at) {
  if (mask != ~0u) fail("warp-wide operations are for all 32 lanes here", at);
}

// The value of `source`, or of this lane if that is not in this lane's segment of `width` lanes.
template <class T>
T shuffle(unsigned mask, T value, int source, int width, const Location& at) {
  check_warp(mask, at);
  const Slot* slots = show(value, at);
  const bool inside = source >= 0 && source / width == lane() / width;
  return shown<T>(slots[inside ? source : lane()]);
}

template <int COUNT, bool TRANSPOSED>
void load_matrices(uint32_t (&r)[COUNT], const void* row, const Location& at) {
  if (lane() < 8 * COUNT && (reinterpret_cast<uintptr_t>(row) % 16 || !is_shared(row)))
    fail("ldmatrix needs rows in shared memory, aligned to 16 bytes", at);
  const Slot* slots = show(row, at);
  const auto number = [&](int matrix, int i, int j) {
    return uint32_t(shown<const uint16_t*>(slots[8 * matrix + i])[j]);
  };
  const int g = lane() / 4, q = lane() % 4;
  for (int i = 0; i < COUNT; ++i)
    r[i] = TRANSPOSED ? number(i, 2 * q, g) | number(i, 2 * q + 1, g) << 16
                      : number(i, g, 2 * q) | number(i, g, 2 * q + 1) << 16;
}

inline float half_to_float(uint16_t bits) { return float(std::bit_cast<_Float16>(bits)); }
inline uint16_t float_to_half(float x) { return std::bit_cast<uint16_t>(_Float16(x)); }
inline float bfloat16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }
inline uint16_t float_to_bfloat16(float x) {
  if (std::isnan(x)) return 0x7fff;
  const auto bits = std::bit_cast<uint32_t>(x);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace fgaseg::shim

inline void __syncthreads(fgaseg::shim::Location at = fgaseg::shim::Location::current()) {
  fgaseg::shim::wait(fgaseg::shim::State::at_block_barrier, at);
}
inline void __syncwarp(unsigned mask = ~0u, fgaseg::shim::Location at = fgaseg::shim::Location::current()) {
  fgaseg::shim::check_warp(mask, at);
  fgaseg::shim::wait(fgaseg::shim::State::at_warp_barrier, at);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              fgaseg::shim::Location at = fgaseg::shim::Location::current()) {
  const int segment = fgaseg::shim::lane() / width * width;
  return fgaseg::shim::shuffle(mask, value, segment + (source & (width - 1)), width, at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32,
                  fgaseg::shim::Location at = fgaseg::shim::Location::current()) {
  return fgaseg::shim::shuffle(mask, value, fgaseg::shim::lane() ^ flip, width, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   fgaseg::shim::Location at = fgaseg::shim::Location::current()) {
  return fgaseg::shim::shuffle(mask, value, fgaseg::shim::lane() + int(by), width, at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                 fgaseg::shim::Location at = fgaseg::shim::Location::current()) {
  return fgaseg::shim::shuffle(mask, value, fgaseg::shim::lane() - int(by), width, at);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              fgaseg::shim::Location at = fgaseg::shim::Location::current()) {
  fgaseg::shim::check_warp(mask, at);
  const fgaseg::shim::Slot* slots = fgaseg::shim::show(predicate, at);
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i) votes |= unsigned(fgaseg::shim::shown<int>(slots[i]) != 0) << i;
  return votes;
}

// Integers only: sums of floats in any order would not repeat.
inline int atomicOr(int* to, int bits) { return std::exchange(*to, *to | bits); }
inline unsigned atomicOr(unsigned* to, unsigned bits) { return std::exchange(*to, *to | bits); }
inline int atomicAdd(int* to, int value) { return std::exchange(*to, *to + value); }
inline int atomicMax(int* to, int value) { return std::exchange(*to, std::max(*to, value)); }

template <class T>
T __ldg(const T* from) {
  return *from;
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return ffs(bits); }
inline int __clz(int bits) { return std::countl_zero(unsigned(bits)); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
using std::max;
using std::min;

extern "C" __attribute__((weak)) const char* fgaseg_error_text(int code) {
  if (code == cudaErrorLaunchFailure) return fgaseg::shim::machine.failure.c_str();
  return code == cudaErrorInvalidConfiguration ? "invalid configuration" : "invalid value";
}

namespace fgaseg {

template <class... Parameters, class... Arguments>
int start(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void*, Arguments... arguments) {
  using namespace shim;
  const std::lock_guard lock(machine.mutex);
  const int threads = int(block.x * block.y * block.z);
  if (threads < 1 || threads > 1024 || threads % WARP) return cudaErrorInvalidConfiguration;
  if (shared_bytes > MOST_SHARED) return cudaErrorInvalidValue;
  const char* order = std::getenv("FGASEG_SHIM_ORDER");
  machine.descending = order && std::string(order) == "descending";
  machine.kernel = [=] { kernel(arguments...); };
  machine.failure.clear();
  if (machine.threads.size() < size_t(threads)) machine.threads.resize(threads);
  machine.warps.assign(threads / WARP, {});
  machine.dynamic_memory.resize(std::max(machine.dynamic_memory.size(), shared_bytes + MARGIN + 128));
  machine.dynamic_bytes = shared_bytes;
  gridDim = grid;
  blockDim = block;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        spoil_shared();
        run_block(threads);
        if (!failed()) check_margins();
        if (failed()) return cudaErrorLaunchFailure;
      }
  return cudaSuccess;
}

template <int BYTES>
void copy_async(void* to, const void* from, bool inside = true, shim::Location at = shim::Location::current()) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
  if (reinterpret_cast<uintptr_t>(to) % BYTES || reinterpret_cast<uintptr_t>(from) % BYTES || !shim::is_shared(to))
    shim::fail("cp.async needs aligned addresses and a target in shared memory", at);
  std::memset(to, shim::NANS, BYTES);
  shim::Thread& thread = shim::machine.threads[shim::machine.current];
  thread.copies.push_back({to, from, BYTES, inside, thread.groups});
}

inline void commit_copies() { ++shim::machine.threads[shim::machine.current].groups; }

template <int N>
void wait_copies() {
  shim::Thread& thread = shim::machine.threads[shim::machine.current];
  std::erase_if(thread.copies, [&](const shim::Copy& copy) {
    if (copy.group >= thread.groups - N) return false;
    if (copy.inside)
      std::memcpy(copy.to, copy.from, copy.bytes);
    else
      std::memset(copy.to, 0, copy.bytes);
    return true;
  });
}

template <int COUNT>
void load_matrices(uint32_t (&r)[COUNT], const void* row, shim::Location at = shim::Location::current()) {
  shim::load_matrices<COUNT, false>(r, row, at);
}
template <int COUNT>
void load_matrices_transposed(uint32_t (&r)[COUNT], const void* row, shim::Location at = shim::Location::current()) {
  shim::load_matrices<COUNT, true>(r, row, at);
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
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  shim::Location at = shim::Location::current()) {
  struct Fragments {
    float2 a[4], b[2];
  } mine;
  for (int i = 0; i < 4; ++i) mine.a[i] = unpack<T>(a[i]);
  for (int i = 0; i < 2; ++i) mine.b[i] = unpack<T>(b[i]);
  const shim::Slot* slots = shim::show(mine, at);
  const int g = shim::lane() / 4, q = shim::lane() % 4;
  for (int k = 0; k < 8; ++k) {  // columns 2k and 2k+1 of a are with lane k%4 of each row
    const auto* left = reinterpret_cast<const Fragments*>(slots[4 * g + k % 4].bytes);
    for (int column = 0; column < 2; ++column) {
      const auto* right = reinterpret_cast<const Fragments*>(slots[4 * (2 * q + column) + k % 4].bytes);
      const float2 y = right->b[k / 4];
      for (int row = 0; row < 2; ++row) {
        const float2 x = left->a[k / 4 * 2 + row];
        d[2 * row + column] += x.x * y.x + x.y * y.y;
      }
    }
  }
}

}  // namespace fgaseg
