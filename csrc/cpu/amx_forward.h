#pragma once

#include "amx_softmax.h"

// Forward on tiles, 32 queries of one head at a time:
//
//   for each unit u of 64 (or 128) keys that they see, all at once:
//     O^T += V^T P^T of unit u - 1      A = V^T, packed once per key/value head
//     S^T  = K Q^T   of unit u + 1      A = K's rows, B = Q^T, packed once per block of queries
//     P^T  = 2^(factor * S^T - shift)   of unit u: vector work between the tile products
//
// The order of the products matters: the scores of u + 1 replace the weights of u - 1. Bytes that
// are in work, at 64 dims: S and P 16 KB, O 8 KB, Q 4 KB, and the unit's K and V 16 KB. With 128
// dims and more O is larger than a unit's K and V, and 128 keys share one pass over it.
//
// Softcap, bias, ALiBi and dropout need the finished scores: such a problem takes one unit after
// the other, through the functions of scores.h. Masks stop the overlap for the units at the edges.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

constexpr int64_t UNIT_KEYS = 128;  // at most

// The next `count` elements of a thread's tile memory, in whole cache lines.
template <class T>
inline T* take(char*& memory, int64_t count) {
  T* taken = reinterpret_cast<T*>(memory);
  memory += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
  return taken;
}

struct TileForwardScratch {
  float *S, *O, *dropout, *bias;
  half_t* Q;
  SoftmaxState softmax;

  TileForwardScratch(const AttentionParams& p, char* memory) {
    S = take<float>(memory, UNIT_KEYS * BLOCK_Q);
    O = take<float>(memory, round_up(p.value_dim, 32) * UNIT_Q);
    Q = take<half_t>(memory, round_up(p.head_dim, 32) * UNIT_Q);
    dropout = take<float>(memory, BLOCK_KV * BLOCK_Q);
    bias = take<float>(memory, 2 * BLOCK_KV * BLOCK_Q);
    end = memory;
  }
  static int64_t bytes(const AttentionParams& p) {
    return reinterpret_cast<intptr_t>(TileForwardScratch(p, nullptr).end);
  }

 private:
  char* end;
};

// 32 queries as a block of scores.h.
inline QueryBlock<float> narrow_block(const AttentionParams& p, int64_t b, int64_t h,
                                      int64_t q_begin) {
  QueryBlock<float> block(p, b, h, q_begin);
  block.rows = min_of(UNIT_Q, block.rows);
  block.vecs = vectors<float>(block.rows);
  block.keys = band_kv_range(block.seq.band, q_begin, q_begin + block.rows, block.seq.len_k);
  block.full_keys =
      band_full_kv_range(block.seq.band, q_begin, q_begin + block.rows, block.seq.len_k);
  return block;
}

// Then -inf, of a masked score, must not be multiplied by it in the exponent.
inline bool scale_vanishes(const AttentionParams& p) { return static_cast<float>(p.scale) == 0.f; }

// Keys of the granules [begin, begin + count), and where their scores lie.
struct Unit {
  int64_t begin, count;
  float* s;

  int64_t key_begin() const { return begin * GRANULE; }
  int64_t keys() const { return count * GRANULE; }
};

template <class Half>
class TileForward {
 public:
  TileForward(const QueryBlock<float>& block, const PackedKeys& keys, TileForwardScratch& scratch)
      : block_(block),
        p_(block.params),
        keys_(keys),
        w_(scratch),
        key_steps_(round_up(p_.head_dim, 32) / 32),
        value_blocks_(round_up(p_.value_dim, 32) / 32),
        one_by_one_(has_score_terms(p_) || p_.dropout.threshold != 0 || scale_vanishes(p_)) {
    const HalfRows Q = half_rows(p_.query, block.b, block.h, block.q_row());
    pack_lanes(Q, block.rows, p_.head_dim, !one_by_one_ && p_.scale < 0, w_.Q);
    const double magnitude = one_by_one_ ? 1.0 : p_.scale < 0 ? -p_.scale : p_.scale;
    w_.softmax.start(block.rows, static_cast<float>(magnitude * LOG2_E<double>));
    std::memset(w_.O, 0, value_blocks_ * 32 * UNIT_Q * sizeof(float));
    first_ = block.keys.begin / GRANULE;
    last_ = granules_of(block.keys.end);
    unit_granules_ = value_blocks_ >= 4 && !one_by_one_ ? 4 : 2;
  }

  void run() {
    if (first_ >= last_) return;
    one_by_one_ ? run_one_by_one() : run_overlapped();
    pending_.flush();
  }

 private:
  int64_t units() const { return (last_ - first_ + unit_granules_ - 1) / unit_granules_; }
  Unit unit(int64_t u) const {
    const int64_t begin = first_ + u * unit_granules_;
    return {begin, min_of(unit_granules_, last_ - begin), w_.S + u % 2 * UNIT_Q};
  }
  bool cut(const Unit& unit) const {
    return unit.key_begin() < block_.full_keys.begin ||
           unit.key_begin() + unit.keys() > block_.full_keys.end;
  }
  void mask(const Unit& unit) const {
    mask_unit(block_.seq.band, block_.q_begin, unit.key_begin(), unit.keys(), block_.seq.len_k,
              UNIT_Q, unit.s);
  }

