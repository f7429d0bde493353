// Part of common/shim.h: notes launches instead of running them, for benchmarks/predicted.py.
#pragma once
#include <dlfcn.h>

#include <cstddef>
#include <cstdio>

#include "common/shim_machine.h"

namespace fgaseg::shim {

// Appends a line to the file: the kernel's offset in its library, the grid's three sizes, threads per block, bytes of
// dynamic shared memory, and every argument's bytes in hexadecimal. Returns whether the file could be written.
template <class... Arguments>
bool record(const char* file, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
            const Arguments&... arguments) {
  Dl_info library{};
  dladdr(kernel, &library);
  std::FILE* out = std::fopen(file, "a");
  if (!out) return false;
  const ptrdiff_t offset = static_cast<const char*>(kernel) - static_cast<const char*>(library.dli_fbase);
  std::fprintf(out, "%tx %u %u %u %u %zu", offset, grid.x, grid.y, grid.z, block.x * block.y * block.z, shared_bytes);
  const auto write = [&](const auto& argument) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(&argument);
    std::fputc(' ', out);
    for (size_t i = 0; i < sizeof argument; ++i) std::fprintf(out, "%02x", bytes[i]);
  };
  (write(arguments), ...);
  std::fputc('\n', out);
  return std::fclose(out) == 0;
}

}  // namespace fgaseg::shim
