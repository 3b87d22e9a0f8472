#include <algorithm>
#include <cstring>
#include <vector>

#include "decode_kernels.h"
#include "work.h"

// Cuts decoding into items: (batch row, key/value head, block of rows, part of the keys).
namespace fused_attention::cpu {
namespace {

const DecodeKernels* const TIERS[] = {
#if defined(__x86_64__)
    &decode_avx512_bf16,
    &decode_avx512,
    &decode_avx2,
#endif
    &decode_portable,
};

// nullptr: this build or this machine does not have it. Rows of a cache are no tiles: a tier of
// AMX decodes with the best that is not.
const DecodeKernels* find_tier_of_decoding(const char* isa) {
  if (std::strncmp(isa, "amx", 3) == 0) isa = TIERS[0]->name;
  for (const DecodeKernels* tier : TIERS) {
    if (std::strcmp(tier->name, isa) == 0) return tier->supported() ? tier : nullptr;
  }
  return nullptr;
}

const DecodeKernelSet& kernel_set(const DecodeKernels& tier, DType dtype) {
  return dtype == DType::FLOAT64 ? tier.fp64 : tier.fp32;
}

// Parts begin at multiples of this many keys. That depends on nothing else, so a row's result does
// not depend on the rest of the batch nor on the threads; a part is long enough to make its
// overhead (queries, partial results) small, and short enough that one sequence feeds many threads.
constexpr int64_t PART_KEYS = 512;
constexpr int64_t STEP_KEYS = 64;

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// One sequence after the append.
DecodeItem sequence_item(const DecodeParams& p, int64_t b) {
  DecodeItem item;
  item.b = b;
  item.length = p.cache_lengths[b] + p.len_new;
  item.first_key = p.cache_starts != nullptr ? p.cache_starts[b] : 0;
  item.band = p.attention.band;
  const int32_t* offsets = p.attention.band_offsets;
  item.band.offset = offsets != nullptr ? offsets[b] : item.length - p.attention.len_q;
  return item;
}

// Keys that any of the queries [begin, end) sees.
Range visible_keys(const DecodeItem& item, int64_t begin, int64_t end) {
  const Range keys = band_kv_range(item.band, begin, end, item.length);
  return band_clip(std::max(keys.begin, item.first_key), keys.end, item.length);
}

int64_t parts_of(const Range& keys, int64_t part_keys) {
  return keys.begin < keys.end ? (keys.end - 1) / part_keys - keys.begin / part_keys + 1 : 1;
}

struct Plan {
  int64_t rows = 0, rows_per_block = 0, blocks = 0;
  int64_t part_keys = PART_KEYS, parts = 1;  // parts: of the longest sequence
  double pairs = 0;                          // of rows and keys

  explicit Plan(const DecodeParams& p) {
    const AttentionParams& a = p.attention;
    rows = a.heads_q / a.heads_kv * a.len_q;
    rows_per_block = std::min(rows, DECODE_ROWS);
    blocks = rows > 0 ? divide_up(rows, rows_per_block) : 0;
    int64_t longest = 1;
    for (int64_t b = 0; b < a.batch; ++b) {
      const Range keys = visible_keys(sequence_item(p, b), 0, a.len_q);
      longest = std::max(longest, keys.end - keys.begin);
      pairs += static_cast<double>(keys.end - keys.begin) * static_cast<double>(a.heads_q) *
               static_cast<double>(a.len_q);
    }
    if (p.splits > 0) {
      part_keys = divide_up(divide_up(longest, p.splits), STEP_KEYS) * STEP_KEYS;
    }
    for (int64_t b = 0; b < a.batch; ++b) {
      parts = std::max(parts, parts_of(visible_keys(sequence_item(p, b), 0, a.len_q), part_keys));
    }
  }

