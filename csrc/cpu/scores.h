#pragma once

#include "gemm.h"
#include "tiles.h"

// Scores of one tile, S^T [keys][queries]: scale, softcap, bias, ALiBi, mask; and dropout.
// Forward, backward and the bias gradient all come through compute_scores, so they cannot differ.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

// One block of queries of one head: what every tile of its walk over the keys shares.
template <class T>
struct QueryBlock {
  const AttentionParams& params;
  Sequence seq;
  int64_t b, h, h_kv;
  int64_t q_begin, rows;  // inside the sequence
  int64_t vecs;           // vectors of queries
  Range keys;             // visible to any of them
  Range full_keys;        // visible to all of them: no mask needed inside
  T slope = T(0);         // ALiBi

  // `most`: how many rows the block has, unless the sequence ends before.
  QueryBlock(const AttentionParams& p, int64_t b_, int64_t h_, int64_t q_begin_,
             int64_t most = BLOCK_Q)
      : params(p),
        seq(sequence_of(p, b_)),
        b(b_),
        h(h_),
        h_kv(h_ / (p.heads_q / p.heads_kv)),
        q_begin(q_begin_),
        rows(min_of(most, seq.len_q - q_begin_)),
        vecs(vectors<T>(rows)),
        keys(band_kv_range(seq.band, q_begin, q_begin + rows, seq.len_k)),
        full_keys(band_full_kv_range(seq.band, q_begin, q_begin + rows, seq.len_k)) {
    if (p.alibi_slopes != nullptr) slope = T(p.alibi_slopes[b * p.alibi_batch + h]);
  }

  int64_t q_row() const { return seq.q_start + q_begin; }  // in the tensor
};

// Keys [begin, end) of one step. Steps lie on a fixed grid of BLOCK_KV keys, so that backward's
// order of accumulation does not depend on the queries; inside the first one the keys before the
// band are left out in groups of 32, which is what one dropout call serves.
struct KeyStep {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

template <class T>
inline KeyStep key_step(int64_t at, const QueryBlock<T>& block) {
  return {max_of(at * BLOCK_KV, block.keys.begin / 32 * 32),
          min_of((at + 1) * BLOCK_KV, block.keys.end)};
}

inline float tanh_of(float x) { return tanhf(x); }
inline double tanh_of(double x) { return ::tanh(x); }

// s <- cap * tanh(s / cap). `slope_out`, when given, receives the derivative 1 - tanh^2.
template <class T>
inline void apply_softcap(T cap, int64_t count, int64_t lanes, T* s, T* slope_out) {
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t q = 0; q < lanes; ++q) {
      const T t = tanh_of(s[j * BLOCK_Q + q] / cap);
      s[j * BLOCK_Q + q] = cap * t;
      if (slope_out != nullptr) slope_out[j * BLOCK_Q + q] = T(1) - t * t;
    }
  }
}

template <class T>
inline T load_bias(const Bias& bias, int64_t index) {
  switch (bias.dtype) {
    case DType::FLOAT64:
      return static_cast<T>(static_cast<const double*>(bias.data)[index]);
    case DType::FLOAT32:
      return static_cast<T>(static_cast<const float*>(bias.data)[index]);
    default: {
      float value;
      convert_row(static_cast<const char*>(bias.data) + index * 2, bias.dtype, 1, &value);
      return static_cast<T>(value);
    }
  }
}

// One row of the bias, keys [step.begin, step.end), in the computed type.
template <class T>
inline void load_bias_row(const Bias& bias, int64_t row, const KeyStep& step, T* dst) {
  const int64_t count = step.count();
  if (bias.size[3] == 1) {
    const T value = load_bias<T>(bias, row);
    for (int64_t j = 0; j < count; ++j) dst[j] = value;
  } else if (bias.stride[3] == 1 && (bias.dtype == DType::FLOAT64) == (sizeof(T) == 8) &&
             (sizeof(T) == 4 || bias.dtype == DType::FLOAT64)) {
    const char* src = static_cast<const char*>(bias.data);
    convert_row(src + (row + step.begin) * element_size(bias.dtype), bias.dtype, count, dst);
  } else {
    for (int64_t j = 0; j < count; ++j) {
      dst[j] = load_bias<T>(bias, row + (step.begin + j) * bias.stride[3]);
    }
  }
}

