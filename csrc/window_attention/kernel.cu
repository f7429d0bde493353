// window_attention on NVIDIA GPUs, for heads of 32 channels of 16 bits and windows of up to 144 pixels.
// kernels/window_attention/op.py has the schema, cuda.cpp the host side.
//
//   S = (q + g)(k + h)^T / sqrt(32) + mask,  y = softmax(S) v
//
// A block has one window of one row, with up to four heads. It brings k + h and v into shared memory, and computes
// pixels and mask once for all heads. A warp then takes 16 queries of a head at a time: their scores with all keys of
// the window stay in its registers (72 a lane), so there is one exact softmax, and its weights become the left operand
// of the second product where they are. The mask is what the sums of the scores begin with. The tensor cores also add
// up the weights, as a product with ones. MASKED is false if all windows are whole, unshifted and of 144 pixels.
//
// kernel_grad.h has the backward pass. docs/design/kernels.md counts bytes and instructions.
#include "window_attention/kernel_grad.h"
#include "window_attention/stage.h"

namespace fgaseg {
namespace {

constexpr int GROUP = 4, WARPS = 4, THREADS = WARPS * 32;  // heads and warps of a block

// The rows of q and of its guidance for 16 queries of a head, as this lane reads them. Padding reads some pixel's.
template <class T>
struct Queries {
  uint4 own[2], guidance[2];

  FGASEG_DEVICE void load(const Pixels<const T>& q, const Pixels<const T>& g, const Tokens& tokens, const Unit& unit) {
    const int channel = unit.head * SIZE + lane() % 4 * PIECE;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int pixel = tokens.pixel(unit.tile * TILE + 8 * i + lane() / 4);
      own[i] = *reinterpret_cast<const uint4*>(q.at(pixel) + channel);
      guidance[i] = *reinterpret_cast<const uint4*>(g.at(pixel) + channel);
    }
  }
  FGASEG_DEVICE Left operand() const { return Left(sum<T>(own[0], guidance[0]), sum<T>(own[1], guidance[1])); }
};

template <class T>
struct Shared {
  T keys[TOKENS * GROUP * SIZE], values[TOKENS * GROUP * SIZE];
  Tokens tokens;
};

template <class T, bool MASKED>
__global__ void __launch_bounds__(THREADS, 3)
    attend(const Maps<T> q, const Maps<T> k, const Maps<T> v, const Maps<T> q_guidance, const Maps<T> k_guidance,
           T* __restrict__ out, const Shape shape) {
  FGASEG_DYNAMIC_SHARED(Shared<T>, shared);
  const Tokens& tokens = shared->tokens;
  const Place<GROUP> place(shape);
  describe<MASKED, THREADS>(shared->tokens, shape, place);
  __syncthreads();
  const int tiles = MASKED ? shape.tiles() : STEPS, first = place.first_head * SIZE;
  const Pieces<GROUP, THREADS> pieces(tokens, place);
  copy_rows(shared->keys, k, place.row, pieces);
  copy_rows(shared->values, v, place.row, pieces);
  const Pixels<const T> own(q, place.row, first), guidance(q_guidance, place.image, first);
  Queries<T> queries;
  Unit unit(tiles);
  if (unit.head < place.heads) queries.load(own, guidance, tokens, unit);
  add_guidance(shared->keys, k_guidance, place.image, pieces);
  __syncthreads();

  const Pixels<T> to(out + place.row * shape.height * shape.width * (shape.heads * SIZE) + first, shape.heads * SIZE);
  const uint32_t ones[2] = {pack<T>(1, 1), pack<T>(1, 1)};
  while (unit.head < place.heads) {
    const Unit now = unit;
    float s[TOKENS / 8][4], sums[4][4] = {}, totals[4] = {};
    scores<MASKED>(s, queries.operand(), shared->keys + row_spot<GROUP>(now.head), GROUP * SIZE, tokens, now.tile);
    const float2 top = largest(s);
    unit.move(WARPS, tiles);
    const int column = column_spot<GROUP>(now.head);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      uint32_t weights[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = s[2 * step + i / 2] + i % 2 * 2;
        const float base = (i % 2 ? top.y : top.x) * (SCALE * LOG2E);
        weights[i] = pack<T>(weight(pair[0], base), weight(pair[1], base));
      }
      multiply_columns(sums, weights, shared->values + step * TILE * GROUP * SIZE, column);
      multiply_add<T>(totals, weights, ones);
      // half of the scores are used up, so there are registers to load the next queries
      if (step == STEPS / 2 && unit.head < place.heads) queries.load(own, guidance, tokens, unit);
    }
    const float factors[2] = {__fdividef(1, totals[0]), __fdividef(1, totals[2])};
    store_rows(to.from(now.head * SIZE), sums, factors, tokens, now.tile);
  }
}

