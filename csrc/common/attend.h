// Attention of a block of queries to all keys of their head: scores, softmax and the sum of values, with the scores in
// cache. The products are those of common/product.h, of float32 or of bfloat16; softmax is computed in float32.
#pragma once
#include <algorithm>
#include <limits>

#include "common/cpu.h"
#include "common/exp.h"
#include "common/product.h"

namespace fgaseg {

constexpr int64_t QUERIES = 24;  // at most in a block
constexpr int64_t TOGETHER = 4;  // rows whose softmax is computed together, so that their latencies overlap

// TOGETHER rows of scores and the keys that each of them has, `most` at most; masks are added first, and may be null.
struct ScoreRows {
  float* scores;
  int64_t length;
  const int64_t* keys;
  int64_t most;
  const float* const* masks;
};

// Replaces rows of scores, in place, by the exponentials of factor (score - the row's largest) as units of the next
// product, with zeros from keys[r] to `most` in whole units. inverse[r] is 1 / their sum.
using Softmax = void (*)(const ScoreRows& rows, float factor, float* inverse);

namespace attend_forms {

#ifdef FGASEG_X86
#define FGASEG_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
// The lanes of a vector that starts at element i which are inside of n elements.
FGASEG_INLINE __mmask16 inside(int64_t i, int64_t n) {
  return n - i >= 16 ? 0xffff : n <= i ? 0 : (1 << (n - i)) - 1;
}

// 2^x for x <= 0: the whole part goes to the exponent, and 2^rest - 1 is a polynomial whose largest relative error on
// [0, 1) was minimised: 2e-9 with six terms; with three 9e-5, a twentieth of the rounding of bfloat16. NaN stays NaN.
template <bool SHORT>
FGASEG_TARGET FGASEG_INLINE __m512 power_of_2(__m512 x) {
  constexpr int TERMS = SHORT ? 3 : 6;
  constexpr float LONG_ONE[] = {0x1.c54174p-13f, 0x1.46d64ep-10f, 0x1.3d0b92p-7f,
                                0x1.c68912p-5f,  0x1.ebfd58p-3f,  0x1.62e42cp-1f};
  constexpr float SHORT_ONE[] = {0x1.3baaa6p-4f, 0x1.d2378ap-3f, 0x1.63e658p-1f};
  const float* terms = SHORT ? SHORT_ONE : LONG_ONE;
  const __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(terms[0]);
  _Pragma("GCC unroll 6") for (int i = 1; i < TERMS; ++i) p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(terms[i]));
  return _mm512_scalef_ps(_mm512_fmadd_ps(p, rest, _mm512_set1_ps(1)), x);
}

// The largest of every row, of which all have at least `full` keys.
template <bool MASKED>
FGASEG_TARGET FGASEG_INLINE void largest(const ScoreRows& s, int64_t full, float* top) {
  float* const scores = s.scores;
  const int64_t length = s.length, most = s.most;
  __m512 tops[TOGETHER];
  for (__m512& x : tops) x = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < most; i += 16)
    _Pragma("GCC unroll 4") for (int r = 0; r < TOGETHER; ++r) {
      __m512 x = _mm512_loadu_ps(scores + r * length + i);
      if constexpr (MASKED) {
        x = _mm512_add_ps(x, _mm512_loadu_ps(s.masks[r] + i));
        _mm512_storeu_ps(scores + r * length + i, x);
      }
      const __mmask16 lanes = i < full ? 0xffff : inside(i, s.keys[r]);
      tops[r] = _mm512_mask_max_ps(tops[r], lanes, tops[r], x);
    }
  _Pragma("GCC unroll 4") for (int r = 0; r < TOGETHER; ++r) top[r] = _mm512_reduce_max_ps(tops[r]);
}

