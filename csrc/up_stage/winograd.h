// A 3x3 convolution by Winograd's F(2x2, 3x3): 16 products of matrices instead of 36 for every tile of 2x2 outputs.
//
//     Y = A^T [(G g G^T) * (B^T d B)] A    for 4x4 inputs d and 2x2 outputs Y, * element by element
//
// Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015), section 4.1. Maps are channels last, so that
// every step of a transform is a vector over channels. T is float, or uint16_t for bfloat16: the type in which the matrices
// are multiplied; transforms and sums are float32.
#pragma once
#include "common/product.h"

namespace fgaseg {

constexpr int64_t PLANES = 16;  // elements of a 4x4 tile, each of them a product of matrices

template <class T>
constexpr int64_t PER_UNIT = sizeof(uint32_t) / sizeof(T);

// sums [rows][32] = rows of a, `depth` long, times a panel
template <class T>
FGASEG_INLINE void multiply(int64_t rows, const T* a, int64_t row, const T* panel, int64_t depth, float* sums) {
  static const Tile* const tiles = tiles_of(sizeof(T) == 2 ? Arithmetic::bfloat16 : Arithmetic::float32);
  tiles[rows - 1]({reinterpret_cast<const uint32_t*>(a), row / PER_UNIT<T>}, reinterpret_cast<const uint32_t*>(panel),
                  depth / PER_UNIT<T>, sums, COLUMNS, false);
}

// Where element k of a column of a panel is.
template <class T>
FGASEG_INLINE int64_t in_panel(int64_t k, int64_t column) {
  return (k / PER_UNIT<T> * COLUMNS + column) * PER_UNIT<T> + k % PER_UNIT<T>;
}

// Two output rows of a map at a time.
template <class T>
struct Convolution {
  int64_t width;    // of the maps, even
  int64_t inputs;   // channels, padded to whole vectors
  int64_t outputs;  // channels
  const T* weight;  // as transform_weight writes it: [panels][16][inputs][32], planes apart

