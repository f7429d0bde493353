// Bilinear interpolation by F.interpolate's rule for align_corners=False, pixel by pixel and for a warp's run of rows.
#pragma once
#include "common/cuda.h"

namespace fgaseg {

constexpr int WARP = 32;
constexpr int PATCH_ROWS = 4, PATCH_COLUMNS = 16;  // of the map, around a run: two elements a lane

#ifdef FGASEG_SHIM
inline float exp2_approx(float x) { return std::exp2(x); }
inline float reciprocal_approx(float x) { return 1 / x; }
#else
// One instruction each, within 2 units and 1 unit in the last place; results below 2^-126 become 0.
FGASEG_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FGASEG_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

FGASEG_DEVICE float exp_approx(float x) { return exp2_approx(1.442695041f * x); }
FGASEG_DEVICE float sigmoid_approx(float x) { return reciprocal_approx(1 + exp_approx(-x)); }
FGASEG_DEVICE float lerp(float a, float b, float weight) { return fmaf(weight, b, (1 - weight) * a); }

// The two source elements that an element of the result lies between, and the second one's weight.
struct Between {
  int first, second;
  float weight;
};

struct Axis {
  int source, target;
  float scale;

  static Axis of(int64_t source, int64_t target) {
    const float scale = static_cast<float>(source) / static_cast<float>(target);
    return {static_cast<int>(source), static_cast<int>(target), scale};
  }

  FGASEG_DEVICE int inside(int i) const { return min(max(i, 0), target - 1); }

  FGASEG_DEVICE Between at(int i) const {
    const float position = fmaxf(scale * (static_cast<float>(i) + 0.5f) - 0.5f, 0.f);
    const int first = min(static_cast<int>(position), source - 1);
    return {first, min(first + (source != target), source - 1), fminf(position - static_cast<float>(first), 1.f)};
  }

  // Whether `count` adjacent elements of the result always lie between `most` adjacent source elements. The margin
  // and the limit are for the rounding of positions.
  bool fits(int count, int most) const {
    return (count - 1) * scale <= static_cast<float>(most - 2) - 0.05f && source <= 1 << 14;
  }
};

// R adjacent rows of a resized map at 32 adjacent columns, one a lane; Axis::fits says where this works. Rows and
// columns outside the map repeat its border.
template <int R>
struct Run {
  int left, right;      // the lanes that hold the elements beside this lane's column, minus 16 in odd rows
  int64_t elements[2];  // offsets of the two that this lane holds: in rows 0 and 1, and in rows 2 and 3, of the patch
  float weight_x;
  float weights[R][PATCH_ROWS];
  unsigned used;  // bit 4r + k: whether row r of the run lies beside row k of the patch
  int top;

  FGASEG_DEVICE void set_rows(const Axis& rows, int y) {
    const int lane = threadIdx.x % WARP, slot = lane % PATCH_ROWS;
    top = rows.at(rows.inside(y)).first;
    const Between row = rows.at(rows.inside(y + lane / PATCH_ROWS % R));
    const int i = row.first - top;
    const float weight = slot == i ? 1 - row.weight : slot == i + 1 ? row.weight : 0.f;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int k = 0; k < PATCH_ROWS; ++k) weights[r][k] = __shfl_sync(~0u, weight, PATCH_ROWS * r + k);
    used = __ballot_sync(~0u, slot == i || slot == i + 1);
  }

  // After set_rows.
  FGASEG_DEVICE void set_columns(const Axis& rows, const Axis& columns, int x, int64_t stride_y, int64_t stride_x) {
    const int lane = threadIdx.x % WARP, begin = columns.at(columns.inside(x)).first;
    const Between column = columns.at(columns.inside(x + lane));
    left = column.first - begin;
    right = column.second - begin;
    weight_x = column.weight;
    const int64_t from = min(begin + lane % PATCH_COLUMNS, columns.source - 1) * stride_x;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      elements[i] = from + min(top + 2 * i + lane / PATCH_COLUMNS, rows.source - 1) * stride_y;
  }

  // The values of the run from what the lanes loaded. Returns whether all of that is finite, the same for all lanes.
  FGASEG_DEVICE bool values(float2 loaded, float (&x)[R]) const {
    float row[PATCH_ROWS];
#pragma unroll
    for (int k = 0; k < PATCH_ROWS; ++k) {
      const float held = k < 2 ? loaded.x : loaded.y;
      const float a = __shfl_sync(~0u, held, k % 2 * PATCH_COLUMNS + left);
      const float b = __shfl_sync(~0u, held, k % 2 * PATCH_COLUMNS + right);
      row[k] = lerp(a, b, weight_x);
    }
    const bool finite = __ballot_sync(~0u, fabsf(loaded.x) + fabsf(loaded.y) < INFINITY) == ~0u;
    if (finite) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        x[r] = weights[r][0] * row[0];
#pragma unroll
        for (int k = 1; k < PATCH_ROWS; ++k) x[r] = fmaf(weights[r][k], row[k], x[r]);
      }
    } else {  // 0 * inf is NaN: only the two neighbours may count
#pragma unroll
      for (int r = 0; r < R; ++r) {
        x[r] = 0;
#pragma unroll
        for (int k = 0; k < PATCH_ROWS; ++k)
          if (used >> (PATCH_ROWS * r + k) & 1) x[r] = fmaf(weights[r][k], row[k], x[r]);
      }
    }
    return finite;
  }
};

}  // namespace fgaseg