template <bool TO_BFLOAT16>
FGASEG_TARGET FGASEG_INLINE void softmax(const ScoreRows& s, float factor, float* inverse) {
  float* const scores = s.scores;
  const int64_t length = s.length, most = s.most, full = *std::min_element(s.keys, s.keys + TOGETHER) / 32 * 32;
  float top[TOGETHER];
  if (s.masks)
    largest<true>(s, full, top);
  else
    largest<false>(s, full, top);
  const __m512 scale = _mm512_set1_ps(factor * 0x1.715476p0f);  // log2(e)
  __m512 offset[TOGETHER], sums[TOGETHER];
  _Pragma("GCC unroll 4") for (int r = 0; r < TOGETHER; ++r) {
    offset[r] = _mm512_mul_ps(scale, _mm512_set1_ps(-top[r]));
    sums[r] = _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < most; i += 32)
    _Pragma("GCC unroll 4") for (int r = 0; r < TOGETHER; ++r) {
      float* row = scores + r * length;
      __m512 low = power_of_2<TO_BFLOAT16>(_mm512_fmadd_ps(_mm512_loadu_ps(row + i), scale, offset[r]));
      __m512 high = power_of_2<TO_BFLOAT16>(_mm512_fmadd_ps(_mm512_loadu_ps(row + i + 16), scale, offset[r]));
      if (i >= full) {
        low = _mm512_maskz_mov_ps(inside(i, s.keys[r]), low);
        high = _mm512_maskz_mov_ps(inside(i + 16, s.keys[r]), high);
      }
      sums[r] = _mm512_add_ps(sums[r], _mm512_add_ps(low, high));
      if constexpr (TO_BFLOAT16) {  // in place: elements are written below those that are yet to be read
        _mm512_storeu_si512(reinterpret_cast<uint16_t*>(row) + i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
      } else {
        _mm512_storeu_ps(row + i, low);
        _mm512_storeu_ps(row + i + 16, high);
      }
    }
  _Pragma("GCC unroll 4") for (int r = 0; r < TOGETHER; ++r) inverse[r] = 1 / _mm512_reduce_add_ps(sums[r]);
}

FGASEG_TARGET inline void softmax_float(const ScoreRows& s, float factor, float* inverse) {
  softmax<false>(s, factor, inverse);
}
FGASEG_TARGET inline void softmax_bfloat16(const ScoreRows& s, float factor, float* inverse) {
  softmax<true>(s, factor, inverse);
}
#undef FGASEG_TARGET
#endif

// Float32 on any processor; the lanes beyond the last key are made -infinity.
FGASEG_INLINE float softmax_of_row(float* scores, const float* mask, int64_t keys, int64_t most, float factor) {
  constexpr int64_t L = LANES<float>;
  constexpr float LOWEST = -std::numeric_limits<float>::infinity();
  float tops[L], sums[L] = {};
  std::fill(tops, tops + L, LOWEST);
  std::fill(scores + keys, scores + whole_vectors(most, L), LOWEST);
  for (int64_t i = 0; i < most; i += L)
    _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) {
      const float x = mask ? scores[i + j] + mask[i + j] : scores[i + j];
      scores[i + j] = x;
      tops[j] = x > tops[j] ? x : tops[j];
    }
  const float top = *std::max_element(tops, tops + L);
  for (int64_t i = 0; i < most; i += L)
    _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) {
      const float e = exp_of(factor * (scores[i + j] - top));
      scores[i + j] = e;
      sums[j] += e;
    }
  float sum = 0;
  for (float one : sums) sum += one;
  return 1 / sum;
}

FGASEG_CLONES static void softmax_of_any(const ScoreRows& s, float factor, float* inverse) {
  for (int r = 0; r < TOGETHER; ++r)
    inverse[r] =
        softmax_of_row(s.scores + r * s.length, s.masks ? s.masks[r] : nullptr, s.keys[r], s.most, factor);
}

}  // namespace attend_forms

inline Softmax softmax_of(Arithmetic arithmetic) {
#ifdef FGASEG_X86
  if (arithmetic == Arithmetic::bfloat16) return attend_forms::softmax_bfloat16;
  if (Processor::get().avx512) return attend_forms::softmax_float;
#endif
  return attend_forms::softmax_of_any;
}

// One head: memory for the queries that are loaded at a time, for all keys and values, and for the scores and results
// of a block. U is what products multiply: float, or the bits of bfloat16, of which two are a unit.
template <class U>
struct Head {
  static constexpr int64_t PER_UNIT = sizeof(uint32_t) / sizeof(U);
  static constexpr Arithmetic ARITHMETIC = PER_UNIT == 1 ? Arithmetic::float32 : Arithmetic::bfloat16;

  int64_t size;    // channels
  int64_t pitch;   // elements from one row of q to the next
  int64_t length;  // the most keys, in whole panels
  int64_t width;   // channels in whole panels
  U *q, *k;        // [queries][pitch], [COLUMNS][pitch]; zeros beyond the channels

