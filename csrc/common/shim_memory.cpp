// Tensors between guard pages, for tests on Linux. While it is switched on, every tensor that PyTorch allocates on the
// CPU ends where its last page does (or up to 63 bytes before, for alignment), with an inaccessible page before and
// behind it; the rest of its first page and those bytes are NaN. No address is used twice. An access to a guard page or
// to a tensor that was freed, is noted and goes on with NaN, so that one test fails and not the process; in emulated
// kernels shim_watch.cpp reports it before it happens. Writes to the NaN around a tensor are noted when it is freed.
#include <c10/core/CPUAllocator.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "common/shim_watch.h"

namespace fgaseg::shim {
namespace {

constexpr size_t PAGE = 4096, SPACE = size_t(1) << 40, ALIGNMENT = 64;  // as PyTorch's own
constexpr unsigned char NANS = 0xff;
constexpr int MOST_FAULTS = 64;

struct Fault {
  uintptr_t address;
  bool wrote;
};

struct Memory {
  std::mutex mutex;
  unsigned char* begin = nullptr;  // SPACE bytes of address space
  size_t used = 0;
  std::map<const unsigned char*, Buffer> buffers;  // also freed ones, until the faults are read
  std::string damage;
  std::atomic<bool> on{false};
  c10::Allocator* usual = nullptr;
  Buffer* recent[64] = {};
  struct sigaction before = {};
};
Memory& memory = *new Memory;  // tensors may live until the process ends
// What the signal handler may touch.
std::atomic<int> fault_count{0};
Fault faults[MOST_FAULTS];

unsigned char* page_of(const void* address) {
  return reinterpret_cast<unsigned char*>(reinterpret_cast<uintptr_t>(address) / PAGE * PAGE);
}

size_t whole(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

void on_fault(int signal, siginfo_t* info, void* context) {
  if (!is_guarded(info->si_addr)) {  // not ours: as before
    sigaction(signal, &memory.before, nullptr);
    return;
  }
  const bool wrote = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2;
  const int i = fault_count++;
  if (i < MOST_FAULTS) faults[i] = {reinterpret_cast<uintptr_t>(info->si_addr), wrote};
  mprotect(page_of(info->si_addr), PAGE, PROT_READ | PROT_WRITE);
  std::memset(page_of(info->si_addr), NANS, PAGE);
}

// Where an address is relative to the nearest tensor: "4 bytes behind a tensor of 60 bytes".
std::string position(const unsigned char* address) {
  std::string text = "in no tensor";
  size_t nearest = SIZE_MAX;
  const auto consider = [&](const Buffer& b) {
    const bool before = address < b.begin, behind = address >= b.begin + b.bytes;
    const size_t distance = before ? b.begin - address : behind ? address - b.begin - b.bytes : 0;
    if (distance >= nearest) return;
    nearest = distance;
    text = std::to_string(before || behind ? distance : address - b.begin) + " bytes ";
    text += before ? "before" : behind ? "behind the end of" : "into";
    text += (b.freed ? " a freed tensor of " : " a tensor of ") + std::to_string(b.bytes) + " bytes";
  };
  const auto next = memory.buffers.upper_bound(address);
  if (next != memory.buffers.end()) consider(next->second);
  if (next != memory.buffers.begin()) consider(std::prev(next)->second);
  return text;
}

void release(void* pointer) {
  const std::lock_guard lock(memory.mutex);
  Buffer& b = memory.buffers.at(static_cast<unsigned char*>(pointer));
  unsigned char *first = page_of(b.begin), *last = first + whole(b.begin + b.bytes - first, PAGE);
  const auto damaged = [&](const unsigned char* from, const unsigned char* to) {
    const auto* found = std::find_if(from, to, [](unsigned char byte) { return byte != NANS; });
    if (found != to && memory.damage.empty()) memory.damage = "something was written " + position(found);
  };
  damaged(first, b.begin);
  damaged(b.begin + b.bytes, last);
  b.freed = true;
  b.accesses.reset();
  mmap(first, last - first, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

void release_any(void* pointer) {
  if (is_guarded(pointer))
    release(pointer);
  else
    memory.usual->raw_deallocate(pointer);
}

struct Guarded final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (!memory.on || bytes == 0) return memory.usual->allocate(bytes);
    const std::lock_guard lock(memory.mutex);
    const size_t size = whole(bytes, PAGE);
    if (memory.used + size + 2 * PAGE > SPACE) return memory.usual->allocate(bytes);
    unsigned char* const first = memory.begin + memory.used + PAGE;
    memory.used += size + PAGE;  // the page behind it is the next one's page in front
    if (mprotect(first, size, PROT_READ | PROT_WRITE)) throw std::bad_alloc();
    unsigned char* const begin = first + size - whole(bytes, ALIGNMENT);
    std::memset(first, NANS, begin - first);
    std::memset(begin + bytes, NANS, first + size - begin - bytes);
    memory.buffers[begin].begin = begin;
    memory.buffers[begin].bytes = bytes;
    return {begin, begin, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_any; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Guarded& guarded = *new Guarded;

}  // namespace

bool is_guarded(const void* address) {
  const auto* byte = static_cast<const unsigned char*>(address);
  return memory.begin && byte >= memory.begin && byte < memory.begin + SPACE;
}

Buffer* buffer_of(const void* address) {
  const auto* byte = static_cast<const unsigned char*>(address);
  const auto holds = [&](const Buffer* b) {
    return b && !b->freed && byte >= b->begin && byte < b->begin + b->bytes;
  };
  Buffer*& recent = memory.recent[reinterpret_cast<uintptr_t>(address) / PAGE % std::size(memory.recent)];
  if (holds(recent)) return recent;
  const std::lock_guard lock(memory.mutex);
  auto next = memory.buffers.upper_bound(byte);
  if (next == memory.buffers.begin() || !holds(&std::prev(next)->second)) return nullptr;
  return recent = &std::prev(next)->second;
}

std::string position_of(const void* address) {
  const std::lock_guard lock(memory.mutex);
  return position(static_cast<const unsigned char*>(address));
}

}  // namespace fgaseg::shim

// Whether tensors that are allocated from now on are guarded. Returns false if that is not possible here.
extern "C" bool fgaseg_guard(bool on) {
  using namespace fgaseg::shim;
  const std::lock_guard lock(memory.mutex);
  if (on && !memory.begin) {
    void* const space = mmap(nullptr, SPACE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) return false;
    memory.begin = static_cast<unsigned char*>(space);
    memory.usual = c10::GetCPUAllocator();
    c10::SetCPUAllocator(&guarded, 255);
  }
  if (on && !memory.on) {
    struct sigaction action = {};
    action.sa_sigaction = &on_fault;
    action.sa_flags = SA_SIGINFO;
    struct sigaction previous;
    sigaction(SIGSEGV, &action, &previous);
    if (previous.sa_sigaction != &on_fault) memory.before = previous;
  }
  memory.on = on;
  return true;
}

// What was wrong since the last call; "" if nothing was. Pages that an access has opened are closed again, unless a
// tensor lies there by now.
extern "C" const char* fgaseg_guard_faults() {
  using namespace fgaseg::shim;
  static std::string all;
  const std::lock_guard lock(memory.mutex);
  all = std::exchange(memory.damage, "");
  const int count = fault_count.exchange(0);
  for (int i = 0; i < std::min(count, MOST_FAULTS); ++i) {
    const auto* address = reinterpret_cast<const unsigned char*>(faults[i].address);
    all += (all.empty() ? "" : "; ") + std::string(faults[i].wrote ? "a write " : "a read ") + position(address);
    unsigned char* const page = page_of(address);
    const auto next = memory.buffers.upper_bound(page + PAGE - 1);
    const Buffer* before = next == memory.buffers.begin() ? nullptr : &std::prev(next)->second;
    if (!before || before->freed || before->begin + before->bytes <= page) mprotect(page, PAGE, PROT_NONE);
  }
  std::erase_if(memory.buffers, [](const auto& entry) { return entry.second.freed; });
  std::fill(std::begin(memory.recent), std::end(memory.recent), nullptr);
  return all.c_str();
}
