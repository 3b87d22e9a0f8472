#pragma once

#include "cpu/maps/kernels.h"
#include "cpu/scores.h"

// What the weights look like, from the LSE that the forward left: P = e^(S - lse), tile by tile.
//
//   rows      a block of queries walks its keys: entropy, argmax, the highest weights
//   columns   a block of keys walks its queries: the sum of the weights that each key receives
//   weights   runs of chosen queries walk their keys: the weights themselves
//
// Scores come through compute_scores, as in the forward. Each item writes what no other writes and
// adds in a fixed order, so results do not depend on the number of threads.
// -inf: as in the backward, a row without keys has lse -inf, which is replaced by +inf: its weights
// are e^-inf = 0, its argmax -1.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

template <class T>
struct MapsScratch {
  T *Q_lanes, *K, *rows, *S, *bias, *sums;
  alignas(64) T lse[BLOCK_Q];
  alignas(64) T entropy[BLOCK_Q];
  alignas(64) T best[BLOCK_Q];   // the highest score of each query, of all steps
  alignas(64) T top[BLOCK_Q];    // of this step
  alignas(64) T place[BLOCK_Q];  // its key inside the step
  int64_t best_key[BLOCK_Q];

  static int64_t elements(const AttentionParams& p) {
    const int64_t qk = round_up(p.head_dim, ROW_ALIGN);
    return (2 * BLOCK_Q + BLOCK_KV) * qk + 3 * BLOCK_KV * BLOCK_Q + BLOCK_KV * ROW_ALIGN;
  }

  MapsScratch(const AttentionParams& p, T* memory) {
    const int64_t qk = round_up(p.head_dim, ROW_ALIGN);
    auto take = [&memory](int64_t count) {
      T* taken = memory;
      memory += count;
      return taken;
    };
    Q_lanes = take(BLOCK_Q * qk);
    rows = take(BLOCK_Q * qk);
    K = take(BLOCK_KV * qk);
    S = take(BLOCK_KV * BLOCK_Q);
    bias = take(2 * BLOCK_KV * BLOCK_Q);
    sums = take(BLOCK_KV * ROW_ALIGN);
  }
};

inline int64_t chosen_head(const MapsParams& m, int64_t n) {
  return m.heads == nullptr ? n : m.heads[n];
}

// Where a result that has one value per row, [B, heads, rows] or packed [heads, rows], holds `row`
// of a sequence that begins at `start`.
inline int64_t row_index(const MapsParams& m, int64_t b, int64_t n, int64_t rows, int64_t start,
                         int64_t row) {
  const int64_t head = m.attention.cu_seqlens_q == nullptr ? b * m.head_count + n : n;
  return head * rows + start + row;
}

// Q^T * scale in w.Q_lanes; lse per lane, +inf where there is no row or the row saw no key.
template <class T>
inline void load_queries(const QueryBlock<T>& block, MapsScratch<T>& w) {
  const AttentionParams& p = block.params;
  const Tile<T> Q =
      load_rows(p.query, p.dtype, block.b, block.h, block.q_row(), block.rows, p.head_dim, w.rows);
  load_lanes(Q, block.rows, p.head_dim, T(p.scale), w.Q_lanes);
  for (int64_t q = 0; q < BLOCK_Q; ++q) {
    w.lse[q] = -NEG_INFINITY<T>;
    if (q >= block.rows) continue;
    const T lse = *row_value<T>(p.lse, block.b, block.h, block.q_row() + q);
    if (lse != NEG_INFINITY<T>) w.lse[q] = lse;
  }
}

// S^T of one step in w.S, whose keys are K's rows. Lanes behind the last query, which may hold
// anything, become -inf: their weights are 0 for whoever adds over queries.
template <class T>
inline void load_scores(const QueryBlock<T>& block, const KeyStep& step, const Tile<T>& K,
                        MapsScratch<T>& w) {
  compute_scores(block, step, K, w.Q_lanes, w.S, static_cast<T*>(nullptr), w.bias);
  const int64_t lanes = block.vecs * Vec<T>::WIDTH;
  if (block.rows == lanes) return;
  for (int64_t j = 0; j < step.count(); ++j) {
    for (int64_t q = block.rows; q < lanes; ++q) w.S[j * BLOCK_Q + q] = NEG_INFINITY<T>;
  }
}

template <class T>
inline Vec<T> weight_of(Vec<T> score, Vec<T> lse) {
  return exp2((score - lse) * Vec<T>::broadcast(LOG2_E<T>));
}

