// CUDA on the CPU, for tests: runs kernels that include common/cuda.h, every CUDA thread a coroutine, block after
// block. x86-64 and g++ only. Beside wrong indices and fragment layouts it finds:
//
//   races                 kernels are compiled with -fsanitize=thread, but linked with shim_watch.cpp in place of the
//                         sanitizer: every access is compared with the earlier ones of other threads, in shared memory
//                         and in the tensors that shim_memory.cpp holds, there also between blocks.
//   wrong addresses       an access beyond a tensor that shim_memory.cpp holds is an error, and so is one of shared
//                         memory that an asynchronous copy is still about to write, which is NaN until then.
//   reliance on an order  fgaseg_shim_order(seed) runs blocks, warps and lanes in another order. Without it a warp runs
//                         until it has to wait for another one, and a lane until it has to wait for its warp. Shared
//                         memory starts as NaN in every block.
//   divergent barriers    threads that wait at different lines, or have ended while others wait, end the launch with an
//                         error. So do misaligned addresses, and shared memory that is too large or overrun.
//
// Blocks run one after the other, and an atomic operation is never interrupted: it does not find code that waits for
// another block, nor code that relies on the order of memory operations without a barrier.
//
// common/shim.h has CUDA's names; shim_machine.cpp implements this file. Both .cpp files and shim_memory.cpp are
// compiled without instrumentation.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <source_location>
#include <string>
#include <vector>

#include "common/shim_watch.h"

#ifndef __x86_64__
#error "the shim switches between coroutines in x86-64 assembly"
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace fgaseg::shim {

using Location = std::source_location;

constexpr int WARP = 32;
constexpr size_t STACK = 128 << 10, MARGIN = 256;  // bytes; the margin behind shared memory must stay NaN
constexpr size_t MOST_SHARED = 227 << 10;          // of sm_90; sm_80 has 163 KB
constexpr size_t STATIC_SHARED = 1 << 20;          // of all kernels in a library together
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
  Location location;         // where it waits
  bool orders = false;       // whether that orders what the threads read and write
  std::vector<Copy> copies;  // not waited for yet
  int groups = 0;            // committed so far
};

struct Slot {
  alignas(16) unsigned char bytes[64];
};

// What the lanes of a warp exchange. There are two sets of slots, because a lane may be one operation ahead of another.
struct Warp {
  Slot slots[2][WARP];
  int phase = 0;
  uint32_t ordered = 0;  // how often __syncwarp ordered its accesses
};

struct Region {
  const char* name;
  unsigned char* begin;
  size_t bytes;  // without the margin
  bool used;     // by this block
};

struct Machine {
  std::mutex mutex;
  std::function<void()> kernel;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int current = 0;         // the thread that runs
  bool in_kernel = false;  // it does, and not the code that schedules it
  void* scheduler = nullptr;
  std::string failure, last_failure;  // of this launch, and of the last one that failed
  std::deque<Region> regions;  // of static shared memory
  size_t dynamic_bytes = 0, static_bytes = 0;
  unsigned seed = 0;  // of the order of blocks, warps and lanes; 0: ascending
  std::minstd_rand random;
  // Barriers passed since the start, and as many when this launch and this block began.
  uint32_t phase = 0, launch_phase = 0, block_phase = 0;
  std::set<std::string> barriers;  // "file:line" of those that were passed
  std::string ignored;             // one that orders nothing, for tests of the search for races
  alignas(128) unsigned char shared[MOST_SHARED + MARGIN + STATIC_SHARED];  // dynamic, then static
};
inline Machine machine;

// Runs machine.kernel for a grid; false if it failed.
bool run(dim3 grid, dim3 block, size_t shared_bytes);

std::string text(const dim3& i);              // "(1,2,3)"
std::string text(const Location& location);  // "kernel.cu:12"

// Ends the launch from inside a kernel; the thread is never resumed.
[[noreturn]] void fail(const std::string& what, const std::string& line);
[[noreturn]] void fail(const std::string& what, const Location& location);

// Lets the other threads run; orders: the accesses of all that wait here, before and after it, are ordered.
void wait(State state, const Location& location, bool orders = false);

// Shared memory.
bool is_shared(const void* pointer);
Region region_of(const void* pointer);
Region* add_region(const char* name, size_t bytes);

// Static shared memory: one object per declaration, because there is one block at a time.
template <class T, class Declaration>
T& shared(const char* name) {
  static Region& region = *add_region(name, sizeof(T));
  region.used = true;
  return *reinterpret_cast<T*>(region.begin);
}

void start_copy(void* to, const void* from, int bytes, bool inside, const Location& location);
void wait_copies(int groups);

// Warp-wide operations.
inline int lane() { return machine.current % WARP; }
void check_warp(unsigned mask, const Location& location);

// Shows `bytes` bytes to the warp; returns what every lane showed.
const Slot* show(const void* value, size_t bytes, const Location& location);

template <class T>
T shown(const Slot& slot) {
  T value;
  std::memcpy(&value, slot.bytes, sizeof(T));
  return value;
}

// The value of lane `source`, or of this lane if `source` is not in this lane's segment of `width` lanes.
template <class T>
T shuffle(unsigned mask, T value, int source, int width, const Location& location) {
  static_assert(sizeof(T) <= sizeof(Slot));
  check_warp(mask, location);
  const Slot* slots = show(&value, sizeof value, location);
  const bool inside = source >= 0 && source / width == lane() / width;
  return shown<T>(slots[inside ? source : lane()]);
}

// ldmatrix of `count` matrices, and mma.m16n8k16 of a lane's parts of a, b and d, in their order in registers.
void load_matrices(uint32_t* r, int count, bool transposed, const void* row, const Location& location);
struct Fragments {
  float a[8], b[4];
};
struct Sums {
  float d[4];
};
Sums multiply_add(Sums sums, Fragments own, const Location& location);

}  // namespace fgaseg::shim