// s += bias. The tile is read by rows into `rows`, turned to lanes = queries in `lanes_buffer`;
// a bias that is the same for every query is one row, added as scalars.
template <class T>
inline void add_bias(const QueryBlock<T>& block, const KeyStep& step, T* s, T* rows,
                     T* lanes_buffer) {
  using V = Vec<T>;
  const Bias& bias = block.params.bias;
  const int64_t base = block.b * bias.stride[0] + block.h * bias.stride[1];
  const bool every_query = bias.size[2] != 1;
  for (int64_t q = 0; q < (every_query ? block.rows : 1); ++q) {
    load_bias_row(bias, base + (block.q_begin + q) * bias.stride[2], step, rows + q * BLOCK_KV);
  }
  if (every_query) transpose(rows, BLOCK_KV, block.rows, step.count(), lanes_buffer, BLOCK_Q);
  for (int64_t j = 0; j < step.count(); ++j) {
    const V same = V::broadcast(rows[j]);
    for (int64_t n = 0; n < block.vecs; ++n) {
      const int64_t at = j * BLOCK_Q + n * V::WIDTH;
      const V added = every_query ? V::load(lanes_buffer + at) : same;
      (V::load(s + at) + added).store(s + at);
    }
  }
}

// s -= slope * |i + offset - j|
template <class T>
inline void add_alibi(const QueryBlock<T>& block, const KeyStep& step, int64_t lanes, T* s) {
  const int64_t diagonal = block.q_begin + block.seq.band.offset;
  for (int64_t j = 0; j < step.count(); ++j) {
    const int64_t distance = diagonal - (step.begin + j);
    for (int64_t q = 0; q < lanes; ++q) {
      const int64_t d = distance + q;
      s[j * BLOCK_Q + q] -= block.slope * static_cast<T>(d < 0 ? -d : d);
    }
  }
}

// -inf where the query does not see the key: for key j the visible queries are an interval.
template <class T>
inline void mask_scores(const QueryBlock<T>& block, const KeyStep& step, int64_t lanes, T* s) {
  const Band& band = block.seq.band;
  for (int64_t j = 0; j < step.count(); ++j) {
    const int64_t first = step.begin + j - band.right - band.offset - block.q_begin;
    const int64_t last = step.begin + j + band.left - band.offset - block.q_begin;
    const int64_t begin = min_of(max_of(first, 0), lanes);
    const int64_t end = max_of(min_of(last + 1, lanes), begin);
    T* row = s + j * BLOCK_Q;
    for (int64_t q = 0; q < begin; ++q) row[q] = NEG_INFINITY<T>;
    for (int64_t q = end; q < lanes; ++q) row[q] = NEG_INFINITY<T>;
  }
}

// Whether scores are more than scale * Q K^T: then they are finished one step after the other, else
// the scale can wait for the exponent.
inline bool has_score_terms(const AttentionParams& p) {
  return p.softcap > 0 || p.bias.data != nullptr || p.alibi_slopes != nullptr;
}

// From scale * Q K^T to the final scores: softcap, bias, ALiBi, mask. bias_buffers holds two tiles.
// `lanes` of s are changed, and where there is a bias whole vectors of them.
template <class T>
inline void finish_lanes(const QueryBlock<T>& block, const KeyStep& step, int64_t lanes, T* s,
                         T* softcap_slope, T* bias_buffers) {
  const AttentionParams& p = block.params;
  if (p.softcap > 0) apply_softcap(T(p.softcap), step.count(), lanes, s, softcap_slope);
  if (p.bias.data != nullptr) {
    add_bias(block, step, s, bias_buffers, bias_buffers + BLOCK_Q * BLOCK_KV);
  }
  if (p.alibi_slopes != nullptr) add_alibi(block, step, lanes, s);
  if (step.begin < block.full_keys.begin || step.end > block.full_keys.end) {
    mask_scores(block, step, lanes, s);
  }
}

