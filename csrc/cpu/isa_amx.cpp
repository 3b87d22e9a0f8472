// Tiles: bf16 by TDPBF16PS, fp16 by TDPFP16PS; setup.py compiles this file with the matching flags.
// Everything else in these tiers is what AVX-512 does: fp32, fp64, fp16 without products for it,
// gradients of the bias, and problems that are too small to fill tiles.
#define FUSED_ATTENTION_ISA amx
#define FUSED_ATTENTION_VEC_AVX512
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"
// The kernels, compiled by the flags and in the namespace of this instruction set.
#include "amx_backward.h"

namespace fused_attention::cpu {
namespace {

#if defined(FUSED_ATTENTION_AMX_MODEL)
// Tests want to see every length on tiles, on every machine with AVX-512.
constexpr int64_t FEWEST_ON_TILES = 1;
bool bf16_supported() { return kernels_avx512.supported(); }
bool fp16_supported() { return kernels_avx512.supported(); }
const KernelSet* const bf16_without_tiles = &avx512_fp32;
#else
// A block of fewer queries is mostly padding, and packing its keys costs more than it saves.
constexpr int64_t FEWEST_ON_TILES = 8;

// The tiles' state is large, so Linux lets a process use it only after being asked.
bool permitted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return granted;
#else
  return false;
#endif
}

bool bf16_supported() {
  constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return kernels_avx512_bf16.supported() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
         (edx & BF16) != 0 && (edx & TILE) != 0 && permitted();
}

bool fp16_supported() {
  constexpr unsigned FP16 = 1u << 21;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return bf16_supported() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 &&
         (eax & FP16) != 0;
}

const KernelSet* const bf16_without_tiles = kernels_avx512_bf16.bf16;
#endif

template <class Half>
constexpr TileKernels tile_kernels() {
  using namespace amx;
  return {
      [](const AttentionParams& p) { return p.len_q >= FEWEST_ON_TILES; },
      [](const AttentionParams& p) { return PackedKeys::granule_bytes(p, PackedKeys::FORWARD); },
      [](const AttentionParams& p) { return PackedKeys::granule_bytes(p, PackedKeys::BACKWARD); },
      TileForwardScratch::bytes,
      TileBackwardScratch::bytes,
      forward_on_tiles<Half>,
      backward_on_tiles<Half>,
      finish_tile_rows<Half>,
      multiply_tiles_in_registers<Half>,
  };
}

constexpr TileKernels BF16_TILES = tile_kernels<amx::BFloat16>();
constexpr TileKernels FP16_TILES = tile_kernels<amx::Float16>();

}  // namespace

const Kernels kernels_amx_bf16 = {
    "amx_bf16",   bf16_supported, amx::BLOCK_Q,       amx::BLOCK_KV,
    &avx512_fp32, &avx512_fp64,   bf16_without_tiles, &BF16_TILES,
};

const Kernels kernels_amx_fp16 = {
    "amx_fp16",   fp16_supported,     amx::BLOCK_Q, amx::BLOCK_KV, &avx512_fp32,
    &avx512_fp64, bf16_without_tiles, &BF16_TILES,  &FP16_TILES,
};

}  // namespace fused_attention::cpu
