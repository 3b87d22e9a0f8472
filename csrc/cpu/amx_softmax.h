#pragma once

#include "amx_pack.h"
#include "scores.h"

// From the scores of a unit of keys to its weights, in pieces that fit between tile products.
//
// Scores lie [keys][64] floats, and a unit has 32 queries: the left or the right half of the rows.
// Two units can so be in work at once, and scores.h, which knows blocks of 64 queries, reads both.
// Two neighbouring keys of 16 queries, 2 x 64 bytes of scores, become one vector of pairs, which
// replaces the upper one: a tile of P has its rows at every other row of S.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

constexpr int64_t UNIT_Q = 32;
constexpr int64_t ROW_BYTES = BLOCK_Q * sizeof(float);

// No running maximum: a query's shift is the maximum of the first unit that it sees, rounded up to
// an integer (its logarithm's base is 2). A later weight may grow to this before the shift is
// raised and the unit is done once more: below fp16's 65504, and V times it stays far inside fp32.
constexpr float LARGEST_SUM = 0x1p15f;

// Up to here exponents come from one FMA. Beyond, what the FMA knows of the product and the shift
// does not, being rounded, is a power of 2 in the weights: there scores are multiplied in memory.
constexpr float EXACT_PRODUCTS = 0x1p20f;

// What is known of a query's softmax so far; all of it in lanes.
struct SoftmaxState {
  alignas(64) float shift[UNIT_Q];  // subtracted from factor * score
  alignas(64) float sum[UNIT_Q];    // of the weights of all finished units
  alignas(64) float unit_sum[UNIT_Q];
  uint32_t seen;  // lanes that have a shift, because they have seen a key
  uint32_t rows;  // lanes that are queries
  float factor;   // from scores as they lie to exponents of 2

  void start(int64_t row_count, float score_factor) {
    for (int64_t q = 0; q < UNIT_Q; ++q) shift[q] = sum[q] = unit_sum[q] = 0.f;
    seen = 0;
    rows = first_halves(row_count);
    factor = score_factor;
  }
  bool every_row_seen() const { return (rows & ~seen) == 0; }
  bool large_shift() const {
    const __m512 limit = _mm512_set1_ps(EXACT_PRODUCTS);
    const __m512 highest = _mm512_max_ps(_mm512_abs_ps(_mm512_load_ps(shift)),
                                         _mm512_abs_ps(_mm512_load_ps(shift + 16)));
    return _mm512_cmp_ps_mask(highest, limit, _CMP_GE_OQ) != 0;
  }

  // Whether the unit's weights are too large for the shift they were computed with.
  bool outgrown() const {
    const __m512 limit = _mm512_set1_ps(LARGEST_SUM);
    const uint32_t low = _mm512_cmp_ps_mask(_mm512_load_ps(unit_sum), limit, _CMP_GT_OQ);
    const uint32_t high = _mm512_cmp_ps_mask(_mm512_load_ps(unit_sum + 16), limit, _CMP_GT_OQ);
    return ((low | high << 16) & rows) != 0;
  }
  void finish_unit() {
    for (int64_t q = 0; q < UNIT_Q; ++q) {
      sum[q] += unit_sum[q];
      unit_sum[q] = 0.f;
    }
  }
};

inline int64_t score_index(int64_t key, int64_t q) { return key * BLOCK_Q + q; }

