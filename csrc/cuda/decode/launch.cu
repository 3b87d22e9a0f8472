#include "launch.h"

#include "../common/check.h"
#include "../common/element.h"
#include "kernels.h"
#include "prepare.h"

namespace fused_attention::cuda {
namespace {

using decode::Arguments;

Status multiprocessors_of_device(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return check(error, "decode");
  return check(cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device), "decode");
}

template <class Element>
const void* decode_kernel(int dim) {
  return dim == 64    ? decode::decode_kernel_address<Element, 64>()
         : dim == 128 ? decode::decode_kernel_address<Element, 128>()
                      : decode::decode_kernel_address<Element, 256>();
}

Status launch(const void* kernel, const KernelLaunch& shape, const Arguments& args, void* stream,
              const char* what) {
  if (shape.blocks == 0) return Status{};
  constexpr uint32_t UNASKED_BYTES = 48 * 1024;
  if (shape.shared_bytes > UNASKED_BYTES) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return check(error, what);
  }
  void* pointers[] = {const_cast<Arguments*>(&args)};
  return check(cudaLaunchKernel(kernel, dim3(shape.blocks), dim3(shape.threads), pointers,
                                shape.shared_bytes, static_cast<cudaStream_t>(stream)),
               what);
}

template <class Element>
Status launch_all(const decode::Plan& plan, void* stream) {
  const Arguments& args = plan.arguments;
  Status status =
      launch(decode::append_kernel_address<Element>(), plan.append, args, stream, "decode: append");
  if (!status.ok) return status;
  status = launch(decode_kernel<Element>(plan.dim), plan.decode, args, stream, "decode");
  if (!status.ok) return status;
  return launch(decode::combine_kernel_address<Element>(), plan.combine, args, stream,
                "decode: combine");
}

}  // namespace

Status decode_workspace_bytes(const DecodeParams& params, int64_t* bytes) {
  int multiprocessors = 0;
  const Status status = multiprocessors_of_device(&multiprocessors);
  if (!status.ok) return status;
  const decode::Plan plan = decode::plan(params, multiprocessors);
  *bytes = plan.workspace_bytes;
  return plan.status;
}

Status launch_decode(const DecodeParams& params, void* stream) {
  int multiprocessors = 0;
  const Status status = multiprocessors_of_device(&multiprocessors);
  if (!status.ok) return status;
  const decode::Plan plan = decode::plan(params, multiprocessors);
  if (!plan.status.ok) return plan.status;
  if (plan.workspace_bytes > params.workspace_bytes) {
    return Status::error("decode: needs a workspace of %lld bytes, got %lld",
                         static_cast<long long>(plan.workspace_bytes),
                         static_cast<long long>(params.workspace_bytes));
  }
  return params.attention.dtype == DType::BFLOAT16 ? launch_all<Bfloat16>(plan, stream)
                                                   : launch_all<Float16>(plan, stream);
}

}  // namespace fused_attention::cuda
