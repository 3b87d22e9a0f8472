#include "prepare.h"

#include "config.h"

namespace fused_attention::cuda::additive {
namespace {

int64_t divide_up(int64_t x, int64_t by) { return (x + by - 1) / by; }

Status check(const AttentionParams& p) {
  if (p.dtype == DType::FLOAT64) return Status::error("these kernels take fp32, bf16 and fp16");
  if (p.head_dim < 1 || p.value_dim < 1 || p.head_dim > MAX_LENGTH || p.value_dim > MAX_LENGTH) {
    return Status::error("dims go from 1 to 2^30, got %lld and %lld", printable(p.head_dim),
                         printable(p.value_dim));
  }
  const Status status = check_lengths({p.len_q, p.len_k});
  if (!status.ok) return status;
  const int64_t heads = p.batch * p.heads_q, longest = p.len_q > p.len_k ? p.len_q : p.len_k;
  if (heads > 0 && divide_up(longest, DELTA_ROWS) + 1 > INT32_MAX / heads) {
    return Status::error("too many rows for one launch");
  }
  if (p.heads_q * divide_up(p.head_dim, REDUCE_COLUMNS) > INT32_MAX) {
    return Status::error("too many columns for one launch");
  }
  return status;
}

int64_t element_bytes(DType dtype) { return dtype == DType::FLOAT32 ? 4 : 2; }

// Whether every row begins at a multiple of four elements, so that they can be moved four at a
// time.
bool quads_are_aligned(const Operand& x, const AttentionParams& p) {
  const auto fits = [](int64_t elements) { return elements % 4 == 0; };
  return reinterpret_cast<uintptr_t>(x.data) % (4 * element_bytes(p.dtype)) == 0 &&
         (p.batch <= 1 || fits(x.batch)) && (p.heads_q <= 1 || fits(x.head)) && fits(x.row);
}

bool v_is_aligned(const void* v, int64_t dim) {
  return reinterpret_cast<uintptr_t>(v) % 16 == 0 && dim % 4 == 0;
}

TileOrder order_of(const AttentionParams& p, int64_t length, bool last_first) {
  TileOrder order;
  order.blocks = static_cast<uint32_t>(divide_up(length, TILE));
  order.heads = static_cast<uint32_t>(p.batch * p.heads_q);
  const int64_t row_bytes = (p.head_dim + p.value_dim) * element_bytes(p.dtype);
  order.section = heads_side_by_side(order.heads, 1, p.len_k * row_bytes);
  order.last_first = last_first;
  return order;
}

KernelLaunch shape(uint32_t blocks) { return {blocks, THREADS, 0}; }

KernelLaunch shape(const TileOrder& order) { return shape(order.blocks * order.heads); }

// Hands out pieces of the workspace, each of whole lines of 256 bytes.
class Workspace {
 public:
  explicit Workspace(void* data) : data_(static_cast<char*>(data)) {}

  float* floats(int64_t count) {
    char* piece = data_ == nullptr ? nullptr : data_ + bytes_;
    bytes_ += divide_up(count * static_cast<int64_t>(sizeof(float)), 256) * 256;
    return reinterpret_cast<float*>(piece);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* data_;
  int64_t bytes_ = 0;
};

// Where sums of [batch, heads, length, dim] wait between tiles of the other side's rows: fp32
// results are their own sums, and with one tile nothing waits.
Operand sums_of(const Operand& result, const AttentionParams& p, int64_t length, int64_t others,
                int64_t dim, Workspace& workspace) {
  if (p.dtype == DType::FLOAT32) return result;
  if (others <= TILE) return {};
  const int64_t row = divide_up(dim, 4) * 4;
  float* data = workspace.floats(p.batch * p.heads_q * length * row);
  return {data, p.heads_q * length * row, length * row, row};
}

}  // namespace

ForwardPlan plan_forward(const AdditiveParams& params, void* workspace) {
  ForwardPlan plan;
  plan.status = check(params.attention);
  if (!plan.status.ok) return plan;
  ForwardArguments& args = plan.arguments;
  args.problem = params;
  const AttentionParams& p = params.attention;
  // Under a causal band the last queries see most keys; under its reverse the first ones.
  args.order = order_of(p, p.len_q, p.band.left >= p.band.right);
  args.aligned = quads_are_aligned(p.query, p) && quads_are_aligned(p.key, p) &&
                 quads_are_aligned(p.value, p) && quads_are_aligned(p.out, p);
  args.aligned_v = v_is_aligned(params.v, p.head_dim);
  Workspace pieces(workspace);
  args.sums = sums_of(p.out, p, p.len_q, p.len_k, p.value_dim, pieces);
  plan.workspace_bytes = pieces.bytes();
  plan.forward = shape(args.order);
  return plan;
}

BackwardPlan plan_backward(const AdditiveBackwardParams& params, void* workspace) {
  BackwardPlan plan;
  const BackwardParams& backward = params.attention;
  const AttentionParams& p = backward.forward;
  plan.status = check(p);
  if (!plan.status.ok) return plan;
  BackwardArguments& args = plan.arguments;
  args.params = params;
  const bool last_first = p.band.left >= p.band.right;
  args.query_order = order_of(p, p.len_q, last_first);
  args.key_order = order_of(p, p.len_k, !last_first);
  args.aligned_v = v_is_aligned(params.v, p.head_dim);
  args.aligned = true;
  for (const Operand& x : {p.query, p.key, p.value, p.out, backward.grad_out, backward.grad_query,
                           backward.grad_key, backward.grad_value}) {
    args.aligned = args.aligned && (x.data == nullptr || quads_are_aligned(x, p));
  }
  Workspace pieces(workspace);
  const int64_t rows = p.batch * p.heads_q * p.len_q;
  args.params.attention.delta = {pieces.floats(rows), p.heads_q * p.len_q, p.len_q, 1};
  plan.delta = shape(static_cast<uint32_t>(divide_up(rows, DELTA_ROWS)));
  if (backward.grad_query.data != nullptr) {
    args.query_sums = sums_of(backward.grad_query, p, p.len_q, p.len_k, p.head_dim, pieces);
    args.v_sums_width = static_cast<int>(divide_up(p.head_dim, 4) * 4);
    args.v_sums = pieces.floats(p.batch * p.heads_q * args.query_order.blocks * WARPS *
                                int64_t{args.v_sums_width});
    plan.query_gradient = shape(args.query_order);
    plan.v_gradient =
        shape(static_cast<uint32_t>(p.heads_q * divide_up(p.head_dim, REDUCE_COLUMNS)));
  }
  if (backward.grad_key.data != nullptr) {
    args.key_sums = sums_of(backward.grad_key, p, p.len_k, p.len_q, p.head_dim, pieces);
    args.value_sums = sums_of(backward.grad_value, p, p.len_k, p.len_q, p.value_dim, pieces);
    plan.key_gradient = shape(args.key_order);
  }
  plan.workspace_bytes = pieces.bytes();
  return plan;
}

}  // namespace fused_attention::cuda::additive
