#pragma once

#include "rows.cuh"
#include "tanh.cuh"

// Sums over all columns for each pair of a row of the block's own and one of another tile: scores
// and dO V^T. Thread (ty, tx) of 16 x 16 holds
//
//   S[i][j]   own row ty + 16 i, other row tx + 16 j
//
// For each part of CHUNK columns: load it, wait for all, store it or its exponentials, wait for
// all, multiply. A float4 of shared memory brings four columns of a row; eight of them serve 64
// pairs and columns. Loading is not hidden behind the multiplication of the part before: that would
// take the registers by which two blocks fit on an SM, and the other block has thousands of clocks
// to do.
namespace fused_attention::cuda::additive {

using PairSums = float[PAIRS][PAIRS];

__device__ __forceinline__ int own_of(int i) { return threadIdx.x / APART + i * APART; }
__device__ __forceinline__ int other_of(int j) { return threadIdx.x % APART + j * APART; }

__device__ __forceinline__ void clear(PairSums& S) {
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) S[i][j] = 0.0f;
  }
}

__device__ __forceinline__ void add(PairSums& S, const PairSums& more) {
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) S[i][j] += more[i][j];
  }
}

__device__ __forceinline__ float4 load_float4(const float* shared) {
  return *reinterpret_cast<const float4*>(shared);
}

template <class Element, Range RANGE>
__device__ __forceinline__ void add_scores_of_part(PairSums& S, float& sum_of_v,
                                                   const SharedMemory& shared, int columns) {
  // In 16 bits sums of tanh itself stand beside those of 1 / d, which count -2 in the end.
  constexpr float UNIT = SUMS_TANH<Element, RANGE> && !EXACT<Element> ? -0.5f : 1.0f;
  // fp32: sums of sums, as a thousand columns one after the other would lose digits. In 16 bits
  // nobody would see it, and the registers are scarce.
  PairSums own_sums;
  PairSums& sums = EXACT<Element> ? own_sums : S;
  if (EXACT<Element>) clear(own_sums);
#pragma unroll 1
  for (int c = 0; c < columns; c += 4) {
    const float4 v = load_float4(shared.coefficients + c);
    if (!SUMS_TANH<Element, RANGE>) sum_of_v += (v.x + v.y) + (v.z + v.w);
    float4 y[PAIRS];
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) {
      y[j] = load_float4(shared.other + other_of(j) * CHUNK_STRIDE + c);
    }
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
      const float4 x = load_float4(shared.own + own_of(i) * CHUNK_STRIDE + c);
#pragma unroll
      for (int j = 0; j < PAIRS; ++j) {
        add_score<Element, RANGE>(sums[i][j], x.x, x.y, y[j].x, y[j].y, UNIT * v.x, UNIT * v.y);
        add_score<Element, RANGE>(sums[i][j], x.z, x.w, y[j].z, y[j].w, UNIT * v.z, UNIT * v.w);
      }
    }
  }
  if (EXACT<Element>) add(S, own_sums);
}

// S = sum_d v_d tanh(own_d + other_d), for live rows of the two tiles.
template <class Element>
__device__ void compute_scores(PairSums& S, SharedMemory& shared, const Rows& own,
                               uint32_t own_live, const Rows& other, uint32_t other_live,
                               const Rows& coefficients) {
  float sum_of_v = 0.0f;
  clear(S);
#pragma unroll 1
  for (int column = 0; column < own.dim; column += CHUNK) {
    Part<Element> own_part, other_part;
    own_part.fetch(own, 0, column, own_live);
    other_part.fetch(other, 0, column, other_live);
    // What lay in shared memory has been used by all.
    const Range range = range_of_block(fmaxf(own_part.largest(), other_part.largest()));
    if (threadIdx.x < CHUNK / 4) {
      const int c = static_cast<int>(threadIdx.x) * 4;
      const Quad<Float32> v =
          column + c < own.dim ? load_quad<Float32>(coefficients, 0, column + c) : Quad<Float32>{};
      *reinterpret_cast<float4*>(shared.coefficients + c) = {v[0], v[1], v[2], v[3]};
    }
    with_range(range, [&](auto known) {
      constexpr Range RANGE = decltype(known)::value;
      own_part.store(shared.own, prepared<RANGE>);
      other_part.store(shared.other, prepared<RANGE>);
      __syncthreads();  // both parts are there
      add_scores_of_part<Element, RANGE>(S, sum_of_v, shared, min(CHUNK, own.dim - column));
    });
  }
  if constexpr (!EXACT<Element>) {
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
#pragma unroll
      for (int j = 0; j < PAIRS; ++j) S[i][j] = fmaf(-2.0f, S[i][j], sum_of_v);
    }
  }
}

// S = own other^T
template <class Element>
__device__ void multiply_rows(PairSums& S, SharedMemory& shared, const Rows& own, uint32_t own_live,
                              const Rows& other, uint32_t other_live) {
  clear(S);
#pragma unroll 1
  for (int column = 0; column < own.dim; column += CHUNK) {
    Part<Element> own_part, other_part;
    own_part.fetch(own, 0, column, own_live);
    other_part.fetch(other, 0, column, other_live);
    __syncthreads();  // what lay in shared memory has been used by all
    own_part.store(shared.own, [](float x) { return x; });
    other_part.store(shared.other, [](float x) { return x; });
    __syncthreads();  // both parts are there
#pragma unroll 1
    for (int c = 0; c < min(CHUNK, own.dim - column); c += 4) {
      float4 y[PAIRS];
#pragma unroll
      for (int j = 0; j < PAIRS; ++j) {
        y[j] = load_float4(shared.other + other_of(j) * CHUNK_STRIDE + c);
      }
#pragma unroll
      for (int i = 0; i < PAIRS; ++i) {
        const float4 x = load_float4(shared.own + own_of(i) * CHUNK_STRIDE + c);
#pragma unroll
        for (int j = 0; j < PAIRS; ++j) {
          S[i][j] = fmaf(x.x, y[j].x, S[i][j]);
          S[i][j] = fmaf(x.y, y[j].y, S[i][j]);
          S[i][j] = fmaf(x.z, y[j].z, S[i][j]);
          S[i][j] = fmaf(x.w, y[j].w, S[i][j]);
        }
      }
    }
  }
}

__device__ __forceinline__ void store_weights(float* weights, const PairSums& W) {
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) weights[own_of(i) * TILE_STRIDE + other_of(j)] = W[i][j];
  }
}

}  // namespace fused_attention::cuda::additive
