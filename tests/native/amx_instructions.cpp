// csrc/cpu/amx.h for the tests: as a library with the model, and as an object with the
// instructions.
#define FUSED_ATTENTION_ISA amx_test
#include "../../csrc/cpu/amx.h"

namespace {

using namespace fused_attention::cpu::FUSED_ATTENTION_ISA;

void load(const uint16_t* a, int64_t a_stride, const uint16_t* b, const float* c) {
  tile_load<3>(c, 64);
  tile_load<4>(a, a_stride);
  tile_load<5>(b, 64);
}

}  // namespace

extern "C" {

// c [16][16] += a [16][32], rows a_stride bytes apart, times b [16][16][2].
void dot_bf16(const uint16_t* a, int64_t a_stride, const uint16_t* b, float* c) {
  const TileScope tiles;
  load(a, a_stride, b, c);
  tile_dot_bf16<3, 4, 5>();
  tile_store<3>(c, 64);
}

void dot_fp16(const uint16_t* a, int64_t a_stride, const uint16_t* b, float* c) {
  const TileScope tiles;
  load(a, a_stride, b, c);
  tile_dot_fp16<3, 4, 5>();
  tile_store<3>(c, 64);
}

void store_zeros(float* c, int64_t stride) {
  const TileScope tiles;
  tile_zero<6>();
  tile_store<6>(c, stride);
}
}
