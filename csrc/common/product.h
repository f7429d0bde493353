// Matrix products y = x W^T for the CPU kernels: one micro-kernel for three arithmetics.
//
// Both operands are read as 32-bit units along the depth: one float32, two bfloat16 or four int8. Packing a weight is
// then always a transposition of units, into panels [units][COLUMNS], and a tile of up to ROWS rows of x times a panel
// is always the same loop: one unit of every row is broadcast and multiplied with two vectors of the panel. ROWS = 14
// rows of two AVX-512 vectors of sums leave three registers for the operands. The sums are float32, of int8 int32.
//
// A convolution is the same product, with one base address for every tap of its kernel.
//
// Measured on one core of a Zen 5, panels of 128 to 3072 units, before chains of sums were cut: 255 to 275 GFLOP/s in float32 and 490 to 545 in
// bfloat16, where 32 fused multiply-adds a cycle give 265 and 530.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "common/cpu.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define FGASEG_X86 1
#endif

namespace fgaseg {

constexpr int64_t ROWS_OF_TILE = 14;
constexpr int64_t COLUMNS = 32;  // of a panel
// Products that are added in one register before they are added to the sums: a rounding error grows with the length of
// the chain, and one of 768 products would be three times less accurate than PyTorch's.
constexpr int64_t CHAIN = 128;

enum class Arithmetic { float32, bfloat16, int8 };

// What the processor can do, asked once. ATEN_CPU_CAPABILITY (avx2, default) lowers it, as it does for PyTorch.
struct Processor {
  bool avx2 = false, avx512 = false, bfloat16 = false, int8 = false;

  static const Processor& get() {
    static const Processor found = [] {
      Processor p;
#ifdef FGASEG_X86
      const char* wanted = std::getenv("ATEN_CPU_CAPABILITY");
      const std::string most = wanted ? wanted : "";
      __builtin_cpu_init();
      p.avx2 = most != "default" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
      p.avx512 = p.avx2 && most != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
      p.bfloat16 = p.avx512 && __builtin_cpu_supports("avx512bf16");
      p.int8 = p.avx512 && __builtin_cpu_supports("avx512vnni");
#endif
      return p;
    }();
    return found;
  }
};

// Rows of the left operand in units: row i of tap t begins at data + taps[t] + i * row, and its units are `step` apart.
struct Rows {
  const uint32_t* data;
  int64_t row, step = 1;
  const int64_t* taps = &FIRST;
  int64_t count = 1;  // of taps

