// The emulator's search for races: the functions that g++ -fsanitize=thread calls before every access to memory, here
// in place of the sanitizer's own. This file itself is compiled without that option.
//
// Two accesses to a byte, at least one of which writes, race unless they are of one thread, both atomic, or ordered: a
// __syncthreads orders all threads of a block, __syncwarp those of a warp, and the end of a launch everything. Nothing
// else does: shuffles, votes, ldmatrix and mma exchange registers. So only the accesses since the last barrier matter,
// and for the others of a warp those since its last __syncwarp; every race on the path that the threads took is found,
// in whatever order they ran.
#include "common/shim_watch.h"

#include <dlfcn.h>

#include <bit>
#include <cstdio>
#include <utility>

#include "common/shim_machine.h"

namespace fgaseg::shim {
namespace {

Accesses of_shared[sizeof machine.shared];

// The kernel and the line of an instruction, by addr2line: "convolve, convolve.h:199".
std::string place_of(const void* code) {
  Dl_info library;
  if (!code || !dladdr(code, &library)) return "unknown place";
  char command[512], line[4096];
  const auto offset = reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(library.dli_fbase) - 1;
  std::snprintf(command, sizeof command, "addr2line -Cfis -e '%s' %#zx 2>&1", library.dli_fname, size_t(offset));
  std::FILE* const output = popen(command, "r");
  std::string function, place;  // the outermost function, and the innermost line of a kernel
  for (int i = 0; output && std::fgets(line, sizeof line, output); ++i) {
    std::string text(line, std::strcspn(line, "\n"));
    if (i % 2 == 0)
      function = text;
    else if (place.empty() && text.rfind("shim", 0) != 0)
      place = text.substr(0, text.find(" ("));
  }
  if (output) pclose(output);
  const std::string inside = "(anonymous namespace)::";  // what follows is the name: "void ..::name<..>(..)"
  function.erase(0, function.find(inside) == std::string::npos ? 0 : function.find(inside) + inside.size());
  return function.substr(0, function.find_first_of("<(")) + ", " + place;
}

std::string where(const void* address, const Buffer* buffer) {
  const auto* byte = static_cast<const unsigned char*>(address);
  if (buffer)
    return "byte " + std::to_string(byte - buffer->begin) + " of a tensor of " + std::to_string(buffer->bytes);
  const Region region = region_of(address);
  return "byte " + std::to_string(byte - region.begin) + " of " + region.name;
}

struct Now {
  uint32_t warp = machine.current / WARP, lane = 1u << machine.current % WARP;
  uint32_t ordered = machine.warps[warp].ordered;
};

// Another thread among `others` whose access is not ordered before this one: its index, or -1 in another block.
bool unordered(const Access& others, const Now& now, bool is_shared, int& thread) {
  thread = -1;
  if (!is_shared && others.elsewhere >= machine.launch_phase) return true;
  if (others.phase < machine.block_phase) return !is_shared && others.phase >= machine.launch_phase;
  if (others.phase != machine.phase) return false;
  const uint32_t warps = others.warps & ~(1u << now.warp), lanes = others.lanes & ~now.lane;
  if (warps) {
    const bool last = others.warp != now.warp;
    const int warp = last ? others.warp : std::countr_zero(warps);
    thread = warp * WARP + (last ? std::countr_zero(others.lanes) : 0);
    return true;
  }
  if (!lanes || others.ordered != now.ordered) return false;
  thread = now.warp * WARP + std::countr_zero(lanes);
  return true;
}

void remember(Access& access, const Now& now, bool atomic, const void* code) {
  if (access.phase != machine.phase) {
    if (access.phase < machine.block_phase) access.elsewhere = access.phase;
    access.warps = access.lanes = 0;
    access.phase = machine.phase;
    access.atomic = true;
  }
  if (access.warp != now.warp || access.ordered != now.ordered) access.lanes = 0;
  access.warps |= 1u << now.warp;
  access.lanes |= now.lane;
  access.warp = now.warp;
  access.ordered = now.ordered;
  access.code = code;
  access.atomic &= atomic;
}

std::string verb(Kind kind) {
  return kind == Kind::read ? "a thread reads " : kind == Kind::write ? "a thread writes " : "a thread updates ";
}

[[noreturn]] void report(const void* address, size_t bytes, Kind kind, const void* code, const Buffer* buffer,
                         const std::string& why) {
  fail(verb(kind) + std::to_string(bytes) + " bytes at " + where(address, buffer) + " " + why, place_of(code));
}

[[noreturn]] void report_race(const void* address, size_t bytes, Kind kind, const void* code, const Buffer* buffer,
                              const Access& others, bool wrote, int thread) {
  const std::string who = thread < 0 ? "another block" : "thread " + text(machine.threads[thread].index);
  const std::string why = "that " + who + (wrote ? " wrote (" : " read (") + place_of(others.code) + ")";
  report(address, bytes, kind, code, buffer, why + " with no barrier in between");
}

}  // namespace

void saw(const void* address, size_t bytes, Kind kind, const void* code) {
  if (!machine.in_kernel) return;
  const auto* const byte = static_cast<const unsigned char*>(address);
  const bool shared = byte >= machine.shared && byte < machine.shared + sizeof machine.shared;
  Buffer* buffer = nullptr;
  Accesses* accesses = nullptr;
  if (shared) {
    accesses = of_shared + (byte - machine.shared);
  } else {
    if (!is_guarded(address)) return;
    buffer = buffer_of(address);
    if (!buffer || byte + bytes > buffer->begin + buffer->bytes) {
      const void* const outside = buffer ? buffer->begin + buffer->bytes : address;
      fail(verb(kind) + std::to_string(bytes) + " bytes " + position_of(outside), place_of(code));
    }
    if (!buffer->accesses)
      buffer->accesses.reset(static_cast<Accesses*>(std::calloc(buffer->bytes, sizeof(Accesses))));
    accesses = buffer->accesses.get() + (byte - buffer->begin);
  }
  const Now now;
  int thread;
  for (size_t i = 0; i < bytes; ++i) {
    auto& [reads, writes, copying] = accesses[i];
    if (copying == machine.block_phase)
      report(byte + i, bytes, kind, code, buffer, "while an asynchronous copy to it is under way");
    if (!(kind == Kind::atomic && writes.atomic) && unordered(writes, now, shared, thread))
      report_race(byte + i, bytes, kind, code, buffer, writes, true, thread);
    if (kind != Kind::read && unordered(reads, now, shared, thread))
      report_race(byte + i, bytes, kind, code, buffer, reads, false, thread);
    remember(kind == Kind::read ? reads : writes, now, kind == Kind::atomic, code);
  }
}

void mark_copy(const void* to, size_t bytes, bool under_way) {
  Accesses* const accesses = of_shared + (static_cast<const unsigned char*>(to) - machine.shared);
  for (size_t i = 0; i < bytes; ++i) accesses[i].copying = under_way ? machine.block_phase : 0;
}

}  // namespace fgaseg::shim

