#include "stream/landing.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "stream/mxfp4_groups.h"
#include "stream/reader.h"

namespace flashmoe {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr size_t kRows = 8;  // of a block

void expect(bool good, const char* what) {
    if (!good) throw std::invalid_argument(std::string("[Landing] ") + what);
}

template <class T>
T load(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// Non-zero where one of the bf16 items of a word has all exponent bits set: adding the lowest of
// them carries into the sign bit then, and never further.
constexpr uint32_t not_finite(uint32_t two) {
    return ((two & 0x7F807F80u) + 0x00800080u) & 0x80008000u;
}

// Codes 0 1 2 3 4 5 6 7 from the low end -> 0 4 1 5 2 6 3 7.
constexpr uint32_t deal(uint32_t codes) {
    const auto spread = [](uint32_t four) {
        four = (four | four << 8) & 0x00FF00FFu;
        return (four | four << 4) & 0x0F0F0F0Fu;
    };
    return spread(codes & 0xFFFF) | spread(codes >> 16) << 4;
}

// Each takes a run of 8 rows to its place in a block -> whether a number is not finite.

template <class Unit, bool kFinite, bool kDeal>
uint32_t interleave(const Move& move, const uint8_t* rows, uint8_t* target) {
    uint32_t bad = 0;
    for (size_t i = 0; i < move.run; i += sizeof(Unit))
        for (size_t r = 0; r < kRows; ++r, target += sizeof(Unit)) {
            Unit value = load<Unit>(rows + r * move.row_bytes + i);
            if constexpr (kFinite) bad |= not_finite(value);
            if constexpr (kDeal) value = deal(value);
            std::memcpy(target, &value, sizeof value);
        }
    return bad;
}

uint32_t widen(const Move& move, const uint8_t* rows, uint8_t* target) {
    uint32_t bad = 0;
    for (size_t i = 0; i < move.run; i += 2)
        for (size_t r = 0; r < kRows; ++r, target += 4) {
            const uint32_t value = load<uint16_t>(rows + r * move.row_bytes + i);
            bad |= not_finite(value);
            const uint32_t wide = value << 16;
            std::memcpy(target, &wide, sizeof wide);
        }
    return bad;
}

uint32_t whole_units(const Move& move, const uint8_t* rows, uint8_t* target) {
    for (size_t i = 0; i < move.run; i += move.unit)
        for (size_t r = 0; r < kRows; ++r, target += move.unit)
            std::memcpy(target, rows + r * move.row_bytes + i, move.unit);
    return 0;
}

using Step = uint32_t (*)(const Move&, const uint8_t*, uint8_t*);

Step step_of(const Move& move) {
    if (move.turn == Turn::kWiden) return widen;
    if (move.turn == Turn::kDeal) return interleave<uint32_t, false, true>;
    if (move.unit == 4)
        return move.finite ? interleave<uint32_t, true, false> : interleave<uint32_t, false, false>;
    if (move.unit == 2)
        return move.finite ? interleave<uint16_t, true, false> : interleave<uint16_t, false, false>;
    return move.unit == 1 ? interleave<uint8_t, false, false> : whole_units;
}

void check(const Move& move, size_t record_bytes) {
    expect(move.rows > 0 && move.rows % kRows == 0, "rows: expected a multiple of 8");
    expect(move.unit > 0 && move.run > 0 && move.run % move.unit == 0 && move.groups > 0,
           "run: expected whole units");
    expect(move.turn != Turn::kDeal || move.unit == 4, "deal: expected units of 4 bytes");
    expect(move.turn != Turn::kWiden || move.unit == 2, "widen: expected units of 2 bytes");
    expect(!move.finite || move.unit == 2 || move.unit == 4, "finite: expected bf16 items");
    const size_t wide = move.turn == Turn::kWiden ? 2 : 1, blocks = move.rows / kRows;
    const size_t end = move.at + (blocks - 1) * move.block_bytes +
                       (move.groups - 1) * move.group_bytes + kRows * move.run * wide;
    expect(end <= record_bytes, "a move ends beyond the record");
}

}  // namespace

LandingProgram::LandingProgram(size_t record_bytes, std::vector<Move> moves,
                               std::vector<Mxfp4Blob> mxfp4, std::vector<Range> zeros)
    : record_bytes_(record_bytes),
      moves_(std::move(moves)),
      mxfp4_(std::move(mxfp4)),
      zeros_(std::move(zeros)) {
    for (const Move& move : moves_) flashmoe::check(move, record_bytes);
    for (const Mxfp4Blob& blob : mxfp4_)
        expect(blob.at + blob.groups * kMxfp4GroupBytes <= record_bytes, "a blob ends too late");
    for (const Range& range : zeros_)
        expect(range.at + range.bytes <= record_bytes, "a gap ends beyond the record");
}

void LandingProgram::check(const Slice& slice, size_t bytes) const {
    expect(slice.move < moves_.size(), "slice: expected the index of a move");
    const Move& move = moves_[slice.move];
    const size_t end = size_t{slice.first} + slice.count;
    expect(slice.count > 0 && end <= move.rows / kRows, "slice: expected blocks of its move");
    const size_t last = (size_t{slice.count} * kRows - 1) * move.row_bytes;
    expect(slice.from + last + move.groups * move.run <= bytes, "slice: reads beyond its piece");
}

bool LandingProgram::run(const Slice& slice, const uint8_t* read, uint8_t* record) const {
    const Move& move = moves_[slice.move];
    const Step step = step_of(move);
    uint32_t bad = 0;
    for (size_t b = 0; b < slice.count; ++b) {
        const uint8_t* rows = read + slice.from + b * kRows * move.row_bytes;
        uint8_t* target = record + move.at + (slice.first + b) * move.block_bytes;
        for (size_t g = 0; g < move.groups; ++g)
            bad |= step(move, rows + g * move.run, target + g * move.group_bytes);
    }
    return bad == 0 || !move.finite;
}

int LandingProgram::settle(uint8_t* record) const {
    for (const Range& range : zeros_) std::memset(record + range.at, 0, range.bytes);
    for (size_t i = 0; i < mxfp4_.size(); ++i)
        if (!settle_mxfp4(record + mxfp4_[i].at, mxfp4_[i].groups)) return static_cast<int>(i);
    return -1;
}

Landing::Landing(std::shared_ptr<const LandingProgram> program, std::vector<LandingPiece> pieces)
    : program_(std::move(program)), pieces_(std::move(pieces)) {
    expect(program_ != nullptr && !pieces_.empty(), "expected a program and pieces");
    for (const LandingPiece& piece : pieces_) {
        expect(piece.bytes > 0 && (piece.offset | piece.bytes) % kReadAlignment == 0,
               "piece: expected whole pages");
        expect(piece.needed <= piece.bytes, "piece: needs more than is read");
        for (const Slice& slice : piece.slices) program_->check(slice, piece.needed);
        bytes_ += piece.bytes;
    }
}

}  // namespace flashmoe