  static constexpr int64_t FIRST = 0;
};

// sums[i][j] = sum over taps and units of row i times column j of the panel, or added to what `sums` holds. The panel
// is [taps][units][COLUMNS], `sums` has rows `pitch` elements apart. There is at least one unit.
using Tile = void (*)(const Rows& a, const uint32_t* panel, int64_t units, void* sums, int64_t pitch, bool add);

namespace product {

#ifdef FGASEG_X86
// The micro-kernel, for R rows and V vectors of a panel: a macro, because the target of a template cannot depend on its
// parameter.
#define FGASEG_TILE(NAME, TARGET, SUM, VECTOR, ZERO, LOAD, STORE, PLUS, MULTIPLY)                                    \
  template <int R, int V>                                                                                            \
  __attribute__((target(TARGET))) void NAME(const Rows& a, const uint32_t* panel, int64_t units, void* sums,         \
                                            int64_t pitch, bool add) {                                               \
    SUM* out = static_cast<SUM*>(sums);                                                                              \
    VECTOR s[R][V];                                                                                                  \
    _Pragma("GCC unroll 14") for (int r = 0; r < R; ++r) _Pragma("GCC unroll 2") for (int v = 0; v < V; ++v)         \
        s[r][v] = ZERO();                                                                                            \
    int64_t length = 0; /* of the sums in registers */                                                               \
    for (int64_t tap = 0; tap < a.count; ++tap)                                                                      \
      for (int64_t first = 0; first < units; first += CHAIN) {                                                       \
        const int64_t last = std::min(units, first + CHAIN);                                                         \
        const uint32_t* three[(R + 2) / 3]; /* rows 3i, 3i + 1 and 3i + 2 share one register for their address */    \
        _Pragma("GCC unroll 5") for (int i = 0; i < (R + 2) / 3; ++i)                                                \
          three[i] = a.data + a.taps[tap] + 3 * i * a.row + first * a.step;                                          \
        for (int64_t u = first; u < last; ++u, panel += COLUMNS) {                                                   \
          const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 16 * (V - 1));          \
          _Pragma("GCC unroll 14") for (int r = 0; r < R; ++r) {                                                     \
            const __m512i x = _mm512_set1_epi32(three[r / 3][(r % 3) * a.row]);                                      \
            s[r][0] = MULTIPLY(s[r][0], x, left);                                                                    \
            if constexpr (V == 2) s[r][V - 1] = MULTIPLY(s[r][V - 1], x, right);                                     \
          }                                                                                                          \
          _Pragma("GCC unroll 5") for (int i = 0; i < (R + 2) / 3; ++i) three[i] += a.step;                          \
        }                                                                                                            \
        length += last - first;                                                                                      \
        if (length < CHAIN && (last < units || tap + 1 < a.count)) continue;                                         \
        _Pragma("GCC unroll 14") for (int r = 0; r < R; ++r) _Pragma("GCC unroll 2") for (int v = 0; v < V; ++v) {   \
          SUM* to = out + r * pitch + 16 * v;                                                                        \
          STORE(to, add ? PLUS(LOAD(to), s[r][v]) : s[r][v]);                                                        \
          s[r][v] = ZERO();                                                                                          \
        }                                                                                                            \
        add = true;                                                                                                  \
        length = 0;                                                                                                  \
      }                                                                                                              \
  }

#define FGASEG_MULTIPLY_FLOAT(sum, a, b) _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
#define FGASEG_MULTIPLY_BFLOAT16(sum, a, b) _mm512_dpbf16_ps(sum, (__m512bh)(a), (__m512bh)(b))
FGASEG_TILE(tile_float, "avx512f", float, __m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
            FGASEG_MULTIPLY_FLOAT)
FGASEG_TILE(tile_bfloat16, "avx512f,avx512bf16", float, __m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps,
            _mm512_add_ps, FGASEG_MULTIPLY_BFLOAT16)
// unsigned rows times signed columns
FGASEG_TILE(tile_int8, "avx512f,avx512vnni", int32_t, __m512i, _mm512_setzero_si512, _mm512_loadu_si512,
            _mm512_storeu_si512, _mm512_add_epi32, _mm512_dpbusd_epi32)
#undef FGASEG_TILE
#undef FGASEG_MULTIPLY_FLOAT
#undef FGASEG_MULTIPLY_BFLOAT16
#endif

// Float32 for any processor, half a panel at a time: 6 rows of two AVX2 vectors.
constexpr int64_t FEW = 6;

template <int R>
FGASEG_INLINE void half_tile(const Rows& a, const float* panel, int64_t units, float* sums, int64_t pitch, bool add) {
  constexpr int64_t L = LANES<float>;
  float s[R][L] = {};
  int64_t length = 0;
  for (int64_t tap = 0; tap < a.count; ++tap)
    for (int64_t first = 0; first < units; first += CHAIN) {
      const int64_t last = std::min(units, first + CHAIN);
      const float* x = reinterpret_cast<const float*>(a.data) + a.taps[tap] + first * a.step;
      for (int64_t u = first; u < last; ++u, x += a.step, panel += COLUMNS)
        _Pragma("GCC unroll 6") for (int r = 0; r < R; ++r)
          _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) s[r][j] += x[r * a.row] * panel[j];
      length += last - first;
      if (length < CHAIN && (last < units || tap + 1 < a.count)) continue;
      _Pragma("GCC unroll 6") for (int r = 0; r < R; ++r)
        _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) {
          float& to = sums[r * pitch + j];
          to = add ? to + s[r][j] : s[r][j];
          s[r][j] = 0;
        }
      add = true;
      length = 0;
    }
}

