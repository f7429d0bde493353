// How the ops of a library get into torch.ops. The namespace is named when the library is loaded, not when it is
// compiled, so that several copies of a library, of one or of several versions, can be used in one process.
#pragma once
#include <torch/csrc/stable/library.h>

#include <vector>

namespace fgaseg {

using Library = torch::stable::detail::StableLibrary;

// The implementations for one dispatch key, from one source file.
struct Implementations {
  const char* key;
  void (*add)(Library&);
};

// Of all source files. Hidden, as otherwise the linker would give all copies of a library the same list.
__attribute__((visibility("hidden"))) inline std::vector<Implementations>& implementations() {
  static std::vector<Implementations> all;
  return all;
}

}  // namespace fgaseg

// Implements the ops of this library, which Python has defined, in a namespace of torch.ops. For the whole process.
extern "C" __attribute__((visibility("default"), used)) inline void fgaseg_register(const char* torch_namespace) {
  for (const auto& [key, add] : fgaseg::implementations()) {
    add(*new fgaseg::Library(fgaseg::Library::Kind::IMPL, torch_namespace, key, __FILE__, __LINE__));
  }
}

// As STABLE_TORCH_LIBRARY_IMPL(namespace, key, m), once per source file.
#define FGASEG_LIBRARY(key, m)                                \
  static void fgaseg_add(fgaseg::Library& m);                 \
  [[maybe_unused]] static const bool fgaseg_added = [] {      \
    fgaseg::implementations().push_back({#key, &fgaseg_add}); \
    return true;                                              \
  }();                                                        \
  static void fgaseg_add(fgaseg::Library& m)
