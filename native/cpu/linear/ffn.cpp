#include "cpu/linear/ffn.h"

#include <algorithm>
#include <functional>

#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

constexpr int64_t kBf16Piece = 64;
constexpr int64_t kGatherRows = 16;  // per turn of a worker
constexpr float kAlpha = 1.702f, kLimit = 7.0f;
constexpr float kSiluLimit = 10.0f;
// 2 sqrt(2 / pi) and the cubic term of gelu's tanh approximation.
constexpr float kGeluScale = 1.5957691216057308f, kGeluCube = 0.044715f;

// x[i * 8 + r] += bias[r] for i < count.
void add_bias(float* x, int64_t count, const float* bias) {
    for (int64_t i = 0; i < count; ++i, x += kBlockRows)
        for (int64_t r = 0; r < kBlockRows; ++r) x[r] += bias[r];
}

// Brings the clamped form to silu(gate) * up, whose kernel computes it: g * sigmoid(a g) * (u + 1)
// = silu(a g) * (u + 1) / a.
void clamp(float* gate, float* up, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        gate[i] = kAlpha * std::min(gate[i], kLimit);
        up[i] = (std::clamp(up[i], -kLimit, kLimit) + 1.0f) / kAlpha;
    }
}

// silu(g) * u of g = min(gate, 10) and u = up in [-10, 10].
void limit(float* gate, float* up, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        gate[i] = std::min(gate[i], kSiluLimit);
        up[i] = std::clamp(up[i], -kSiluLimit, kSiluLimit);
    }
}

// gelu(g) = g * (1 + tanh(z / 2)) / 2 = g * sigmoid(z) with z = kGeluScale (g + kGeluCube g^3), so
// that gelu(g) * u = silu(z) * u g / z.
void gelu(float* gate, float* up, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const float slope = kGeluScale * (1.0f + kGeluCube * gate[i] * gate[i]);
        gate[i] *= slope;
        up[i] /= slope;
    }
}

// Brings an activation to silu(gate) * up.
void prepare(Activation activation, float* gate, float* up, int64_t n) {
    if (activation == Activation::swiglu_clamped) clamp(gate, up, n);
    if (activation == Activation::swiglu_limited) limit(gate, up, n);
    if (activation == Activation::geglu_tanh) gelu(gate, up, n);
}

}  // namespace

void Ffn::configure(const MatrixView& gate_up, const MatrixView& down, Activation activation) {
    gate_up_ = gate_up;
    down_ = down;
    activation_ = activation;
    piece_ = down.group ? down.group : kBf16Piece;
}

void Ffn::split(size_t experts, const int32_t* offsets) {
    spans_.clear();
    for (size_t e = 0; e < experts; ++e)
        for (int64_t begin = offsets[e]; begin < offsets[e + 1]; begin += kTokenChunk)
            spans_.push_back({static_cast<int64_t>(e), begin,
                              std::min<int64_t>(begin + kTokenChunk, offsets[e + 1])});
}

void Ffn::run(Pool& pool, const Rows& rows, const std::vector<Expert>& experts,
              const int32_t* offsets, const FfnOutput& output) {
    rows_ = rows;
    experts_ = experts.data();
    split(experts.size(), offsets);
    const int64_t entries = offsets[experts.size()], spans = static_cast<int64_t>(spans_.size());
    hidden_.reserve(entries, down_.cols, down_.group);
    if (!down_.group) grow(hidden_floats_, entries * down_.cols);

    const int64_t per_span = spans ? entries / spans : 0;
    const int64_t run_tokens = kernels().linear.run_tokens;
    if (run_tokens && per_span >= run_tokens && rows_.index && gate_up_.group)
        gather(pool, entries);
    const int threads = pool.threads();

    const int64_t pieces = (down_.cols + piece_ - 1) / piece_;
    const auto first = [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) gate_up_piece(spans_[i / pieces], i % pieces);
    };
    const int64_t piece_bytes = gate_up_.nbytes() / pieces;
    pool.parallel_for(spans * pieces, weight_grain(spans * pieces, piece_bytes, per_span, threads),
                      std::cref(first));

    const int64_t pairs = (down_.blocks() + kPairBlocks - 1) / kPairBlocks;
    const int64_t pair_bytes = kPairBlocks * down_.block_bytes();
    const auto second = [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i)
            down_blocks(spans_[i / pairs], i % pairs * kPairBlocks, output);
    };
    pool.parallel_for(spans * pairs, weight_grain(spans * pairs, pair_bytes, per_span, threads),
                      std::cref(second));
}