template <int R, int V>
FGASEG_INLINE void rows_of_any(const Rows& a, const float* panel, int64_t units, float* sums, int64_t pitch, bool add) {
  if constexpr (R > FEW) {
    Rows rest = a;
    rest.data += FEW * a.row;
    rows_of_any<FEW, V>(a, panel, units, sums, pitch, add);
    rows_of_any<R - FEW, V>(rest, panel, units, sums + FEW * pitch, pitch, add);
  } else {
    half_tile<R>(a, panel, units, sums, pitch, add);
    if constexpr (V == 2) half_tile<R>(a, panel + COLUMNS / 2, units, sums + COLUMNS / 2, pitch, add);
  }
}

#ifdef FGASEG_X86
template <int R, int V>
__attribute__((target("avx2,fma"))) void tile_avx2(const Rows& a, const uint32_t* panel, int64_t units, void* sums,
                                                   int64_t pitch, bool add) {
  rows_of_any<R, V>(a, reinterpret_cast<const float*>(panel), units, static_cast<float*>(sums), pitch, add);
}
#endif

template <int R, int V>
void tile_any(const Rows& a, const uint32_t* panel, int64_t units, void* sums, int64_t pitch, bool add) {
  rows_of_any<R, V>(a, reinterpret_cast<const float*>(panel), units, static_cast<float*>(sums), pitch, add);
}

#define FGASEG_TILES(NAME, V)                                                                                \
  {                                                                                                          \
    NAME<1, V>, NAME<2, V>, NAME<3, V>, NAME<4, V>, NAME<5, V>, NAME<6, V>, NAME<7, V>, NAME<8, V>,          \
        NAME<9, V>, NAME<10, V>, NAME<11, V>, NAME<12, V>, NAME<13, V>, NAME<14, V>                          \
  }
#define FGASEG_BOTH(NAME) {FGASEG_TILES(NAME, 1), FGASEG_TILES(NAME, 2)}

}  // namespace product

// The arithmetic in which this processor multiplies bfloat16 (int8: `product_of_int8`): its own, or float32.
inline Arithmetic product_of_bfloat16() {
  return Processor::get().bfloat16 ? Arithmetic::bfloat16 : Arithmetic::float32;
}

// The micro-kernels for 1 to ROWS_OF_TILE rows: tiles_of(arithmetic)[rows - 1]. With half = true they compute only the
// first half of the columns of a panel.
inline const Tile* tiles_of(Arithmetic arithmetic, bool half = false) {
  using namespace product;
  using Tiles = Tile[2][ROWS_OF_TILE];
#ifdef FGASEG_X86
  static constexpr Tiles FLOAT = FGASEG_BOTH(tile_float), BFLOAT16 = FGASEG_BOTH(tile_bfloat16),
                         INT8 = FGASEG_BOTH(tile_int8);
  if (arithmetic == Arithmetic::bfloat16) return BFLOAT16[!half];
  if (arithmetic == Arithmetic::int8) return INT8[!half];
  if (Processor::get().avx512) return FLOAT[!half];
  static constexpr Tiles AVX2 = FGASEG_BOTH(tile_avx2);
  if (Processor::get().avx2) return AVX2[!half];
#endif
  static constexpr Tiles ANY = FGASEG_BOTH(tile_any);
  return ANY[!half];
}

