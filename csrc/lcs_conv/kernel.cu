// lcs_conv on NVIDIA GPUs. kernels/lcs_conv/op.py has the schema, cuda.cpp the host side.
//
//   out[b,t,n] = bias[b,t] + sum over c and taps of kernels[b,t,c,tap] * pixels[b,c,n + shift(tap)]
//
// stage.h brings pixels and logits into shared memory, convolve.h computes the sum above and, with classes and channels
// exchanged and taps mirrored, the gradient of the pixels, kernel_grad.h that of the logits. convolve_nine.h and
// grad_of_nine.h do the same for 3x3 kernels of 16-bit elements. This file chooses tiles and launches. Both gradients
// normalise the kernels again; nothing is kept. No atomics: every run gives the same bits.
// docs/design/kernels.md counts bytes and operations.
#include "common/cuda.h"
#include "lcs_conv/convolve.h"
#include "lcs_conv/convolve_nine.h"
#include "lcs_conv/grad_of_nine.h"
#include "lcs_conv/kernel_grad.h"

namespace fgaseg {
namespace {

int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

struct Sizes {
  int64_t batch, channels, classes, height, width, size;
  explicit Sizes(const int64_t* n)
      : batch(n[0]), channels(n[1]), classes(n[2]), height(n[3]), width(n[4]), size(n[5]) {}
};

// Tiles of at most `pixels` pixels: the whole image, or nearly square tiles, whose halo is smallest.
Tiles tiles_of(const Sizes& s, int64_t pixels, int64_t widest) {
  int64_t width = s.width, height = s.height;
  if (width * height > pixels) {
    width = blocks_of(s.width, blocks_of(s.width, widest));
    height = min(s.height, pixels / width);
    height = blocks_of(s.height, blocks_of(s.height, height));
  }
  const int64_t across = blocks_of(s.width, width), halo_x = min(s.size / 2, s.width - 1);
  return {int(height), int(width), int(across), int(across * blocks_of(s.height, height)),
          int(min(s.size / 2, s.height - 1)), int(halo_x), int(width + 2 * halo_x)};
}

struct Tiling {
  Tiles tiles;
  int64_t bytes;
  bool whole_halo;
};

// The largest tiles of at most `most` pixels whose shared memory, bytes(tiles, whole_halo), fits; with the whole halo
// if that fits. `bytes` may change the tiles' halo.
template <class F>
Tiling fit(const Sizes& s, int most, const F& bytes) {
  constexpr int PIXELS[] = {576, 320, 192, 64, 16}, WIDEST[] = {32, 24, 16, 8, 4};
  for (bool whole_halo : {true, false})
    for (int i = 0; i < 5; ++i) {
      Tiles tiles = tiles_of(s, PIXELS[i], WIDEST[i]);
      const int64_t needed = bytes(tiles, whole_halo);
      if (PIXELS[i] <= most && (needed <= MOST_SHARED || (i == 4 && !whole_halo))) return {tiles, needed, whole_halo};
    }
  return {};
}

// The number of rows that a group of taps adds to a tile.
int64_t extra_rows(const Sizes& s, int64_t group) {
  return min(2 * min(s.size / 2, s.height - 1), (group + s.size - 2) / s.size);
}

int group_of(const Sizes& s, int64_t element_size) {
  const int64_t taps = s.size * s.size;
  return int(taps * element_size <= 64 ? taps : 32 / element_size);
}

Tiling convolution_tiling(const Sizes& s, int64_t element_size) {
  const int64_t group = group_of(s, element_size);
  return fit(s, element_size == 2 ? 576 : 320, [&](const Tiles& tiles, bool whole_halo) {
    const int64_t rows = tiles.height + (whole_halo ? 2 * tiles.halo_y : extra_rows(s, group));
    return ((group + (group | 1)) * PLANE + rows * tiles.row * STEP) * element_size;
  });
}

// The number of blocks among which the sum over `summed` channels or classes is divided.
int64_t parts_of(const Sizes& s, int64_t rows, int64_t summed, int64_t element_size) {
  const int64_t blocks = s.batch * blocks_of(rows, ROWS) * convolution_tiling(s, element_size).tiles.count;
  const int64_t steps = max(blocks_of(summed, STEP), int64_t(1)), most = max(steps / LEAST_STEPS, int64_t(1));
  const int64_t parts = min(most, max(ENOUGH_BLOCKS / max(blocks, int64_t(1)), int64_t(1)));
  return blocks_of(steps, blocks_of(steps, parts));
}

// How convolve_nine divides its work.
struct Shares {
  Tiling tiling;
  int m;                            // rows of a unit, in 16
  int64_t row_blocks, units;
  int64_t steps, all_steps, share;  // of a unit, of all, of a block

