#pragma once

#include "cpu/decode_rows.h"
#include "cpu/local/kernels.h"

// Queries and keys of local attention, as the products of decode_rows.h read them. Queries come in
// the order of their windows, so that those whose windows overlap stand side by side:
//
//     keys          ........................
//     tile of 4       #####                      up to 8 queries share each key that is loaded;
//     queries           #####                    where a window of theirs ends weights are 0
//                       #####
//                          #####
//
// A tile's windows overlap by so much that few products are in vain, and leave no gap: a key that
// lies in no window is not loaded.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

constexpr int64_t TILE_ROWS = 8;
constexpr int64_t STEP_KEYS = DECODE_KEYS;

inline Range intersect(Range a, Range b) {
  const Range both{max_of(a.begin, b.begin), min_of(a.end, b.end)};
  return both.begin < both.end ? both : Range{};
}

inline int64_t length_of(Range keys) { return keys.end - keys.begin; }

template <class T>
constexpr DType COMPUTED = sizeof(T) == 8 ? DType::FLOAT64 : DType::FLOAT32;

// Columns of a matrix whose rows are read and written in pairs of vectors.
template <class T>
inline int64_t paired(int64_t dim) {
  return round_up(dim, max_of(PAIR<T>, ROW_ALIGN));
}

// One query and its window.
template <class T>
struct QueryRow {
  int64_t row = 0;
  Range keys;
  // j - p = (j - center) - fraction: exact, however far from key 0.
  int64_t center = 0;
  T fraction = T(0), inverse_sigma = T(0);
};

template <class T>
inline QueryRow<T> query_row(const LocalParams& p, int64_t b, int64_t h, int64_t row,
                             int64_t length) {
  QueryRow<T> query;
  const T position = *row_value<T>(p.position, b, h, row);
  const LocalWindow window = local_window(position, p.width, length);
  query.row = row;
  query.keys = window.keys;
  query.center = window.center;
  query.fraction = position - T(window.center);
  const T sigma = p.sigma.data != nullptr ? *row_value<T>(p.sigma, b, h, row) : T(p.fixed_sigma);
  query.inverse_sigma = T(1) / sigma;  // of inf: 0, a Gaussian that is 1 everywhere
  return query;
}

// Neighbours of the order that share their keys.
struct RowTile {
  int64_t first = 0, count = 0;
  Range keys;
};

// The tile that begins with query `first` of `count`.
template <class T>
inline RowTile row_tile(const QueryRow<T>* queries, int64_t first, int64_t count) {
  RowTile tile{first, 1, queries[first].keys};
  int64_t longest = length_of(tile.keys);
  for (int64_t i = first + 1; i < count && tile.count < TILE_ROWS; ++i, ++tile.count) {
    const Range keys = queries[i].keys;
    longest = max_of(longest, length_of(keys));
    const Range all{tile.keys.begin, max_of(tile.keys.end, keys.end)};
    if (keys.begin > tile.keys.end || 2 * length_of(all) > 3 * longest) break;
    tile.keys = all;
  }
  return tile;
}

// f(tile, keys) for all keys of all tiles, at most STEP_KEYS at a time. Long windows are walked
// side by side, so that keys are in the cache when the next tile comes for them; `load(begin)` is
// told of every new step, whose keys are those from begin on.
template <class Load, class F>
inline void walk_tiles(const RowTile* tiles, int64_t count, const Load& load, const F& f) {
  bool together = false;
  for (int64_t n = 0; n < count; ++n) together |= length_of(tiles[n].keys) > STEP_KEYS;
  if (!together) {
    for (int64_t n = 0; n < count; ++n) {
      load(tiles[n].keys.begin);
      f(tiles[n], tiles[n].keys);
    }
    return;
  }
  for (int64_t begin = tiles[0].keys.begin;;) {
    const Range step{begin, begin + STEP_KEYS};
    int64_t next = INT64_MAX;
    load(begin);
    for (int64_t n = 0; n < count; ++n) {
      const Range keys = intersect(tiles[n].keys, step);
      if (keys.end > 0) f(tiles[n], keys);
      if (tiles[n].keys.end > step.end) next = min_of(next, max_of(tiles[n].keys.begin, step.end));
    }
    if (next == INT64_MAX) return;
    begin = next;
  }
}

// Up to STEP_KEYS rows of key or value as pointers: where they lie if they are of the computed
// type, else converted into `buffer`, each when it is first asked for.
template <class T>
class KeyRows {
 public:
  KeyRows(const Operand& x, DType dtype, int64_t b, int64_t h, int64_t dim, T* buffer)
      : dtype_(dtype),
        dim_(dim),
        stride_(x.row * element_size(dtype)),
        data_(row_pointer(x, dtype, b, h, 0)),
        buffer_(buffer) {}

  static int64_t elements(DType dtype, int64_t dim) {
    return dtype == COMPUTED<T> ? 0 : STEP_KEYS * round_up(dim, ROW_ALIGN);
  }

  void start(int64_t begin) {
    begin_ = begin;
    ready_ = 0;
  }

