#include "tile_launch.h"

// What benchmarks hold results against: the multiplications that a tier can do at most, and the
// rate at which all threads together read memory.
namespace fused_attention::cpu {

Status launch_peak(DType dtype, int64_t rounds, const char* isa, const ThreadPool& pool,
                   double* flops) {
  const Kernels* tier = find_tier(isa);
  if (tier == nullptr) {
    return Status::error("instruction set '%s' is not available here (available: %s)", isa,
                         available_isas());
  }
  const TileKernels* tiles = tile_kernels(*tier, dtype);
  const auto multiply = tiles != nullptr ? tiles->peak : kernel_set(*tier, dtype).peak;
  double done = 0;  // the same on each thread
  const Status status = for_each_item(pool, pool.threads, 0, [&](int64_t item, void*) {
    const double own = multiply(rounds);
    if (item == 0) done = own;
  });
  *flops = done * pool.threads;
  return status;
}

Status launch_read(const void* data, int64_t bytes, const ThreadPool& pool, uint64_t* found) {
  constexpr int64_t CHUNK = 32 * 1024, LINE = 8;  // in words of 8 bytes
  const uint64_t* words = static_cast<const uint64_t*>(data);
  const int64_t lines = bytes / 64;
  std::atomic<uint64_t> all{0};
  const auto body = [&](int64_t item, void*) {
    uint64_t bits[LINE] = {};
    const int64_t end = std::min((item + 1) * CHUNK, lines * LINE);
    for (int64_t at = item * CHUNK; at < end; at += LINE) {
      for (int64_t i = 0; i < LINE; ++i) bits[i] |= words[at + i];
    }
    for (const uint64_t word : bits) all.fetch_or(word, std::memory_order_relaxed);
  };
  const Status status = for_each_item(pool, blocks(lines * LINE, CHUNK), 0, body);
  *found = all;
  return status;
}

}  // namespace fused_attention::cpu
