#pragma once

#include "fused_attention/additive_params.h"
#include "tanh_sums.h"

// What the forward and the backward pass share: a block of queries of one head, and its scores.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA::additive {

// Buffers of `rows` rows each, taken one after the other from a thread's scratch memory.
template <class T>
struct Memory {
  T* at;

  T* take(int64_t count) {
    T* taken = at;
    at += count;
    return taken;
  }
};

// v of a head in whole vectors, zero in the padding.
template <class T>
struct ScoreVector {
  T* v;
  bool large = false;  // whether products with it could overflow

  ScoreVector(const AdditiveParams& p, int64_t h, Memory<T>& memory)
      : v(memory.take(padded_dim<T>(p.attention.head_dim))) {
    const int64_t dim = p.attention.head_dim;
    const T* given = static_cast<const T*>(p.v) + h * dim;
    for (int64_t d = 0; d < padded_dim<T>(dim); ++d) {
      v[d] = d < dim ? given[d] : T(0);
      large |= v[d] > Limits<T>::LARGEST_V || v[d] < -Limits<T>::LARGEST_V;
    }
  }
};

template <class T>
struct QueryBlock {
  const AttentionParams& p;
  int64_t b, h, begin, rows;
  Sequence seq;
  Range keys;  // that any of the queries sees

  QueryBlock(const AttentionParams& params, int64_t b_, int64_t h_, int64_t q_begin)
      : p(params), b(b_), h(h_), begin(q_begin), rows(min_of(BLOCK_Q, params.len_q - q_begin)) {
    seq = sequence_of(p, b);
    keys = band_kv_range(seq.band, begin, begin + rows, seq.len_k);
  }

  // Keys of the tile [k_begin, k_end) that query `q` of the block sees, counted from k_begin.
  Range visible(int64_t q, int64_t k_begin, int64_t k_end) const {
    const Range seen = band_kv_range(seq.band, begin + q, begin + q + 1, k_end);
    const int64_t first = max_of(seen.begin, k_begin);
    return first < seen.end ? Range{first - k_begin, seen.end - k_begin} : Range{};
  }
};

// dst = src * v, row by row.
template <class T>
inline void multiply_rows(const T* src, const T* v, int64_t rows, int64_t dim, T* dst) {
  using V = Vec<T>;
  for (int64_t at = 0; at < rows * row_stride<T>(dim); at += row_stride<T>(dim)) {
    for (int64_t d = 0; d < padded_dim<T>(dim); d += V::WIDTH) {
      (V::load(src + at + d) * V::load(v + d)).store(dst + at + d);
    }
  }
}

// Projections of a block of queries and of a tile of keys, exponentiated where that is safe.
template <class T>
class Projections {
 public:
  static int64_t elements(const AttentionParams& p) {
    return (3 * BLOCK_Q + BLOCK_KV) * row_stride<T>(p.head_dim);
  }

  Projections(const QueryBlock<T>& block, const ScoreVector<T>& v, Memory<T>& memory)
      : block_(block),
        stored_(memory.take(BLOCK_Q * row_stride<T>(block.p.head_dim))),
        times_v_(memory.take(BLOCK_Q * row_stride<T>(block.p.head_dim))),
        plain_(memory.take(BLOCK_Q * row_stride<T>(block.p.head_dim))),
        keys_(memory.take(BLOCK_KV * row_stride<T>(block.p.head_dim))) {
    const T bound = load_queries(stored_);
    exact_block_ = bound > Limits<T>::BOUND || v.large;
    if (exact_block_) return;
    exponentiate<T>(block.rows, block.p.head_dim, stored_);
    multiply_rows(stored_, v.v, block.rows, block.p.head_dim, times_v_);
  }

  void load_keys(int64_t begin, int64_t end) {
    const AttentionParams& p = block_.p;
    const T bound =
        load_projections(p.key, p.dtype, block_.b, block_.h, begin, end - begin, p.head_dim, keys_);
    exact_ = exact_block_ || bound > Limits<T>::BOUND;
    if (!exact_) exponentiate<T>(end - begin, p.head_dim, keys_);
    if (exact_ && !exact_block_ && !has_plain_) {
      load_queries(plain_);
      has_plain_ = true;
    }
  }

  bool exact() const { return exact_; }
  const T* queries() const { return exact_ && !exact_block_ ? plain_ : stored_; }
  const T* queries_times_v() const { return times_v_; }
  const T* keys() const { return keys_; }

 private:
  T load_queries(T* dst) {
    const AttentionParams& p = block_.p;
    return load_projections(p.query, p.dtype, block_.b, block_.h, block_.begin, block_.rows,
                            p.head_dim, dst);
  }

  const QueryBlock<T>& block_;
  T *stored_, *times_v_, *plain_, *keys_;
  bool exact_block_ = false, exact_ = false, has_plain_ = false;
};

// Scores of the loaded keys, -inf where a query does not see the key, to whole vectors.
template <class T>
inline void compute_scores(const QueryBlock<T>& block, const Projections<T>& x, int64_t k_begin,
                           int64_t k_end, const ScoreVector<T>& v, T* S) {
  const int64_t columns = k_end - k_begin, dim = block.p.head_dim;
  const auto tile = x.exact() ? score_tile<T, true> : score_tile<T, false>;
  tile(x.queries(), x.queries_times_v(), block.rows, x.keys(), columns, v.v, dim, S);
  const int64_t width = vectors<T>(columns) * Vec<T>::WIDTH;
  for (int64_t q = 0; q < block.rows; ++q) {
    const Range seen = block.visible(q, k_begin, k_end);
    T* row = S + q * BLOCK_KV;
    for (int64_t j = 0; j < seen.begin; ++j) row[j] = NEG_INFINITY<T>;
    for (int64_t j = seen.end; j < width; ++j) row[j] = NEG_INFINITY<T>;
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA::additive