  // Keys of [begin, begin + STEP_KEYS).
  const char* const* rows(Range keys) {
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const int64_t at = j - begin_;
      if (ready_ >> at & 1) continue;
      ready_ |= uint64_t{1} << at;
      const char* row = data_ + j * stride_;
      if (dtype_ != COMPUTED<T>) {
        T* wide = buffer_ + at * round_up(dim_, ROW_ALIGN);
        convert_row(row, dtype_, dim_, wide);
        row = reinterpret_cast<const char*>(wide);
      }
      rows_[at] = row;
    }
    return rows_ + keys.begin - begin_;
  }

 private:
  DType dtype_;
  int64_t dim_, stride_;
  const char* data_;
  T* buffer_;
  int64_t begin_ = 0;
  uint64_t ready_ = 0;
  const char* rows_[STEP_KEYS];
};
static_assert(STEP_KEYS <= 64, "KeyRows has a bit for each key");

// f(tile, keys, K, values) for all tiles of a block's queries and all of their keys, step by step;
// K and values are KeyRows, in `buffers`.
template <class T, class F>
inline void walk_block(const LocalParams& p, int64_t b, int64_t h, const QueryRow<T>* queries,
                       int64_t count, T* buffers, const F& f) {
  RowTile tiles[LOCAL_ROWS];
  int64_t tile_count = 0;
  for (int64_t i = 0; i < count; i += tiles[tile_count++].count) {
    tiles[tile_count] = row_tile(queries, i, count);
  }
  if (tile_count == 0) return;
  const int64_t h_kv = h / (p.heads_q / p.heads_kv);
  T* behind = buffers + KeyRows<T>::elements(p.dtype, p.head_dim);
  KeyRows<T> K(p.key, p.dtype, b, h_kv, p.head_dim, buffers);
  KeyRows<T> values(p.value, p.dtype, b, h_kv, p.value_dim, behind);
  const auto load = [&](int64_t begin) {
    K.start(begin);
    values.start(begin);
  };
  walk_tiles(tiles, tile_count, load,
             [&](const RowTile& tile, Range keys) { f(tile, keys, K, values); });
}

// One row of query or grad_out times `factor`, zeros up to whole pairs of vectors.
template <class T>
inline void load_row(const Operand& x, DType dtype, int64_t b, int64_t h, int64_t row, int64_t dim,
                     T factor, T* dst) {
  convert_row(row_pointer(x, dtype, b, h, row), dtype, dim, dst);
  for (int64_t d = 0; d < dim; ++d) dst[d] *= factor;
  for (int64_t d = dim; d < paired<T>(dim); ++d) dst[d] = T(0);
}

// s [rows][STEP_KEYS] = x [rows][ld] . keys
template <class T>
inline void multiply_keys(const T* x, int64_t ld, int64_t rows, const char* const* keys,
                          int64_t count, int64_t dim, T* s) {
  NothingComing nothing;
  for_row_tiles<T>(rows, [&](auto R, int64_t r) {
    dot_rows<T, COMPUTED<T>, decltype(R)::VALUE>(x + r * ld, ld, keys, count, dim,
                                                 s + r * STEP_KEYS, nothing);
  });
}

// out [rows][ld] += w [rows][STEP_KEYS] times the rows of `values`
template <class T>
inline void add_weighted(const T* w, int64_t rows, const char* const* values, int64_t count,
                         int64_t dim, T* out, int64_t ld) {
  NothingComing nothing;
  for_row_tiles<T>(rows, [&](auto R, int64_t r) {
    add_values<T, COMPUTED<T>, decltype(R)::VALUE>(w + r * STEP_KEYS, values, count, dim,
                                                   out + r * ld, ld, nothing);
  });
}

// The Gaussian of one query on the keys from `begin` on, a vector of keys at a time.
template <class T>
struct Gaussian {
  using V = Vec<T>;
  V start, inverse_sigma;
  bool flat;  // sigma inf

  Gaussian(const QueryRow<T>& query, int64_t begin)
      : start(V::broadcast(T(begin - query.center) - query.fraction)),
        inverse_sigma(V::broadcast(query.inverse_sigma)),
        flat(query.inverse_sigma == T(0)) {}

  // (j - p) / sigma of keys begin + at and following.
  V distance(int64_t at) const {
    static constexpr T LANES[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (start + (V::broadcast(T(at)) + V::load(LANES))) * inverse_sigma;
  }
  static V exponent(V t) { return t * t * V::broadcast(T(-0.5)); }
};

// Keys of `step` that a query sees, counted from the step's first one, [0, 0) if none.
template <class T>
inline Range own_keys(const QueryRow<T>& query, Range step) {
  const Range keys = intersect(query.keys, step);
  return keys.end == 0 ? Range{} : Range{keys.begin - step.begin, keys.end - step.begin};
}

// `value` in a row of `count` keys, rounded up to whole vectors, but for those that a query sees.
template <class T>
inline void fill_unseen(T* row, Range own, int64_t count, T value) {
  for (int64_t j = 0; j < own.begin; ++j) row[j] = value;
  for (int64_t j = own.end; j < vectors<T>(count) * Vec<T>::WIDTH; ++j) row[j] = value;
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
