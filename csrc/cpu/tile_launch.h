#pragma once

#include "work.h"

// Launches whose kernels read packed keys: who packs them, where they lie and for how long.
namespace fused_attention::cpu {

// nullptr: the tier has no tiles for this dtype.
inline const TileKernels* tile_kernels(const Kernels& tier, DType dtype) {
  return dtype == DType::BFLOAT16  ? tier.bf16_tiles
         : dtype == DType::FLOAT16 ? tier.fp16_tiles
                                   : nullptr;
}

// nullptr: this problem is not for tiles.
inline const TileKernels* tile_kernels(const Kernels& tier, const AttentionParams& p) {
  const TileKernels* tiles = tile_kernels(tier, p.dtype);
  return tiles != nullptr && tiles->serves(p) ? tiles : nullptr;
}

Status forward_on_tiles(const AttentionParams& params, const TileKernels& tiles,
                        const ThreadPool& pool);

// Whether the backward pass gives each thread whole heads.
bool tiles_take_whole_heads(const AttentionParams& params, const TileKernels& tiles,
                            const ThreadPool& pool);

// `turns`: see Turnstile. dK and dV stay in the sums, or, without any, where threads take whole
// heads, are written.
Status backward_on_tiles(const BackwardParams& params, const TileKernels& tiles,
                         const BackwardOrder& order, int32_t* turns, const ThreadPool& pool);

}  // namespace fused_attention::cpu