  int64_t blocks() const { return blocks_of(all_steps, share); }
  bool divide_units() const { return share % steps != 0; }
  int64_t parts() const { return divide_units() ? 2 * blocks() * NINE_TILES * m * THREADS * 4 : 0; }
};

// All of the halo of a 3x3 kernel, also where it is outside of the image.
void set_halo(Tiles& tiles) {
  tiles.halo_y = tiles.halo_x = 1;
  tiles.row = tiles.width + 2;
}

Shares shares_of(const Sizes& s, bool back) {
  const int64_t rows = back ? s.channels : s.classes, summed = back ? s.classes : s.channels;
  Shares shares;
  // more rows share the pixels that are loaded, but more may be missing from the last unit
  shares.m = blocks_of(rows, 48) * 48 <= blocks_of(rows, 32) * 32 ? 3 : 2;
  const int64_t kernels = 2 * (shares.m == 3 ? NINE_KERNELS<3, false> : NINE_KERNELS<2, false>) +
                          2 * shares.m * WARP_LOGITS;  // forward needs a little more than backward
  constexpr int64_t PIXELS = WARPS * NINE_TILES * 8;
  shares.tiling = fit(s, PIXELS, [&](Tiles& tiles, bool) {
    set_halo(tiles);
    const int64_t results = 16 * shares.m * PIXELS;
    return max(kernels + 2 * (tiles.height + 2) * tiles.row * STEP, results) * 2;
  });
  shares.row_blocks = blocks_of(rows, 16 * shares.m);
  shares.units = s.batch * shares.row_blocks * shares.tiling.tiles.count;
  shares.steps = max(blocks_of(summed, STEP), int64_t(1));
  shares.all_steps = shares.units * shares.steps;
  shares.share = max(blocks_of(shares.all_steps, processors()), int64_t(LEAST_STEPS));
  return shares;
}

bool is_nine(const Sizes& s, int64_t element_size) { return s.size == 3 && element_size == 2; }

template <class T>
Image<T> image_of(const void* data, const int64_t* strides, int64_t channels, const Sizes& s) {
  return {static_cast<const T*>(data), {strides[0], strides[1], strides[2], strides[3]},
          int(channels), int(s.height), int(s.width)};
}

template <class T>
Kernels<T> kernels_of(const void* logits, const int64_t* strides, const Sizes& s, bool softmax) {
  return {static_cast<const T*>(logits), strides[0], strides[1], strides[2], int(s.classes), int(s.channels),
          int(s.size * s.size), int(s.size), softmax};
}

template <class T, int M, bool BACK>
int launch_nine(const ConvolutionOfNine<T>& p, const Shares& shares, void* stream) {
  if (shares.all_steps > INT32_MAX / 2) return cudaErrorInvalidConfiguration;
  const int error = launch(convolve_nine<T, M, BACK>, {shares.blocks()}, THREADS, shares.tiling.bytes, stream, p);
  if (error || !shares.divide_units()) return error;
  return launch(add_shares<T, M>, {shares.units, NINE_TILES / ADDED}, THREADS, 0, stream, p);
}

// Whether the logits can be read in pieces of 16 bytes, from every eighth channel on.
template <class T>
bool in_pieces(const Kernels<T>& k) {
  const bool aligned = reinterpret_cast<uintptr_t>(k.logits) % 16 == 0;
  return aligned && k.stride_element == 1 && (k.stride_batch | k.stride_class) % PIECE == 0;
}

// Whether pixels of rows that are as long as the image is wide can be read `count` at a time.
template <class T>
bool in_runs(const Image<T>& image, int count) {
  const Strides& s = image.strides;
  const int64_t together = s.batch | s.channel | s.row | image.width;
  return s.column == 1 && together % count == 0 && reinterpret_cast<uintptr_t>(image.data) % (count * sizeof(T)) == 0;
}

template <class T>
int run_of(const Image<T>& image) {
  return in_runs(image, RUN) ? RUN : 1;
}

template <class T, bool BACK>
int start_nine(const void* image, const int64_t* strides, const void* logits, const int64_t* logit_strides,
               const void* bias, const int64_t* bias_strides, void* out, float* parts, const Sizes& s, bool softmax,
               void* stream) {
  const Shares shares = shares_of(s, BACK);
  const Image<T> maps = image_of<T>(image, strides, BACK ? s.classes : s.channels, s);
  const Kernels<T> kernels = kernels_of<T>(logits, logit_strides, s, softmax);
  const ConvolutionOfNine<T> p{maps,
                               kernels,
                               static_cast<const T*>(bias),
                               bias ? bias_strides[0] : 0,
                               bias ? bias_strides[1] : 0,
                               static_cast<T*>(out),
                               reinterpret_cast<float4*>(parts),
                               shares.tiling.tiles,
                               int(BACK ? s.channels : s.classes),
                               int(shares.row_blocks),
                               int(shares.steps),
                               int(shares.all_steps),
                               int(shares.share),
                               run_of(maps),
                               in_pieces(kernels)};
  return shares.m == 3 ? launch_nine<T, 3, BACK>(p, shares, stream) : launch_nine<T, 2, BACK>(p, shares, stream);
}

// Convolves pixels with the kernels and adds the bias, or BACK: convolves the output's gradient with mirrored kernels.
template <class T, bool BACK>
int start_convolution(const void* image, const int64_t* image_strides, const void* logits, const int64_t* logit_strides,
                      const void* bias, const int64_t* bias_strides, void* out, float* parts, const int64_t* sizes,
                      bool softmax, void* stream) {
  const Sizes s(sizes);
  if constexpr (sizeof(T) == 2)
    if (is_nine(s, sizeof(T)))
      return start_nine<T, BACK>(image, image_strides, logits, logit_strides, bias, bias_strides, out, parts, s,
                                 softmax, stream);
  const int64_t rows = BACK ? s.channels : s.classes, summed = BACK ? s.classes : s.channels;
  const int64_t row_blocks = blocks_of(rows, ROWS), parts_count = parts_of(s, rows, summed, sizeof(T));
  const Tiling tiling = convolution_tiling(s, sizeof(T));
  const int group = group_of(s, sizeof(T));
  Convolution<T> p{image_of<T>(image, image_strides, summed, s),
                   kernels_of<T>(logits, logit_strides, s, softmax),
                   static_cast<const T*>(bias),
                   bias ? bias_strides[0] : 0,
                   bias ? bias_strides[1] : 0,
                   static_cast<T*>(out),
                   parts,
                   s.batch * rows * s.height * s.width,
                   int(rows),
                   int(row_blocks),
                   int(blocks_of(max(blocks_of(summed, STEP), int64_t(1)), parts_count)),
                   tiling.tiles,
                   group,
                   group | 1,
                   tiling.whole_halo};
  const int64_t blocks = s.batch * row_blocks * tiling.tiles.count;
  const int error = launch(convolve<T, BACK>, {blocks, parts_count}, THREADS, tiling.bytes, stream, p);
  if (error || !parts) return error;
  return launch(add_parts<T>, {blocks_of(p.size, THREADS)}, THREADS, 0, stream, p, int(parts_count));
}

template <class T>
int start_grad_of_nine(const Image<T>& grad, const Image<T>& pixels, const Kernels<T>& kernels, void* out,
                       const Sizes& s, void* stream) {
  int piece_size = 0;
  const Tiling tiling = fit(s, 320, [&](Tiles& tiles, bool) {
    set_halo(tiles);
    piece_size = ((tiles.height + 4) * tiles.row + 3) * PIECE;
    const int64_t count = blocks_of(int64_t(tiles.height) * tiles.width, 16) * 16;
    const int64_t staged = (WIDE_PIECES * piece_size + ROWS * (count + PIECE)) * sizeof(T) + count * sizeof(int);
    return max(staged, int64_t(ROWS * LOGITS_PITCH * sizeof(T)));
  });
  const bool rows = in_runs(grad, PIECE) && tiling.tiles.width == grad.width && grad.strides.row == grad.width;
  const GradOfNine<T> p{grad, pixels, kernels, static_cast<T*>(out), tiling.tiles, piece_size,
                        run_of(pixels), in_pieces(kernels), rows};
  const int64_t blocks = s.batch * blocks_of(s.classes, ROWS) * blocks_of(s.channels, WIDE);
  return launch(grad_of_nine<T>, {blocks}, THREADS, tiling.bytes, stream, p);
}

template <class T>
int start_kernel_grad(const void* grad, const int64_t* grad_strides, const void* pixels, const int64_t* pixel_strides,
                      const void* logits, const int64_t* logit_strides, void* out, float* scratch, const int64_t* sizes,
                      bool softmax, void* stream) {
  const Sizes s(sizes);
  const int64_t taps = s.size * s.size;
  if constexpr (sizeof(T) == 2)
    if (is_nine(s, sizeof(T)))
      return start_grad_of_nine(image_of<T>(grad, grad_strides, s.classes, s),
                                image_of<T>(pixels, pixel_strides, s.channels, s),
                                kernels_of<T>(logits, logit_strides, s, softmax), out, s, stream);
  int spare = 0;
  const Tiling tiling = fit(s, 192, [&](const Tiles& tiles, bool) {
    spare = int((tiles.height + extra_rows(s, NINE)) * tiles.row);
    const int64_t pixels = int64_t(tiles.height) * tiles.width, stride = blocks_of(pixels, 16) * 16 + 16 / sizeof(T);
    const int64_t staged = ((spare + 1) * WIDE + ROWS * stride) * sizeof(T) + blocks_of(pixels, 16) * 16 * sizeof(int);
    return max(staged, int64_t(taps == NINE ? ROWS * sizeof(T) : ROWS / 2 * sizeof(float)) * WIDE * NINE);
  });
  const KernelGrad<T> p{image_of<T>(grad, grad_strides, s.classes, s),
                        image_of<T>(pixels, pixel_strides, s.channels, s),
                        kernels_of<T>(logits, logit_strides, s, softmax),
                        static_cast<T*>(out),
                        scratch,
                        tiling.tiles,
                        spare};
  const int64_t blocks = s.batch * blocks_of(s.classes, ROWS) * blocks_of(s.channels, WIDE) * blocks_of(taps, NINE);
  if constexpr (sizeof(T) == 4)
    if (taps == NINE) return launch(kernel_grad<T, true>, {blocks}, THREADS, tiling.bytes, stream, p);
  const int error = launch(kernel_grad<T, false>, {blocks}, THREADS, tiling.bytes, stream, p);
  const int64_t rows = s.batch * s.classes * s.channels;
  return error ? error : launch(finish<T>, {blocks_of(rows, WARPS)}, THREADS, 0, stream, p, rows);
}

}  // namespace
}  // namespace fgaseg

