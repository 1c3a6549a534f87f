#include "cpu/codec/codec.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "bind/bind.h"
#include "bind/matrix.h"
#include "flashmoe/pool.h"

namespace flashmoe {
namespace {

Source checked_source(const Array<const uint8_t, 1>& data, const std::string& dtype,
                      int64_t weights) {
    expect(dtype == "bf16" || dtype == "f16" || dtype == "f32", "encode",
           "unknown source dtype '" + dtype + "'");
    const Source source{dtype == "bf16"  ? SourceType::bf16
                        : dtype == "f16" ? SourceType::f16
                                         : SourceType::f32,
                        data.data()};
    expect_equal("encode", "source bytes", weights * source.item_bytes(), data.size());
    return source;
}

// Throws if a weight cannot be stored, naming the first one.
void expect_encodable(int64_t index, const MatrixView& shape, const Source& source) {
    if (index < 0) return;
    float w;
    source.load(index, 1, &w);
    const std::string rule = std::isfinite(w)
                                 ? std::string(" is too large for ") + format_name(shape.format)
                                 : std::string(" is not finite");
    expect(false, "encode",
           "weight at row " + std::to_string(index / shape.cols) + ", column " +
               std::to_string(index % shape.cols) + rule + ": " + std::to_string(w));
}

void encode_matrix(Pool& pool, const std::string& format, int64_t group,
                   Array<const uint8_t, 1> source, const std::string& dtype, int64_t rows,
                   int64_t cols, Array<uint8_t, 1> out) {
    const MatrixView shape = checked_shape("encode", format, group, rows, cols);
    expect(!is_block_format(shape.format), "encode", format + " is copied, never encoded");
    const Source from = checked_source(source, dtype, rows * cols);
    expect_equal("encode", "out bytes", shape.nbytes(), out.size());
    const nb::gil_scoped_release unlocked;
    expect_encodable(first_unencodable(pool, shape, from), shape, from);
    encode(pool, shape, from, out.data());
}

void embed(Pool& pool, const Matrix& w, Array<const int32_t, 1> ids, Array<float, 2> out) {
    expect_equal("embed", "out rows", ids.shape(0), out.shape(0));
    expect_equal("embed", "out columns", w.view.cols, out.shape(1));
    const auto count = static_cast<int64_t>(ids.size());
    for (int64_t i = 0; i < count; ++i)
        expect(ids.data()[i] >= 0 && ids.data()[i] < w.view.rows, "embed",
               "ids[" + std::to_string(i) + "]: expected 0 to " + std::to_string(w.view.rows - 1) +
                   ", got " + std::to_string(ids.data()[i]));
    const nb::gil_scoped_release unlocked;
    decode_rows(pool, w.view, ids.data(), count, out.data());
}

std::vector<std::tuple<std::string, int64_t, int64_t>> block_formats() {
    std::vector<std::tuple<std::string, int64_t, int64_t>> formats;
    for (const BlockFormat& format : kBlockFormats)
        formats.emplace_back(format.name, format.cols, format.bytes);
    return formats;
}

void dequantize(Pool& pool, const Matrix& w, Array<float, 2> out) {
    expect_equal("dequantize", "out rows", w.view.rows, out.shape(0));
    expect_equal("dequantize", "out columns", w.view.cols, out.shape(1));
    const nb::gil_scoped_release unlocked;
    decode_rows(pool, w.view, nullptr, w.view.rows, out.data());
}

}  // namespace

void bind_codec(nb::module_& m) {
    nb::class_<Matrix>(m, "Matrix", "A stored weight matrix [rows, cols]; keeps its bytes alive.")
        .def(
            "__init__",
            [](Matrix* self, const std::string& format, int64_t group, int64_t rows, int64_t cols,
               Array<const uint8_t, 1> data) {
                MatrixView view = checked_shape("Matrix", format, group, rows, cols);
                expect_equal("Matrix", "data bytes", view.nbytes(), data.size());
                view.data = data.data();
                new (self) Matrix{view, std::move(data)};
            },
            nb::arg("format"), nb::arg("group"), nb::arg("rows"), nb::arg("cols"),
            nb::arg("data").noconvert())
        .def_prop_ro("format", [](const Matrix& w) { return format_name(w.view.format); })
        .def_prop_ro("group", [](const Matrix& w) { return w.view.group; })
        .def_prop_ro("rows", [](const Matrix& w) { return w.view.rows; })
        .def_prop_ro("cols", [](const Matrix& w) { return w.view.cols; })
        .def_prop_ro("nbytes", [](const Matrix& w) { return w.view.nbytes(); });
    m.def("block_formats", &block_formats,
          "(name, columns of a run, bytes of a run) of each block format.");
    m.def("encode", &encode_matrix, nb::arg("pool"), nb::arg("format"), nb::arg("group"),
          nb::arg("source").noconvert(), nb::arg("dtype"), nb::arg("rows"), nb::arg("cols"),
          nb::arg("out").noconvert(),
          "Encode row-major weights, given as bytes of dtype 'bf16', 'f16' or 'f32'.\n\n"
          "ValueError names row and column of a weight that the format cannot hold.");
    m.def("embed", &embed, nb::arg("pool"), nb::arg("matrix"), nb::arg("ids").noconvert(),
          nb::arg("out").noconvert(), "out[i] = decoded row ids[i] of the matrix.");
    m.def("dequantize", &dequantize, nb::arg("pool"), nb::arg("matrix"), nb::arg("out").noconvert(),
          "out [rows, cols] = the weights that the bytes mean.");
}

}  // namespace flashmoe
