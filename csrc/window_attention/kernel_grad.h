// The backward pass of window_attention on a GPU. With G the gradient of the output and a = 1 / sqrt(32):
//
//   dP = G v^T,  c = rowsum(P dP),  dS = P (dP - c),  dq = a dS (k + h),  dk = a dS^T (q + g),  dv = P^T G
//
// A block has two heads of a window, with q + g, k + h, v and G in shared memory. First a warp takes 16 queries with
// all keys, as in the forward pass, for dq; it leaves c and the denominator of the softmax of every query. It computes
// dP twice, because c must be known before dS, and dP in registers would need another 72 a lane. Then a warp takes 16
// keys: P^T and dS^T, computed again in this form, are the left operands for dv and dk. No atomics.
#pragma once
#include "window_attention/stage.h"

namespace fgaseg {
namespace {

constexpr int PAIR = 2, GRAD_WARPS = 6, GRAD_THREADS = GRAD_WARPS * 32;  // heads and warps of a block
constexpr int ROW = PAIR * SIZE;

template <class T>
struct Gradients {
  T *q, *k, *v;
};

template <class T>
struct GradShared {
  T q[TOKENS * ROW], k[TOKENS * ROW], v[TOKENS * ROW], grad[TOKENS * ROW];
  Tokens tokens;
  float2 sums[PAIR][TOKENS];  // of every query: log2 of the denominator, and c
};

// Left operands from shared memory. Adding 0 puts the numbers into registers in the order of an operand once; else they
// stay in the order of the loads, and are moved before every product.
template <class T>
FGASEG_DEVICE Left tile_of(const T* row) {
  const uint4 zero = make_uint4(0, 0, 0, 0);
  return Left(sum<T>(*reinterpret_cast<const uint4*>(row), zero),
              sum<T>(*reinterpret_cast<const uint4*>(row + 8 * ROW), zero));
}

// Over the four lanes that share rows.
FGASEG_DEVICE float2 row_sums(float2 x) {
#pragma unroll
  for (int flip = 1; flip <= 2; flip *= 2) {
    x.x += __shfl_xor_sync(~0u, x.x, flip);
    x.y += __shfl_xor_sync(~0u, x.y, flip);
  }
  return x;
}

// dq of a unit of queries, and their `sums`.
template <bool MASKED, class T>
FGASEG_DEVICE void queries_grad(GradShared<T>& shared, const Unit& unit, const Pixels<T>& dq) {
  const int at = row_spot<PAIR>(unit.head), from = at + unit.tile * TILE * ROW;
  const Left grad = tile_of(shared.grad + from);
  float p[TOKENS / 8][4], sums[4][4] = {};
  scores<MASKED>(p, tile_of(shared.q + from), shared.k + at, ROW, shared.tokens, unit.tile);
  const float2 top = largest(p);
  float2 total = make_float2(0, 0), c = make_float2(0, 0);
#pragma unroll
  for (int n = 0; n < TOKENS / 8; ++n) {
    float dp[4] = {};
    multiply_rows(dp, grad, shared.v + at + n * 8 * ROW);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      p[n][i] = weight(p[n][i], top.x * (SCALE * LOG2E));
      p[n][2 + i] = weight(p[n][2 + i], top.y * (SCALE * LOG2E));
      total.x += p[n][i];
      total.y += p[n][2 + i];
      c.x = fmaf(p[n][i], dp[i], c.x);
      c.y = fmaf(p[n][2 + i], dp[2 + i], c.y);
    }
  }
  total = row_sums(total);
  c = row_sums(c);
  const float2 inverse = make_float2(__fdividef(1, total.x), __fdividef(1, total.y));
  c.x *= inverse.x;
  c.y *= inverse.y;
  float2* const of = shared.sums[unit.head] + unit.tile * TILE + lane() / 4;
  if (lane() % 4 == 0) {
    of[0] = make_float2(fmaf(top.x, SCALE * LOG2E, log2f(total.x)), c.x);
    of[8] = make_float2(fmaf(top.y, SCALE * LOG2E, log2f(total.y)), c.y);
  }
  const float2 offset = make_float2(c.x * inverse.x, c.y * inverse.y);
#pragma unroll
  for (int step = 0; step < STEPS; ++step) {
    uint32_t ds[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int n = 2 * step + i;
      float dp[4] = {};
      multiply_rows(dp, grad, shared.v + at + n * 8 * ROW);
#pragma unroll
      for (int j = 0; j < 2; ++j) {  // inverse (dp - c): without it, a sum of many keys could leave float16's range
        dp[j] = p[n][j] * fmaf(dp[j], inverse.x, -offset.x);
        dp[2 + j] = p[n][2 + j] * fmaf(dp[2 + j], inverse.y, -offset.y);
      }
      ds[2 * i] = pack<T>(dp[0], dp[1]);
      ds[2 * i + 1] = pack<T>(dp[2], dp[3]);
    }
    multiply_columns(sums, ds, shared.k + step * TILE * ROW, column_spot<PAIR>(unit.head));
  }
  store_rows(dq.from(unit.head * SIZE), sums, {SCALE, SCALE}, shared.tokens, unit.tile);
}

// dk and dv of a unit of keys; `sums` are those of all queries.
template <bool MASKED, class T>
FGASEG_DEVICE void keys_grad(const GradShared<T>& shared, const Unit& unit, int tiles, const Pixels<T>& dk,
                             const Pixels<T>& dv) {
  const int at = row_spot<PAIR>(unit.head), column = column_spot<PAIR>(unit.head), from = at + unit.tile * TILE * ROW;
  const Left keys = tile_of(shared.k + from), values = tile_of(shared.v + from);
  const Biases<MASKED> biases(shared.tokens, unit.tile);
  float k_sums[4][4] = {}, v_sums[4][4] = {};
#pragma unroll 1
  for (int step = 0; step < tiles; ++step) {
    uint32_t p[4], ds[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int n = 2 * step + i;
      float s[4], dp[4] = {};
      biases.begin(s, n);
      multiply_rows(s, keys, shared.q + at + n * 8 * ROW);
      multiply_rows(dp, values, shared.grad + at + n * 8 * ROW);
      const float4 of = *reinterpret_cast<const float4*>(&shared.sums[unit.head][8 * n + lane() % 4 * 2]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // elements 0 and 2 belong to one query, 1 and 3 to the next
        s[j] = weight(s[j], j % 2 ? of.z : of.x);
        dp[j] = s[j] * (dp[j] - (j % 2 ? of.w : of.y));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        p[2 * i + j] = pack<T>(s[2 * j], s[2 * j + 1]);
        ds[2 * i + j] = pack<T>(dp[2 * j], dp[2 * j + 1]);
      }
    }
    multiply_columns(v_sums, p, shared.grad + step * TILE * ROW, column);
    multiply_columns(k_sums, ds, shared.q + step * TILE * ROW, column);
  }
  store_rows(dk.from(unit.head * SIZE), k_sums, {SCALE, SCALE}, shared.tokens, unit.tile);
  store_rows(dv.from(unit.head * SIZE), v_sums, {1, 1}, shared.tokens, unit.tile);
}

template <class T, bool MASKED>
__global__ void __launch_bounds__(GRAD_THREADS, 2)
    attend_backward(const Maps<T> grad, const Maps<T> q, const Maps<T> k, const Maps<T> v, const Maps<T> q_guidance,
                    const Maps<T> k_guidance, const Gradients<T> out, const Shape shape) {
  FGASEG_DYNAMIC_SHARED(GradShared<T>, shared);
  const Tokens& tokens = shared->tokens;
  const Place<PAIR> place(shape);
  describe<MASKED, GRAD_THREADS>(shared->tokens, shape, place);
  __syncthreads();
  const Pieces<PAIR, GRAD_THREADS> pieces(tokens, place);
  copy_rows(shared->q, q, place.row, pieces);
  copy_rows(shared->k, k, place.row, pieces);
  copy_rows(shared->v, v, place.row, pieces);
  copy_rows(shared->grad, grad, place.row, pieces);
  add_guidance(shared->q, q_guidance, place.image, pieces);
  add_guidance(shared->k, k_guidance, place.image, pieces);
  __syncthreads();

  const int tiles = MASKED ? shape.tiles() : STEPS, channels = shape.heads * SIZE;
  const auto pixels = [&](T* map) {
    return Pixels<T>(map + place.row * shape.height * shape.width * channels + place.first_head * SIZE, channels);
  };
  for (Unit unit(tiles); unit.head < place.heads; unit.move(GRAD_WARPS, tiles))
    queries_grad<MASKED>(*shared, unit, pixels(out.q));
  __syncthreads();
  for (Unit unit(tiles); unit.head < place.heads; unit.move(GRAD_WARPS, tiles))
    keys_grad<MASKED>(*shared, unit, tiles, pixels(out.k), pixels(out.v));
}

}  // namespace
}  // namespace fgaseg
