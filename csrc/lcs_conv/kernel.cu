// lcs_conv on NVIDIA GPUs. kernels/lcs_conv/op.py has the schema, cuda.cpp the host side.
//
//   out[b,t,n] = bias[b,t] + sum over c and taps of kernels[b,t,c,tap] * pixels[b,c,n + shift(tap)]
//
// stage.h brings pixels and logits into shared memory, convolve.h computes the sum above and, with classes and channels
// exchanged and taps mirrored, the gradient of the pixels, kernel_grad.h that of the logits. This file chooses tiles
// and launches. Both gradients normalise the kernels again; nothing is kept. No atomics: every run gives the same bits.
// docs/design/kernels.md counts bytes and operations.
#include "common/cuda.h"
#include "lcs_conv/convolve.h"
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
// if that fits.
template <class F>
Tiling fit(const Sizes& s, int most, const F& bytes) {
  constexpr int PIXELS[] = {576, 320, 192, 64, 16}, WIDEST[] = {32, 24, 16, 8, 4};
  for (bool whole_halo : {true, false})
    for (int i = 0; i < 5; ++i) {
      const Tiles tiles = tiles_of(s, PIXELS[i], WIDEST[i]);
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

// Convolves pixels with the kernels and adds the bias, or BACK: convolves the output's gradient with mirrored kernels.
template <class T, bool BACK>
int start_convolution(const void* image, const int64_t* image_strides, const void* logits, const int64_t* logit_strides,
                      const void* bias, const int64_t* bias_strides, void* out, float* parts, const int64_t* sizes,
                      bool softmax, void* stream) {
  const Sizes s(sizes);
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
int start_kernel_grad(const void* grad, const int64_t* grad_strides, const void* pixels, const int64_t* pixel_strides,
                      const void* logits, const int64_t* logit_strides, void* out, float* scratch, const int64_t* sizes,
                      bool softmax, void* stream) {
  const Sizes s(sizes);
  const int64_t taps = s.size * s.size;
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
  if (taps == NINE) return launch(kernel_grad<T, true>, {blocks}, THREADS, tiling.bytes, stream, p);
  const int error = launch(kernel_grad<T, false>, {blocks}, THREADS, tiling.bytes, stream, p);
  const int64_t rows = s.batch * s.classes * s.channels;
  return error ? error : launch(finish<T>, {blocks_of(rows, WARPS)}, THREADS, 0, stream, p, rows);
}

}  // namespace
}  // namespace fgaseg

// Sizes are {B, C, T, H, W, K}, strides those of [B, C, H, W], [B, T, C*K*K] and [B, T].

// The number of partial sums, each as large as the result in float32, that the convolution (back: the gradient of the
// pixels) needs; 1: none, and `parts` must be null.
extern "C" int64_t fgaseg_lcs_conv_parts(const int64_t* sizes, int64_t element_size, bool back) {
  const fgaseg::Sizes s(sizes);
  return fgaseg::parts_of(s, back ? s.channels : s.classes, back ? s.classes : s.channels, element_size);
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
