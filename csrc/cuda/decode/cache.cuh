#pragma once

#include "arguments.h"

// Where keys and values of a cache lie, contiguous or in pages.
namespace fused_attention::cuda::decode {

// The keys of batch row b after the append, and where their rows lie.
struct Cache {
  int length;  // never beyond what fits
  int begin;   // keys before it are padding
  int64_t row;
  const int32_t* pages;

  __device__ Cache(const DecodeParams& step, int b) {
    const int64_t wanted = int64_t{step.cache_lengths[b]} + step.len_new;
    const int64_t most = step.attention.len_k;
    length = static_cast<int>(wanted < 0 ? 0 : wanted > most ? most : wanted);
    begin = step.cache_starts == nullptr ? 0 : step.cache_starts[b];
    row = step.cache_batch == nullptr ? b : step.cache_batch[b];
    pages = step.block_table == nullptr ? nullptr : step.block_table + b * step.block_table_row;
  }
};

// A key's place: which cache row or page, which row in there.
struct KeyPlace {
  int page;
  int row;

  __device__ int64_t offset(const Operand& cache, int head) const {
    return page * cache.batch + head * cache.head + row * cache.row;
  }
};

__device__ inline KeyPlace place_of(const DecodeParams& step, const Cache& cache, int key) {
  if (cache.pages == nullptr) return {static_cast<int>(cache.row), key};
  const uint32_t size = static_cast<uint32_t>(step.page_size);
  const uint32_t page = static_cast<uint32_t>(key) / size;
  return {cache.pages[page], static_cast<int>(static_cast<uint32_t>(key) - page * size)};
}

}  // namespace fused_attention::cuda::decode
