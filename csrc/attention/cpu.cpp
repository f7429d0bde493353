// attention on the CPU, in float32 and bfloat16. The schema is in kernels/attention/op.py.
//
// The keys and values of a head are packed once; 24 queries at a time get their scores, softmax and sum of values, and
// the scores, 55 KB for 577 keys, never leave the second-level cache. Where there are fewer heads than threads could
// use, the queries of a head are divided, and every part packs the keys again.
#include <algorithm>
#include <cmath>
#include <optional>

#include "common/arguments.h"
#include "common/attend.h"
#include "common/cpu.h"

namespace fgaseg {
namespace {

// [B, H, L, d] with contiguous channels.
template <class S>
struct Sequences {
  S* data;
  int64_t image, head, token;  // strides

  Sequences(S* data_, const Tensor& like)
      : data(data_), image(like.stride(0)), head(like.stride(1)), token(like.stride(2)) {}
  FGASEG_INLINE S* row(int64_t b, int64_t h, int64_t i) const { return data + b * image + h * head + i * token; }
};

template <class S>
struct Inputs {
  Sequences<const S> q, k, v;
  Sequences<S> out;
  int64_t queries, keys;
  bool causal;
  float scale;
};

// The queries first to last of one head of one image, all of whose keys up to `keys` are packed.
template <class S, class U>
FGASEG_INLINE void attend_to(const Inputs<S>& in, int64_t b, int64_t h, int64_t first, int64_t last, Head<U>& head) {
  const int64_t all = in.causal ? last : in.keys;
  for (int64_t j = 0; j < all; j += COLUMNS) {
    const int64_t count = std::min(COLUMNS, all - j);
    for (int64_t i = 0; i < count; ++i) {
      const S* from = in.k.row(b, h, j + i);
      U* to = head.k + i * head.pitch;
      _Pragma("omp simd") for (int64_t c = 0; c < head.size; ++c) from_float(to_float(from[c]), to[c]);
      head.set_values(j + i, in.v.row(b, h, j + i));
    }
    head.pack_keys(j, count);
  }
  for (int64_t i = first; i < last; i += QUERIES) {
    const int64_t rows = std::min(QUERIES, last - i);
    int64_t keys[QUERIES];
    for (int64_t r = 0; r < QUERIES; ++r) keys[r] = in.causal ? std::min(i + r + 1, last) : in.keys;
    for (int64_t r = 0; r < rows; ++r) {
      const S* from = in.q.row(b, h, i + r);
      U* to = head.q + r * head.pitch;
      _Pragma("omp simd") for (int64_t c = 0; c < head.size; ++c) from_float(to_float(from[c]), to[c]);
    }
    head.attend(0, rows, keys, keys[rows - 1], nullptr, in.scale);
    for (int64_t r = 0; r < rows; ++r) head.store(r, in.out.row(b, h, i + r));
  }
}

// target_clones needs functions that are not templates.
#define FGASEG_FOR(S, U)                                                                                              \
  FGASEG_CLONES void compute(const Inputs<S>& in, int64_t b, int64_t h, int64_t first, int64_t last, Head<U>& head) { \
    attend_to(in, b, h, first, last, head);                                                                           \
  }
FGASEG_FOR(float, float)
FGASEG_FOR(uint16_t, uint16_t)
FGASEG_FOR(uint16_t, float)
#undef FGASEG_FOR

Tensor with_dense_channels(const Tensor& x) { return x.stride(3) == 1 ? x : torch::stable::contiguous(x); }

template <class S, class U>
void run(const Tensor& q, const Tensor& k, const Tensor& v, bool causal, double scale, Tensor& y) {
  const int64_t images = q.size(0), heads = q.size(1), size = q.size(3);
  Sequences<S> out(mutable_data<S>(y), y);
  std::swap(out.head, out.token);  // y is [B, L, H, d]
  const Inputs<S> in{{data<S>(q), q}, {data<S>(k), k}, {data<S>(v), v}, out,
                     q.size(2),       k.size(2),       causal,          float(scale)};
  const int64_t threads = torch::stable::get_num_threads(), blocks = (in.queries + QUERIES - 1) / QUERIES;
  const int64_t parts = std::min(blocks, (2 * threads + images * heads - 1) / std::max<int64_t>(images * heads, 1));
  const int64_t work = in.queries * in.keys * size / std::max<int64_t>(parts, 1);
  const int64_t grain = 1 + 65536 / std::max<int64_t>(work, 1);
  torch::stable::parallel_for(0, images * heads * parts, grain, [&](int64_t begin, int64_t end) {
    Head<U> head(size, in.keys, QUERIES);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts, first = blocks * part / parts * QUERIES;
      const int64_t last = std::min(blocks * (part + 1) / parts * QUERIES, in.queries);
      compute(in, i / parts / heads, i / parts % heads, first, last, head);
    }
  });
}

Tensor attention(const Tensor& q_, const Tensor& k_, const Tensor& v_, bool causal,
                 std::optional<double> given_scale) {
  const Arguments call("attention", "q", q_, {ANY, ANY, ANY, SOME});
  call.single_or_bfloat16();
  call.tensor("k", k_, {q_.size(0), q_.size(1), SOME, q_.size(3)});
  call.tensor("v", v_, {k_.size(0), k_.size(1), k_.size(2), k_.size(3)});
  call.require(!causal || q_.size(2) == k_.size(2), "causal needs as many queries as keys");
  call.require(!given_scale || *given_scale > 0, "scale must be positive");
  const bool bfloat16 = q_.scalar_type() == ScalarType::BFloat16;
  const Tensor q = with_dense_channels(q_), k = with_dense_channels(k_), v = with_dense_channels(v_);
  const double scale = given_scale ? *given_scale : 1 / std::sqrt(double(q.size(3)));
  Tensor y = torch::stable::new_empty(q, {q.size(0), q.size(2), q.size(1), q.size(3)});
  if (y.numel() == 0) return y;
  if (!bfloat16)
    run<float, float>(q, k, v, causal, scale, y);
  else if (product_of_bfloat16() == Arithmetic::bfloat16)
    run<uint16_t, uint16_t>(q, k, v, causal, scale, y);
  else
    run<uint16_t, float>(q, k, v, causal, scale, y);
  return y;
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) { m.impl("attention_cpp", TORCH_BOX(&fgaseg::attention)); }
