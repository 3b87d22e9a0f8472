#pragma once

#include <cstring>

#include "fused_attention/params.h"
#include "vec.h"

// Moving tiles: storage dtype <-> the type that is computed in (float, or double for double).
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

// Queries of one work item and keys of one step. 64 x 64 scores (16 KB in fp32) stay in L1 beside
// the panels being multiplied, and K and V are streamed from L2 once per 64 queries.
constexpr int64_t BLOCK_Q = 64;
constexpr int64_t BLOCK_KV = 64;

// Matrices whose rows are read as vectors are padded to whole vectors of every instruction set.
constexpr int64_t ROW_ALIGN = 16;
inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

template <class T>
inline int64_t vectors(int64_t n) {
  return (n + Vec<T>::WIDTH - 1) / Vec<T>::WIDTH;
}

inline int64_t element_size(DType dtype) {
  return dtype == DType::FLOAT64 ? 8 : dtype == DType::FLOAT32 ? 4 : 2;
}

inline const char* row_pointer(const Operand& x, DType dtype, int64_t b, int64_t h, int64_t row) {
  return static_cast<const char*>(x.data) +
         (b * x.batch + h * x.head + row * x.row) * element_size(dtype);
}

// n values at `src` of the storage dtype to dst.
inline void convert_row(const char* src, DType dtype, int64_t n, float* dst) {
  using V = Vec<float>;
  if (dtype == DType::FLOAT32) {
    const float* values = reinterpret_cast<const float*>(src);
    int64_t i = 0;
    for (; i + V::WIDTH <= n; i += V::WIDTH) V::load(values + i).store(dst + i);
    if (i < n) std::memcpy(dst + i, values + i, (n - i) * sizeof(float));
    return;
  }
  const uint16_t* half = reinterpret_cast<const uint16_t*>(src);
  const bool bf16 = dtype == DType::BFLOAT16;
  int64_t i = 0;
  for (; i + V::WIDTH <= n; i += V::WIDTH) {
    (bf16 ? V::load_bf16(half + i) : V::load_fp16(half + i)).store(dst + i);
  }
  if (i < n) {  // never read beyond the row: it may be the tensor's last
    uint16_t tail[V::WIDTH] = {};
    float wide[V::WIDTH];
    std::memcpy(tail, half + i, (n - i) * sizeof(uint16_t));
    (bf16 ? V::load_bf16(tail) : V::load_fp16(tail)).store(wide);
    std::memcpy(dst + i, wide, (n - i) * sizeof(float));
  }
}

inline void convert_row(const char* src, DType, int64_t n, double* dst) {
  std::memcpy(dst, src, n * sizeof(double));
}

inline void store_vector(Vec<float> value, DType dtype, char* dst) {
  if (dtype == DType::FLOAT32) {
    value.store(reinterpret_cast<float*>(dst));
  } else if (dtype == DType::BFLOAT16) {
    value.store_bf16(reinterpret_cast<uint16_t*>(dst));
  } else {
    value.store_fp16(reinterpret_cast<uint16_t*>(dst));
  }
}

// n values times `factor` from src to the storage dtype at dst.
inline void store_row(const float* src, float factor, DType dtype, int64_t n, char* dst) {
  using V = Vec<float>;
  const V scale = V::broadcast(factor);
  const int64_t size = element_size(dtype);
  int64_t i = 0;
  for (; i + V::WIDTH <= n; i += V::WIDTH) {
    store_vector(V::load(src + i) * scale, dtype, dst + i * size);
  }
  if (i < n) {
    float wide[V::WIDTH] = {};
    char narrow[V::WIDTH * sizeof(float)];
    std::memcpy(wide, src + i, (n - i) * sizeof(float));
    store_vector(V::load(wide) * scale, dtype, narrow);
    std::memcpy(dst + i * size, narrow, (n - i) * size);
  }
}

inline void store_row(const double* src, double factor, DType, int64_t n, char* dst) {
  double* out = reinterpret_cast<double*>(dst);
  for (int64_t i = 0; i < n; ++i) out[i] = src[i] * factor;
}

// Asks for n rows of the storage dtype before they are needed: the products read them in an order
// that the hardware does not foresee.
inline void prefetch_rows(const Operand& x, DType dtype, int64_t b, int64_t h, int64_t row,
                          int64_t n, int64_t dim) {
  const char* src = row_pointer(x, dtype, b, h, row);
  const int64_t size = element_size(dtype);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t at = 0; at < dim * size; at += 64) {
      __builtin_prefetch(src + i * x.row * size + at, 0, 2);
    }
  }
}

// A tile as the products read it: rows of `ld` elements.
template <class T>
struct Tile {
  const T* data;
  int64_t ld;
};

