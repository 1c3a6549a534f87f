#include "cpu/linear/linear.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "bind/bind.h"
#include "bind/matrix.h"
#include "cpu/linear/activations.h"
#include "cpu/linear/ffn.h"
#include "cpu/linear/heads.h"
#include "cpu/parts/moe_part.h"
#include "flashmoe/pool.h"

namespace flashmoe {
namespace {

// The input of matrix products, its int8 form, and the workspaces of what is computed from it.
struct Activations {
    Array<const float, 2> x;
    QuantizedRows quantized;
    Ffn ffn;
    std::vector<Expert> experts;
    std::vector<uint8_t> seen;  // moe_ffn: rows of out that are a destination

    Rows rows() const { return quantized.view(x.data()); }
};

void assign_activations(Activations& acts, Pool& pool, Array<const float, 2> x, int64_t group) {
    const auto rows = static_cast<int64_t>(x.shape(0)), cols = static_cast<int64_t>(x.shape(1));
    expect(group == 0 || group == 32 || group == 64 || group == 128, "assign",
           "group: expected 0, 32, 64 or 128, got " + std::to_string(group));
    expect(group == 0 || cols % group == 0, "assign",
           "columns: expected a multiple of " + std::to_string(group) + ", got " +
               std::to_string(cols));
    acts.x = std::move(x);
    const nb::gil_scoped_release unlocked;
    assign(pool, acts.quantized, acts.x.data(), rows, cols, group);
}

void expect_input(const char* op, const Activations& acts, const MatrixView& w) {
    expect(acts.x.is_valid(), op, "activations: nothing was assigned");
    expect_equal(op, "matrix columns", acts.quantized.cols(), w.cols);
    if (w.group) expect_equal(op, "group of the activations", w.group, acts.quantized.group());
}

void linear_call(Pool& pool, const Activations& acts, const std::vector<const Matrix*>& matrices,
                 const std::vector<Array<float, 2>>& outs, bool accumulate) {
    expect_equal("linear", "outs", matrices.size(), outs.size());
    std::vector<MatrixView> views;
    std::vector<float*> pointers;
    for (size_t i = 0; i < matrices.size(); ++i) {
        expect_input("linear", acts, matrices[i]->view);
        expect_equal("linear", "out rows", acts.quantized.count(), outs[i].shape(0));
        expect_equal("linear", "out columns", matrices[i]->view.rows, outs[i].shape(1));
        views.push_back(matrices[i]->view);
        pointers.push_back(outs[i].data());
    }
    const nb::gil_scoped_release unlocked;
    linear(pool, acts.rows(), acts.quantized.count(), views, pointers, accumulate);
}

void head_linear_call(Pool& pool, const Activations& acts, const Matrix& matrix, const Out& out) {
    const char* op = "head_linear";
    expect_input(op, acts, matrix.view);
    const int64_t tokens = extent(out, 0), heads = extent(out, 1), n = extent(out, 2);
    const StridedOut to = strided_out(op, "out", out, {kAny, kAny, kAny});
    expect(n > 0 && n % kBlockRows == 0, op,
           "out columns: expected a multiple of 8, got " + std::to_string(n));
    expect_equal(op, "matrix rows", heads * n, matrix.view.rows);
    expect_equal(op, "rows of x", tokens * heads, acts.quantized.count());
    const nb::gil_scoped_release unlocked;
    head_linear(
        pool, {matrix.view, acts.rows(), tokens, heads, to.data, to.token_stride, to.head_stride});
}

void expect_ffn_shapes(const char* op, const MatrixView& gate_up, const MatrixView& down) {
    expect(gate_up.rows % (2 * kBlockRows) == 0, op,
           "gate_up rows: expected a multiple of 16, got " + std::to_string(gate_up.rows));
    expect_equal(op, "down columns", gate_up.rows / 2, down.cols);
    expect_equal(op, "down rows", gate_up.cols, down.rows);
}

Activation activation_named(const char* op, const std::string& name) {
    static const std::map<std::string, Activation> known = {
        {"swiglu", Activation::swiglu},
        {"swiglu_clamped", Activation::swiglu_clamped},
        {"swiglu_limited", Activation::swiglu_limited},
        {"geglu_tanh", Activation::geglu_tanh},
    };
    const auto found = known.find(name);
    expect(found != known.end(), op, "unknown activation '" + name + "'");
    return found->second;
}

void ffn_call(Pool& pool, Activations& acts, const Matrix& gate_up, const Matrix& down,
              Array<float, 2> out, std::optional<Array<const float, 1>> scale,
              const std::string& activation) {
    const Activation act = activation_named("ffn", activation);
    const int64_t count = acts.quantized.count();
    expect_input("ffn", acts, gate_up.view);
    expect_ffn_shapes("ffn", gate_up.view, down.view);
    expect_equal("ffn", "out rows", count, out.shape(0));
    expect_equal("ffn", "out columns", down.view.rows, out.shape(1));
    if (scale) expect_equal("ffn", "scale", count, scale->shape(0));
    const nb::gil_scoped_release unlocked;
    const int32_t offsets[] = {0, static_cast<int32_t>(count)};
    acts.experts.assign(1, {gate_up.view.data, down.view.data});
    acts.ffn.configure(gate_up.view, down.view, act);
    acts.ffn.run(pool, acts.rows(), acts.experts, offsets,
                 {out.data(), nullptr, scale ? scale->data() : nullptr, true});
}

// offsets must rise from 0 to the number of entries.
void expect_offsets(const Array<const int32_t, 1>& offsets, int64_t experts, int64_t entries) {
    expect_equal("moe_ffn", "offsets", experts + 1, offsets.size());
    const int32_t *at = offsets.data(), *end = at + offsets.size();
    expect_equal("moe_ffn", "offsets[0]", 0, at[0]);
    expect_equal("moe_ffn", "last offset", entries, end[-1]);
    expect(std::is_sorted(at, end), "moe_ffn", "offsets: expected rising, got falling");
}

void expect_indices(const char* name, const Array<const int32_t, 1>& indices, int64_t limit) {
    for (size_t j = 0; j < indices.size(); ++j)
        expect(indices.data()[j] >= 0 && indices.data()[j] < limit, "moe_ffn",
               std::string(name) + "[" + std::to_string(j) + "]: expected 0 to " +
                   std::to_string(limit - 1) + ", got " + std::to_string(indices.data()[j]));
}

// Two experts that write one row would race.
void expect_distinct(std::vector<uint8_t>& seen, const Array<const int32_t, 1>& dests,
                     int64_t rows) {
    seen.assign(static_cast<size_t>(rows), 0);
    for (size_t j = 0; j < dests.size(); ++j)
        expect(!std::exchange(seen[static_cast<size_t>(dests.data()[j])], 1), "moe_ffn",
               "dests: row " + std::to_string(dests.data()[j]) + " appears twice");
}

void moe_ffn_call(Pool& pool, Activations& acts, const ExpertLayout& layout,
                  Array<const uint64_t, 1> addresses, Array<const int32_t, 1> offsets,
                  Array<const int32_t, 1> tokens, Array<const int32_t, 1> dests,
                  Array<float, 2> out) {
    expect_input("moe_ffn", acts, layout.gate_up);
    expect_offsets(offsets, static_cast<int64_t>(addresses.size()),
                   static_cast<int64_t>(tokens.size()));
    expect_equal("moe_ffn", "dests", tokens.size(), dests.size());
    expect_equal("moe_ffn", "out columns", layout.down.rows, out.shape(1));
    expect_indices("tokens", tokens, acts.quantized.count());
    expect_indices("dests", dests, static_cast<int64_t>(out.shape(0)));
    expect_distinct(acts.seen, dests, static_cast<int64_t>(out.shape(0)));
    acts.experts.clear();
    for (size_t e = 0; e < addresses.size(); ++e) {
        expect(addresses.data()[e] != 0, "moe_ffn",
               "addresses[" + std::to_string(e) + "]: expected a record, got 0");
        const auto* record = reinterpret_cast<const uint8_t*>(addresses.data()[e]);
        acts.experts.push_back(layout.expert(record));
    }
    const nb::gil_scoped_release unlocked;
    Rows rows = acts.rows();
    rows.index = tokens.data();
    acts.ffn.configure(layout.gate_up, layout.down, layout.activation);
    acts.ffn.run(pool, rows, acts.experts, offsets.data(),
                 {out.data(), dests.data(), nullptr, false});
}

ExpertLayout checked_layout(const std::string& gate_up_format, int64_t gate_up_group,
                            const std::string& down_format, int64_t down_group, int64_t hidden_size,
                            int64_t intermediate_size, int64_t down_offset,
                            const std::string& activation, int64_t bias_offset) {
    const char* op = "ExpertLayout";
    const ExpertLayout layout{
        checked_shape(op, gate_up_format, gate_up_group, 2 * intermediate_size, hidden_size),
        checked_shape(op, down_format, down_group, hidden_size, intermediate_size), down_offset,
        activation_named(op, activation), bias_offset};
    expect_ffn_shapes(op, layout.gate_up, layout.down);
    expect(down_offset >= layout.gate_up.nbytes() && down_offset % 64 == 0, op,
           "down_offset: expected a multiple of 64, at least " +
               std::to_string(layout.gate_up.nbytes()) + ", got " + std::to_string(down_offset));
    const int64_t end = down_offset + layout.down.nbytes();
    expect(bias_offset == 0 || (bias_offset >= end && bias_offset % 64 == 0), op,
           "bias_offset: expected 0 or a multiple of 64, at least " + std::to_string(end) +
               ", got " + std::to_string(bias_offset));
    return layout;
}

}  // namespace

void bind_linear(nb::module_& m) {
    nb::class_<Activations>(
        m, "Activations",
        "Input rows of matrix products and workspaces, in reused buffers; for one call at a time.")
        .def(nb::init<>())
        .def("assign", &assign_activations, nb::arg("pool"), nb::arg("x").noconvert(),
             nb::arg("group"),
             "Take x [T, K], kept alive, as input; quantise it to int8 by group (0: do not).");
    nb::class_<ExpertLayout>(m, "ExpertLayout", "Formats and shapes inside one expert record.")
        .def(
            "__init__",
            [](ExpertLayout* self, const std::string& gate_up_format, int64_t gate_up_group,
               const std::string& down_format, int64_t down_group, int64_t hidden_size,
               int64_t intermediate_size, int64_t down_offset, const std::string& activation,
               int64_t bias_offset) {
                new (self) ExpertLayout(checked_layout(gate_up_format, gate_up_group, down_format,
                                                       down_group, hidden_size, intermediate_size,
                                                       down_offset, activation, bias_offset));
            },
            nb::arg("gate_up_format"), nb::arg("gate_up_group"), nb::arg("down_format"),
            nb::arg("down_group"), nb::arg("hidden_size"), nb::arg("intermediate_size"),
            nb::arg("down_offset"), nb::arg("activation") = "swiglu", nb::arg("bias_offset") = 0)
        .def_ro("down_offset", &ExpertLayout::down_offset)
        .def_prop_ro("record_bytes_used", &ExpertLayout::record_bytes_used);
    m.def("linear", &linear_call, nb::arg("pool"), nb::arg("acts"), nb::arg("matrices"),
          nb::arg("outs").noconvert(), nb::arg("accumulate") = false,
          "outs[i] [T, rows_i] (+)= x @ matrices[i].T, all in one parallel region.");
    m.def("head_linear", &head_linear_call, nb::arg("pool"), nb::arg("acts"), nb::arg("matrix"),
          nb::arg("out"),
          "A linear map per head: out[t, h] = matrix[h * N : (h + 1) * N] @ x[t * heads + h].\n"
          "x f32 [T * heads, K] as assigned; matrix [heads * N, K], N a multiple of 8; out f32\n"
          "[T, heads, N], any strides on T and heads.");
    m.def("ffn", &ffn_call, nb::arg("pool"), nb::arg("acts"), nb::arg("gate_up"), nb::arg("down"),
          nb::arg("out").noconvert(), nb::arg("scale").noconvert().none() = nb::none(),
          nb::arg("activation") = "swiglu",
          "out [T, H] += scale [T] * activation(gate, up) @ down.T; gate and up rows alternate by "
          "8.");
    m.def("moe_ffn", &moe_ffn_call, nb::arg("pool"), nb::arg("acts"), nb::arg("layout"),
          nb::arg("addresses").noconvert(), nb::arg("offsets").noconvert(),
          nb::arg("tokens").noconvert(), nb::arg("dests").noconvert(), nb::arg("out").noconvert(),
          "Apply the expert record at addresses[i] to rows tokens[offsets[i]:offsets[i + 1]];\n"
          "entry j is written, unweighted, to out[dests[j]].");
}

}  // namespace flashmoe