template <class T>
inline Tile<T> load_keys(const QueryBlock<T>& block, const KeyStep& step, T* buffer) {
  const AttentionParams& p = block.params;
  const int64_t row = block.seq.k_start + step.begin;
  const int64_t ahead = min_of(BLOCK_KV, block.keys.end - step.end);
  prefetch_rows(p.key, p.dtype, block.b, block.h_kv, row + step.count(), ahead, p.head_dim);
  return load_rows(p.key, p.dtype, block.b, block.h_kv, row, step.count(), p.head_dim, buffer);
}

// entropy += P * (lse - S), of one vector of queries. A weight that is 0 adds 0, also that of a
// score of -inf: the clamp lies far below the logarithm of the smallest weight.
template <class T>
inline void add_entropy(const T* s, int64_t count, const T* lse, T* entropy) {
  using V = Vec<T>;
  const V row_lse = V::load(lse), lowest = V::broadcast(T(-1e4)), log2e = V::broadcast(LOG2_E<T>);
  V sum[2] = {V::broadcast(T(0)), V::broadcast(T(0))};
  for (int64_t j = 0; j < count; ++j) {
    const V log_weight = V::max(lowest, V::load(s + j * BLOCK_Q) - row_lse);
    sum[j & 1] = V::fma(exp2(log_weight * log2e), log_weight, sum[j & 1]);
  }
  (V::load(entropy) - (sum[0] + sum[1])).store(entropy);
}

// The highest score of a step and the first key that has it, of one vector of queries.
template <class T>
inline void find_top(const T* s, int64_t count, T* top, T* place) {
  using V = Vec<T>;
  V highest = V::broadcast(NEG_INFINITY<T>), at = V::broadcast(T(0));
  for (int64_t j = 0; j < count; ++j) {
    const V score = V::load(s + j * BLOCK_Q);
    at = V::select_less(highest, score, V::broadcast(static_cast<T>(j)), at);
    highest = V::select_less(highest, score, score, highest);
  }
  highest.store(top);
  at.store(place);
}

// Puts the step's keys of one query into its list of `k`, which is sorted by score; of equal scores
// the lower key stays in front. `s` is the query's column.
template <class T>
inline void insert_keys(const T* s, const KeyStep& step, int64_t k_start, int64_t k, T* scores,
                        int64_t* keys) {
  for (int64_t j = 0; j < step.count(); ++j) {
    const T score = s[j * BLOCK_Q];
    if (!(score > scores[k - 1])) continue;
    int64_t at = k - 1;
    for (; at > 0 && score > scores[at - 1]; --at) {
      scores[at] = scores[at - 1];
      keys[at] = keys[at - 1];
    }
    scores[at] = score;
    keys[at] = k_start + step.begin + j;
  }
}

// A query's list of scores becomes its list of weights; that of a row without keys is empty.
template <class T>
inline void finish_list(T lse, int64_t k, T* scores, int64_t* keys) {
  using V = Vec<T>;
  const bool alive = lse != -NEG_INFINITY<T>;
  for (int64_t i = 0; i < k; i += V::WIDTH) {
    const int64_t count = min_of(V::WIDTH, k - i);
    T part[V::WIDTH];
    for (int64_t n = 0; n < V::WIDTH; ++n) part[n] = n < count ? scores[i + n] : NEG_INFINITY<T>;
    weight_of(V::load(part), V::broadcast(lse)).store(part);
    for (int64_t n = 0; n < count; ++n) {
      scores[i + n] = alive ? part[n] : T(0);
      if (!alive) keys[i + n] = -1;
    }
  }
}

