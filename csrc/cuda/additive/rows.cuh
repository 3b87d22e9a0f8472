#pragma once

#include "../common/convert.cuh"
#include "config.h"

// Rows in global memory, four neighbouring elements at a time.
namespace fused_attention::cuda::additive {

template <class Element>
constexpr int BYTES = Element::DTYPE == DType::FLOAT32 ? 4 : 2;

// [rows, dim] of one head.
struct Rows {
  char* data = nullptr;
  int64_t row_bytes = 0;
  int dim = 0;
  bool aligned = false;  // every row begins at a multiple of four elements

  template <class Element>
  __device__ char* at(int row, int column) const {
    return data + row * row_bytes + column * BYTES<Element>;
  }
};

template <class Element>
__device__ inline Rows rows_of(const Operand& x, int64_t b, int64_t h, int64_t dim, bool aligned) {
  constexpr int64_t SIZE = BYTES<Element>;
  return {static_cast<char*>(x.data) + (b * x.batch + h * x.head) * SIZE, x.row * SIZE,
          static_cast<int>(dim), aligned};
}

// Four elements as they are stored.
template <class Element>
struct Quad {
  uint32_t words[BYTES<Element>];

  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (BYTES<Element> == 4) {
      return __uint_as_float(words[i]);
    } else {
      return to_float<Element>(static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16)));
    }
  }
};

// Zeros behind the last column.
template <class Element>
__device__ inline Quad<Element> load_quad(const Rows& x, int row, int column) {
  Quad<Element> quad{};
  const char* src = x.at<Element>(row, column);
  if (x.aligned && column + 4 <= x.dim) {
    if constexpr (BYTES<Element> == 4) {
      const uint4* words = reinterpret_cast<const uint4*>(src);
      quad = {{words->x, words->y, words->z, words->w}};
    } else {
      const uint2* words = reinterpret_cast<const uint2*>(src);
      quad = {{words->x, words->y}};
    }
    return quad;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (column + i >= x.dim) break;
    if constexpr (BYTES<Element> == 4) {
      quad.words[i] = reinterpret_cast<const uint32_t*>(src)[i];
    } else {
      quad.words[i / 2] |= uint32_t{reinterpret_cast<const uint16_t*>(src)[i]} << (i % 2 * 16);
    }
  }
  return quad;
}

template <class Element>
__device__ inline void store_quad(const Rows& x, int row, int column, const float (&values)[4]) {
  char* dst = x.at<Element>(row, column);
  if constexpr (BYTES<Element> == 4) {
    if (x.aligned && column + 4 <= x.dim) {
      *reinterpret_cast<float4*>(dst) = {values[0], values[1], values[2], values[3]};
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (column + i < x.dim) reinterpret_cast<float*>(dst)[i] = values[i];
    }
  } else {
    const uint32_t words[2] = {pack<Element>(values[0], values[1]),
                               pack<Element>(values[2], values[3])};
    if (x.aligned && column + 4 <= x.dim) {
      *reinterpret_cast<uint2*>(dst) = {words[0], words[1]};
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto bits = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
      if (column + i < x.dim) reinterpret_cast<uint16_t*>(dst)[i] = bits;
    }
  }
}

constexpr int QUADS = CHUNK / 4;       // of a row
constexpr int PASS = THREADS / QUADS;  // rows at a time
constexpr int ROUNDS = TILE / PASS;

// A part of a tile, [TILE, CHUNK], in the registers of all threads, on its way from global to
// shared memory.
template <class Element>
struct Part {
  Quad<Element> quads[ROUNDS];

  __device__ static int row(int round) { return threadIdx.x / QUADS + round * PASS; }
  __device__ static int column() { return threadIdx.x % QUADS * 4; }

  // `live`: bit n for row(n); other rows are not looked at and become 0.
  __device__ void fetch(const Rows& x, int first_row, int first_column, uint32_t live) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
      quads[round] = {};
      const int c = first_column + column();
      if ((live >> round & 1) != 0 && c < x.dim) {
        quads[round] = load_quad<Element>(x, first_row + row(round), c);
      }
    }
  }

  template <class Function>
  __device__ void store(float* shared, const Function& of) const {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
      const Quad<Element>& q = quads[round];
      *reinterpret_cast<float4*>(shared + row(round) * CHUNK_STRIDE + column()) = {
          of(q[0]), of(q[1]), of(q[2]), of(q[3])};
    }
  }

  __device__ float largest() const {  // absolutely
    float found = 0.0f;
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
#pragma unroll
      for (int i = 0; i < 4; ++i) found = fmaxf(found, fabsf(quads[round][i]));
    }
    return found;
  }

  // Bits for `fetch` of those rows of a tile that `alive(row)` names.
  template <class Alive>
  __device__ static uint32_t live_rows(const Alive& alive) {
    uint32_t live = 0;
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
      if (alive(row(round))) live |= 1u << round;
    }
    return live;
  }
};

}  // namespace fused_attention::cuda::additive
