// What the emulator knows about memory that threads share: who accessed every byte last, and where tensors are.
// shim_watch.cpp uses it to find races and wrong addresses, shim_memory.cpp holds the tensors.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

namespace fgaseg::shim {

enum class Kind { read, write, atomic };

// The threads that read or wrote a byte last. Times are counts of barriers, machine.phase.
struct Access {
  uint32_t phase = 0;                // since the barrier before it
  uint32_t warps = 0;                // those that did since that barrier
  uint32_t lanes = 0;                // of the last one, since its last __syncwarp
  uint32_t warp = 0, ordered = 0;    // the last one, and how many __syncwarp it had executed
  uint32_t elsewhere = 0;            // the phase of the last one in another block
  const void* code = nullptr;        // of the last one
  bool atomic = false;               // all of them
};

struct Accesses {
  Access reads, writes;
  uint32_t copying = 0;  // the block_phase of a block with an asynchronous copy to it that was not waited for
};

// The memory of a tensor between guard pages.
struct Buffer {
  unsigned char* begin;
  size_t bytes;
  bool freed = false;
  std::unique_ptr<Accesses, decltype(&std::free)> accesses{nullptr, &std::free};  // of every byte, once a kernel ran
};

// Notes an access of the running thread, and ends the launch if it is a race or outside all memory.
void saw(const void* address, size_t bytes, Kind kind, const void* code);

// An asynchronous copy of the running thread to shared memory begins or has arrived.
void mark_copy(const void* to, size_t bytes, bool under_way);

// Whether the address is in the part of the address space where all guarded tensors are.
bool is_guarded(const void* address);

// The tensor in which the address is, or null.
Buffer* buffer_of(const void* address);

// Where an address is relative to the nearest tensor: "4 bytes behind the end of a tensor of 60 bytes".
std::string position_of(const void* address);

}  // namespace fgaseg::shim
