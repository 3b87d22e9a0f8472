#pragma once

#include "tiles.h"

// What happens before decoding attends: rotary embedding of queries and new keys, and the new rows'
// way into the cache.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

// Where the cache rows of one sequence lie. `table` is nullptr in a contiguous cache, which then is
// one page.
struct CachePlace {
  const int32_t* table = nullptr;
  int64_t page_size = BAND_UNBOUNDED;
  int64_t page = 0;

  CachePlace(const DecodeParams& p, int64_t b) {
    if (p.block_table != nullptr) {
      table = p.block_table + b * p.block_table_row;
      page_size = p.page_size;
    } else {
      page = p.cache_batch != nullptr ? p.cache_batch[b] : b;
    }
  }

  int64_t page_of(int64_t key) const { return table != nullptr ? table[key / page_size] : page; }

  // Pointers to keys [begin, end) of head h; a page is looked up once.
  void locate(const Operand& cache, DType dtype, int64_t h, int64_t begin, int64_t end,
              const char** rows) const {
    const int64_t step = cache.row * element_size(dtype);
    for (int64_t key = begin; key < end;) {
      const int64_t in_page = table != nullptr ? key % page_size : key;
      const int64_t run = min_of(end - key, page_size - in_page);
      const char* row = row_pointer(cache, dtype, page_of(key), h, in_page);
      for (int64_t i = 0; i < run; ++i) *rows++ = row + i * step;
      key += run;
    }
  }
};

// n numbers of a table of the rotation, whose dtype may be narrower than the computed type.
inline void load_table(const void* table, DType dtype, int64_t at, int64_t n, float* dst) {
  convert_row(static_cast<const char*>(table) + at * element_size(dtype), dtype, n, dst);
}

inline void load_table(const void* table, DType dtype, int64_t at, int64_t n, double* dst) {
  for (int64_t i = 0; i < n; ++i) {
    dst[i] = dtype == DType::FLOAT64 ? static_cast<const double*>(table)[at + i]
                                     : static_cast<const float*>(table)[at + i];
  }
}

// Buffers of one row: `row` for a query or key, cos and sin for half a rotary_dim each.
template <class T>
struct RotaryRow {
  T *row, *cos, *sin;
};

// x0 cos - x1 sin and x0 sin + x1 cos for the pairs of the first rotary_dim elements: neighbours
// when interleaved, else the elements n and n + rotary_dim / 2 (RoFormer, Su et al. 2021, eq. 34).
template <class T>
inline void rotate_row(const DecodeParams& p, int64_t position, const RotaryRow<T>& w) {
  if (p.rotary_cos == nullptr) return;
  const int64_t half = p.rotary_dim / 2;
  load_table(p.rotary_cos, p.rotary_dtype, position * half, half, w.cos);
  load_table(p.rotary_sin, p.rotary_dtype, position * half, half, w.sin);
  const int64_t step = p.rotary_interleaved ? 2 : 1, partner = p.rotary_interleaved ? 1 : half;
  for (int64_t n = 0; n < half; ++n) {
    T* x = w.row + step * n;
    const T turned = x[0] * w.cos[n] - x[partner] * w.sin[n];
    x[partner] = x[0] * w.sin[n] + x[partner] * w.cos[n];
    x[0] = turned;
  }
}

// New keys (turned) and values of one head, written behind what the cache holds.
template <class T>
inline void decode_append(const DecodeParams& p, int64_t b, int64_t h, const RotaryRow<T>& w) {
  const AttentionParams& a = p.attention;
  const CachePlace place(p, b);
  for (int64_t i = 0; i < p.len_new; ++i) {
    const int64_t position = p.cache_lengths[b] + i;
    const char *key_at, *value_at;
    place.locate(a.key, a.dtype, h, position, position + 1, &key_at);
    place.locate(a.value, a.dtype, h, position, position + 1, &value_at);
    const char* key = row_pointer(p.new_key, a.dtype, b, h, i);
    if (p.rotary_cos == nullptr) {
      std::memcpy(const_cast<char*>(key_at), key, a.head_dim * element_size(a.dtype));
    } else {
      convert_row(key, a.dtype, a.head_dim, w.row);
      rotate_row(p, position, w);
      store_row(w.row, T(1), a.dtype, a.head_dim, const_cast<char*>(key_at));
    }
    const char* value = row_pointer(p.new_value, a.dtype, b, h, i);
    std::memcpy(const_cast<char*>(value_at), value, a.value_dim * element_size(a.dtype));
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
