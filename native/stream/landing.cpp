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

// Sizes that others chose: what exceeds all memory stays above every bound.
constexpr size_t kTooMuch = static_cast<size_t>(-1);

size_t plus(size_t a, size_t b) { return a > kTooMuch - b ? kTooMuch : a + b; }
size_t times(size_t a, size_t b) { return b != 0 && a > kTooMuch / b ? kTooMuch : a * b; }

template <class T>
T load(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// Codes 0 1 2 3 4 5 6 7 from the low end -> 0 4 1 5 2 6 3 7.
constexpr uint32_t deal(uint32_t codes) {
    const auto spread = [](uint32_t four) {
        four = (four | four << 8) & 0x00FF00FFu;
        return (four | four << 4) & 0x0F0F0F0Fu;
    };
    return spread(codes & 0xFFFF) | spread(codes >> 16) << 4;
}

// What becomes of an item, and a check: non-zero for a value that is an error. Adding the lowest
// bit of an exponent carries into the sign where all of its bits are set, and never further.

template <class T>
struct Same {
    using Item = T;
    static constexpr bool kChanges = false;  // what is checked
    static T turn(T value) { return value; }
    static uint32_t bad(T) { return 0; }
};

struct Dealt : Same<uint32_t> {
    static uint32_t turn(uint32_t codes) { return deal(codes); }
};

struct Flipped : Same<uint8_t> {
    static uint8_t turn(uint8_t code) { return code ^ 0x80; }
};

struct Bf16 : Same<uint16_t> {
    static constexpr uint16_t kLowest = 0x0080;
    static uint32_t bad(uint32_t one) { return ((one & 0x7F80u) + 0x0080u) & 0x8000u; }
};

struct Bf16Pair : Same<uint32_t> {
    static uint32_t bad(uint32_t two) { return ((two & 0x7F807F80u) + 0x00800080u) & 0x80008000u; }
};

struct F16 : Same<uint16_t> {
    static constexpr uint16_t kLowest = 0x0400;
    static uint32_t bad(uint32_t one) { return ((one & 0x7C00u) + 0x0400u) & 0x8000u; }
};

struct F32 : Same<uint32_t> {
    static uint32_t bad(uint32_t one) { return ((one & 0x7F800000u) + 0x00800000u) & 0x80000000u; }
};

struct Divisor : F32 {
    static uint32_t bad(uint32_t one) { return F32::bad(one) | ((one & 0x7FFFFFFFu) == 0); }
};

struct E4m3 : Same<uint8_t> {
    static uint32_t bad(uint8_t one) { return (one & 127) == 127; }
};

// A 16-bit float times -2^kDoublings. Without its sign, a number below the smallest normal doubles
// by a shift, into the exponent where it must; any other by one more in the exponent.
template <class Float, int kDoublings>
struct Bias : Float {
    static constexpr bool kChanges = true;
    static uint16_t turn(uint16_t scale) {
        uint32_t size = scale & 0x7FFFu;
        for (int i = 0; i < kDoublings && !Float::bad(size); ++i)
            size += size < Float::kLowest ? size : Float::kLowest;
        return static_cast<uint16_t>(size | (~scale & 0x8000u));
    }
};

// Each takes a run of 8 rows to its place in a block -> whether a number is an error, before or
// after its turn.

template <class Rule, bool kApart>
uint32_t each(const Move& move, const uint8_t* rows, uint8_t* target) {
    using Item = typename Rule::Item;
    // Copies: the compiler must take it that a write to the target may change the move.
    const size_t run = move.run, row_bytes = move.row_bytes;
    const size_t apart = kApart ? move.apart : sizeof(Item);
    uint32_t bad = 0;
    for (size_t i = 0; i < run; i += sizeof(Item)) {
        uint8_t* place = target + (kApart ? i : i * kRows);
        for (size_t r = 0; r < kRows; ++r, place += apart) {
            const Item value = load<Item>(rows + r * row_bytes + i);
            const Item turned = Rule::turn(value);
            bad |= Rule::bad(value);
            if constexpr (Rule::kChanges) bad |= Rule::bad(turned);
            std::memcpy(place, &turned, sizeof turned);
        }
    }
    return bad;
}

uint32_t widen(const Move& move, const uint8_t* rows, uint8_t* target) {
    uint32_t bad = 0;
    for (size_t i = 0; i < move.run; i += 2)
        for (size_t r = 0; r < kRows; ++r, target += 4) {
            const uint32_t value = load<uint16_t>(rows + r * move.row_bytes + i);
            bad |= Bf16::bad(value);
            const uint32_t wide = value << 16;
            std::memcpy(target, &wide, sizeof wide);
        }
    return bad;
}

uint32_t whole_units(const Move& move, const uint8_t* rows, uint8_t* target) {
    for (size_t i = 0; i < move.run; i += move.unit)
        for (size_t r = 0; r < kRows; ++r)
            std::memcpy(target + i * kRows + r * move.apart, rows + r * move.row_bytes + i,
                        move.unit);
    return 0;
}

constexpr size_t kGgmlBytes = 17;  // of a row's group: the scale, codes of columns j and 16 + j

uint32_t ggml_mxfp4(const Move& move, const uint8_t* rows, uint8_t* target) {
    const size_t row_bytes = move.row_bytes;
    for (size_t r = 0; r < kRows; ++r) {
        const uint8_t* group = rows + r * row_bytes;
        target[4 * kRows * sizeof(uint32_t) + r] = group[0];
        for (size_t u = 0; u < 4; ++u) {  // columns 8 u to 8 u + 7
            const auto both = load<uint64_t>(group + 1 + u % 2 * 8) >> u / 2 * 4;
            const uint64_t codes = both & 0x0F0F0F0F0F0F0F0Fu;
            const auto unit = static_cast<uint32_t>(codes | codes >> 32 << 4);
            std::memcpy(target + (u * kRows + r) * sizeof unit, &unit, sizeof unit);
        }
    }
    return 0;
}

using Step = uint32_t (*)(const Move&, const uint8_t*, uint8_t*);

template <bool kApart>
Step checked_step(const Move& move) {
    switch (move.finite) {
        case Finite::kBf16:
            return move.unit % 4 == 0 ? each<Bf16Pair, kApart> : each<Bf16, kApart>;
        case Finite::kF16:
            return each<F16, kApart>;
        case Finite::kF32:
            return each<F32, kApart>;
        case Finite::kE4m3:
            return each<E4m3, kApart>;
        case Finite::kDivisor:
            return each<Divisor, kApart>;
        default:
            break;
    }
    if (kApart) return whole_units;
    if (move.unit == 4) return each<Same<uint32_t>, kApart>;
    if (move.unit == 2) return each<Same<uint16_t>, kApart>;
    return move.unit == 1 ? each<Same<uint8_t>, kApart> : whole_units;
}

template <bool kApart>
Step step_of(const Move& move) {
    const bool f16 = move.finite == Finite::kF16;
    switch (move.turn) {
        case Turn::kDeal:
            return each<Dealt, kApart>;
        case Turn::kFlip:
            return each<Flipped, kApart>;
        case Turn::kBias4:
            return f16 ? each<Bias<F16, 3>, kApart> : each<Bias<Bf16, 3>, kApart>;
        case Turn::kBias8:
            return f16 ? each<Bias<F16, 7>, kApart> : each<Bias<Bf16, 7>, kApart>;
        case Turn::kWiden:
            return widen;
        case Turn::kGgml:
            return ggml_mxfp4;
        default:
            return checked_step<kApart>(move);
    }
}

size_t wide(const Move& move) { return move.turn == Turn::kWiden ? 2 : 1; }

// Bytes of what an item's check and turn are made for.
size_t item_bytes(const Move& move) {
    if (move.turn == Turn::kDeal) return 4;
    if (move.turn == Turn::kWiden) return 2;
    if (move.finite == Finite::kBf16 || move.finite == Finite::kF16) return 2;
    return move.finite == Finite::kF32 || move.finite == Finite::kDivisor ? 4 : 1;
}

// In the record, from the first byte of a group of a block to its end.
size_t group_span(const Move& move) {
    const size_t unit = move.unit * wide(move), units = move.run / move.unit;
    return plus(plus(times(units - 1, kRows * unit), times(kRows - 1, move.apart)), unit);
}

void check_items(const Move& move) {
    const size_t item = item_bytes(move);
    if (move.turn == Turn::kGgml) {
        const bool good = move.unit == kGgmlBytes && move.run == kGgmlBytes;
        expect(good && move.apart == kGgmlBytes, "ggml: expected groups of 17 bytes");
        return;
    }
    const bool bias = move.turn == Turn::kBias4 || move.turn == Turn::kBias8;
    expect(!bias || item == 2, "bias: expected scales of bf16 or f16");
    expect(move.unit % item == 0, "unit: expected whole items");
    if (move.apart != move.unit * wide(move)) {
        expect(move.run == move.unit && move.turn != Turn::kWiden, "apart: expected one unit");
        return;
    }
    const bool plain = move.turn == Turn::kCopy && move.finite == Finite::kAny;
    const bool pairs = move.finite == Finite::kBf16 && move.unit == 4;
    expect(plain || pairs || move.unit == item, "unit: expected one item");
}

void check(const Move& move, size_t record_bytes) {
    expect(move.rows > 0 && move.rows % kRows == 0, "rows: expected a multiple of 8");
    expect(move.unit > 0 && move.run > 0 && move.run % move.unit == 0, "run: expected whole units");
    expect(move.groups > 0 && move.times > 0, "groups: expected at least one");
    check_items(move);
    const size_t blocks = move.rows / kRows, groups = times(move.groups, move.times);
    const size_t last =
        plus(times(blocks - 1, move.block_bytes), times(groups - 1, move.group_bytes));
    expect(plus(plus(move.at, last), group_span(move)) <= record_bytes,
           "a move ends beyond the record");
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
        expect(plus(blob.at, times(blob.groups, kMxfp4GroupBytes)) <= record_bytes,
               "a blob ends too late");
    for (const Range& range : zeros_)
        expect(plus(range.at, range.bytes) <= record_bytes, "a gap ends beyond the record");
}

void LandingProgram::check(const Slice& slice, size_t bytes) const {
    expect(slice.move < moves_.size(), "slice: expected the index of a move");
    const Move& move = moves_[slice.move];
    const size_t end = size_t{slice.first} + slice.count;
    expect(slice.count > 0 && end <= move.rows / kRows, "slice: expected blocks of its move");
    const size_t last = times(size_t{slice.count} * kRows - 1, move.row_bytes);
    const size_t row = times(move.groups, move.run);
    expect(plus(plus(slice.from, last), row) <= bytes, "slice: reads beyond its piece");
}

bool LandingProgram::run(const Slice& slice, const uint8_t* read, uint8_t* record) const {
    const Move& move = moves_[slice.move];
    const bool apart = move.apart != move.unit * wide(move);
    const Step step = apart ? step_of<true>(move) : step_of<false>(move);
    uint32_t bad = 0;
    for (size_t b = 0; b < slice.count; ++b) {
        const uint8_t* rows = read + slice.from + b * kRows * move.row_bytes;
        uint8_t* target = record + move.at + (slice.first + b) * move.block_bytes;
        for (size_t g = 0; g < move.groups * move.times; ++g)
            bad |= step(move, rows + g / move.times * move.run, target + g * move.group_bytes);
    }
    return bad == 0 || move.finite == Finite::kAny;
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
