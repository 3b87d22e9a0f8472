#pragma once

#include "amx_forward.h"
#include "backward.h"

// Backward on tiles: the walk, the turns and the fp32 sums of backward.h, with blocks of 64 queries
// and steps of 64 keys.
//
//   S^T [keys][queries]  = K Q^T      A = K's rows    B = Q^T
//   dP^T [keys][queries] = V dO^T     A = V's rows    B = dO^T
//   dV [keys][dims]     += P^T dO     A = P^T rows    B = dO, pairs of queries
//   dK [keys][dims]     += dS^T Q     A = dS^T rows   B = Q, pairs of queries
//   dQ^T [dims][queries] += K^T dS^T  A = K^T         B = dS^T, pairs of keys
//
// P and dS are rounded to the dtype for the three products that they enter. dS stays without the
// scale, which dQ and dK get when they are written.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

struct TileBackwardScratch {
  half_t *Q_lanes, *Q_pairs, *dO_rows, *dO_lanes, *dO_pairs;
  half_t *P_rows, *dS_rows, *dS_pairs;
  float *dQ_lanes, *S, *dP, *slope, *dropout, *bias, *sums;
  alignas(64) float lse[BLOCK_Q];
  alignas(64) float delta[BLOCK_Q];

  TileBackwardScratch(const AttentionParams& p, char* memory) {
    const int64_t qk = round_up(p.head_dim, 32), v = round_up(p.value_dim, 32);
    Q_lanes = take<half_t>(memory, BLOCK_Q * qk);
    Q_pairs = take<half_t>(memory, BLOCK_Q * qk);
    dO_rows = take<half_t>(memory, BLOCK_Q * v);
    dO_lanes = take<half_t>(memory, BLOCK_Q * v);
    dO_pairs = take<half_t>(memory, BLOCK_Q * v);
    P_rows = take<half_t>(memory, BLOCK_KV * BLOCK_Q);
    dS_rows = take<half_t>(memory, BLOCK_KV * BLOCK_Q);
    dS_pairs = take<half_t>(memory, BLOCK_KV * BLOCK_Q);
    dQ_lanes = take<float>(memory, BLOCK_Q * qk);
    sums = take<float>(memory, BLOCK_KV * max_of(qk, v));
    S = take<float>(memory, BLOCK_KV * BLOCK_Q);
    dP = take<float>(memory, BLOCK_KV * BLOCK_Q);
    slope = take<float>(memory, BLOCK_KV * BLOCK_Q);
    dropout = take<float>(memory, BLOCK_KV * BLOCK_Q);
    bias = take<float>(memory, 2 * BLOCK_KV * BLOCK_Q);
    end = memory;
  }
  static int64_t bytes(const AttentionParams& p) {
    return reinterpret_cast<intptr_t>(TileBackwardScratch(p, nullptr).end);
  }

 private:
  char* end;
};

template <class Half>
class TileBackward {
 public:
  TileBackward(const BackwardParams& params, const QueryBlock<float>& block, const PackedKeys& keys,
               TileBackwardScratch& scratch)
      : params_(params),
        p_(params.forward),
        block_(block),
        keys_(keys),
        w_(scratch),
        key_blocks_(round_up(p_.head_dim, 32) / 32),
        value_blocks_(round_up(p_.value_dim, 32) / 32),
        q_end_(round_up(block.rows, UNIT_Q)),
        scale_first_(has_score_terms(p_) || scale_vanishes(p_)) {
    load_queries();
    std::memset(w_.dQ_lanes, 0, key_blocks_ * 32 * BLOCK_Q * sizeof(float));
  }

