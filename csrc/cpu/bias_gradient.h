#pragma once

#include "backward.h"

// Gradient of the additive bias: dS summed over every dimension that the bias broadcasts.
//
// A pass of its own, run only when the bias wants a gradient: one item owns one tile of the bias
// gradient and recomputes the scores of all (batch, head, query, key) tiles that read it. That
// keeps the sum deterministic and needs no memory beyond the tile, whatever is broadcast.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

// What one item owns: a (batch, head) of the bias and a tile of queries and keys; along a
// broadcast dimension the tile stands for the whole length.
struct BiasTile {
  int64_t b, h, q_block, key_block;
};

inline int64_t bias_tiles(const BackwardParams& params) {
  const Bias& bias = params.grad_bias;
  const int64_t q_blocks = bias.size[2] == 1 ? 1 : (bias.size[2] + BLOCK_Q - 1) / BLOCK_Q;
  const int64_t key_blocks = bias.size[3] == 1 ? 1 : (bias.size[3] + BLOCK_KV - 1) / BLOCK_KV;
  return bias.size[0] * bias.size[1] * q_blocks * key_blocks;
}

inline BiasTile bias_tile(const BackwardParams& params, int64_t item) {
  const Bias& bias = params.grad_bias;
  const int64_t q_blocks = bias.size[2] == 1 ? 1 : (bias.size[2] + BLOCK_Q - 1) / BLOCK_Q;
  const int64_t key_blocks = bias.size[3] == 1 ? 1 : (bias.size[3] + BLOCK_KV - 1) / BLOCK_KV;
  BiasTile tile;
  tile.key_block = item % key_blocks;
  item /= key_blocks;
  tile.q_block = item % q_blocks;
  item /= q_blocks;
  tile.h = item % bias.size[1];
  tile.b = item / bias.size[1];
  return tile;
}

// sum[j][q] += dS[j][q] for the step, j counted from the start of the step's block of keys.
template <class T>
inline void add_score_gradients(const KeyStep& step, int64_t key_block, const QueryBlock<T>& block,
                                const T* dS, T* sum) {
  for (int64_t j = 0; j < step.count(); ++j) {
    T* row = sum + (step.begin + j - key_block * BLOCK_KV) * BLOCK_Q;
    for (int64_t q = 0; q < block.rows; ++q) row[q] += dS[j * BLOCK_Q + q];
  }
}

template <class T>
inline void accumulate_bias_tile(const BackwardParams& params, const BiasTile& tile, int64_t b,
                                 int64_t h, BackwardScratch<T>& w, T* sum) {
  const AttentionParams& p = params.forward;
  const bool every_query = params.grad_bias.size[2] != 1, every_key = params.grad_bias.size[3] != 1;
  const int64_t q_blocks = (p.len_q + BLOCK_Q - 1) / BLOCK_Q;
  const int64_t q_first = every_query ? tile.q_block : 0;
  const int64_t q_last = every_query ? tile.q_block + 1 : q_blocks;
  for (int64_t q_block = q_first; q_block < q_last; ++q_block) {
    const QueryBlock<T> block(p, b, h, q_block * BLOCK_Q);
    const int64_t first = block.keys.begin / BLOCK_KV;
    const int64_t last = (block.keys.end + BLOCK_KV - 1) / BLOCK_KV;
    const int64_t key_first = every_key ? max_of(first, tile.key_block) : first;
    const int64_t key_last = every_key ? min_of(last, tile.key_block + 1) : last;
    if (key_first >= key_last) continue;
    load_query_block(params, block, w);
    for (int64_t at = key_first; at < key_last; ++at) {
      const KeyStep step = key_step(at, block);
      const Tile<T> K =
          load_rows(p.key, p.dtype, b, block.h_kv, step.begin, step.count(), p.head_dim, w.K);
      const Tile<T> V =
          load_rows(p.value, p.dtype, b, block.h_kv, step.begin, step.count(), p.value_dim, w.V);
      compute_score_gradients(block, step, K, V, w);
      add_score_gradients(step, at, block, w.dS, sum);
    }
  }
}

inline void store_bias(const Bias& bias, int64_t index, double value) {
  switch (bias.dtype) {
    case DType::FLOAT64:
      static_cast<double*>(bias.data)[index] = value;
      break;
    default: {
      const float narrow = static_cast<float>(value);
      char* at = static_cast<char*>(bias.data) + index * element_size(bias.dtype);
      store_row(&narrow, 1.f, bias.dtype, 1, at);
    }
  }
}

// Sums the tile over its broadcast dimensions and writes every element that the tile owns.
template <class T>
inline void write_bias_tile(const BackwardParams& params, const BiasTile& tile, const T* sum) {
  const Bias& bias = params.grad_bias;
  const bool every_query = bias.size[2] != 1, every_key = bias.size[3] != 1;
  const int64_t rows = every_query ? min_of(BLOCK_Q, bias.size[2] - tile.q_block * BLOCK_Q) : 1;
  const int64_t columns =
      every_key ? min_of(BLOCK_KV, bias.size[3] - tile.key_block * BLOCK_KV) : 1;
  for (int64_t q = 0; q < rows; ++q) {
    for (int64_t j = 0; j < columns; ++j) {
      double total = 0;
      for (int64_t k = every_key ? j : 0; k < (every_key ? j + 1 : BLOCK_KV); ++k) {
        for (int64_t i = every_query ? q : 0; i < (every_query ? q + 1 : BLOCK_Q); ++i) {
          total += static_cast<double>(sum[k * BLOCK_Q + i]);
        }
      }
      const int64_t row = every_query ? tile.q_block * BLOCK_Q + q : 0;
      const int64_t column = every_key ? tile.key_block * BLOCK_KV + j : 0;
      store_bias(bias,
                 tile.b * bias.stride[0] + tile.h * bias.stride[1] + row * bias.stride[2] +
                     column * bias.stride[3],
                 total);
    }
  }
}

// Enough for backward_block too.
template <class T>
inline int64_t bias_gradient_bytes(const AttentionParams& p) {
  return (BackwardScratch<T>::elements(p) + BLOCK_KV * BLOCK_Q) * static_cast<int64_t>(sizeof(T));
}

template <class T>
inline void bias_gradient_tile(const BackwardParams& params, int64_t item, void* memory) {
  const AttentionParams& p = params.forward;
  T* sum = static_cast<T*>(memory);
  for (int64_t i = 0; i < BLOCK_KV * BLOCK_Q; ++i) sum[i] = T(0);
  BackwardScratch<T> w(p, sum + BLOCK_KV * BLOCK_Q);
  const BiasTile tile = bias_tile(params, item);
  const bool every_batch = params.grad_bias.size[0] != 1,
             every_head = params.grad_bias.size[1] != 1;
  for (int64_t b = every_batch ? tile.b : 0; b < (every_batch ? tile.b + 1 : p.batch); ++b) {
    for (int64_t h = every_head ? tile.h : 0; h < (every_head ? tile.h + 1 : p.heads_q); ++h) {
      accumulate_bias_tile(params, tile, b, h, w, sum);
    }
  }
  write_bias_tile(params, tile, sum);
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