  template <class Between>
  void multiply_keys(const Unit& unit, Between& between) {
    const TileOperand Q{w_.Q, 2 * TILE_HALVES, 4 * TILE_HALVES, 64};
    for (int64_t g = 0; g < unit.count; ++g) {
      const TileSum S{unit.s + g * GRANULE * BLOCK_Q, 16 * ROW_BYTES, 64, ROW_BYTES};
      multiply_block<Half, 2>(keys_.key_rows(unit.begin + g), Q, key_steps_, S, false, pending_,
                              between);
    }
  }
  template <class Between>
  void multiply_values(const Unit& unit, Between& between) {
    const TileOperand P{unit.s, 64, GRANULE * ROW_BYTES, 2 * ROW_BYTES};
    for (int64_t block = 0; block < value_blocks_; ++block) {
      const TileSum O{w_.O + block * 1024, 2048, 1024, 64};
      multiply_block<Half, 2>(keys_.value_columns(unit.begin, block), P, unit.count, O, true,
                              pending_, between);
    }
  }

  // One step of the pipeline; `before` and `after` are null at its ends.
  template <int STEPS>
  void overlap(const Unit* before, const Unit& now, const Unit* after) {
    WeightsBetween<Half, STEPS> weights(now.s, now.count, factor_, w_.softmax);
    if (before != nullptr) multiply_values(*before, weights);
    if (after != nullptr) multiply_keys(*after, weights);
    weights.finish();
  }
  // Spreads the pairs of keys evenly over the groups of four products.
  void overlap(const Unit* before, const Unit& now, const Unit* after) {
    const int64_t groups = (before != nullptr ? before->count * value_blocks_ : 0) +
                           (after != nullptr ? after->count * key_steps_ : 0);
    const int64_t pairs = now.count * 32;
    if (groups >= pairs) return overlap<1>(before, now, after);
    if (2 * groups >= pairs) return overlap<2>(before, now, after);
    if (4 * groups >= pairs) return overlap<4>(before, now, after);
    if (8 * groups >= pairs) return overlap<8>(before, now, after);
    overlap<16>(before, now, after);
  }

  void run_overlapped() {
    NothingBetween nothing;
    const int64_t count = units();
    Unit now = unit(0), before = now;
    keys_.prepare(now.begin, now.begin + now.count);
    multiply_keys(now, nothing);
    for (int64_t u = 0; u < count; ++u) {
      const bool has_next = u + 1 < count;
      const Unit after = has_next ? unit(u + 1) : now;
      if (has_next) keys_.prepare(after.begin, after.begin + after.count);
      // Else the last scores of the unit are stored by the first products below, just before the
      // weights that are computed between those need them.
      if (cut(now) || !w_.softmax.every_row_seen()) pending_.flush();
      if (cut(now)) mask(now);
      if (!w_.softmax.every_row_seen()) {
        update_shift(now.s, now.keys(), false, value_blocks_ * 32, w_.O, w_.softmax);
      }
      choose_factor(now);
      overlap(u > 0 ? &before : nullptr, now, has_next ? &after : nullptr);
      if (w_.softmax.outgrown()) redo(now);
      w_.softmax.finish_unit();
      before = now;
      now = after;
    }
    multiply_values(before, nothing);
  }

  // Some weight has grown too large: a new shift, and the unit's weights from its scores again.
  void redo(const Unit& unit) {
    NothingBetween nothing;
    multiply_keys(unit, nothing);
    pending_.flush();
    if (cut(unit)) mask(unit);
    update_shift(unit.s, unit.keys(), true, value_blocks_ * 32, w_.O, w_.softmax);
    for (float& sum : w_.softmax.unit_sum) sum = 0.f;
    choose_factor(unit);
    WeightsBetween<Half, 16>(unit.s, unit.count, factor_, w_.softmax).finish();
  }

  // See EXACT_PRODUCTS.
  void choose_factor(const Unit& unit) {
    factor_ = w_.softmax.factor;
    if (!w_.softmax.large_shift()) return;
    pending_.flush();
    scale_tile(factor_, unit.keys(), UNIT_Q / Vec<float>::WIDTH, unit.s);
    factor_ = 1.f;
  }

