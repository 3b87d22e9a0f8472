#pragma once

#include "decode_append.h"
#include "decode_kernels.h"
#include "decode_pairs.h"
#include "decode_rows.h"
#include "scores.h"

// Decoding: a few queries against a long cache. One item is a part of the keys of one key/value
// head; all heads of its group and all their queries are its rows, and share each K and V row.
//
//   part:   for each step of 64 keys      S = Q K^T, softcap, ALiBi, masked at the band's edges
//             m' = max(m, row max of S)   alpha = e^(m - m')
//             P = e^(S - m')              l = alpha * l + row sum of P,  O = alpha * O + P V
//   merge:  M = max over parts and sink   out = sum e^(m - M) O / sum e^(m - M) l,
//                                         lse = M + ln sum e^(m - M) l
//
// The merge takes the parts in their order, so results do not depend on who computed them when.
// -inf: as in forward.h, a row without a visible key has m = -inf and shifts by 0.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

inline int64_t decode_rows(const DecodeParams& p) {
  const AttentionParams& a = p.attention;
  return min_of(DECODE_ROWS, a.heads_q / a.heads_kv * a.len_q);
}

// What a part leaves for the merge; O in the order of pairs.
template <class T>
struct DecodePart {
  T *m, *l, *O;
  int64_t ld;

  static int64_t elements(const DecodeParams& p) {
    const int64_t statistics = round_up(2 * decode_rows(p), ROW_ALIGN);
    return statistics + decode_rows(p) * round_up(p.attention.value_dim, PAIR<T>);
  }

  DecodePart(const DecodeParams& p, void* memory)
      : m(static_cast<T*>(memory)),
        l(m + decode_rows(p)),
        O(m + round_up(2 * decode_rows(p), ROW_ALIGN)),
        ld(round_up(p.attention.value_dim, PAIR<T>)) {}
};

template <class T>
struct DecodeScratch {
  T *Q, *S, *sum, *row, *cos, *sin;
  int64_t ld_q;

  static int64_t widest(const AttentionParams& a) {
    return round_up(max_of(a.head_dim, a.value_dim), PAIR<T>);
  }

  static int64_t elements(const DecodeParams& p) {
    const AttentionParams& a = p.attention;
    return decode_rows(p) * (round_up(a.head_dim, PAIR<T>) + DECODE_KEYS) + 3 * widest(a);
  }

  DecodeScratch(const DecodeParams& p, void* memory)
      : Q(static_cast<T*>(memory)), ld_q(round_up(p.attention.head_dim, PAIR<T>)) {
    S = Q + decode_rows(p) * ld_q;
    sum = S + decode_rows(p) * DECODE_KEYS;
    row = sum + widest(p.attention);
    cos = row + widest(p.attention);
    sin = cos + widest(p.attention) / 2;
  }

  RotaryRow<T> rotary() const { return {row, cos, sin}; }
};

// One row of an item: its query, its head and the keys that its band shows; the item's own keys
// begin behind the left padding.
struct DecodeRow {
  int64_t query, head, diagonal;
  Range keys;

  DecodeRow(const DecodeParams& p, const DecodeItem& item, int64_t r) {
    const int64_t group = p.attention.heads_q / p.attention.heads_kv;
    query = (item.row_begin + r) / group;
    head = item.h_kv * group + (item.row_begin + r) % group;
    diagonal = query + item.band.offset;
    keys = band_kv_range(item.band, query, query + 1, item.length);
  }
};

// Q turned to its position, with zeros behind: times scale in the order of pairs, or in bf16.
template <class T>
inline void load_queries(const DecodeParams& p, const DecodeItem& item, DecodeScratch<T>& w) {
  const AttentionParams& a = p.attention;
  for (int64_t d = a.head_dim; d < w.ld_q; ++d) w.row[d] = T(0);
  for (int64_t r = 0; r < item.rows; ++r) {
    const DecodeRow row(p, item, r);
    const char* query = row_pointer(a.query, a.dtype, item.b, row.head, row.query);
    convert_row(query, a.dtype, a.head_dim, w.row);
    rotate_row(p, p.cache_lengths[item.b] + row.query, w.rotary());
    T* q = w.Q + r * w.ld_q;
    if (bf16_queries<T>(p)) {
      store_row(w.row, T(1), a.dtype, w.ld_q, reinterpret_cast<char*>(q));
    } else {
      to_pairs(w.row, a.dtype, w.ld_q, T(a.scale), q);
    }
  }
}

