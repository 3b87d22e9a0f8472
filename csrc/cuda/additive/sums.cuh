#pragma once

#include "pairs.cuh"

// Sums over the rows of another tile, weighted by shared.weights, for each row of the block's own
// and each column: P V, P^T dO and what becomes the gradients of the projections. A thread holds
// four neighbouring columns of own rows, in the places that it has in a Part.
//
// Dims have no limit, so sums do not stay in registers from tile to tile: they lie in fp32 in
// global memory, where their thread finds them again. That is 8 bytes for TILE products.
namespace fused_attention::cuda::additive {

// Where the sums of the block's own rows go.
struct Target {
  Rows sums;     // fp32, between tiles; not touched where one tile is all
  Rows result;   // after the last tile, in the storage type
  int rows = 0;  // of the tile that exist
  bool first = true, last = true;

  // `factor`: of the sums so far.
  __device__ void load(int row, int column, float factor, float (&values)[4]) const {
    const bool exists = !first && row < rows && column < sums.dim;
    const Quad<Float32> loaded = exists ? load_quad<Float32>(sums, row, column) : Quad<Float32>{};
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = loaded[i] * factor;
  }

  template <class Element>
  __device__ void store(int row, int column, const float (&values)[4]) const {
    if (row >= rows || column >= result.dim) return;
    if (last) {
      store_quad<Element>(result, row, column, values);
    } else {
      store_quad<Float32>(sums, row, column, values);
    }
  }