void Ffn::gather(Pool& pool, int64_t entries) {
    gathered_.reserve(entries, rows_.cols, rows_.group);
    const auto body = [&](int64_t begin, int64_t end, int) { gathered_.gather(rows_, begin, end); };
    pool.parallel_for(entries, kGatherRows, std::cref(body));
    rows_ = gathered_.view(nullptr);
}

void Ffn::gate_up_piece(const Span& span, int64_t piece) {
    const auto& table = kernels().linear;
    const int64_t first = piece * piece_, width = std::min(piece_, down_.cols - first);
    const int64_t count = span.end - span.begin, block_bytes = gate_up_.block_bytes();
    const uint8_t* bytes = experts_[span.expert].gate_up + 2 * first / kBlockRows * block_bytes;
    const float* bias = experts_[span.expert].gate_up_bias;
    float gate[kPairBlocks * kTokenChunk * kBlockRows];
    float* up = gate + count * kBlockRows;
    float hidden[kTokenChunk * kMaxGroup];
    for (int64_t column = 0; column < width; column += kBlockRows, bytes += 2 * block_bytes) {
        table.multiply(gate_up_, bytes, kPairBlocks, rows_, span.begin, count, gate);
        if (bias) {
            add_bias(gate, count, bias + 2 * (first + column));
            add_bias(up, count, bias + 2 * (first + column) + kBlockRows);
        }
        prepare(activation_, gate, up, count * kBlockRows);
        table.silu_mul(gate, up, gate, count * kBlockRows);
        for (int64_t t = 0; t < count; ++t)
            std::copy_n(gate + t * kBlockRows, kBlockRows, hidden + t * width + column);
    }
    store_hidden(span, piece, hidden, width);
}

void Ffn::store_hidden(const Span& span, int64_t piece, const float* hidden, int64_t width) {
    for (int64_t entry = span.begin; entry < span.end; ++entry, hidden += width) {
        if (down_.group)
            hidden_.quantize_group(entry, piece, hidden);
        else
            std::copy_n(hidden, width, &hidden_floats_[entry * down_.cols + piece * piece_]);
    }
}

void Ffn::down_blocks(const Span& span, int64_t block, const FfnOutput& output) const {
    float y[kPairBlocks * kTokenChunk * kBlockRows];
    const int64_t count = span.end - span.begin;
    const int64_t blocks = std::min(kPairBlocks, down_.blocks() - block);
    const uint8_t* bytes = experts_[span.expert].down + block * down_.block_bytes();
    const Rows hidden = hidden_.view(hidden_floats_.data());
    kernels().linear.multiply(down_, bytes, blocks, hidden, span.begin, count, y);
    for (int64_t b = 0; b < blocks; ++b)
        store_block(span, block + b, y + b * count * kBlockRows, output);
}

void Ffn::store_block(const Span& span, int64_t block, float* y, const FfnOutput& output) const {
    const int64_t row = block * kBlockRows, height = std::min(kBlockRows, down_.rows - row);
    const float* bias = experts_[span.expert].down_bias;
    for (int64_t j = span.begin; j < span.end; ++j, y += kBlockRows) {
        for (int64_t r = 0; bias && r < height; ++r) y[r] += bias[row + r];
        float* to = output.out + (output.dests ? output.dests[j] : j) * down_.rows + row;
        const float scale = output.scale ? output.scale[j] : 1.0f;
        for (int64_t r = 0; r < height; ++r)
            to[r] = output.accumulate ? to[r] + scale * y[r] : y[r];
    }
}

}  // namespace flashmoe