  int64_t groups(const AttentionParams& a) const { return a.batch * a.heads_kv * blocks; }
};

Status check(const DecodeParams& p, const DecodeKernels* tier, const char* isa) {
  const AttentionParams& a = p.attention;
  if (tier == nullptr) {
    return Status::error("instruction set '%s' is not available here (available: %s)", isa,
                         available_isas());
  }
  if (a.heads_kv <= 0 || a.heads_q % a.heads_kv != 0) {
    return Status::error("%lld query heads do not divide into %lld key/value heads",
                         static_cast<long long>(a.heads_q), static_cast<long long>(a.heads_kv));
  }
  if (p.block_table != nullptr && p.page_size <= 0) return Status::error("pages have no rows");
  for (int64_t b = 0; b < a.batch; ++b) {
    if (p.cache_lengths[b] < 0 || p.cache_lengths[b] + p.len_new > a.len_k ||
        (p.cache_starts != nullptr && p.cache_starts[b] < 0)) {
      return Status::error("cache_lengths: sequence %lld does not lie inside the cache",
                           static_cast<long long>(b));
    }
  }
  return Status{};
}

}  // namespace

int64_t decode_workspace_bytes(const DecodeParams& params, const char* isa) {
  const DecodeKernels* tier = find_tier_of_decoding(isa);
  if (!check(params, tier, isa).ok) return 0;
  const Plan plan(params);
  return plan.groups(params.attention) * plan.parts *
         kernel_set(*tier, params.attention.dtype).part_bytes(params);
}

Status launch_decode(const DecodeParams& p, const char* isa, const ThreadPool& pool) {
  const AttentionParams& a = p.attention;
  const DecodeKernels* tier = find_tier_of_decoding(isa);
  if (Status status = check(p, tier, isa); !status.ok) return status;
  const Plan plan(p);
  const DecodeKernelSet& kernels = kernel_set(*tier, a.dtype);
  const int64_t part_bytes = kernels.part_bytes(p), groups = plan.groups(a);
  if (p.workspace_bytes < groups * plan.parts * part_bytes) {
    return Status::error("workspace of %lld bytes is too small",
                         static_cast<long long>(p.workspace_bytes));
  }
  char* parts = static_cast<char*>(poisoned(p.workspace, p.workspace_bytes));
  const int64_t scratch_bytes = kernels.bytes(p);
  const double dims = static_cast<double>(a.head_dim + a.value_dim);
  if (p.len_new > 0) {
    const double moved = static_cast<double>(a.batch * a.heads_kv * p.len_new) * dims;
    const Status status =
        for_each_item(useful_threads(moved, pool), a.batch * a.heads_kv, scratch_bytes,
                      [&](int64_t item, void* scratch) {
                        kernels.append(p, item / a.heads_kv, item % a.heads_kv, scratch);
                      });
    if (!status.ok) return status;
  }
  // Whoever completes a group (the parts of one block of rows) merges it, always in key order.
  std::vector<int32_t> done(groups, 0);
  const int64_t heads_per_group = a.heads_q / a.heads_kv;
  const auto body = [&](int64_t index, void* scratch) {
    const int64_t group = index / plan.parts, part = index % plan.parts;
    const int64_t block = group % plan.blocks;
    DecodeItem item = sequence_item(p, group / plan.blocks / a.heads_kv);
    item.h_kv = group / plan.blocks % a.heads_kv;
    item.row_begin = block * plan.rows_per_block;
    item.rows = std::min(plan.rows_per_block, plan.rows - item.row_begin);
    const Range visible = visible_keys(item, item.row_begin / heads_per_group,
                                       (item.row_begin + item.rows - 1) / heads_per_group + 1);
    const int64_t count = parts_of(visible, plan.part_keys);
    if (part >= count) return;
    const int64_t begin = (visible.begin / plan.part_keys + part) * plan.part_keys;
    item.seen_to = visible.end;
    item.keys = band_clip(std::max(begin, visible.begin), begin + plan.part_keys, visible.end);
    char* memory = parts + group * plan.parts * part_bytes;
    kernels.part(p, item, memory + part * part_bytes, scratch);
    if (__atomic_add_fetch(&done[group], 1, __ATOMIC_ACQ_REL) == count) {
      kernels.merge(p, item, memory, count, scratch);
    }
  };
  return for_each_item(useful_threads(plan.pairs * dims, pool), groups * plan.parts, scratch_bytes,
                       body);
}

}  // namespace fused_attention::cpu