namespace product {

FGASEG_INLINE void pack_block(const uint32_t* w, int64_t row, int64_t step, int64_t columns, int64_t units,
                              uint32_t* panel) {
  if (row == 1 && columns == COLUMNS) {  // a transposed matrix
    for (int64_t u = 0; u < units; ++u) std::memcpy(panel + u * COLUMNS, w + u * step, COLUMNS * sizeof(uint32_t));
    return;
  }
  for (int64_t u = 0; u < units; ++u)
    for (int64_t j = 0; j < columns; ++j) panel[u * COLUMNS + j] = w[j * row + u * step];
}

#ifdef FGASEG_X86
// 16 rows of 16 units, transposed in registers.
__attribute__((target("avx512f"))) inline void transpose_16(const uint32_t* w, int64_t row, uint32_t* panel) {
  __m512i a[16], b[16];
  _Pragma("GCC unroll 16") for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(w + i * row);
  _Pragma("GCC unroll 8") for (int i = 0; i < 16; i += 2) {  // pairs of rows
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  _Pragma("GCC unroll 4") for (int i = 0; i < 16; i += 4) {  // fours: a[i + k] holds column k of every 128 bits
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  _Pragma("GCC unroll 4") for (int k = 0; k < 4; ++k) {  // then the 128-bit parts of the four fours
    const __m512i low = _mm512_shuffle_i32x4(a[k], a[k + 4], 0x88), low2 = _mm512_shuffle_i32x4(a[k + 8], a[k + 12], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(a[k], a[k + 4], 0xdd), high2 = _mm512_shuffle_i32x4(a[k + 8], a[k + 12], 0xdd);
    _mm512_storeu_si512(panel + k * COLUMNS, _mm512_shuffle_i32x4(low, low2, 0x88));
    _mm512_storeu_si512(panel + (k + 8) * COLUMNS, _mm512_shuffle_i32x4(low, low2, 0xdd));
    _mm512_storeu_si512(panel + (k + 4) * COLUMNS, _mm512_shuffle_i32x4(high, high2, 0x88));
    _mm512_storeu_si512(panel + (k + 12) * COLUMNS, _mm512_shuffle_i32x4(high, high2, 0xdd));
  }
}
#endif

}  // namespace product

// Packs up to COLUMNS output channels of a weight, `row` units apart, whose units are `step` apart, into a panel
// [units][COLUMNS], with zeros for the channels that are missing.
inline void pack_panel(const uint32_t* w, int64_t row, int64_t step, int64_t columns, int64_t units, uint32_t* panel) {
  using namespace product;
  int64_t first = 0;  // channels that are packed
  if (columns < COLUMNS) std::memset(panel, 0, units * COLUMNS * sizeof(uint32_t));
#ifdef FGASEG_X86
  for (; step == 1 && Processor::get().avx512 && first + 16 <= columns; first += 16) {
    const uint32_t* from = w + first * row;
    int64_t u = 0;
    for (; u + 16 <= units; u += 16) transpose_16(from + u, row, panel + u * COLUMNS + first);
    pack_block(from + u, row, step, 16, units - u, panel + u * COLUMNS + first);
  }
#endif
  pack_block(w + first * row, row, step, columns - first, units, panel + first);
}

// n rows in tiles of nearly equal height, the last ones lower by one: f(first, rows).
template <class F>
FGASEG_INLINE void for_tiles(int64_t n, const F& f) {
  const int64_t tiles = (n + ROWS_OF_TILE - 1) / ROWS_OF_TILE;
  for (int64_t t = 0; t < tiles; ++t) f(n * t / tiles, n * (t + 1) / tiles - n * t / tiles);
}

inline int64_t panels_of(int64_t columns) { return (columns + COLUMNS - 1) / COLUMNS; }

// bfloat16 is the upper half of float32; rounded to nearest even, NaN stays NaN.
FGASEG_INLINE float from_bfloat16(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

FGASEG_INLINE uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return x == x ? uint16_t(rounded) : uint16_t(bits >> 16 | 0x40);
}

FGASEG_INLINE float to_float(float x) { return x; }
FGASEG_INLINE float to_float(uint16_t x) { return from_bfloat16(x); }
FGASEG_INLINE void from_float(float x, float& y) { y = x; }
FGASEG_INLINE void from_float(float x, uint16_t& y) { y = to_bfloat16(x); }

}  // namespace fgaseg