  Head(int64_t size_, int64_t most_keys, int64_t most_queries)
      : size(size_),
        pitch(whole_vectors(size, LANES<U>)),
        length(whole_vectors(most_keys, COLUMNS)),
        width(whole_vectors(size, COLUMNS)),
        rows_((most_queries + COLUMNS) * pitch),
        panels_(length * (pitch + width)),
        floats_(QUERIES * (length + width)) {
    k = rows_.data();
    q = k + COLUMNS * pitch;
  }

  // Makes a panel of the keys first to first + count that are in k.
  void pack_keys(int64_t first, int64_t count) {
    pack_panel(units(k), pitch / PER_UNIT, 1, count, depth(size), k_panels() + first * depth(size));
  }

  // Puts the values of key i into their panels [key units][COLUMNS]; of two keys in turn if they share units.
  template <class S>
  FGASEG_INLINE void set_values(int64_t i, const S* from) {
    for (int64_t c = 0; c < size; c += COLUMNS) {
      const int64_t count = std::min(COLUMNS, size - c);
      uint32_t* panel = v_panels() + (c * length + i / PER_UNIT * PER_UNIT * COLUMNS) / PER_UNIT;
      if constexpr (PER_UNIT == 1) {
        auto* to = reinterpret_cast<float*>(panel);
        _Pragma("omp simd") for (int64_t j = 0; j < count; ++j) to[j] = to_float(from[c + j]);
      } else if (i % 2 == 0) {
        _Pragma("omp simd") for (int64_t j = 0; j < count; ++j) panel[j] = from[c + j];
      } else {
        _Pragma("omp simd") for (int64_t j = 0; j < count; ++j) panel[j] |= uint32_t(from[c + j]) << 16;
      }
    }
  }

  // Attention of `rows` queries from row `first` of q on. Query r has keys[r] keys, `most` at most; masks, in units of
  // the products q k^T, are added and may be null. Both are filled up to QUERIES elements.
  void attend(int64_t first, int64_t rows, const int64_t* keys, int64_t most, const float* const* masks, float factor) {
    float* scores = floats_.data();
    for (int64_t j = 0; j < most; j += COLUMNS)
      multiply(most - j > COLUMNS / 2, {units(q + first * pitch), pitch / PER_UNIT}, k_panels() + j * depth(size),
               depth(size), scores + j, length, rows);
    for (int64_t r = 0; r < rows; r += TOGETHER)
      softmax_({scores + r * length, length, keys + r, most, masks ? masks + r : nullptr}, factor, inverse_ + r);
    for (int64_t c = 0; c < width; c += COLUMNS)
      multiply(true, {units(scores), length}, v_panels() + c * length / PER_UNIT, depth(most), out() + c, width, rows);
  }

  // Stores the result of query r of the last block.
  template <class S>
  FGASEG_INLINE void store(int64_t r, S* to) {
    const float *from = out() + r * width, inverse = inverse_[r];
    _Pragma("omp simd") for (int64_t c = 0; c < size; ++c) from_float(from[c] * inverse, to[c]);
  }

 private:
  Aligned<U> rows_, panels_;
  Aligned<float> floats_;
  float inverse_[QUERIES];  // 1 / the sum of the exponentials
  const Tile *tiles_ = tiles_of(ARITHMETIC), *half_tiles_ = tiles_of(ARITHMETIC, true);
  Softmax softmax_ = softmax_of(ARITHMETIC);

  uint32_t* k_panels() { return reinterpret_cast<uint32_t*>(panels_.data()); }
  uint32_t* v_panels() { return k_panels() + length * pitch / PER_UNIT; }
  float* out() { return floats_.data() + QUERIES * length; }
  template <class T>
  static const uint32_t* units(const T* x) {
    return reinterpret_cast<const uint32_t*>(x);
  }
  static int64_t depth(int64_t elements) { return (elements + PER_UNIT - 1) / PER_UNIT; }

  void multiply(bool whole_panel, const Rows& a, const uint32_t* panel, int64_t depth, float* to, int64_t pitch,
                int64_t rows) const {
    for_tiles(rows, [&](int64_t first, int64_t count) {
      Rows from = a;
      from.data += first * a.row;
      (whole_panel ? tiles_ : half_tiles_)[count - 1](from, panel, depth, to + first * pitch, pitch, false);
    });
  }
};

}  // namespace fgaseg