  int64_t tiles() const { return width / 2; }
  int64_t panels() const { return (outputs + COLUMNS - 1) / COLUMNS; }
  int64_t plane() const { return tiles() * inputs + LANES<T>; }  // not a multiple of 4 KB, which would share cache sets
  int64_t weight_plane() const { return inputs * COLUMNS + LANES<T>; }  // likewise
  int64_t panel_size() const { return PLANES * weight_plane(); }
};

// G g G^T of channel c of the inputs and 16 outputs from `first` on, vectors over the outputs. The nine taps of a weight
// are adjacent, its outputs `stride` apart; outputs beyond the last repeat it, and are not stored in a map.
template <class T>
FGASEG_INLINE void transform_weight(const float* weight, int64_t stride, const Convolution<T>& conv, int64_t first,
                                    int64_t c, T* to) {
  const int64_t last = conv.outputs - 1, plane = conv.weight_plane();
  _Pragma("omp simd") for (int64_t j = 0; j < LANES<float>; ++j) {
    const float* g = weight + std::min(first + j, last) * stride + c * 9;
    float u[4][3];
    _Pragma("GCC unroll 3") for (int64_t k = 0; k < 3; ++k) {
      const float even = 0.5f * (g[k] + g[6 + k]), odd = 0.5f * g[3 + k];
      u[0][k] = g[k];
      u[1][k] = even + odd;
      u[2][k] = even - odd;
      u[3][k] = g[6 + k];
    }
    _Pragma("GCC unroll 4") for (int64_t i = 0; i < 4; ++i) {
      const float even = 0.5f * (u[i][0] + u[i][2]), odd = 0.5f * u[i][1];
      from_float(u[i][0], to[(4 * i + 0) * plane + j * PER_UNIT<T>]);
      from_float(even + odd, to[(4 * i + 1) * plane + j * PER_UNIT<T>]);
      from_float(even - odd, to[(4 * i + 2) * plane + j * PER_UNIT<T>]);
      from_float(u[i][2], to[(4 * i + 3) * plane + j * PER_UNIT<T>]);
    }
  }
}

// B^T d B of a row of tiles. rows: four padded rows [width + 2][inputs]; v [16][tiles][inputs], planes apart.
template <class T>
FGASEG_INLINE void transform_input(const float* const* rows, const Convolution<T>& conv, T* v) {
  const int64_t channels = conv.inputs, plane = conv.plane();
  const float *row0 = rows[0], *row1 = rows[1], *row2 = rows[2], *row3 = rows[3];
  for (int64_t t = 0; t < conv.tiles(); ++t)
    for (int64_t c = 0; c < channels; c += LANES<float>) {
      const int64_t at = 2 * t * channels + c;
      T* to = v + t * channels + c;
      _Pragma("omp simd") for (int64_t j = 0; j < LANES<float>; ++j) {
        float u[4][4];
        _Pragma("GCC unroll 4") for (int64_t k = 0; k < 4; ++k) {
          const int64_t x = at + k * channels + j;
          u[0][k] = row0[x] - row2[x];
          u[1][k] = row1[x] + row2[x];
          u[2][k] = row2[x] - row1[x];
          u[3][k] = row1[x] - row3[x];
        }
        _Pragma("GCC unroll 4") for (int64_t i = 0; i < 4; ++i) {
          from_float(u[i][0] - u[i][2], to[(4 * i + 0) * plane + j]);
          from_float(u[i][1] + u[i][2], to[(4 * i + 1) * plane + j]);
          from_float(u[i][2] - u[i][1], to[(4 * i + 2) * plane + j]);
          from_float(u[i][1] - u[i][3], to[(4 * i + 3) * plane + j]);
        }
      }
    }
}

// A^T m A of one tile, 32 channels: m [16], planes of 14 rows apart -> y [2][2][32]
FGASEG_INLINE void transform_output(const float* m, float (*y)[2][COLUMNS]) {
  constexpr int64_t PLANE = ROWS_OF_TILE * COLUMNS;
  for (int64_t c = 0; c < COLUMNS; c += LANES<float>)
    _Pragma("omp simd") for (int64_t j = c; j < c + LANES<float>; ++j) {
      float s[2][4];
      _Pragma("GCC unroll 4") for (int64_t k = 0; k < 4; ++k) {
        const float m1 = m[(4 + k) * PLANE + j], m2 = m[(8 + k) * PLANE + j];
        s[0][k] = m[k * PLANE + j] + (m1 + m2);
        s[1][k] = (m1 - m2) - m[(12 + k) * PLANE + j];
      }
      _Pragma("GCC unroll 2") for (int64_t i = 0; i < 2; ++i) {
        y[i][0][j] = s[i][0] + (s[i][1] + s[i][2]);
        y[i][1][j] = (s[i][1] - s[i][2]) - s[i][3];
      }
    }
}

// y = Y + guidance for the tiles first to first + count and the channels of a panel; y, guidance: two rows [width][outputs]
template <class T>
FGASEG_INLINE void store_tiles(const float* m, const Convolution<T>& conv, int64_t panel, int64_t first, int64_t count,
                               const T* guidance, float* y) {
  const int64_t begin = panel * COLUMNS, columns = std::min(COLUMNS, conv.outputs - begin);
  for (int64_t t = 0; t < count; ++t) {
    alignas(64) float values[2][2][COLUMNS];
    transform_output(m + t * COLUMNS, values);
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t at = (i / 2 * conv.width + 2 * (first + t) + i % 2) * conv.outputs + begin;
      const float* from = values[i / 2][i % 2];
      if (columns == COLUMNS && guidance)
        _Pragma("omp simd") for (int64_t c = 0; c < COLUMNS; ++c) y[at + c] = from[c] + to_float(guidance[at + c]);
      else if (columns == COLUMNS)
        _Pragma("omp simd") for (int64_t c = 0; c < COLUMNS; ++c) y[at + c] = from[c];
      else
        for (int64_t c = 0; c < columns; ++c) y[at + c] = from[c] + (guidance ? to_float(guidance[at + c]) : 0);
    }
  }
}

// Two rows of outputs from four padded rows of inputs. v, m: scratch, [16] planes and [16][14][32].
template <class T>
FGASEG_INLINE void convolve(const float* const* rows, const Convolution<T>& conv, const T* guidance, T* v, float* m,
                            float* y) {
  transform_input(rows, conv, v);
  const int64_t tiles = conv.tiles(), blocks = (tiles + ROWS_OF_TILE - 1) / ROWS_OF_TILE;
  for (int64_t panel = 0; panel < conv.panels(); ++panel)
    for (int64_t b = 0; b < blocks; ++b) {  // of equal sizes: few rows leave the multipliers waiting
      const int64_t first = b * tiles / blocks, count = (b + 1) * tiles / blocks - first;
      const T* weight = conv.weight + panel * conv.panel_size();
      for (int64_t p = 0; p < PLANES; ++p)
        multiply(count, v + p * conv.plane() + first * conv.inputs, conv.inputs, weight + p * conv.weight_plane(),
                 conv.inputs, m + p * ROWS_OF_TILE * COLUMNS);
      store_tiles(m, conv, panel, first, count, guidance, y);
    }
}

}  // namespace fgaseg
