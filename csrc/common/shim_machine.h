// CUDA on the CPU, for tests: runs kernels that include common/cuda.h, every CUDA thread a coroutine, block after
// block. x86-64 and g++ only. Beside wrong indices and fragment layouts it finds:
//
//   missing barriers      a warp runs until it has to wait for another one, and a lane until it has to wait for its
//                         warp; shared memory starts as NaN. FGASEG_SHIM_ORDER=descending runs the last thread first:
//                         run the tests in both orders.
//   missing waits         the target of an asynchronous copy is NaN from its start until its thread has waited for it.
//   divergent barriers    threads that wait at different lines, or have ended while others wait, end the launch with an
//                         error. So do misaligned addresses, and shared memory that is too large or overrun.
//
// Built with -fsanitize=address it also finds accesses outside tensors. It does not find races between blocks, nor code
// that relies on the order of memory operations without a barrier.
//
// This file has the threads, warps and shared memory; common/shim.h has CUDA's names.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <source_location>
#include <string>
#include <vector>

#ifndef __x86_64__
#error "the shim switches between coroutines in x86-64 assembly"
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
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

// Saves the callee-saved registers on this stack, and continues from those on the other.
__attribute__((naked, noipa)) inline void switch_stacks(void** /*from*/, void* /*to*/) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}

inline std::string text(const Location& location) {
  const std::string file = location.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(location.line());
}

inline std::string text(const dim3& i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

inline void leave() { switch_stacks(&machine.threads[machine.current].stack_pointer, machine.scheduler); }

// Ends the launch from inside a kernel; the thread is never resumed.
[[noreturn]] inline void fail(const std::string& what, const Location& location) {
  machine.failure = what + " (" + text(location) + ", block " + text(blockIdx) + ", thread " + text(threadIdx) + ")";
  leave();
  std::abort();
}

inline void wait(State state, const Location& location) {
  Thread& thread = machine.threads[machine.current];
  thread.state = state;
  thread.location = location;
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
  __asan_unpoison_memory_region(thread.stack.get(), STACK);  // an ended thread never returned from its calls
#endif
  const auto end = reinterpret_cast<uintptr_t>(thread.stack.get() + STACK);
  void** top = reinterpret_cast<void**>(end / 16 * 16);
  *--top = nullptr;  // the return address of thread_main, which never returns
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

// Resumes threads [first, first + count) if all wait at the same line; else ends the launch with an error.
inline void release(int first, int count, const char* barrier) {
  const Thread& one = machine.threads[first];
  for (int i = first; i < first + count; ++i) {
    Thread& other = machine.threads[i];
    const bool together = other.state == one.state && other.location.line() == one.location.line() &&
                          std::strcmp(other.location.file_name(), one.location.file_name()) == 0;
    if (together) continue;
    const auto state_of = [](const Thread& t) {
      return t.state == State::ended ? "has ended" : "is at " + text(t.location);
    };
    machine.failure = std::string("not all threads reach one ") + barrier + ": in block " + text(blockIdx) +
                      " thread " + text(one.index) + " " + state_of(one) + ", thread " + text(other.index) + " " +
                      state_of(other);
    return;
  }
  for (int i = first; i < first + count; ++i) machine.threads[i].state = State::ready;
}

// Runs a warp until all of its lanes have ended or wait for the block.
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

// Static shared memory: one object per declaration, because there is one block at a time.
template <class T, class Declaration>
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

// Shows `value` to the warp; returns what every lane showed.
template <class T>
const Slot* show(const T& value, const Location& location) {
  static_assert(sizeof(T) <= sizeof(Slot));
  Warp& warp = machine.warps[machine.current / WARP];
  Slot* slots = warp.slots[warp.phase % 2];
  std::memcpy(slots[machine.current % WARP].bytes, &value, sizeof(T));
  wait(State::at_warp_barrier, location);
  return slots;
}

template <class T>
T shown(const Slot& slot) {
  T value;
  std::memcpy(&value, slot.bytes, sizeof(T));
  return value;
}

inline int lane() { return machine.current % WARP; }

inline void check_warp(unsigned mask, const Location& location) {
  if (mask != ~0u) fail("warp-wide operations are for all 32 lanes here", location);
}

// The value of lane `source`, or of this lane if `source` is not in this lane's segment of `width` lanes.
template <class T>
T shuffle(unsigned mask, T value, int source, int width, const Location& location) {
  check_warp(mask, location);
  const Slot* slots = show(value, location);
  const bool inside = source >= 0 && source / width == lane() / width;
  return shown<T>(slots[inside ? source : lane()]);
}

}  // namespace fgaseg::shim