template <class T>
inline void finish_scores(const QueryBlock<T>& block, const KeyStep& step, T* s, T* softcap_slope,
                          T* bias_buffers) {
  finish_lanes(block, step, block.vecs * Vec<T>::WIDTH, s, softcap_slope, bias_buffers);
}

// S^T of one step into s [BLOCK_KV][BLOCK_Q]. Q_lanes = Q^T * scale, K holds the step's rows. The
// unused lanes of the last block end up with anything, NaN included: nothing ever reads across
// lanes, and products over queries stop at block.rows.
template <class T>
inline void compute_scores(const QueryBlock<T>& block, const KeyStep& step, const Tile<T>& K,
                           const T* Q_lanes, T* s, T* softcap_slope, T* bias_buffers) {
  gemm<T, AOrder::ROWS, false>(step.count(), block.vecs, block.params.head_dim, K.data, K.ld,
                               Q_lanes, BLOCK_Q, s, BLOCK_Q);
  finish_scores(block, step, s, softcap_slope, bias_buffers);
}

// What each weight of the step is multiplied by: 0 (dropped) or 1 / keep_probability.
// step.begin is a multiple of 32, so each call's eight keys are wanted or beyond the end together.
template <class T>
inline void dropout_factors(const QueryBlock<T>& block, const KeyStep& step, T* factor) {
  const Dropout& dropout = block.params.dropout;
  const uint32_t stream = static_cast<uint32_t>(block.b * block.params.heads_q + block.h);
  const uint32_t q_begin = static_cast<uint32_t>(block.q_begin);
  const int64_t lanes = block.vecs * Vec<T>::WIDTH;
  const T keep = T(dropout.keep_scale);
  uint32_t words[4][BLOCK_Q];
  for (int64_t group = step.begin; group < step.end; group += 32) {
    for (int64_t pair = 0; pair < 8; pair += 2) {
      const uint32_t call = dropout_call(group + pair);
      for (int64_t q = 0; q < lanes; ++q) {
        const PhiloxWords w = philox4x32(call, q_begin + static_cast<uint32_t>(q), stream,
                                         dropout.offset, dropout.seed[0], dropout.seed[1]);
        for (int i = 0; i < 4; ++i) words[i][q] = w.word[i];
      }
      for (int64_t in_call = 0; in_call < 8; ++in_call) {
        const int64_t j = group + (in_call >> 1) * 8 + pair + (in_call & 1) - step.begin;
        if (j >= step.count()) continue;
        const int shift = static_cast<int>(in_call & 1) * 16;
        const uint32_t* word = words[in_call >> 1];
        for (int64_t q = 0; q < lanes; ++q) {
          factor[j * BLOCK_Q + q] = (word[q] >> shift & 0xFFFFu) >= dropout.threshold ? keep : T(0);
        }
      }
    }
  }
}

template <class T>
inline void scale_tile(T factor, int64_t count, int64_t vecs, T* x) {
  using V = Vec<T>;
  const V scale = V::broadcast(factor);
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t n = 0; n < vecs; ++n) {
      const int64_t at = j * BLOCK_Q + n * V::WIDTH;
      (V::load(x + at) * scale).store(x + at);
    }
  }
}

template <class T>
inline void multiply_tile(const T* factor, int64_t count, int64_t vecs, T* x) {
  using V = Vec<T>;
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t n = 0; n < vecs; ++n) {
      const int64_t at = j * BLOCK_Q + n * V::WIDTH;
      (V::load(x + at) * V::load(factor + at)).store(x + at);
    }
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