  // `turns`: see backward_block.
  void run(int32_t* turns) {
    const int64_t group_head = block_.h % (p_.heads_q / p_.heads_kv);
    for (int64_t at = block_.keys.begin / BLOCK_KV; at * BLOCK_KV < block_.keys.end; ++at) {
      step_ = {at * BLOCK_KV, min_of((at + 1) * BLOCK_KV, block_.keys.end)};
      granule_ = at * BLOCK_KV / GRANULE;
      granules_ = granules_of(step_.count());
      keys_.prepare(granule_, granule_ + granules_);
      multiply_scores();
      finish_scores_of_step();
      p_.softcap > 0 || p_.dropout.threshold != 0 ? round_gradients<true>()
                                                  : round_gradients<false>();
      const Turnstile turnstile(turns, block_.seq, group_head, block_.q_begin / BLOCK_Q, at);
      turnstile.wait();
      accumulate(turnstile, w_.P_rows, w_.dO_pairs, p_.value_dim, params_.value_sum);
      accumulate(turnstile, w_.dS_rows, w_.Q_pairs, p_.head_dim, params_.key_sum);
      turnstile.leave();
      multiply_query_gradient();
    }
    write_gradients();
  }

 private:
  static constexpr int64_t TILE_BYTES = TILE_HALVES * sizeof(half_t);
  static constexpr int64_t HALF_ROW = BLOCK_Q * sizeof(half_t);  // of P_rows and dS_rows

