// An expert's bytes as a checkpoint has them, turned into the record that a pack would hold. The
// plan of it is made in Python (store/landing.py), which also says what the fields mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace flashmoe {

enum class Turn {
    kCopy,   // bytes as they are
    kDeal,   // 8 codes of 4 bits in order -> codes j and 4 + j in byte j
    kWiden,  // bf16 -> float32
    kFlip,   // bytes with their highest bit flipped: int8 -> uint8 about 128
    kBias4,  // a scale -> -8 times it, the bias of codes of 4 bits about 8
    kBias8,  // a scale -> -128 times it
    kGgml,   // a group of MXFP4 of GGUF: a scale, 16 bytes of codes j and 16 + j -> the stored form
};

// What the items of a move are where some of their values are errors.
enum class Finite {
    kAny,
    kBf16,
    kF16,
    kF32,
    kE4m3,
    kDivisor,  // float32, not zero either
};

// Rows of a source become rows of 8-row blocks, in which units of the eight rows alternate.
struct Move {
    Turn turn;
    Finite finite;
    size_t unit;
    size_t run;  // bytes of a row in a group
    size_t groups;
    size_t times;        // that each group is repeated in the record
    size_t rows;         // a multiple of 8
    size_t row_bytes;    // from a row of the source to the next
    size_t at;           // in the record
    size_t group_bytes;  // from a group in the record to the next
    size_t block_bytes;
    size_t apart;  // in the record, from a row of a unit to the next
};

// A part of a record in the stored form of mxfp4, back to back from `at`.
struct Mxfp4Blob {
    size_t at;
    size_t groups;  // of 8 rows each
};

struct Range {
    size_t at;
    size_t bytes;
};

// Blocks [first, first + count) of a move, whose rows start at `from` in what was read.
struct Slice {
    uint32_t move;
    uint32_t first;
    uint32_t count;
    uint32_t from;
};

class LandingProgram {
  public:
    // Throws std::invalid_argument where a move, blob or range does not fit the record.
    LandingProgram(size_t record_bytes, std::vector<Move> moves, std::vector<Mxfp4Blob> mxfp4,
                   std::vector<Range> zeros);

    size_t record_bytes() const { return record_bytes_; }
    size_t moves() const { return moves_.size(); }

    // Throws std::invalid_argument unless the slice reads inside of `bytes` bytes.
    void check(const Slice& slice, size_t bytes) const;

    // Carries out a slice that was checked; false where a weight is not finite.
    bool run(const Slice& slice, const uint8_t* read, uint8_t* record) const;

    // When all slices were run: fills gaps with zeros, gives mxfp4 groups the scale that the
    // encoder would choose. Returns the index of a blob with a weight that is not finite, or -1.
    int settle(uint8_t* record) const;

  private:
    const size_t record_bytes_;
    const std::vector<Move> moves_;
    const std::vector<Mxfp4Blob> mxfp4_;
    const std::vector<Range> zeros_;
};

// What is read at once: whole pages, of which the first `needed` bytes must be there.
struct LandingPiece {
    int handle;
    uint64_t offset;
    size_t bytes;
    size_t needed;
    std::vector<Slice> slices;
};

class Landing {
  public:
    // Throws std::invalid_argument for pieces that are not whole pages or too short for a slice.
    Landing(std::shared_ptr<const LandingProgram> program, std::vector<LandingPiece> pieces);

    const LandingProgram& program() const { return *program_; }
    const std::vector<LandingPiece>& pieces() const { return pieces_; }
    size_t bytes() const { return bytes_; }  // of all pieces

  private:
    const std::shared_ptr<const LandingProgram> program_;
    const std::vector<LandingPiece> pieces_;
    size_t bytes_ = 0;
};

}  // namespace flashmoe
