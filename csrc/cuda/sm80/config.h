#pragma once

#include <cstdint>

#include "../common/element.h"

// Tile shapes, as plain C++: the kernels are instantiated with these structs, the host launches by
// them, and tests read them.
//
// Shared memory stays below 99 KB, the most that a block of sm_86 and sm_89 can have; up to dim 128
// two blocks fit on an SM of sm_80 (164 KB). A warp owns 16 * M rows of the block's tile and all of
// its columns. With M = 2 each fragment of the other operand that ldmatrix brings serves two mma;
// with M = 1 reading shared memory takes as long as the tensor cores do. M = 2 wherever the
// accumulators of 32 rows fit into 255 registers.
namespace fused_attention::cuda::sm80 {

constexpr int MAX_SHARED_BYTES = 99 * 1024;
constexpr int DIMS[] = {32, 64, 96, 128, 192, 256};  // others are padded with zeros by the loader

struct TileShape {
  int rows;     // of the block: queries in the forward and for dQ, keys for dK and dV
  int columns;  // of one step
  int warps;
};

// Shared memory: Q, one tile of K, one of V. At dim 128 O and S alone take 192 registers, and what
// is left is just enough: look at `make cuda-table` after every change of the forward.
constexpr TileShape forward_shape(int dim) {
  return dim <= 128   ? TileShape{128, 64, 4}
         : dim == 192 ? TileShape{128, 64, 8}
                      : TileShape{128, 32, 8};
}

// Shared memory: Q and dO, two stages of K and V.
constexpr TileShape query_gradient_shape(int dim) {
  return dim <= 64   ? TileShape{128, 64, 4}
         : dim == 96 ? TileShape{64, 64, 4}
         : dim < 256 ? TileShape{64, 32, 4}
                     : TileShape{64, 16, 4};
}

// Shared memory: K and V, two stages of Q and dO. Beyond dim 128 the accumulators of dK and dV do
// not fit into one warp's registers together: one half of the blocks sums dK, the other dV.
constexpr TileShape key_gradient_shape(int dim) {
  return dim <= 64    ? TileShape{128, 32, 4}
         : dim == 96  ? TileShape{64, 64, 4}
         : dim == 256 ? TileShape{64, 16, 4}
                      : TileShape{64, 32, 4};
}

// dK and dV by different blocks, or by the same.
constexpr int key_gradient_roles(int dim) { return dim > 128 ? 2 : 1; }

template <class Element_, int DIM_>
struct Config {
  using Element = Element_;
  static constexpr int DIM = DIM_;
  static_assert(DIM % 32 == 0 && DIM <= 256, "tiles have rows of multiples of 64 bytes");
};

template <class Element_, int DIM_>
struct ForwardConfig : Config<Element_, DIM_> {
  static constexpr TileShape SHAPE = forward_shape(DIM_);
  static constexpr int BLOCK_Q = SHAPE.rows, BLOCK_KV = SHAPE.columns;
  static constexpr int THREADS = SHAPE.warps * 32;
  static constexpr int M = BLOCK_Q / (16 * SHAPE.warps);
  static constexpr int MIN_BLOCKS = DIM_ <= 128 ? 2 : 1;
  static constexpr int SHARED_BYTES = (BLOCK_Q + 2 * BLOCK_KV) * DIM_ * ELEMENT_BYTES;
  static_assert(BLOCK_Q % (16 * SHAPE.warps) == 0, "a warp owns whole m16 tiles");
  static_assert(BLOCK_KV % 32 == 0, "one call of Philox serves 32 keys");
  static_assert(SHARED_BYTES <= MAX_SHARED_BYTES, "more shared memory than sm_86 has");
};

template <class Element_, int DIM_>
struct QueryGradientConfig : Config<Element_, DIM_> {
  static constexpr TileShape SHAPE = query_gradient_shape(DIM_);
  static constexpr int BLOCK_Q = SHAPE.rows, BLOCK_KV = SHAPE.columns;
  static constexpr int THREADS = SHAPE.warps * 32;
  static constexpr int M = BLOCK_Q / (16 * SHAPE.warps);
  static constexpr int MIN_BLOCKS = DIM_ <= 128 ? 2 : 1;
  static constexpr int SHARED_BYTES = (2 * BLOCK_Q + 4 * BLOCK_KV) * DIM_ * ELEMENT_BYTES;
  static_assert(BLOCK_Q % (16 * SHAPE.warps) == 0, "a warp owns whole m16 tiles");
  static_assert(BLOCK_KV % 16 == 0, "keys are the depth of a product, 16 at a time");
  static_assert(SHARED_BYTES <= MAX_SHARED_BYTES, "more shared memory than sm_86 has");
};

template <class Element_, int DIM_>
struct KeyGradientConfig : Config<Element_, DIM_> {
  static constexpr TileShape SHAPE = key_gradient_shape(DIM_);
  static constexpr int BLOCK_KV = SHAPE.rows, BLOCK_Q = SHAPE.columns;
  static constexpr int THREADS = SHAPE.warps * 32;
  static constexpr int M = BLOCK_KV / (16 * SHAPE.warps);
  static constexpr int ROLES = key_gradient_roles(DIM_);
  static constexpr int MIN_BLOCKS = DIM_ <= 128 ? 2 : 1;
  static constexpr int STATISTICS_BYTES = 2 * 2 * BLOCK_Q * static_cast<int>(sizeof(float));
  static constexpr int SHARED_BYTES =
      (2 * BLOCK_KV + 4 * BLOCK_Q) * DIM_ * ELEMENT_BYTES + STATISTICS_BYTES;
  static_assert(BLOCK_KV % (16 * SHAPE.warps) == 0, "a warp owns whole m16 tiles");
  static_assert(BLOCK_Q % 16 == 0, "queries are the depth of a product, 16 at a time");
  static_assert(SHARED_BYTES <= MAX_SHARED_BYTES, "more shared memory than sm_86 has");
};

// delta: a block takes the rows that a block of the dQ kernel takes, 8 lanes a row.
constexpr int DELTA_THREADS = 128;
constexpr int DELTA_LANES = 8;

}  // namespace fused_attention::cuda::sm80