  // dO, 0 where the row saw no key; Q and dO as lanes and as pairs; lse and delta.
  void load_queries() {
    const int64_t ld = round_up(p_.value_dim, 32);
    const HalfRows dO = half_rows(params_.grad_out, block_.b, block_.h, block_.q_row());
    const HalfRows O = half_rows(p_.out, block_.b, block_.h, block_.q_row());
    for (int64_t q = 0; q < BLOCK_Q; ++q) {
      w_.lse[q] = -NEG_INFINITY<float>;
      w_.delta[q] = 0.f;
      if (q >= block_.rows) continue;
      load_row(q, dO.data + q * dO.ld, O.data + q * O.ld, w_.dO_rows + q * ld);
      const float magnitude = w_.lse[q] < 0 ? -w_.lse[q] : w_.lse[q];
      scale_first_ |= magnitude >= EXACT_PRODUCTS && magnitude < -NEG_INFINITY<float>;
    }
    // The signs of Q^T are changed so that the factor is positive: scores may be -inf.
    const bool flip = !scale_first_ && p_.scale < 0;
    factor_ = scale_first_ ? 1.f : static_cast<float>(flip ? -p_.scale : p_.scale);
    pack_queries(half_rows(p_.query, block_.b, block_.h, block_.q_row()), p_.head_dim, flip,
                 w_.Q_lanes, w_.Q_pairs);
    pack_queries({w_.dO_rows, ld}, p_.value_dim, false, w_.dO_lanes, w_.dO_pairs);
  }
  void load_row(int64_t q, const half_t* dO, const half_t* O, half_t* dO_row) {
    const float lse = *row_value<float>(p_.lse, block_.b, block_.h, block_.q_row() + q);
    const bool dead = lse == NEG_INFINITY<float>;
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t d = 0; d < p_.value_dim; d += 32) {
      const __mmask32 dims = dead ? 0 : first_halves(p_.value_dim - d);
      const __m512i gradient = _mm512_maskz_loadu_epi16(dims, dO + d);
      const __m512i out = _mm512_maskz_loadu_epi16(dims, O + d);
      _mm512_store_si512(dO_row + d, gradient);
      sum[0] = _mm512_fmadd_ps(Half::widen(_mm512_castsi512_si256(gradient)),
                               Half::widen(_mm512_castsi512_si256(out)), sum[0]);
      sum[1] = _mm512_fmadd_ps(Half::widen(_mm512_extracti64x4_epi64(gradient, 1)),
                               Half::widen(_mm512_extracti64x4_epi64(out, 1)), sum[1]);
    }
    if (dead) return;
    w_.lse[q] = lse;
    w_.delta[q] = _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
    if (params_.grad_lse.data != nullptr) {
      w_.delta[q] -= *row_value<float>(params_.grad_lse, block_.b, block_.h, block_.q_row() + q);
    }
  }
  void pack_queries(const HalfRows& x, int64_t dim, bool flip, half_t* lanes, half_t* pairs) {
    const int64_t half = UNIT_Q * round_up(dim, 32);
    for (int64_t q = 0; q < q_end_; q += UNIT_Q) {
      const HalfRows rows{x.data + q * x.ld, x.ld};
      pack_lanes(rows, block_.rows - q, dim, flip, lanes + q / UNIT_Q * half);
      zip_rows_to_tiles(rows, block_.rows - q, dim, pairs + q / UNIT_Q * half);
    }
  }

  // C^T [32 keys][64 queries] of each granule, from its rows and queries as lanes.
  template <class Rows>
  void multiply_lanes(const Rows& rows, const half_t* lanes, int64_t dim_blocks, float* c) {
    for (int64_t g = 0; g < granules_; ++g) {
      for (int64_t q = 0; q < q_end_; q += UNIT_Q) {
        const TileOperand B{lanes + q * dim_blocks * 32, TILE_BYTES, 2 * TILE_BYTES, 64};
        const TileSum C{c + score_index(g * GRANULE, q), 16 * ROW_BYTES, 64, ROW_BYTES};
        multiply_block<Half, 2>(rows(granule_ + g), B, dim_blocks, C, false, pending_, nothing_);
      }
    }
  }
  void multiply_scores() {
    const auto K = [&](int64_t granule) { return keys_.key_rows(granule); };
    const auto V = [&](int64_t granule) { return keys_.value_rows(granule); };
    multiply_lanes(K, w_.Q_lanes, key_blocks_, w_.S);
    multiply_lanes(V, w_.dO_lanes, value_blocks_, w_.dP);
    pending_.flush();
  }

  void finish_scores_of_step() {
    const int64_t keys = granules_ * GRANULE, lanes = block_.vecs * Vec<float>::WIDTH;
    if (scale_first_) {
      scale_tile(static_cast<float>(p_.scale), keys, BLOCK_Q / Vec<float>::WIDTH, w_.S);
    }
    if (p_.softcap > 0) {
      apply_softcap(static_cast<float>(p_.softcap), step_.count(), lanes, w_.S, w_.slope);
    }
    if (p_.bias.data != nullptr) {
      add_bias(block_, step_, w_.S, w_.bias, w_.bias + BLOCK_Q * BLOCK_KV);
    }
    if (p_.alibi_slopes != nullptr) add_alibi(block_, step_, lanes, w_.S);
    if (step_.begin < block_.full_keys.begin || step_.begin + keys > block_.full_keys.end) {
      mask_unit(block_.seq.band, block_.q_begin, step_.begin, keys, block_.seq.len_k, BLOCK_Q,
                w_.S);
    }
    if (p_.dropout.threshold != 0) dropout_factors(block_, step_, w_.dropout);
  }

  struct Gradients {
    Vec<float> P, dS;
  };
  // One key of 16 queries, `rows` of which exist: the others give 0, whatever stands in the
  // buffers.
  template <bool TERMS>
  Gradients gradients_at(int64_t at, __mmask16 rows, Vec<float> minus_lse, Vec<float> delta) const {
    using V = Vec<float>;
    const V below_lse = V::fma(V::load(w_.S + at), V::broadcast(factor_), minus_lse);
    // A weight is at most 1, whatever the rounding of a huge lse makes of it.
    const V exponent = {_mm512_min_ps(_mm512_setzero_ps(), below_lse.v)};
    const V P = exp2_for_half(exponent * V::broadcast(LOG2_E<float>));
    V dP = V::load(w_.dP + at), dropped = P;
    if (TERMS && p_.dropout.threshold != 0) {
      const V kept = V::load(w_.dropout + at);
      dP = dP * kept;
      dropped = P * kept;
    }
    V dS = P * (dP - delta);
    if (TERMS && p_.softcap > 0) dS = dS * V::load(w_.slope + at);
    return {{_mm512_maskz_mov_ps(rows, dropped.v)}, {_mm512_maskz_mov_ps(rows, dS.v)}};
  }
  static void store_rows(half_t* to, const RoundedRows& x) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), x.low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + BLOCK_Q), x.high);
  }

  // P^T and dS^T from S^T and dP^T, as rows of keys, and dS^T as pairs of keys.
  template <bool TERMS>
  void round_gradients() {
    using V = Vec<float>;
    half_t *const P_rows = w_.P_rows, *const dS_rows = w_.dS_rows, *const dS_pairs = w_.dS_pairs;
    const int64_t keys = granules_ * GRANULE, count = step_.count();
    for (int64_t lane = 0; lane < q_end_; lane += V::WIDTH) {
      const V minus_lse = V::broadcast(0.f) - V::load(w_.lse + lane);
      const V delta = V::load(w_.delta + lane);
      const __mmask16 rows = static_cast<__mmask16>(first_halves(block_.rows - lane));
      for (int64_t j = 0; j < keys; j += 2) {
        const int64_t at = score_index(j, lane);
        const Gradients low = gradients_at<TERMS>(at, j < count ? rows : 0, minus_lse, delta);
        const Gradients high =
            gradients_at<TERMS>(at + BLOCK_Q, j + 1 < count ? rows : 0, minus_lse, delta);
        store_rows(P_rows + at, Half::round_rows(low.P, high.P));
        const RoundedRows dS = Half::round_rows(low.dS, high.dS);
        store_rows(dS_rows + at, dS);
        _mm512_store_si512(dS_pairs + j * BLOCK_Q + 2 * lane, dS.pairs);
      }
    }
  }

  // sum[keys][dims] += rows^T pairs, over the block's queries. Whole steps are added to by the
  // tiles. Of the step at the end of the keys or of the band only some rows may be touched.
  void accumulate(const Turnstile& turnstile, const half_t* rows, const half_t* pairs, int64_t dim,
                  const Operand& sum) {
    const int64_t k_row = block_.seq.k_start + step_.begin;
    float* to = static_cast<float*>(sum.data) + block_.b * sum.batch + block_.h_kv * sum.head +
                k_row * sum.row;
    turnstile.touch_first(to, step_.count(), sum.row);
    const int64_t columns = round_up(dim, ROW_ALIGN);
    if (step_.count() == BLOCK_KV) {
      multiply_pairs(rows, pairs, dim, to, sum.row, true);
      pending_.flush();
      return;
    }
    const int64_t ld = round_up(dim, 32);
    multiply_pairs(rows, pairs, dim, w_.sums, ld, false);
    pending_.flush();
    for (int64_t j = 0; j < step_.count(); ++j) {
      for (int64_t d = 0; d < columns; d += Vec<float>::WIDTH) {
        float* at = to + j * sum.row + d;
        (Vec<float>::load(at) + Vec<float>::load(w_.sums + j * ld + d)).store(at);
      }
    }
  }
  void multiply_pairs(const half_t* rows, const half_t* pairs, int64_t dim, float* c, int64_t ld,
                      bool add) {
    const int64_t half = UNIT_Q * round_up(dim, 32) * static_cast<int64_t>(sizeof(half_t));
    const int64_t row_bytes = ld * static_cast<int64_t>(sizeof(float));
    const int64_t q_steps = q_end_ / UNIT_Q;
    for (int64_t g = 0; g < granules_; ++g) {
      const TileOperand A{rows + score_index(g * GRANULE, 0), 16 * HALF_ROW, 64, HALF_ROW};
      for (int64_t d = 0; d < dim; d += 32) {
        const TileOperand B{pairs + d / 16 * TILE_HALVES, TILE_BYTES, half, 64};
        const TileSum C{c + g * GRANULE * ld + d, 16 * row_bytes, 64, row_bytes};
        if (d + 16 < dim) {
          multiply_block<Half, 2>(A, B, q_steps, C, add, pending_, nothing_);
        } else {
          multiply_block<Half, 1>(A, B, q_steps, C, add, pending_, nothing_);
        }
      }
    }
  }

  void multiply_query_gradient() {
    for (int64_t block = 0; block < key_blocks_; ++block) {
      const TileOperand A = keys_.key_columns(granule_, block);
      for (int64_t q = 0; q < q_end_; q += UNIT_Q) {
        const TileOperand B{w_.dS_pairs + 2 * q, 64, GRANULE * HALF_ROW, 2 * HALF_ROW};
        const TileSum C{w_.dQ_lanes + score_index(block * 32, q), 16 * ROW_BYTES, 64, ROW_BYTES};
        multiply_block<Half, 2>(A, B, granules_, C, true, pending_, nothing_);
      }
    }
    pending_.flush();
  }

  void write_gradients() {
    const Vec<float> scale = Vec<float>::broadcast(static_cast<float>(p_.scale));
    for (int64_t q = 0; q < block_.rows; q += 16) {
      const int64_t count = min_of(16, block_.rows - q), row = block_.q_row() + q;
      const auto dQ = [&](int64_t d) { return w_.dQ_lanes + score_index(d, q); };
      write_lanes<Half>(dQ, scale, count, p_.head_dim,
                        half_rows(params_.grad_query, block_.b, block_.h, row));
      for (int64_t i = 0; i < count; ++i) {
        *row_value<float>(params_.delta, block_.b, block_.h, row + i) = w_.delta[q + i];
      }
    }
  }

  const BackwardParams& params_;
  const AttentionParams& p_;
  const QueryBlock<float>& block_;
  const PackedKeys& keys_;
  TileBackwardScratch& w_;
  int64_t key_blocks_, value_blocks_;
  int64_t q_end_;     // the second half of the lanes may be empty
  bool scale_first_;  // because scores are more than the product; else the exponent has the scale
  float factor_;      // from scores as they lie to scores
  KeyStep step_{};
  int64_t granule_ = 0, granules_ = 0;
  PendingTiles pending_;
  NothingBetween nothing_;
};

