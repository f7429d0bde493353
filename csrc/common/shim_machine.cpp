// The threads, warps and shared memory of the emulator: see shim_machine.h.
#include "common/shim_machine.h"

#include <array>
#include <numeric>

namespace fgaseg::shim {
namespace {

// Saves the callee-saved registers on this stack, and continues from those on the other.
__attribute__((naked, noipa)) void switch_stacks(void** /*from*/, void* /*to*/) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}

bool failed() { return !machine.failure.empty(); }

Thread& self() { return machine.threads[machine.current]; }

void leave() { switch_stacks(&self().stack_pointer, machine.scheduler); }

void thread_main() {
  machine.kernel();
  if (!self().copies.empty()) fail("a thread ended with copies that it never waited for", Location::current());
  self().state = State::ended;
  leave();
  std::abort();
}

void prepare(Thread& thread, int i) {
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

void resume(int i) {
  machine.current = i;
  threadIdx = machine.threads[i].index;
  machine.in_kernel = true;
  switch_stacks(&machine.scheduler, machine.threads[i].stack_pointer);
  machine.in_kernel = false;
}

// Resumes threads [first, first + count) if all wait at the same line; else ends the launch with an error. Returns
// whether their accesses are ordered by it.
bool release(int first, int count, const char* barrier) {
  const Thread& one = machine.threads[first];
  for (int i = first; i < first + count; ++i) {
    const Thread& other = machine.threads[i];
    const bool together = other.state == one.state && other.location.line() == one.location.line() &&
                          std::strcmp(other.location.file_name(), one.location.file_name()) == 0;
    if (together) continue;
    const auto state_of = [](const Thread& t) {
      return t.state == State::ended ? "has ended" : "is at " + text(t.location);
    };
    machine.failure = std::string("not all threads reach one ") + barrier + ": in block " + text(blockIdx) +
                      " thread " + text(one.index) + " " + state_of(one) + ", thread " + text(other.index) + " " +
                      state_of(other);
    return false;
  }
  for (int i = first; i < first + count; ++i) machine.threads[i].state = State::ready;
  if (!one.orders) return false;
  const std::string name = text(one.location);
  machine.barriers.insert(name);
  return name != machine.ignored;
}

// 0, 1, 2 ..., in another order if there is a seed.
template <class Numbers>
Numbers in_order(Numbers all) {
  std::iota(all.begin(), all.end(), 0);
  if (machine.seed) std::shuffle(all.begin(), all.end(), machine.random);
  return all;
}

// Runs the lanes of a warp until each has ended or waits. Returns whether the warp can go on by itself.
bool run_lanes(int warp) {
  const int first = warp * WARP;
  bool waits = false;
  for (int lane : in_order(std::array<int, WARP>())) {
    const Thread& thread = machine.threads[first + lane];
    if (thread.state == State::ready) resume(first + lane);
    if (failed()) return false;
    waits |= thread.state == State::at_warp_barrier;
  }
  if (!waits) return false;
  if (release(first, WARP, "warp-wide operation")) ++machine.warps[warp].ordered;
  ++machine.warps[warp].phase;
  return !failed();
}

// Runs all warps until each has ended or waits for the block: one after the other, or in turns if there is a seed.
void run_warps(int count) {
  std::vector<int> running = in_order(std::vector<int>(count));
  for (size_t i = 0; !running.empty() && !failed();) {
    if (run_lanes(running[i])) {
      if (machine.seed) i = machine.random() % running.size();
      continue;
    }
    running.erase(running.begin() + i);
    i = 0;
  }
}

void run_block(int threads) {
  for (int i = 0; i < threads; ++i) prepare(machine.threads[i], i);
  machine.block_phase = ++machine.phase;
  for (;;) {
    run_warps(threads / WARP);
    const auto ended = [](const Thread& thread) { return thread.state == State::ended; };
    if (failed() || std::all_of(machine.threads.begin(), machine.threads.begin() + threads, ended)) return;
    if (release(0, threads, "barrier")) ++machine.phase;
  }
}

unsigned char* statics() { return machine.shared + MOST_SHARED + MARGIN; }

// Calls f with the dynamic and every static region of shared memory.
template <class F>
void for_each_region(const F& f) {
  Region dynamic{"dynamic shared memory", machine.shared, machine.dynamic_bytes, true};
  f(dynamic);
  for (Region& region : machine.regions) f(region);
}

void spoil_shared() {
  for_each_region([](Region& r) {
    if (r.used) std::memset(r.begin, NANS, r.bytes + MARGIN);
    r.used = false;
  });
}

void check_margins() {
  for_each_region([](const Region& r) {
    const unsigned char* margin = r.begin + r.bytes;
    if (r.used && std::count(margin, margin + MARGIN, NANS) != int64_t(MARGIN))
      machine.failure = "shared memory was written past its end in block " + text(blockIdx);
  });
}

}  // namespace

std::string text(const dim3& i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

std::string text(const Location& location) {
  const std::string file = location.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(location.line());
}

bool run(dim3 grid, dim3 block, size_t shared_bytes) {
  const int threads = int(block.x * block.y * block.z);
  machine.failure.clear();
  machine.random.seed(machine.seed);
  if (machine.threads.size() < size_t(threads)) machine.threads.resize(threads);
  machine.warps.assign(threads / WARP, {});
  machine.dynamic_bytes = shared_bytes;
  machine.launch_phase = machine.phase + 1;
  gridDim = grid;
  blockDim = block;
  for (unsigned i : in_order(std::vector<unsigned>(size_t(grid.x) * grid.y * grid.z))) {
    blockIdx = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    spoil_shared();
    run_block(threads);
    if (!failed()) check_margins();
    if (!failed()) continue;
    machine.last_failure = machine.failure;
    return false;
  }
  return true;
}

void fail(const std::string& what, const std::string& line) {
  machine.failure = what + " (" + line + ", block " + text(blockIdx) + ", thread " + text(threadIdx) + ")";
  leave();
  std::abort();
}
void fail(const std::string& what, const Location& location) { fail(what, text(location)); }

void wait(State state, const Location& location, bool orders) {
  Thread& thread = self();
  thread.state = state;
  thread.location = location;
  thread.orders = orders;
  leave();
}

Region region_of(const void* pointer) {
  Region found{"shared memory between its parts", machine.shared, 0, false};
  for_each_region([&](const Region& r) {
    if (pointer >= r.begin && pointer < r.begin + r.bytes) found = r;
  });
  return found;
}

bool is_shared(const void* pointer) {
  return (pointer >= machine.shared && pointer < machine.shared + machine.dynamic_bytes) ||
         (pointer >= statics() && pointer < statics() + machine.static_bytes);
}

Region* add_region(const char* name, size_t bytes) {
  unsigned char* const begin = statics() + machine.static_bytes;
  machine.static_bytes += (bytes + MARGIN + 127) / 128 * 128;
  if (machine.static_bytes > STATIC_SHARED) std::abort();  // too little for so many kernels
  std::memset(begin, NANS, bytes + MARGIN);
  machine.regions.push_back({name, begin, bytes, false});
  return &machine.regions.back();
}

void start_copy(void* to, const void* from, int bytes, bool inside, const Location& location) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes || !is_shared(to))
    fail("cp.async needs aligned addresses and a target in shared memory", location);
  saw(to, bytes, Kind::write, __builtin_return_address(0));
  std::memset(to, NANS, bytes);
  mark_copy(to, bytes, true);
  self().copies.push_back({to, from, bytes, inside, self().groups});
}