  // Rows of zeros, where no tile has anything to add.
  template <class Element>
  __device__ void clear() const {
    const int quads = (result.dim + 3) / 4;
    const float zeros[4] = {};
    for (int n = threadIdx.x; n < rows * quads; n += THREADS) {
      store_quad<Element>(result, n / quads, n % quads * 4, zeros);
    }
  }
};

// own[r] += sum_j weights[r][j] other[j]. `other_rows` of the tile have weights.
// RESCALED: sums so far times shared.rescale, in the end times shared.normalise.
template <class Element, bool RESCALED>
__device__ void accumulate_rows(SharedMemory& shared, const Target& target, const Rows& other,
                                uint32_t other_live, int other_rows) {
#pragma unroll 1
  for (int column = 0; column < other.dim; column += CHUNK) {
    Part<Element> part;
    part.fetch(other, 0, column, other_live);
    __syncthreads();  // what lay in shared memory has been used by all, new weights are there
    part.store(shared.other, [](float x) { return x; });
    __syncthreads();  // the part is there
    const int c = column + part.column();
    float sums[ROUNDS][4];
#pragma unroll
    for (int n = 0; n < ROUNDS; ++n) {
      target.load(part.row(n), c, RESCALED ? shared.rescale[part.row(n)] : 1.0f, sums[n]);
    }
#pragma unroll 1
    for (int j = 0; j < other_rows; j += 4) {
      float4 y[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        y[k] = load_float4(shared.other + (j + k) * CHUNK_STRIDE + part.column());
      }
#pragma unroll
      for (int n = 0; n < ROUNDS; ++n) {
        const float4 w = load_float4(shared.weights + part.row(n) * TILE_STRIDE + j);
        const float of_row[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          sums[n][0] = fmaf(of_row[k], y[k].x, sums[n][0]);
          sums[n][1] = fmaf(of_row[k], y[k].y, sums[n][1]);
          sums[n][2] = fmaf(of_row[k], y[k].z, sums[n][2]);
          sums[n][3] = fmaf(of_row[k], y[k].w, sums[n][3]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < ROUNDS; ++n) {
      if (RESCALED && target.last) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] *= shared.normalise[part.row(n)];
      }
      target.store<Element>(part.row(n), c, sums[n]);
    }
  }
}

// sum_j dS_rj (1 - tanh^2), and if asked for sum_rj dS_rj tanh of the thread's rows.
template <class Element, Range RANGE, bool WITH_V>
__device__ __forceinline__ void add_slopes(float (&sums)[ROUNDS][4], float (&v_sums)[4],
                                           const SharedMemory& shared, const float (&x)[ROUNDS][4],
                                           int first_row, int column, int other_rows) {
#pragma unroll 1
  for (int j = 0; j < other_rows; j += 4) {
    float4 weights[ROUNDS];
#pragma unroll
    for (int n = 0; n < ROUNDS; ++n) {
      weights[n] = load_float4(shared.weights + (first_row + n * PASS) * TILE_STRIDE + j);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float4 y = load_float4(shared.other + (j + k) * CHUNK_STRIDE + column);
      const float of_other[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int n = 0; n < ROUNDS; ++n) {
        const float w[4] = {weights[n].x, weights[n].y, weights[n].z, weights[n].w};
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          float t[2];
          tanh_pair<Element, RANGE>(x[n][i], x[n][i + 1], of_other[i], of_other[i + 1], t[0], t[1]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            sums[n][i + e] = fmaf(w[k], fmaf(-t[e], t[e], 1.0f), sums[n][i + e]);
            if constexpr (WITH_V) v_sums[i + e] = fmaf(w[k], t[e], v_sums[i + e]);
          }
        }
      }
    }
  }
}

// own[r] += v sum_j weights[r][j] (1 - tanh(own[r] + other[j])^2); with `v_target`, whose rows are
// warps, also v_target += sum_rj weights[r][j] tanh(own[r] + other[j]).
template <class Element, bool WITH_V>
__device__ void accumulate_tanh_gradient(SharedMemory& shared, const Target& target,
                                         const Rows& own, uint32_t own_live, const Rows& other,
                                         uint32_t other_live, int other_rows,
                                         const Rows& coefficients, const Target& v_target) {
#pragma unroll 1
  for (int column = 0; column < own.dim; column += CHUNK) {
    // A thread's own elements are the columns that it sums: they need no shared memory.
    Part<Element> mine, part;
    mine.fetch(own, 0, column, own_live);
    part.fetch(other, 0, column, other_live);
    // Shared memory has been used by all.
    const Range range = range_of_block(fmaxf(part.largest(), mine.largest()));
    const int c = column + part.column();
    float sums[ROUNDS][4], v_sums[4] = {};
#pragma unroll
    for (int n = 0; n < ROUNDS; ++n) target.load(part.row(n), c, 1.0f, sums[n]);
    with_range(range, [&](auto known) {
      constexpr Range RANGE = decltype(known)::value;
      part.store(shared.other, prepared<RANGE>);
      float x[ROUNDS][4];
#pragma unroll
      for (int n = 0; n < ROUNDS; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[n][i] = prepared<RANGE>(mine.quads[n][i]);
      }
      __syncthreads();  // the part is there
      add_slopes<Element, RANGE, WITH_V>(sums, v_sums, shared, x, part.row(0), part.column(),
                                         other_rows);
    });
    if (target.last && c < own.dim) {
      const Quad<Float32> v = load_quad<Float32>(coefficients, 0, c);
#pragma unroll
      for (int n = 0; n < ROUNDS; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] *= v[i];
      }
    }
#pragma unroll
    for (int n = 0; n < ROUNDS; ++n) target.store<Element>(part.row(n), c, sums[n]);
    if constexpr (WITH_V) {
      // Of the rows of a warp: eight lanes apart are other rows of the same columns.
      float so_far[4];
      const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v_sums[i] += __shfl_xor_sync(0xFFFFFFFFu, v_sums[i], 8);
        v_sums[i] += __shfl_xor_sync(0xFFFFFFFFu, v_sums[i], 16);
      }
      if (lane < QUADS) {
        v_target.load(warp, c, 1.0f, so_far);
#pragma unroll
        for (int i = 0; i < 4; ++i) v_sums[i] += so_far[i];
        v_target.store<Float32>(warp, c, v_sums);
      }
    }
  }
}

}  // namespace fused_attention::cuda::additive