// Softcap, ALiBi and mask of one row's scores for keys [begin, end), and -inf up to whole vectors.
template <class T>
inline void finish_scores(const DecodeParams& p, const DecodeItem& item, int64_t r, int64_t begin,
                          int64_t end, T* s) {
  const AttentionParams& a = p.attention;
  const DecodeRow row(p, item, r);
  const int64_t count = end - begin;
  if (a.softcap > 0) {
    for (int64_t j = 0; j < count; ++j) s[j] = T(a.softcap) * tanh_of(s[j] / T(a.softcap));
  }
  if (a.alibi_slopes != nullptr) {
    const T slope = T(a.alibi_slopes[item.b * a.alibi_batch + row.head]);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t distance = row.diagonal - (begin + j);
      s[j] -= slope * static_cast<T>(distance < 0 ? -distance : distance);
    }
  }
  const int64_t seen_from = max_of(min_of(row.keys.begin - begin, count), 0);
  const int64_t seen_to = max_of(min_of(row.keys.end - begin, count), seen_from);
  for (int64_t j = 0; j < seen_from; ++j) s[j] = NEG_INFINITY<T>;
  for (int64_t j = seen_to; j < vectors<T>(count) * Vec<T>::WIDTH; ++j) s[j] = NEG_INFINITY<T>;
}

template <class T>
inline T exp2_of(T x) {
  T lane[Vec<T>::WIDTH];
  exp2(Vec<T>::broadcast(x)).store(lane);
  return lane[0];
}

// One row: new maximum, weights in place of the scores, sum; O is rescaled only when the maximum
// has moved. A NaN score may miss the maximum, but its weight is NaN and so is the sum.
template <class T>
inline void online_softmax_row(T* s, int64_t count, T* m, T* l, T* o, int64_t ld) {
  using V = Vec<T>;
  const V log2e = V::broadcast(LOG2_E<T>);
  V top = V::broadcast(*m);
  for (int64_t j = 0; j < count; j += V::WIDTH) top = V::max(top, V::load(s + j));
  const T m_new = top.max_lanes();
  // -inf only while no key was visible: then shift by 0.
  const T shift = m_new == NEG_INFINITY<T> ? T(0) : m_new;
  V sum = V::broadcast(T(0));
  for (int64_t j = 0; j < count; j += V::WIDTH) {
    const V weight = exp2((V::load(s + j) - V::broadcast(shift)) * log2e);
    weight.store(s + j);
    sum = sum + weight;
  }
  if (m_new != *m) {
    const T alpha = exp2_of((*m - shift) * LOG2_E<T>);
    const V factor = V::broadcast(alpha);
    for (int64_t d = 0; d < ld; d += V::WIDTH) (V::load(o + d) * factor).store(o + d);
    *l *= alpha;
    *m = m_new;
  }
  *l += sum.sum_lanes();
}

// S of one step.
template <class T, DType DTYPE>
inline void multiply_queries(const DecodeParams& p, const DecodeItem& item, DecodeScratch<T>& w,
                             const char* const* keys, int64_t count, ComingRows& coming) {
  const AttentionParams& a = p.attention;
  for_row_tiles<T>(item.rows, [&](auto tile, int64_t r) {
    constexpr int R = decltype(tile)::VALUE;
    const T* q = w.Q + r * w.ld_q;
    T* s = w.S + r * DECODE_KEYS;
#if defined(__AVX512BF16__)
    if constexpr (bf16_products<T>(DTYPE)) {
      if (bf16_queries<T>(p)) {
        dot_rows_pairs<R>(reinterpret_cast<const uint16_t*>(q), 2 * w.ld_q, keys, count, a.head_dim,
                          static_cast<float>(a.scale), s, coming);
        return;
      }
    }
#endif
    dot_rows<T, DTYPE, R>(q, w.ld_q, keys, count, a.head_dim, s, coming);
  });
}

