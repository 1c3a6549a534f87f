#include "stream/landing.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "bind/bind.h"
#include "stream/reader.h"

namespace flashmoe {
namespace {

using MoveTuple = std::tuple<std::string, std::string, size_t, size_t, size_t, size_t, size_t,
                             size_t, size_t, size_t, size_t, size_t>;
using SliceTuple = std::tuple<uint32_t, uint32_t, uint32_t, uint32_t>;
using PieceTuple = std::tuple<int, uint64_t, size_t, size_t, std::vector<SliceTuple>>;
using Pairs = std::vector<std::tuple<size_t, size_t>>;

template <class Value, size_t kCount>
Value named(const std::pair<const char*, Value> (&all)[kCount], const char* field,
            const std::string& name) {
    for (const auto& [known, value] : all)
        if (name == known) return value;
    throw std::invalid_argument(std::string("[LandingProgram] ") + field + ": unknown: " + name);
}

constexpr std::pair<const char*, Turn> kTurns[] = {
    {"copy", Turn::kCopy}, {"deal", Turn::kDeal},   {"widen", Turn::kWiden},
    {"flip", Turn::kFlip}, {"bias4", Turn::kBias4}, {"bias8", Turn::kBias8},
    {"ggml", Turn::kGgml},
};
constexpr std::pair<const char*, Finite> kFinite[] = {
    {"any", Finite::kAny}, {"bf16", Finite::kBf16}, {"f16", Finite::kF16},
    {"f32", Finite::kF32}, {"e4m3", Finite::kE4m3}, {"divisor", Finite::kDivisor},
};

Move move_of(const MoveTuple& fields) {
    const auto& [turn, finite, unit, run, groups, times, rows, row_bytes, at, group_bytes,
                 block_bytes, apart] = fields;
    return {named(kTurns, "turn", turn),
            named(kFinite, "finite", finite),
            unit,
            run,
            groups,
            times,
            rows,
            row_bytes,
            at,
            group_bytes,
            block_bytes,
            apart};
}

std::vector<Slice> slices_of(const std::vector<SliceTuple>& fields) {
    std::vector<Slice> slices;
    for (const auto& [move, first, count, from] : fields)
        slices.push_back({move, first, count, from});
    return slices;
}

std::shared_ptr<LandingProgram> make_program(size_t record_bytes,
                                             const std::vector<MoveTuple>& moves,
                                             const Pairs& mxfp4, const Pairs& zeros) {
    std::vector<Move> made;
    for (const MoveTuple& fields : moves) made.push_back(move_of(fields));
    std::vector<Mxfp4Blob> blobs;
    for (const auto& [at, groups] : mxfp4) blobs.push_back({at, groups});
    std::vector<Range> ranges;
    for (const auto& [at, bytes] : zeros) ranges.push_back({at, bytes});
    return std::make_shared<LandingProgram>(record_bytes, std::move(made), std::move(blobs),
                                            std::move(ranges));
}

std::shared_ptr<Landing> make_landing(std::shared_ptr<LandingProgram> program,
                                      const std::vector<PieceTuple>& pieces) {
    std::vector<LandingPiece> made;
    for (const auto& [handle, offset, bytes, needed, slices] : pieces)
        made.push_back({handle, offset, bytes, needed, slices_of(slices)});
    return std::make_shared<Landing>(std::move(program), std::move(made));
}

bool run(const LandingProgram& program, const std::vector<SliceTuple>& slices,
         const Array<const uint8_t, 1>& read, const Array<uint8_t, 1>& record) {
    expect_equal("LandingProgram.run", "record", program.record_bytes(), record.size());
    const std::vector<Slice> checked = slices_of(slices);
    for (const Slice& slice : checked) program.check(slice, read.size());
    const nb::gil_scoped_release released;
    bool finite = true;
    for (const Slice& slice : checked) finite &= program.run(slice, read.data(), record.data());
    return finite;
}

int settle(const LandingProgram& program, const Array<uint8_t, 1>& record) {
    expect_equal("LandingProgram.settle", "record", program.record_bytes(), record.size());
    const nb::gil_scoped_release released;
    return program.settle(record.data());
}

}  // namespace

void bind_landing(nb::module_& m) {
    nb::class_<LandingProgram>(
        m, "LandingProgram",
        "How bytes of a checkpoint become a record; see flashmoe.store.landing for the fields.")
        .def(nb::new_(&make_program), nb::arg("record_bytes"), nb::arg("moves"), nb::arg("mxfp4"),
             nb::arg("zeros"))
        .def("run", &run, nb::arg("slices"), nb::arg("read"), nb::arg("record"),
             "Slices (move, first block, blocks, where in read); False: a number is not finite.")
        .def("settle", &settle, nb::arg("record"),
             "After all slices: index of a blob with a number that is not finite, or -1.");
    nb::class_<Landing>(m, "Landing",
                        "An expert of a checkpoint. pieces: (handle, offset, nbytes, bytes that "
                        "must be there, slices); offset and nbytes in whole pages.")
        .def(nb::new_(&make_landing), nb::arg("program"), nb::arg("pieces"))
        .def_prop_ro("nbytes", &Landing::bytes, "Bytes of all pieces.");
}

}  // namespace flashmoe
