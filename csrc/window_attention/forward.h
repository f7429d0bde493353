// The forward pass of window_attention in float32 and bfloat16: one head of one window after the other.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "common/attend.h"
#include "window_attention/windows.h"

namespace fgaseg {

// The heads of a window, one at a time.
template <class U>
struct Heads : Head<U> {
  const std::vector<Token>* tokens = nullptr;
  int64_t n = 0;  // tokens of this window
  bool masked = false;

  Heads(int64_t size, int64_t most, bool /*backward*/) : Head<U>(size, most, most), masks_(4 * this->length) {}

  // Sets the masks: -100 sqrt(size) for keys of another region.
  void enter(const std::vector<Token>& window) {
    tokens = &window;
    n = window.size();
    masked = std::any_of(window.begin(), window.end(), [&](const Token& t) { return t.region != window[0].region; });
    for (int64_t region = 0; masked && region < 4; ++region)
      for (int64_t i = 0; i < n; ++i)
        masks_.data()[region * this->length + i] = window[i].region == region ? 0 : -100 * std::sqrt(float(this->size));
  }

  const float* mask(int64_t query) {
    return masks_.data() + (*tokens)[std::min(query, n - 1)].region * this->length;
  }

  // to = x + guidance at token i
  template <class S>
  FGASEG_INLINE void guided(const Maps<const S>& x, int64_t row, const Maps<const S>& guidance, int64_t image,
                            int64_t first, int64_t i, U* to) const {
    const S *from = x.pixel(row, (*tokens)[i]) + first, *more = guidance.pixel(image, (*tokens)[i]) + first;
    _Pragma("omp simd") for (int64_t c = 0; c < this->size; ++c)
      from_float(to_float(from[c]) + to_float(more[c]), to[c]);
  }

  // Prefetches what the next head will load, while this one is computed: a head is one or two cache lines of every
  // pixel, too short for the processor to detect a pattern. Without this, loading takes a quarter of the time.
  template <class S>
  FGASEG_INLINE void prefetch(const Maps<const S>& x, int64_t row, int64_t from, int64_t to, int64_t first) const {
    for (int64_t i = from; i < to; ++i)
      for (int64_t c = 0; c < this->size; c += LANES<S>) __builtin_prefetch(x.pixel(row, (*tokens)[i]) + first + c);
  }

 private:
  Aligned<float> masks_;
};

template <class S, class U>
FGASEG_INLINE void window_forward(const Inputs<S>& in, const Maps<S>& out, int64_t row, Heads<U>& w) {
  const int64_t image = row / in.classes;
  for (int64_t first = 0; first < in.heads * w.size; first += w.size) {
    for (int64_t j = 0; j < w.n; j += COLUMNS) {
      const int64_t count = std::min(COLUMNS, w.n - j);
      for (int64_t i = 0; i < count; ++i) {
        w.guided(in.q, row, in.q_guidance, image, first, j + i, w.q + (j + i) * w.pitch);
        w.guided(in.k, row, in.k_guidance, image, first, j + i, w.k + i * w.pitch);
        w.set_values(j + i, in.v.pixel(row, (*w.tokens)[j + i]) + first);
      }
      w.pack_keys(j, count);
    }
    for (int64_t i = 0; i < w.n; i += QUERIES) {
      const int64_t queries = std::min(QUERIES, w.n - i);
      for (const Maps<const S>* x : {&in.q, &in.k, &in.v}) w.prefetch(*x, row, i, i + queries, first + w.size);
      int64_t keys[QUERIES];
      const float* masks[QUERIES];
      std::fill(keys, keys + QUERIES, w.n);
      for (int64_t r = 0; r < QUERIES; ++r) masks[r] = w.mask(i + r);
      w.attend(i, queries, keys, w.n, w.masked ? masks : nullptr, float(in.scale));
      for (int64_t r = 0; r < queries; ++r) w.store(r, out.pixel(row, (*w.tokens)[i + r]) + first);
    }
  }
}

}  // namespace fgaseg