// O += P V of one step.
template <class T, DType DTYPE>
inline void multiply_weights(const DecodeParams& p, const DecodeItem& item, DecodeScratch<T>& w,
                             const char* const* values, int64_t count, const DecodePart<T>& part,
                             ComingRows& coming) {
  const int64_t dim = p.attention.value_dim;
#if defined(__AVX512BF16__)
  if constexpr (bf16_products<T>(DTYPE)) round_weights(w.S, item.rows, count);
#endif
  for_row_tiles<T>(item.rows, [&](auto tile, int64_t r) {
    constexpr int R = decltype(tile)::VALUE;
    const T* weights = w.S + r * DECODE_KEYS;
    T* o = part.O + r * part.ld;
#if defined(__AVX512BF16__)
    if constexpr (bf16_products<T>(DTYPE)) {
      add_values_pairs<R>(weights, values, count, dim, o, part.ld, coming);
    } else
#endif
      add_values<T, DTYPE, R>(weights, values, count, dim, o, part.ld, coming);
  });
}

// How the rows of the next step are spread over this one. The softmax gets more than its part of
// the time: it reads nothing itself.
constexpr float KEYS_SHARE = 0.375f, SOFTMAX_SHARE = 0.25f, VALUES_SHARE = 0.375f;

template <class T, DType DTYPE>
inline void decode_part_of(const DecodeParams& p, const DecodeItem& item, void* memory,
                           void* scratch) {
  const AttentionParams& a = p.attention;
  constexpr int64_t BYTES = CacheRow<T, DTYPE>::BYTES;
  const DecodePart<T> part(p, memory);
  DecodeScratch<T> w(p, scratch);
  load_queries(p, item, w);
  for (int64_t r = 0; r < item.rows; ++r) {
    part.m[r] = NEG_INFINITY<T>;
    part.l[r] = T(0);
    for (int64_t d = 0; d < part.ld; ++d) part.O[r * part.ld + d] = T(0);
  }
  const CachePlace place(p, item.b);
  StepRows of_step[2];  // this one and the next
  const auto locate = [&](int64_t begin, int64_t end, StepRows& step) {
    step.count = end - begin;
    place.locate(a.key, DTYPE, item.h_kv, begin, end, step.rows);
    place.locate(a.value, DTYPE, item.h_kv, begin, end, step.rows + step.count);
  };
  int64_t begin = item.keys.begin, end = min_of(begin + DECODE_KEYS, item.keys.end);
  locate(begin, end, of_step[0]);
  for (int64_t step = 0; begin < end; ++step) {
    const int64_t count = end - begin, next = min_of(end + DECODE_KEYS, item.keys.end);
    const StepRows& rows = of_step[step % 2];
    // Behind the last step lies the next part, which tends to be this thread's next item.
    locate(end, min_of(end + DECODE_KEYS, item.seen_to), of_step[(step + 1) % 2]);
    ComingRows coming(of_step[(step + 1) % 2], a.head_dim * BYTES, a.value_dim * BYTES);
    coming.spread(KEYS_SHARE, item.rows * count * a.head_dim);
    multiply_queries<T, DTYPE>(p, item, w, rows.keys(), count, coming);
    coming.spread(SOFTMAX_SHARE, item.rows);
    for (int64_t r = 0; r < item.rows; ++r) {
      T* s = w.S + r * DECODE_KEYS;
      coming.fetch(coming.rows_for(1));
      finish_scores(p, item, r, begin, end, s);
      online_softmax_row(s, count, part.m + r, part.l + r, part.O + r * part.ld, part.ld);
    }
    coming.spread(VALUES_SHARE, item.rows * count * a.value_dim);
    multiply_weights<T, DTYPE>(p, item, w, rows.values(), count, part, coming);
    begin = end;
    end = next;
  }
}