  void run_one_by_one() {
    NothingBetween nothing;
    for (int64_t u = 0; u < units(); ++u) {
      const Unit now = unit(u);
      keys_.prepare(now.begin, now.begin + now.count);
      multiply_keys(now, nothing);
      pending_.flush();
      const KeyStep step{now.key_begin(), min_of(now.key_begin() + now.keys(), block_.seq.len_k)};
      finish_scores_of(now, step);
      update_shift(now.s, now.keys(), true, value_blocks_ * 32, w_.O, w_.softmax);
      choose_factor(now);
      if (p_.dropout.threshold != 0) {
        dropout_factors(block_, step, w_.dropout);
        weights_with_dropout<Half>(now.s, w_.dropout, now.count, factor_, w_.softmax);
      } else {
        WeightsBetween<Half, 16>(now.s, now.count, factor_, w_.softmax).finish();
      }
      w_.softmax.finish_unit();
      multiply_values(now, nothing);
      pending_.flush();
    }
  }
  void finish_scores_of(const Unit& unit, const KeyStep& step) {
    scale_tile(static_cast<float>(p_.scale), unit.keys(), UNIT_Q / Vec<float>::WIDTH, unit.s);
    const int64_t lanes = block_.vecs * Vec<float>::WIDTH;
    if (p_.softcap > 0) {
      apply_softcap<float>(static_cast<float>(p_.softcap), step.count(), lanes, unit.s, nullptr);
    }
    if (p_.bias.data != nullptr) {
      add_bias(block_, step, unit.s, w_.bias, w_.bias + BLOCK_Q * BLOCK_KV);
    }
    if (p_.alibi_slopes != nullptr) add_alibi(block_, step, lanes, unit.s);
    if (cut(unit)) mask(unit);
  }

  const QueryBlock<float>& block_;
  const AttentionParams& p_;
  const PackedKeys& keys_;
  TileForwardScratch& w_;
  int64_t key_steps_, value_blocks_;
  bool one_by_one_;
  int64_t first_, last_, unit_granules_;
  float factor_ = 1.f;  // of the unit in work, as its scores lie
  PendingTiles pending_;
};

// lse of 16 queries from lane q on, and what their O is multiplied by. A sink is a key with score
// `sink` and value 0; it is added at the end, where the larger of it and the shift is known. A
// query that saw no key has l = 0; one that saw nothing but NaN may have no shift, but its sum is
// NaN.
struct QueryStatistics {
  __m512 lse, factor;
};
inline QueryStatistics finish_statistics(const SoftmaxState& softmax, int64_t q, float sink) {
  const __m512 none = _mm512_set1_ps(NEG_INFINITY<float>);
  const __m512 weights = _mm512_load_ps(softmax.sum + q);
  const __mmask16 seen = static_cast<__mmask16>(softmax.seen >> q) |
                         _mm512_cmp_ps_mask(weights, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  const __m512 sink_exponent = _mm512_set1_ps(sink * LOG2_E<float>);
  const __m512 shift = _mm512_mask_mov_ps(none, seen, _mm512_load_ps(softmax.shift + q));
  const __m512 top = _mm512_max_ps(
      _mm512_roundscale_ps(sink_exponent, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC), shift);
  const __mmask16 any = _mm512_cmp_ps_mask(top, none, _CMP_NEQ_UQ);
  const __m512 power = _mm512_maskz_sub_ps(seen, shift, top);
  const __m512 sum = _mm512_maskz_scalef_ps(seen, weights, power);
  const Vec<float> of_sink = exp2_for_half({_mm512_sub_ps(sink_exponent, top)});
  const __m512 l = _mm512_add_ps(sum, _mm512_maskz_mov_ps(any, of_sink.v));
  return {_mm512_mask_mov_ps(none, any, natural_log(l, top)),
          _mm512_maskz_div_ps(seen, _mm512_scalef_ps(_mm512_set1_ps(1.f), power), l)};
}

// out = O / l in the dtype, and lse, of 32 queries.
template <class Half>
inline void write_queries(const QueryBlock<float>& block, const TileForwardScratch& w) {
  const AttentionParams& p = block.params;
  const float sink =
      p.sinks != nullptr ? static_cast<const float*>(p.sinks)[block.h] : NEG_INFINITY<float>;
  alignas(64) float lse[16];
  for (int64_t q = 0; q < block.rows; q += 16) {
    const QueryStatistics statistics = finish_statistics(w.softmax, q, sink);
    const int64_t count = min_of(16, block.rows - q), row = block.q_row() + q;
    _mm512_store_ps(lse, statistics.lse);
    for (int64_t i = 0; i < count; ++i) {
      *row_value<float>(p.lse, block.b, block.h, row + i) = lse[i];
    }
    const auto O = [&](int64_t d) { return w.O + d / 16 * 512 + q * 16 + d % 16 * 16; };
    write_lanes<Half>(O, {statistics.factor}, count, p.value_dim,
                      half_rows(p.out, block.b, block.h, row));
  }
}

// Queries [q_begin, q_end) of one head, the last first: under a causal mask they see most keys.
template <class Half>
inline void forward_on_tiles(const AttentionParams& p, int64_t b, int64_t h, int64_t q_begin,
                             int64_t q_end, const PackedHead& head, void* memory) {
  TileForwardScratch w(p, static_cast<char*>(memory));
  const Sequence seq = sequence_of(p, b);
  const PackedKeys keys(p, seq, b, h / (p.heads_q / p.heads_kv), PackedKeys::FORWARD, head);
  const TileScope tiles;
  q_end = min_of(q_end, seq.len_q);
  for (int64_t q = q_begin + (q_end - 1 - q_begin) / UNIT_Q * UNIT_Q; q >= q_begin; q -= UNIT_Q) {
    const QueryBlock<float> block = narrow_block(p, b, h, q);
    TileForward<Half>(block, keys, w).run();
    write_queries<Half>(block, w);
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
