#pragma once

#include <cstdint>

#include "fused_attention/band.h"

namespace fused_attention {

// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
struct PhiloxWords {
  uint32_t word[4];
};

FUSED_ATTENTION_HOST_DEVICE inline PhiloxWords philox4x32(uint32_t c0, uint32_t c1, uint32_t c2,
                                                          uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    c0 = next0;
    c2 = next2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Which random bits decide about the pair (query i, key j) of (batch b, query head h):
//   counter = (call, i, b * heads + h, offset), key = the seed's two halves,
//   call = (j / 32) * 4 + (j / 2) % 4, word = (j / 8) % 4, half = j % 2 (0: the low 16 bits).
// One call so serves the keys {2t, 2t+1} of four 8-wide groups: the columns that one thread holds
// of an mma m16n8 accumulator row, so no GPU thread computes bits that it does not use.
// The pair is kept iff its 16 bits >= threshold = round(dropout_p * 65536), and kept weights are
// divided by 1 - threshold / 65536, so that the expectation is exact.
FUSED_ATTENTION_HOST_DEVICE inline uint32_t dropout_call(int64_t j) {
  return static_cast<uint32_t>((j >> 5) * 4 + ((j >> 1) & 3));
}

struct Dropout {
  uint32_t threshold = 0;  // 0: no dropout
  uint32_t seed[2] = {0, 0};
  uint32_t offset = 0;
  double keep_scale = 1.0;
  // Seed and offset where they lie on a GPU, so that no stream is stalled to read them; a kernel
  // calls load_dropout_state once. nullptr: seed and offset above hold them.
  const int64_t* state = nullptr;
};

FUSED_ATTENTION_HOST_DEVICE inline Dropout load_dropout_state(Dropout dropout) {
  if (dropout.threshold == 0 || dropout.state == nullptr) return dropout;
  const uint64_t seed = static_cast<uint64_t>(dropout.state[0]);
  dropout.seed[0] = static_cast<uint32_t>(seed);
  dropout.seed[1] = static_cast<uint32_t>(seed >> 32);
  dropout.offset = static_cast<uint32_t>(dropout.state[1]);
  return dropout;
}

FUSED_ATTENTION_HOST_DEVICE inline bool dropout_keep(const Dropout& dropout, int64_t batch_head,
                                                     int64_t i, int64_t j) {
  const PhiloxWords words =
      philox4x32(dropout_call(j), static_cast<uint32_t>(i), static_cast<uint32_t>(batch_head),
                 dropout.offset, dropout.seed[0], dropout.seed[1]);
  const uint32_t bits = words.word[(j >> 3) & 3] >> ((j & 1) * 16) & 0xFFFFu;
  return bits >= dropout.threshold;
}

}  // namespace fused_attention