int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Sizes are {N, B, H, W, heads, window, shift}.
struct Call {
  int64_t rows;
  Shape shape;
  bool fits, masked;

  explicit Call(const int64_t* n) : rows(n[0]) {
    const int64_t images = n[1], height = n[2], width = n[3], heads = n[4], window = n[5], shift = n[6];
    const int64_t down = blocks_of(height, window), across = blocks_of(width, window);
    fits = height * width <= INT32_MAX / 4 && heads <= INT32_MAX / SIZE && window * window <= TOKENS;
    const int64_t classes = images ? rows / images : 1;
    shape = {int(height), int(width), int(down),  int(across),
             int(window), int(shift), int(heads), int(classes)};
    masked = shift || height % window || width % window || window * window != TOKENS;
  }
  int64_t blocks(int64_t group) const { return rows * shape.down * shape.across * blocks_of(shape.heads, group); }
};

// strides: of rows and pixels, in elements
template <class T>
Maps<T> maps(const void* data, const int64_t* strides) {
  return {static_cast<const T*>(data), strides[0], int(strides[1])};
}

template <class T>
int forward(const void* const* inputs, const int64_t (*strides)[2], void* out, const int64_t* sizes, void* stream) {
  const Call call(sizes);
  if (!call.fits) return cudaErrorInvalidValue;
  const auto kernel = call.masked ? attend<T, true> : attend<T, false>;
  return launch(kernel, {call.blocks(GROUP)}, THREADS, sizeof(Shared<T>), stream, maps<T>(inputs[0], strides[0]),
                maps<T>(inputs[1], strides[1]), maps<T>(inputs[2], strides[2]), maps<T>(inputs[3], strides[3]),
                maps<T>(inputs[4], strides[4]), static_cast<T*>(out), call.shape);
}

template <class T>
int backward(const void* const* inputs, const int64_t (*strides)[2], void* const* out, const int64_t* sizes,
             void* stream) {
  const Call call(sizes);
  if (!call.fits) return cudaErrorInvalidValue;
  const auto kernel = call.masked ? attend_backward<T, true> : attend_backward<T, false>;
  const Gradients<T> gradients{static_cast<T*>(out[0]), static_cast<T*>(out[1]), static_cast<T*>(out[2])};
  return launch(kernel, {call.blocks(PAIR)}, GRAD_THREADS, sizeof(GradShared<T>), stream, maps<T>(inputs[5], strides[5]),
                maps<T>(inputs[0], strides[0]), maps<T>(inputs[1], strides[1]), maps<T>(inputs[2], strides[2]),
                maps<T>(inputs[3], strides[3]), maps<T>(inputs[4], strides[4]), gradients, call.shape);
}

}  // namespace
}  // namespace fgaseg

// Inputs are q, k, v, q_guidance and k_guidance, then the output's gradient; the bytes of their addresses and strides
// are multiples of 16. Outputs are contiguous: dq, dk and dv of backward.
#define FGASEG_LAUNCHERS(name, type)                                                                                  \
  extern "C" int fgaseg_window_attention_forward_##name(const void* const* inputs, const int64_t (*strides)[2],       \
                                                        void* out, const int64_t* sizes, void* stream) {              \
    return fgaseg::forward<type>(inputs, strides, out, sizes, stream);                                                \
  }                                                                                                                   \
  extern "C" int fgaseg_window_attention_backward_##name(const void* const* inputs, const int64_t (*strides)[2],      \
                                                         void* const* out, const int64_t* sizes, void* stream) {      \
    return fgaseg::backward<type>(inputs, strides, out, sizes, stream);                                               \
  }
FGASEG_LAUNCHERS(float16, __half)
FGASEG_LAUNCHERS(bfloat16, __nv_bfloat16)