// Shifts from the maxima over `keys` keys: of lanes that have none yet, or (`raise`) also of those
// whose maximum has grown, for which sums and O^T, [dims][2][16][16], are scaled down exactly.
inline void update_shift(const float* s, int64_t keys, bool raise, int64_t value_width, float* O,
                         SoftmaxState& state) {
  for (int64_t half = 0; half < 2; ++half) {
    const __m512 factor = _mm512_set1_ps(state.factor);
    __m512 top[2] = {_mm512_set1_ps(NEG_INFINITY<float>), _mm512_set1_ps(NEG_INFINITY<float>)};
    for (int64_t j = 0; j < keys; j += 2) {
      const float* at = s + score_index(j, half * 16);
      top[0] = _mm512_max_ps(top[0], _mm512_mul_ps(_mm512_loadu_ps(at), factor));
      top[1] = _mm512_max_ps(top[1], _mm512_mul_ps(_mm512_loadu_ps(at + BLOCK_Q), factor));
    }
    const __m512 highest = _mm512_max_ps(top[0], top[1]);
    const __m512 wanted = _mm512_roundscale_ps(highest, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    const __mmask16 sees =
        _mm512_cmp_ps_mask(highest, _mm512_set1_ps(NEG_INFINITY<float>), _CMP_GT_OQ);
    const __mmask16 seen = static_cast<__mmask16>(state.seen >> 16 * half);
    float* shift = state.shift + 16 * half;
    const __m512 old = _mm512_load_ps(shift);
    const __mmask16 grown = _mm512_cmp_ps_mask(wanted, old, _CMP_GT_OQ) & seen & sees;
    state.seen |= uint32_t{sees} << 16 * half;
    _mm512_mask_store_ps(shift, sees & ~seen, wanted);
    if (!raise || grown == 0) continue;
    _mm512_mask_store_ps(shift, grown, wanted);
    const __m512 power = _mm512_maskz_sub_ps(grown, old, wanted);
    float* sum = state.sum + 16 * half;
    _mm512_store_ps(sum, _mm512_scalef_ps(_mm512_load_ps(sum), power));
    for (int64_t d = 0; d < value_width; ++d) {
      float* row = O + d / 16 * 512 + half * 256 + d % 16 * 16;
      _mm512_store_ps(row, _mm512_scalef_ps(_mm512_load_ps(row), power));
    }
  }
}

// Where a query of the unit does not see a key: -inf. Rows of `s` are keys [key_begin, ..), of
// which the keys before key_end exist; for each the visible queries are an interval.
inline void mask_unit(const Band& band, int64_t q_begin, int64_t key_begin, int64_t keys,
                      int64_t key_end, int64_t lanes, float* s) {
  const __m512 hidden = _mm512_set1_ps(NEG_INFINITY<float>);
  for (int64_t j = 0; j < keys; ++j) {
    const int64_t key = key_begin + j;
    const int64_t first = max_of(key - band.right - band.offset - q_begin, 0);
    const int64_t last = min_of(key + band.left - band.offset - q_begin, lanes - 1);
    for (int64_t q = 0; q < lanes; q += 16) {
      const int64_t begin = min_of(max_of(first - q, 0), 16);
      const int64_t end = key < key_end ? min_of(max_of(last + 1 - q, 0), 16) : 0;
      const uint32_t visible = ((1u << end) - 1) & ~((1u << begin) - 1);
      _mm512_mask_storeu_ps(s + score_index(j, q), static_cast<__mmask16>(~visible), hidden);
    }
  }
}

// The weights of one unit, STEPS pairs of keys of 16 queries per four tile products.
template <class Half, int STEPS>
class WeightsBetween {
 public:
  WeightsBetween(float* s, int64_t granules, float factor, SoftmaxState& state)
      : s_(s), count_(granules * 32), state_(&state), factor_(Vec<float>::broadcast(factor)) {}

  FUSED_ATTENTION_INLINE void begin() {
    active_ = next_ < count_;
    if (!active_) return;
    const int64_t q = next_ / 16 % 2 * 16;
    row_ = s_ + score_index(next_ / 32 * 32 + next_ % 16 * 2, q);
    minus_shift_ = Vec<float>::broadcast(0.f) - Vec<float>::load(state_->shift + q);
    sum_[0] = Vec<float>::load(state_->unit_sum + q);
    sum_[1] = Vec<float>::broadcast(0.f);
  }
  template <int PRODUCT>
  FUSED_ATTENTION_INLINE void after() {
    constexpr int FIRST = STEPS * PRODUCT / 4, LAST = STEPS * (PRODUCT + 1) / 4;
    if (!active_) return;
#pragma GCC unroll 4
    for (int i = FIRST; i < LAST; ++i) step(row_ + i * 2 * BLOCK_Q);
  }
  FUSED_ATTENTION_INLINE void end() {
    if (!active_) return;
    (sum_[0] + sum_[1]).store(state_->unit_sum + next_ / 16 % 2 * 16);
    next_ += STEPS;
  }
  // What no product was left for.
  void finish() {
    while (next_ < count_) {
      begin();
      after<0>();
      after<1>();
      after<2>();
      after<3>();
      end();
    }
  }

 private:
  FUSED_ATTENTION_INLINE Vec<float> weight(const float* at) const {
    return exp2_for_half(Vec<float>::fma(Vec<float>::load(at), factor_, minus_shift_));
  }

  FUSED_ATTENTION_INLINE void step(float* at) {
    const Vec<float> low = weight(at), high = weight(at + BLOCK_Q);
    sum_[0] = sum_[0] + low;
    sum_[1] = sum_[1] + high;
    _mm512_storeu_si512(at, Half::weight_pairs(low, high));
  }

  float* s_;
  int64_t count_, next_ = 0;
  SoftmaxState* state_;
  Vec<float> factor_, minus_shift_{}, sum_[2] = {};
  float* row_ = nullptr;
  bool active_ = false;
};

// The same where nothing is multiplied meanwhile, with the dropout factors, laid out as the scores,
// between the sum and the product with V. A weight of 0 stays 0: beyond the last key there is none.
template <class Half>
inline void weights_with_dropout(float* s, const float* dropout, int64_t granules,
                                 float score_factor, SoftmaxState& state) {
  using V = Vec<float>;
  const V factor = V::broadcast(score_factor);
  for (int64_t q = 0; q < UNIT_Q; q += 16) {
    const V minus_shift = V::broadcast(0.f) - V::load(state.shift + q);
    V sum = V::load(state.unit_sum + q);
    for (int64_t j = 0; j < granules * 32; j += 2) {
      V weight[2];
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t at = score_index(j + i, q);
        const V p = exp2_for_half(V::fma(V::load(s + at), factor, minus_shift));
        sum = sum + p;
        const __mmask16 kept = _mm512_cmp_ps_mask(p.v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        weight[i] = {_mm512_maskz_mul_ps(kept, p.v, _mm512_loadu_ps(dropout + at))};
      }
      _mm512_storeu_si512(s + score_index(j, q), Half::round_rows(weight[0], weight[1]).pairs);
    }
    sum.store(state.unit_sum + q);
  }
}

// ln(2^power x) for x > 0, from x = 2^n f with f in [3/4, 3/2): ln f = 2 artanh((f - 1) / (f + 1)).
inline __m512 natural_log(__m512 x, __m512 power) {
  const __m512 f = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero);
  const __m512 n = _mm512_getexp_ps(_mm512_div_ps(x, f));
  const __m512 one = _mm512_set1_ps(1.f);
  const __m512 t = _mm512_div_ps(_mm512_sub_ps(f, one), _mm512_add_ps(f, one));
  const __m512 t2 = _mm512_mul_ps(t, t);
  __m512 series = _mm512_set1_ps(2.f / 9);
  series = _mm512_fmadd_ps(series, t2, _mm512_set1_ps(2.f / 7));
  series = _mm512_fmadd_ps(series, t2, _mm512_set1_ps(2.f / 5));
  series = _mm512_fmadd_ps(series, t2, _mm512_set1_ps(2.f / 3));
  series = _mm512_fmadd_ps(_mm512_mul_ps(series, t2), t, _mm512_add_ps(t, t));
  // ln 2 in two parts: the first has few bits, so that its product with n is exact.
  const __m512 exponent = _mm512_add_ps(n, power);
  series = _mm512_fmadd_ps(exponent, _mm512_set1_ps(-2.12194440e-4f), series);
  return _mm512_fmadd_ps(exponent, _mm512_set1_ps(0.693359375f), series);
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