template <class Half>
inline void backward_on_tiles(const BackwardParams& params, int64_t b, int64_t h, int64_t q_begin,
                              int32_t* turns, const PackedHead& head, void* memory) {
  const AttentionParams& p = params.forward;
  TileBackwardScratch w(p, static_cast<char*>(memory));
  const QueryBlock<float> block(p, b, h, q_begin);
  const PackedKeys keys(p, block.seq, b, block.h_kv, PackedKeys::BACKWARD, head);
  const TileScope tiles;
  TileBackward<Half>(params, block, keys, w).run(turns);
}

// Rows of dK, which gets the scale here, and of dV, from the sums to the tensors.
template <class Half>
inline void finish_tile_rows(const BackwardParams& params, int64_t b, int64_t h, int64_t begin,
                             int64_t end) {
  const AttentionParams& p = params.forward;
  const auto finish = [&](const Operand& sum, const Operand& to, int64_t dim, float factor) {
    const float* from = static_cast<const float*>(sum.data) + b * sum.batch + h * sum.head;
    for (int64_t row = begin; row < end; ++row) {
      half_t* out = const_cast<half_t*>(half_rows(to, b, h, row).data);
      for (int64_t d = 0; d < dim; d += 16) {
        const __m512i halves =
            Half::round(Vec<float>::load(from + row * sum.row + d) * Vec<float>::broadcast(factor));
        _mm256_mask_storeu_epi16(out + d, static_cast<__mmask16>(first_halves(min_of(dim - d, 16))),
                                 _mm512_cvtepi32_epi16(halves));
      }
    }
  };
  finish(params.key_sum, params.grad_key, p.head_dim, static_cast<float>(p.scale));
  finish(params.value_sum, params.grad_value, p.value_dim, 1.f);
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
