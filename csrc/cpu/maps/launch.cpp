#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/maps/kernels.h"
#include "cpu/work.h"

// Cuts what is asked about the weights into items: blocks of queries, blocks of keys, runs of rows.
namespace fused_attention::cpu {
namespace {

const MapsKernels& maps_kernels(const char* isa) {
#if defined(__x86_64__)
  if (std::strncmp(isa, "avx512", 6) == 0 || std::strncmp(isa, "amx", 3) == 0) return maps_avx512;
  if (std::strcmp(isa, "avx2") == 0) return maps_avx2;
#else
  (void)isa;
#endif
  return maps_portable;
}

int64_t heads_of(const MapsParams& m) {
  return m.attention.cu_seqlens_q != nullptr ? m.head_count : m.attention.batch * m.head_count;
}

Status check_chosen(const MapsParams& m) {
  const AttentionParams& p = m.attention;
  for (int64_t n = 0; m.heads != nullptr && n < m.head_count; ++n) {
    if (m.heads[n] < 0 || m.heads[n] >= p.heads_q) {
      return Status::error("heads: no head %d", static_cast<int>(m.heads[n]));
    }
  }
  for (int64_t r = 0; r < m.row_count; ++r) {
    if (m.rows[r] < 0 || m.rows[r] >= p.total_q) {
      return Status::error("rows: no row %d", static_cast<int>(m.rows[r]));
    }
  }
  return Status{};
}

// The chosen rows as runs that a block of queries holds. Those of a dense batch are the same for
// each of its rows and stand here once, with b = 0. Rows behind the last sequence are in none.
std::vector<RowRun> row_runs(const MapsParams& m, int64_t block_q) {
  const AttentionParams& p = m.attention;
  std::vector<RowRun> runs;
  for (int64_t r = 0; r < m.row_count; ++r) {
    RowRun one{0, m.rows[r], 1, r};
    if (p.cu_seqlens_q != nullptr) {
      const int32_t* ends = p.cu_seqlens_q + 1;
      one.b = std::upper_bound(ends, ends + p.batch, m.rows[r]) - ends;
      if (one.b == p.batch) continue;
      one.q_begin -= p.cu_seqlens_q[one.b];
    }
    RowRun* last = runs.empty() ? nullptr : &runs.back();
    if (last != nullptr && last->b == one.b && last->first + last->count == r &&
        last->q_begin + last->count == one.q_begin && last->count < block_q) {
      ++last->count;
    } else {
      runs.push_back(one);
    }
  }
  return runs;
}

// Where groups of runs begin, and the end of the last.
std::vector<int64_t> row_groups(const MapsParams& m, const std::vector<RowRun>& runs,
                                int64_t block_q) {
  std::vector<int64_t> begins;
  int64_t rows = 0;
  for (size_t r = 0; r < runs.size(); ++r) {
    const bool joins = r > 0 && m.attention.bias.data == nullptr && runs[r].b == runs[r - 1].b &&
                       runs[r - 1].first + runs[r - 1].count == runs[r].first &&
                       rows + runs[r].count <= block_q;
    rows = runs[r].count + (joins ? rows : 0);
    if (!joins) begins.push_back(static_cast<int64_t>(r));
  }
  begins.push_back(static_cast<int64_t>(runs.size()));
  return begins;
}

// What no item writes: the rows of packed tensors that lie behind the last sequence.
template <class T>
void clear_tails(const MapsParams& m) {
  const AttentionParams& p = m.attention;
  if (p.cu_seqlens_q == nullptr) return;
  const int64_t q_end = p.cu_seqlens_q[p.batch], k_end = p.cu_seqlens_k[p.batch], k = m.top_k;
  for (int64_t n = 0; n < m.head_count; ++n) {
    for (int64_t row = n * p.total_q + q_end; row < (n + 1) * p.total_q; ++row) {
      if (m.entropy != nullptr) static_cast<T*>(m.entropy)[row] = T(0);
      if (m.argmax != nullptr) m.argmax[row] = -1;
      std::fill_n(static_cast<T*>(m.top_weights) + row * k, k, T(0));
      std::fill_n(m.top_indices + row * k, k, int64_t{-1});
    }
    for (int64_t r = 0; r < m.row_count; ++r) {
      if (m.rows[r] < q_end) continue;
      std::fill_n(static_cast<T*>(m.weights) + (n * m.row_count + r) * p.total_k, p.total_k, T(0));
    }
    if (m.column_mass == nullptr) continue;
    T* mass = static_cast<T*>(m.column_mass) + n * p.total_k;
    std::fill(mass + k_end, mass + p.total_k, T(0));
  }
}

ThreadPool threads_for(const AttentionParams& p, int64_t heads, int64_t rows, ThreadPool pool) {
  const double work = static_cast<double>(heads) * static_cast<double>(rows) *
                      static_cast<double>(p.total_k) * static_cast<double>(p.head_dim);
  return useful_threads(work, pool);
}

// `per_head` blocks of every chosen head: body(b, n, block, scratch). A head's blocks follow each
// other, so that its keys, or queries, stay in the caches.
template <class Body>
Status for_each_block(const MapsParams& m, int64_t per_head, int64_t scratch,
                      const ThreadPool& pool, const Body& body) {
  return for_each_item(pool, m.attention.batch * m.head_count * per_head, scratch,
                       [&](int64_t item, void* memory) {
                         const int64_t head = item / per_head;
                         body(head / m.head_count, head % m.head_count, item % per_head, memory);
                       });
}

}  // namespace

Status launch_maps(const MapsParams& params, const char* isa, const ThreadPool& pool) {
  Status status = check_call(params.attention, isa);
  if (status.ok) status = check_chosen(params);
  if (!status.ok) return status;
  MapsParams m = params;
  m.attention = with_longest(params.attention);
  const AttentionParams& p = m.attention;
  const MapsKernels& tier = maps_kernels(isa);
  const bool wide = p.dtype == DType::FLOAT64;
  const MapsKernelSet& kernels = wide ? *tier.fp64 : *tier.fp32;
  const int64_t scratch = kernels.bytes(p);
  const ThreadPool useful = threads_for(p, heads_of(m), p.total_q, pool);
  wide ? clear_tails<double>(m) : clear_tails<float>(m);

  if (m.entropy != nullptr || m.argmax != nullptr || m.top_k > 0) {
    const int64_t per_head = blocks(p.len_q, tier.block_q);
    status = for_each_block(m, per_head, scratch, useful,
                            [&](int64_t b, int64_t n, int64_t block, void* memory) {
                              // The longest first, as in launch_forward.
                              const int64_t begin = (per_head - 1 - block) * tier.block_q;
                              if (begin >= sequence_of(p, b).len_q) return;
                              kernels.rows(m, b, n, begin, memory);
                            });
  }
  if (status.ok && m.column_mass != nullptr) {
    status = for_each_block(m, blocks(p.len_k, tier.block_kv), scratch, useful,
                            [&](int64_t b, int64_t n, int64_t block, void* memory) {
                              kernels.columns(m, b, n, block, memory);
                            });
  }
  if (!status.ok || m.weights == nullptr) return status;
  const std::vector<RowRun> runs = row_runs(m, tier.block_q);
  const std::vector<int64_t> groups = row_groups(m, runs, tier.block_q);
  const int64_t count = static_cast<int64_t>(groups.size()) - 1;
  return for_each_item(threads_for(p, heads_of(m), m.row_count, pool), heads_of(m) * count, scratch,
                       [&](int64_t item, void* memory) {
                         const int64_t group = item % count, head = item / count;
                         const RowRun* first = runs.data() + groups[group];
                         const int64_t b =
                             p.cu_seqlens_q == nullptr ? head / m.head_count : first->b;
                         kernels.weights(m, first, groups[group + 1] - groups[group], b,
                                         head % m.head_count, memory);
                       });
}

}  // namespace fused_attention::cpu