// CUDA's atomic operations, which are not interrupted here.
#define ATOMIC(name, type, result)                                                                          \
  type name(type* to, type value) {                                                                         \
    fgaseg::shim::saw(to, sizeof *to, fgaseg::shim::Kind::atomic, __builtin_return_address(0));             \
    return std::exchange(*to, result);                                                                      \
  }
ATOMIC(atomicOr, int, *to | value)
ATOMIC(atomicOr, unsigned, *to | value)
ATOMIC(atomicAdd, int, *to + value)
ATOMIC(atomicMax, int, std::max(*to, value))

// What tests set and ask, and the sanitizer's functions.
#define SEEN(name, bytes, kind)                                                                    \
  void name(const void* address) {                                                                 \
    fgaseg::shim::saw(address, bytes, fgaseg::shim::Kind::kind, __builtin_return_address(0));      \
  }
#define SEEN_BYTES(bytes)                        \
  SEEN(__tsan_read##bytes, bytes, read)          \
  SEEN(__tsan_write##bytes, bytes, write)        \
  SEEN(__tsan_unaligned_read##bytes, bytes, read) \
  SEEN(__tsan_unaligned_write##bytes, bytes, write)

extern "C" {

// The order in which the next launches run blocks, warps and lanes; 0: ascending.
void fgaseg_shim_order(unsigned seed) { fgaseg::shim::machine.seed = seed; }

// Lets the barrier at "file:line" order nothing; "": none.
void fgaseg_shim_ignore(const char* line) { fgaseg::shim::machine.ignored = line; }

// The barriers that were passed since the last call, separated by spaces.
const char* fgaseg_shim_barriers() {
  static std::string all;
  all.clear();
  for (const std::string& line : fgaseg::shim::machine.barriers) all += line + " ";
  fgaseg::shim::machine.barriers.clear();
  return all.c_str();
}

SEEN_BYTES(1)
SEEN_BYTES(2)
SEEN_BYTES(4)
SEEN_BYTES(8)
SEEN_BYTES(16)
void __tsan_read_range(const void* address, size_t bytes) {
  fgaseg::shim::saw(address, bytes, fgaseg::shim::Kind::read, __builtin_return_address(0));
}
void __tsan_write_range(const void* address, size_t bytes) {
  fgaseg::shim::saw(address, bytes, fgaseg::shim::Kind::write, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(const void*) {}
void __tsan_func_exit() {}
}
