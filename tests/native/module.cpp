// The C++ that is no operator, for the tests: band.h, philox.h and the portable conversions.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "fused_attention/band.h"
#include "fused_attention/philox.h"

#define FUSED_ATTENTION_ISA portable
#include "../../csrc/cpu/vec_portable.h"

namespace py = pybind11;
using fused_attention::Band;

namespace {

std::tuple<int64_t, int64_t> as_tuple(fused_attention::Range range) {
  return {range.begin, range.end};
}

py::array_t<float> to_float(py::array_t<uint16_t> bits, float (*convert)(uint16_t)) {
  py::array_t<float> out(bits.size());
  for (py::ssize_t i = 0; i < bits.size(); ++i) out.mutable_at(i) = convert(bits.at(i));
  return out;
}

py::array_t<uint16_t> from_float(py::array_t<float> values, uint16_t (*convert)(float)) {
  py::array_t<uint16_t> out(values.size());
  for (py::ssize_t i = 0; i < values.size(); ++i) out.mutable_at(i) = convert(values.at(i));
  return out;
}

}  // namespace

PYBIND11_MODULE(fused_attention_native, m) {
  using namespace fused_attention;
  m.attr("UNBOUNDED") = BAND_UNBOUNDED;
  py::class_<Band>(m, "Band").def(py::init<int64_t, int64_t, int64_t>());
  m.def("band_kv_range", [](const Band& band, int64_t q_begin, int64_t q_end, int64_t kv_length) {
    return as_tuple(band_kv_range(band, q_begin, q_end, kv_length));
  });
  m.def("band_full_kv_range",
        [](const Band& band, int64_t q_begin, int64_t q_end, int64_t kv_length) {
          return as_tuple(band_full_kv_range(band, q_begin, q_end, kv_length));
        });
  m.def("band_q_range", [](const Band& band, int64_t k_begin, int64_t k_end, int64_t len_q) {
    return as_tuple(band_q_range(band, k_begin, k_end, len_q));
  });
  m.def("band_tile_kind", [](const Band& band, int64_t q_begin, int64_t q_end, int64_t k_begin,
                             int64_t k_end, int64_t kv_length) {
    return static_cast<int>(band_tile_kind(band, q_begin, q_end, k_begin, k_end, kv_length));
  });
  m.def("philox4x32", [](std::tuple<uint32_t, uint32_t, uint32_t, uint32_t> counter,
                         std::tuple<uint32_t, uint32_t> key) {
    const auto [c0, c1, c2, c3] = counter;
    const auto [k0, k1] = key;
    const PhiloxWords words = philox4x32(c0, c1, c2, c3, k0, k1);
    return py::make_tuple(words.word[0], words.word[1], words.word[2], words.word[3]);
  });
  m.def("dropout_keep", [](int64_t seed, uint32_t offset, uint32_t threshold, int64_t batch_head,
                           int64_t i, int64_t j) {
    Dropout dropout;
    dropout.threshold = threshold;
    dropout.seed[0] = static_cast<uint32_t>(seed);
    dropout.seed[1] = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
    dropout.offset = offset;
    return dropout_keep(dropout, batch_head, i, j);
  });
  m.def("fp16_to_float",
        [](py::array_t<uint16_t> x) { return to_float(x, cpu::portable::fp16_to_float); });
  m.def("bf16_to_float",
        [](py::array_t<uint16_t> x) { return to_float(x, cpu::portable::bf16_to_float); });
  m.def("float_to_fp16",
        [](py::array_t<float> x) { return from_float(x, cpu::portable::float_to_fp16); });
  m.def("float_to_bf16",
        [](py::array_t<float> x) { return from_float(x, cpu::portable::float_to_bf16); });
}