template <class T>
inline void rows_block(const MapsParams& m, int64_t b, int64_t n, int64_t q_begin, void* memory) {
  const AttentionParams& p = m.attention;
  MapsScratch<T> w(p, static_cast<T*>(memory));
  const QueryBlock<T> block(p, b, chosen_head(m, n), q_begin);
  const int64_t first_row = row_index(m, b, n, p.total_q, block.seq.q_start, q_begin);
  const int64_t k_start = block.seq.k_start, k = m.top_k;
  T* lists = static_cast<T*>(m.top_weights) + first_row * k;  // of scores, until the end
  int64_t* list_keys = m.top_indices + first_row * k;
  for (int64_t i = 0; i < block.rows * k; ++i) {
    lists[i] = NEG_INFINITY<T>;
    list_keys[i] = -1;
  }
  for (int64_t q = 0; q < BLOCK_Q; ++q) {
    w.entropy[q] = T(0);
    w.best[q] = NEG_INFINITY<T>;
    w.best_key[q] = -1;
  }
  load_queries(block, w);
  for (int64_t at = block.keys.begin / BLOCK_KV; at * BLOCK_KV < block.keys.end; ++at) {
    const KeyStep step = key_step(at, block);
    load_scores(block, step, load_keys(block, step, w.K), w);
    for (int64_t lane = 0; lane < block.vecs * Vec<T>::WIDTH; lane += Vec<T>::WIDTH) {
      const T* s = w.S + lane;
      if (m.entropy != nullptr) add_entropy(s, step.count(), w.lse + lane, w.entropy + lane);
      if (m.argmax != nullptr || k > 0) {
        find_top(s, step.count(), w.top + lane, w.place + lane);
      }
    }
    for (int64_t q = 0; m.argmax != nullptr && q < block.rows; ++q) {
      if (!(w.top[q] > w.best[q])) continue;
      w.best[q] = w.top[q];
      w.best_key[q] = k_start + step.begin + static_cast<int64_t>(w.place[q]);
    }
    for (int64_t q = 0; k > 0 && q < block.rows; ++q) {
      if (!(w.top[q] > lists[q * k + k - 1])) continue;
      insert_keys(w.S + q, step, k_start, k, lists + q * k, list_keys + q * k);
    }
  }
  for (int64_t q = 0; q < block.rows; ++q) {
    const bool alive = w.lse[q] != -NEG_INFINITY<T>;
    if (m.entropy != nullptr) static_cast<T*>(m.entropy)[first_row + q] = w.entropy[q];
    if (m.argmax != nullptr) m.argmax[first_row + q] = alive ? w.best_key[q] : -1;
    if (k > 0) finish_list(w.lse[q], k, lists + q * k, list_keys + q * k);
  }
}

// sums[key][lane] += the weights of the step's keys. `shift`: of the step's first key in the block.
template <class T>
inline void add_columns(const QueryBlock<T>& block, const KeyStep& step, int64_t shift,
                        const MapsScratch<T>& w) {
  using V = Vec<T>;
  for (int64_t j = 0; j < step.count(); ++j) {
    V sum = V::broadcast(T(0));
    for (int64_t n = 0; n < block.vecs; ++n) {
      const int64_t lane = n * V::WIDTH;
      sum = sum + weight_of(V::load(w.S + j * BLOCK_Q + lane), V::load(w.lse + lane));
    }
    T* at = w.sums + (shift + j) * ROW_ALIGN;
    (V::load(at) + sum).store(at);
  }
}

template <class T>
inline void columns_block(const MapsParams& m, int64_t b, int64_t n, int64_t key_block,
                          void* memory) {
  const AttentionParams& p = m.attention;
  MapsScratch<T> w(p, static_cast<T*>(memory));
  const int64_t h = chosen_head(m, n), h_kv = h / (p.heads_q / p.heads_kv);
  const Sequence seq = sequence_of(p, b);
  const int64_t begin = key_block * BLOCK_KV, end = min_of(begin + BLOCK_KV, seq.len_k);
  for (int64_t i = 0; i < BLOCK_KV * ROW_ALIGN; ++i) w.sums[i] = T(0);
  if (begin < end) {
    const Tile<T> K =
        load_rows(p.key, p.dtype, b, h_kv, seq.k_start + begin, end - begin, p.head_dim, w.K);
    const Range queries = band_q_range(seq.band, begin, end, seq.len_q);
    for (int64_t q = queries.begin / BLOCK_Q * BLOCK_Q; q < queries.end; q += BLOCK_Q) {
      const QueryBlock<T> block(p, b, h, q);
      const KeyStep step = key_step(key_block, block);
      if (step.begin >= step.end) continue;
      load_queries(block, w);
      load_scores(block, step, Tile<T>{K.data + (step.begin - begin) * K.ld, K.ld}, w);
      add_columns(block, step, step.begin - begin, w);
    }
  }
  const int64_t stored = p.cu_seqlens_k == nullptr ? p.total_k : seq.len_k;
  T* mass = static_cast<T*>(m.column_mass) + row_index(m, b, n, p.total_k, seq.k_start, begin);
  for (int64_t j = 0; j < min_of(BLOCK_KV, stored - begin); ++j) {
    T sum = T(0);
    for (int64_t lane = 0; lane < Vec<T>::WIDTH; ++lane) sum += w.sums[j * ROW_ALIGN + lane];
    mass[j] = sum;
  }
}