// Rows [row, row + n) of x in the computed type: in place where the tensor's rows already lie
// densely, else converted into `buffer` (n rows of round_up(dim, ROW_ALIGN)). Rows a page apart
// (a [B, L, H, D] view, a large power-of-two dim) would share cache sets, so they are copied too.
template <class T>
inline Tile<T> load_rows(const Operand& x, DType dtype, int64_t b, int64_t h, int64_t row,
                         int64_t n, int64_t dim, T* buffer) {
  const char* src = row_pointer(x, dtype, b, h, row);
  const bool computed_type = dtype == DType::FLOAT32 || dtype == DType::FLOAT64;
  if (computed_type && x.row == dim && dim * sizeof(T) % 1024 != 0) {
    return {reinterpret_cast<const T*>(src), dim};
  }
  const int64_t ld = round_up(dim, ROW_ALIGN);
  for (int64_t i = 0; i < n; ++i) {
    convert_row(src + i * x.row * element_size(dtype), dtype, dim, buffer + i * ld);
  }
  return {buffer, ld};
}

// Rows as vector operands: always in `buffer`, zero in the padding columns.
template <class T>
inline Tile<T> load_padded_rows(const Operand& x, DType dtype, int64_t b, int64_t h, int64_t row,
                                int64_t n, int64_t dim, T* buffer) {
  const int64_t ld = round_up(dim, ROW_ALIGN);
  const char* src = row_pointer(x, dtype, b, h, row);
  for (int64_t i = 0; i < n; ++i) {
    convert_row(src + i * x.row * element_size(dtype), dtype, dim, buffer + i * ld);
    for (int64_t d = dim; d < ld; ++d) buffer[i * ld + d] = T(0);
  }
  return {buffer, ld};
}

// The same for the products that read rows as vectors: in place only if they are whole vectors.
template <class T>
inline Tile<T> load_vector_rows(const Operand& x, DType dtype, int64_t b, int64_t h, int64_t row,
                                int64_t n, int64_t dim, T* buffer) {
  const auto load = dim % Vec<T>::WIDTH == 0 ? load_rows<T> : load_padded_rows<T>;
  return load(x, dtype, b, h, row, n, dim, buffer);
}

inline int64_t transpose_width(const float*) { return Vec<float>::WIDTH; }
inline int64_t transpose_width(const double*) { return 0; }
inline void transpose_block(const double*, int64_t, double*, int64_t) {}

// dst[j][i] = src[i][j] for i < rows, j < cols.
template <class T>
inline void transpose(const T* src, int64_t ld_src, int64_t rows, int64_t cols, T* dst,
                      int64_t ld_dst) {
  const int64_t width = transpose_width(src);  // 0: no vector version (double)
  const int64_t block_rows = width ? rows / width * width : 0;
  const int64_t block_cols = width ? cols / width * width : 0;
  for (int64_t i = 0; i < block_rows; i += width) {
    for (int64_t j = 0; j < block_cols; j += width) {
      transpose_block(src + i * ld_src + j, ld_src, dst + j * ld_dst + i, ld_dst);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i < block_rows ? block_cols : 0; j < cols; ++j) {
      dst[j * ld_dst + i] = src[i * ld_src + j];
    }
  }
}

// Queries as lanes: dst[d][q] = x[q][d] * factor for `rows` queries; the other lanes of the last
// vector are 0, so that they take part in products harmlessly. The rows of a square of lanes are
// gathered first: single elements stored into dst would have to be waited for when it is read.
inline void load_lanes(const Tile<float>& x, int64_t rows, int64_t dim, float factor, float* dst) {
  using V = Vec<float>;
  alignas(64) float square[V::WIDTH * V::WIDTH];
  const V scale = V::broadcast(factor);
  for (int64_t q = 0; q < rows; q += V::WIDTH) {
    for (int64_t d = 0; d < dim; d += V::WIDTH) {
      const int64_t count = min_of(V::WIDTH, dim - d);
      for (int64_t i = 0; i < V::WIDTH; ++i) {
        float* row = square + i * V::WIDTH;
        if (q + i < rows && count == V::WIDTH) {
          (V::load(x.data + (q + i) * x.ld + d) * scale).store(row);
        } else {
          const float* src = x.data + (q + i) * x.ld + d;
          V::broadcast(0.f).store(row);
          for (int64_t j = 0; q + i < rows && j < count; ++j) row[j] = src[j] * factor;
        }
      }
      transpose_block(square, V::WIDTH, dst + d * BLOCK_Q + q, BLOCK_Q);
    }
  }
}

inline void load_lanes(const Tile<double>& x, int64_t rows, int64_t dim, double factor,
                       double* dst) {
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t q = 0; q < BLOCK_Q; ++q) {
      dst[d * BLOCK_Q + q] = q < rows ? x.data[q * x.ld + d] * factor : 0.0;
    }
  }
}

template <class T>
inline T* row_value(const RowVector& x, int64_t b, int64_t h, int64_t row) {
  return static_cast<T*>(x.data) + b * x.batch + h * x.head + row * x.row;
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
