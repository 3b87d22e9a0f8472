#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "cpu/local/kernels.h"
#include "cpu/work.h"
#include "fused_attention/local_launch.h"

// Sorts the queries of each head by their windows, cuts them and the keys into items and hands them
// to the threads.
namespace fused_attention::cpu {
namespace {

// nullptr: this build or this machine does not have it. The tiers above AVX-512 have no kernels of
// their own: what is multiplied here is too small for tiles.
const LocalKernels* find_local_tier(const char* isa) {
  if (find_tier(isa) == nullptr) return nullptr;
#if defined(__x86_64__)
  if (std::strncmp(isa, "avx512", 6) == 0 || std::strncmp(isa, "amx", 3) == 0) return &local_avx512;
  if (std::strcmp(isa, "avx2") == 0) return &local_avx2;
#endif
  return &local_portable;
}

Status check(const LocalParams& p, const LocalKernels* tier, const char* isa) {
  if (tier == nullptr) {
    return Status::error("instruction set '%s' is not available here (available: %s)", isa,
                         available_isas());
  }
  if (p.heads_kv <= 0 || p.heads_q % p.heads_kv != 0) {
    return Status::error("%lld query heads do not divide into %lld key/value heads",
                         static_cast<long long>(p.heads_q), static_cast<long long>(p.heads_kv));
  }
  if (!(p.width >= 0.0)) return Status::error("width: must be at least 0");
  return Status{};
}

double position_of(const LocalParams& p, int64_t b, int64_t h, int64_t row) {
  const RowVector& x = p.position;
  const int64_t at = b * x.batch + h * x.head + row * x.row;
  return p.dtype == DType::FLOAT64 ? static_cast<const double*>(x.data)[at]
                                   : static_cast<const float*>(x.data)[at];
}

// Orders the rows by begin + end of their windows, which sorts by both: a window follows from its
// centre, and neither end decreases where the centre grows. Queries that see nothing come last.
int64_t sort_rows(const LocalParams& p, int64_t b, int64_t h, int32_t* rows) {
  constexpr uint32_t SEES_NOTHING = UINT32_MAX;
  const int64_t length = local_key_length(p, b);
  std::vector<uint32_t> place(p.len_q);
  int64_t seeing = 0;
  for (int64_t i = 0; i < p.len_q; ++i) {
    const Range keys = local_window(position_of(p, b, h, i), p.width, length).keys;
    seeing += keys.end > 0;
    place[i] = keys.end > 0 ? static_cast<uint32_t>(keys.begin + keys.end) : SEES_NOTHING;
  }
  if (std::is_sorted(place.begin(), place.end())) {
    std::iota(rows, rows + p.len_q, 0);
    return seeing;
  }
  if (2 * length > 8 * p.len_q) {  // too few rows to count them by places
    std::iota(rows, rows + p.len_q, 0);
    std::stable_sort(rows, rows + p.len_q,
                     [&](int32_t a, int32_t c) { return place[a] < place[c]; });
    return seeing;
  }
  std::vector<int32_t> next(2 * length + 2, 0);
  const auto slot = [&](uint32_t at) { return at == SEES_NOTHING ? 2 * length : int64_t{at}; };
  for (const uint32_t at : place) ++next[slot(at) + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  for (int64_t i = 0; i < p.len_q; ++i) rows[next[slot(place[i])]++] = static_cast<int32_t>(i);
  return seeing;
}

// The orders of all heads, [batch][heads_q].
class Orders {
 public:
  Orders(const LocalParams& p, const ThreadPool& pool)
      : rows_(new int32_t[p.batch * p.heads_q * p.len_q]), orders_(p.batch * p.heads_q) {
    status = for_each_item(pool, p.batch * p.heads_q, 0, [&](int64_t head, void*) {
      int32_t* rows = rows_.get() + head * p.len_q;
      orders_[head] = {rows, sort_rows(p, head / p.heads_q, head % p.heads_q, rows)};
    });
  }

  const LocalOrder& operator[](int64_t head) const { return orders_[head]; }

  Status status;

 private:
  std::unique_ptr<int32_t[]> rows_;
  std::vector<LocalOrder> orders_;
};

ThreadPool limit_threads(const LocalParams& p, const ThreadPool& pool) {
  const double seen = std::min(2.0 * p.width + 1.0, static_cast<double>(p.len_k));
  const double rows =
      static_cast<double>(p.batch) * static_cast<double>(p.heads_q) * static_cast<double>(p.len_q);
  return useful_threads(rows * seen * static_cast<double>(p.head_dim + p.value_dim), pool);
}

const LocalKernelSet& kernel_set(const LocalKernels& tier, DType dtype) {
  return dtype == DType::FLOAT64 ? tier.fp64 : tier.fp32;
}

// f(b, h, begin, scratch) for blocks of `block` of `length` rows of every head.
template <class F>
Status for_each_block(const ThreadPool& pool, int64_t batch, int64_t heads, int64_t length,
                      int64_t block, int64_t scratch_bytes, const F& f) {
  const int64_t count = blocks(length, block);
  return for_each_item(pool, batch * heads * count, scratch_bytes,
                       [&](int64_t item, void* scratch) {
                         const int64_t head = item / count;
                         f(head / heads, head % heads, item % count * block, scratch);
                       });
}

}  // namespace

Status launch_local_forward(const LocalParams& p, const char* isa, const ThreadPool& pool) {
  const LocalKernels* tier = find_local_tier(isa);
  if (Status status = check(p, tier, isa); !status.ok) return status;
  const LocalKernelSet& kernels = kernel_set(*tier, p.dtype);
  const ThreadPool useful = limit_threads(p, pool);
  const Orders orders(p, useful);
  if (!orders.status.ok) return orders.status;
  return for_each_block(useful, p.batch, p.heads_q, p.len_q, LOCAL_ROWS, kernels.bytes(p),
                        [&](int64_t b, int64_t h, int64_t begin, void* scratch) {
                          kernels.forward(p, b, h, orders[b * p.heads_q + h], begin, scratch);
                        });
}

Status launch_local_backward(const LocalBackwardParams& params, const char* isa,
                             const ThreadPool& pool) {
  const LocalParams& p = params.forward;
  const LocalKernels* tier = find_local_tier(isa);
  if (Status status = check(p, tier, isa); !status.ok) return status;
  const LocalKernelSet& kernels = kernel_set(*tier, p.dtype);
  const ThreadPool useful = limit_threads(p, pool);
  const Orders orders(p, useful);
  if (!orders.status.ok) return orders.status;
  const int64_t bytes = kernels.bytes(p), group = p.heads_q / p.heads_kv;
  const Status status = for_each_block(
      useful, p.batch, p.heads_q, p.len_q, LOCAL_ROWS, bytes,
      [&](int64_t b, int64_t h, int64_t begin, void* scratch) {
        kernels.backward_queries(params, b, h, orders[b * p.heads_q + h], begin, scratch);
      });
  if (!status.ok) return status;
  return for_each_block(useful, p.batch, p.heads_kv, p.len_k, LOCAL_KEYS, bytes,
                        [&](int64_t b, int64_t h_kv, int64_t begin, void* scratch) {
                          const LocalOrder* first = &orders[b * p.heads_q + h_kv * group];
                          kernels.backward_keys(params, b, h_kv, first, begin, scratch);
                        });
}

}  // namespace fused_attention::cpu
