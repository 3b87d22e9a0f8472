#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "fused_attention/launch.h"

// What the launches share: threads and their memory. Not for kernels: these are
// templates of the standard library.
namespace fused_attention::cpu {

// FUSED_ATTENTION_POISON_SCRATCH (tests) fills scratch memory with NaN before every call.
inline void* poisoned(void* memory, int64_t size) {
  static const bool poison = std::getenv("FUSED_ATTENTION_POISON_SCRATCH") != nullptr;
  if (poison && memory != nullptr) std::memset(memory, 0xFF, size);
  return memory;
}

// A thread keeps its tile memory between calls: at most a few hundred KB, freed with the thread.
class Scratch {
 public:
  void* bytes(int64_t size) {
    if (size > capacity_) {
      memory_.reset(std::aligned_alloc(64, (size + 4095) / 4096 * 4096));
      capacity_ = memory_ ? size : 0;
    }
    return poisoned(memory_.get(), size);
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  int64_t capacity_ = 0;
};

inline void* thread_scratch(int64_t size) {
  thread_local Scratch scratch;
  return scratch.bytes(size);
}

// Items 0 .. count - 1, claimed one by one in ascending order by as many threads as are useful.
template <class Body>
Status for_each_item(const ThreadPool& pool, int64_t count, int64_t scratch_bytes,
                     const Body& body) {
  struct Shared {
    const Body& body;
    int64_t count, scratch_bytes;
    std::atomic<int64_t> next{0};
  } shared{body, count, scratch_bytes};
  const auto work = [](void* context, int) {
    Shared& all = *static_cast<Shared*>(context);
    void* scratch = all.scratch_bytes > 0 ? thread_scratch(all.scratch_bytes) : nullptr;
    if (all.scratch_bytes > 0 && scratch == nullptr) return;
    for (int64_t i; (i = all.next.fetch_add(1, std::memory_order_relaxed)) < all.count;) {
      all.body(i, scratch);
    }
  };
  const int workers = static_cast<int>(std::min<int64_t>(pool.threads, count));
  if (workers <= 1) {
    work(&shared, 0);
  } else {
    pool.run(pool.state, workers, work, &shared);
  }
  if (shared.next < count) return Status::error("out of memory: no tile scratch for any thread");
  return Status{};
}

// Below this many multiplications a second thread costs more than it brings.
constexpr double WORTH_A_THREAD = 2e5;

inline ThreadPool useful_threads(double multiplications, ThreadPool pool) {
  pool.threads = static_cast<int>(
      std::max(1.0, std::min(static_cast<double>(pool.threads), multiplications / WORTH_A_THREAD)));
  return pool;
}

}  // namespace fused_attention::cpu