// Q^T * scale and lse of the rows of a group, one lane after the other; the keys that any of them
// sees.
template <class T>
inline Range load_group(const MapsParams& m, const RowRun* runs, int64_t count, int64_t b,
                        int64_t h, int64_t rows, MapsScratch<T>& w) {
  const AttentionParams& p = m.attention;
  const int64_t ld = round_up(p.head_dim, ROW_ALIGN);
  Range keys;
  int64_t lane = 0;
  for (int64_t q = 0; q < BLOCK_Q; ++q) w.lse[q] = -NEG_INFINITY<T>;
  for (int64_t r = 0; r < count; lane += runs[r++].count) {
    const QueryBlock<T> block(p, b, h, runs[r].q_begin, runs[r].count);
    load_padded_rows(p.query, p.dtype, b, h, block.q_row(), block.rows, p.head_dim,
                     w.rows + lane * ld);
    for (int64_t q = 0; q < block.rows; ++q) {
      const T lse = *row_value<T>(p.lse, b, h, block.q_row() + q);
      if (lse != NEG_INFINITY<T>) w.lse[lane + q] = lse;
    }
    if (block.keys.begin == block.keys.end) continue;
    const bool none = keys.begin == keys.end;
    keys.begin = none ? block.keys.begin : min_of(keys.begin, block.keys.begin);
    keys.end = none ? block.keys.end : max_of(keys.end, block.keys.end);
  }
  load_lanes(Tile<T>{w.rows, ld}, rows, p.head_dim, T(p.scale), w.Q_lanes);
  return keys;
}

// P^T of one step of a group in w.S.
template <class T>
inline void group_weights(const MapsParams& m, const RowRun* runs, int64_t count, int64_t b,
                          int64_t h, const KeyStep& step, const Tile<T>& K, int64_t vecs,
                          MapsScratch<T>& w) {
  using V = Vec<T>;
  const AttentionParams& p = m.attention;
  gemm<T, AOrder::ROWS, false>(step.count(), vecs, p.head_dim, K.data, K.ld, w.Q_lanes, BLOCK_Q,
                               w.S, BLOCK_Q);
  int64_t lane = 0;
  for (int64_t r = 0; r < count; lane += runs[r++].count) {
    const QueryBlock<T> block(p, b, h, runs[r].q_begin, runs[r].count);
    const int64_t lanes = count == 1 ? vecs * V::WIDTH : block.rows;
    finish_lanes(block, step, lanes, w.S + lane, static_cast<T*>(nullptr), w.bias);
  }
  for (int64_t j = 0; j < step.count(); ++j) {
    for (int64_t n = 0; n < vecs * V::WIDTH; n += V::WIDTH) {
      T* s = w.S + j * BLOCK_Q + n;
      weight_of(V::load(s), V::load(w.lse + n)).store(s);
    }
  }
}

template <class T>
inline void weights_group(const MapsParams& m, const RowRun* runs, int64_t count, int64_t b,
                          int64_t n, void* memory) {
  const AttentionParams& p = m.attention;
  MapsScratch<T> w(p, static_cast<T*>(memory));
  const Sequence seq = sequence_of(p, b);
  const int64_t h = chosen_head(m, n), h_kv = h / (p.heads_q / p.heads_kv);
  const int64_t rows = runs[count - 1].first + runs[count - 1].count - runs[0].first;
  T* out =
      static_cast<T*>(m.weights) + row_index(m, b, n, m.row_count, 0, runs[0].first) * p.total_k;
  std::memset(out, 0, rows * p.total_k * sizeof(T));
  const Range keys = load_group(m, runs, count, b, h, rows, w);
  for (int64_t at = keys.begin / BLOCK_KV * BLOCK_KV; at < keys.end; at += BLOCK_KV) {
    const KeyStep step{max_of(at, keys.begin), min_of(at + BLOCK_KV, keys.end)};
    const int64_t k_row = seq.k_start + step.begin;
    const Tile<T> K = load_rows(p.key, p.dtype, b, h_kv, k_row, step.count(), p.head_dim, w.K);
    group_weights(m, runs, count, b, h, step, K, vectors<T>(rows), w);
    transpose(w.S, BLOCK_Q, step.count(), rows, w.bias, BLOCK_KV);
    for (int64_t q = 0; q < rows; ++q) {
      std::memcpy(out + q * p.total_k + k_row, w.bias + q * BLOCK_KV, step.count() * sizeof(T));
    }
  }
}

template <class T>
constexpr MapsKernelSet maps_kernel_set() {
  return {
      [](const AttentionParams& p) {
        return MapsScratch<T>::elements(p) * static_cast<int64_t>(sizeof(T));
      },
      rows_block<T>,
      columns_block<T>,
      weights_group<T>,
  };
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