void wait_copies(int groups) {
  const void* const code = __builtin_return_address(0);
  std::erase_if(self().copies, [&](const Copy& copy) {
    if (copy.group >= self().groups - groups) return false;
    mark_copy(copy.to, copy.bytes, false);
    saw(copy.to, copy.bytes, Kind::write, code);
    if (copy.inside) {
      saw(copy.from, copy.bytes, Kind::read, code);
      std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
      std::memset(copy.to, 0, copy.bytes);
    }
    return true;
  });
}

void check_warp(unsigned mask, const Location& location) {
  if (mask != ~0u) fail("warp-wide operations are for all 32 lanes here", location);
}

const Slot* show(const void* value, size_t bytes, const Location& location) {
  Warp& warp = machine.warps[machine.current / WARP];
  Slot* slots = warp.slots[warp.phase % 2];
  std::memcpy(slots[lane()].bytes, value, bytes);
  wait(State::at_warp_barrier, location);
  return slots;
}

void load_matrices(uint32_t* r, int count, bool transposed, const void* row, const Location& location) {
  const void* const code = __builtin_return_address(0);
  if (lane() < 8 * count && (reinterpret_cast<uintptr_t>(row) % 16 || !is_shared(row)))
    fail("ldmatrix needs rows in shared memory, aligned to 16 bytes", location);
  const Slot* slots = show(&row, sizeof row, location);
  const auto element = [&](int matrix, int i, int j) {
    const uint16_t* from = shown<const uint16_t*>(slots[8 * matrix + i]) + j;
    saw(from, sizeof *from, Kind::read, code);
    return uint32_t(*from);
  };
  const int g = lane() / 4, q = lane() % 4;
  for (int i = 0; i < count; ++i)
    r[i] = transposed ? element(i, 2 * q, g) | element(i, 2 * q + 1, g) << 16
                      : element(i, g, 2 * q) | element(i, g, 2 * q + 1) << 16;
}

Sums multiply_add(Sums sums, Fragments own, const Location& location) {
  const Slot* slots = show(&own, sizeof own, location);
  const auto fragments_of = [&](int lane) { return reinterpret_cast<const Fragments*>(slots[lane].bytes); };
  const int g = lane() / 4, q = lane() % 4;
  for (int k = 0; k < 8; ++k) {  // columns 2k and 2k+1 of a are with lane k%4 of each row
    const float* left = fragments_of(4 * g + k % 4)->a + k / 4 * 4;
    for (int column = 0; column < 2; ++column) {
      const float* right = fragments_of(4 * (2 * q + column) + k % 4)->b + k / 4 * 2;
      for (int row = 0; row < 2; ++row)
        sums.d[2 * row + column] += left[2 * row] * right[0] + left[2 * row + 1] * right[1];
    }
  }
  return sums;
}

}  // namespace fgaseg::shim