// Sizes are {B, C, T, H, W, K}, strides those of [B, C, H, W], [B, T, C*K*K] and [B, T].

// The number of float32 elements that the convolution (back: the gradient of the pixels) needs for partial sums; 0:
// none, and `parts` must be null.
extern "C" int64_t fgaseg_lcs_conv_parts(const int64_t* sizes, int64_t element_size, bool back) {
  const fgaseg::Sizes s(sizes);
  if (fgaseg::is_nine(s, element_size)) return fgaseg::shares_of(s, back).parts();
  const int64_t rows = back ? s.channels : s.classes;
  const int64_t parts = fgaseg::parts_of(s, rows, back ? s.classes : s.channels, element_size);
  return parts > 1 ? parts * s.batch * rows * s.height * s.width : 0;
}

#define FGASEG_LAUNCHERS(name, type)                                                                                   \
  extern "C" int fgaseg_lcs_conv_forward_##name(                                                                       \
      const void* pixels, const int64_t* pixel_strides, const void* logits, const int64_t* logit_strides,              \
      const void* bias, const int64_t* bias_strides, void* out, float* parts, const int64_t* sizes, bool softmax,      \
      void* stream) {                                                                                                  \
    return fgaseg::start_convolution<type, false>(pixels, pixel_strides, logits, logit_strides, bias, bias_strides,    \
                                                  out, parts, sizes, softmax, stream);                                 \
  }                                                                                                                    \
  extern "C" int fgaseg_lcs_conv_pixel_grad_##name(const void* grad, const int64_t* grad_strides, const void* logits,  \
                                                   const int64_t* logit_strides, void* out, float* parts,              \
                                                   const int64_t* sizes, bool softmax, void* stream) {                 \
    return fgaseg::start_convolution<type, true>(grad, grad_strides, logits, logit_strides, nullptr, nullptr, out,     \
                                                 parts, sizes, softmax, stream);                                       \
  }                                                                                                                    \
  extern "C" int fgaseg_lcs_conv_logit_grad_##name(                                                                    \
      const void* grad, const int64_t* grad_strides, const void* pixels, const int64_t* pixel_strides,                 \
      const void* logits, const int64_t* logit_strides, void* out, float* scratch, const int64_t* sizes, bool softmax, \
      void* stream) {                                                                                                  \
    return fgaseg::start_kernel_grad<type>(grad, grad_strides, pixels, pixel_strides, logits, logit_strides, out,      \
                                           scratch, sizes, softmax, stream);                                           \
  }
FGASEG_LAUNCHERS(float32, float)
FGASEG_LAUNCHERS(float16, __half)
FGASEG_LAUNCHERS(bfloat16, __nv_bfloat16)