template <class T>
inline void decode_part(const DecodeParams& p, const DecodeItem& item, void* part, void* scratch) {
  if constexpr (sizeof(T) == 8) {
    decode_part_of<T, DType::FLOAT64>(p, item, part, scratch);
  } else if (p.attention.dtype == DType::BFLOAT16) {
    decode_part_of<T, DType::BFLOAT16>(p, item, part, scratch);
  } else if (p.attention.dtype == DType::FLOAT16) {
    decode_part_of<T, DType::FLOAT16>(p, item, part, scratch);
  } else {
    decode_part_of<T, DType::FLOAT32>(p, item, part, scratch);
  }
}

// n elements of O as they are stored.
inline void to_natural_order(const float* src, DType dtype, int64_t n, float* dst) {
#if defined(__AVX512BF16__)
  if (bf16_products<float>(dtype)) return from_interleaved(src, n, dst);
#endif
  from_pairs(src, dtype, n, dst);
}

inline void to_natural_order(const double* src, DType dtype, int64_t n, double* dst) {
  from_pairs(src, dtype, n, dst);
}

// out and lse of an item's rows; `memory` holds `count` parts.
template <class T>
inline void decode_merge(const DecodeParams& p, const DecodeItem& item, const void* memory,
                         int64_t count, void* scratch) {
  using V = Vec<T>;
  const AttentionParams& a = p.attention;
  const DecodeScratch<T> w(p, scratch);
  const DecodePart<T> first(p, const_cast<void*>(memory));
  const int64_t next = DecodePart<T>::elements(p);
  for (int64_t r = 0; r < item.rows; ++r) {
    const DecodeRow row(p, item, r);
    const T* m_of = first.m + r;
    const T sink = a.sinks != nullptr ? static_cast<const T*>(a.sinks)[row.head] : NEG_INFINITY<T>;
    T m = sink;
    for (int64_t n = 0; n < count; ++n) m = m < m_of[n * next] ? m_of[n * next] : m;
    const T shift = m == NEG_INFINITY<T> ? T(0) : m;
    T l = exp2_of((sink - shift) * LOG2_E<T>);
    for (int64_t d = 0; d < first.ld; ++d) w.sum[d] = T(0);
    for (int64_t n = 0; n < count; ++n) {
      const T share = exp2_of((m_of[n * next] - shift) * LOG2_E<T>);
      const T* o = first.O + n * next + r * first.ld;
      l += share * first.l[n * next + r];
      for (int64_t d = 0; d < first.ld; d += V::WIDTH) {
        V::fma(V::broadcast(share), V::load(o + d), V::load(w.sum + d)).store(w.sum + d);
      }
    }
    to_natural_order(w.sum, a.dtype, first.ld, w.row);
    const char* out = row_pointer(a.out, a.dtype, item.b, row.head, row.query);
    store_row(w.row, l == T(0) ? T(0) : T(1) / l, a.dtype, a.value_dim, const_cast<char*>(out));
    const T lse = l == T(0) ? NEG_INFINITY<T> : m + static_cast<T>(::log(double(l)));
    *row_value<T>(a.lse, item.b, row.head, row.query) = lse;
  }
}

template <class T>
constexpr DecodeKernelSet decode_kernel_set() {
  return {
      [](const DecodeParams& p) {
        return DecodeScratch<T>::elements(p) * static_cast<int64_t>(sizeof(T));
      },
      [](const DecodeParams& p) {
        return DecodePart<T>::elements(p) * static_cast<int64_t>(sizeof(T));
      },
      [](const DecodeParams& p, int64_t b, int64_t h_kv, void* scratch) {
        decode_append(p, b, h_kv, DecodeScratch<T>(p, scratch).rotary());
      },
      decode_part<T>,
      decode_merge<T>,
  };
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
