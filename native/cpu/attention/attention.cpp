#include "cpu/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/grain.h"
#include "cpu/workspace.h"
#include "flashmoe/kernels.h"
#include "flashmoe/pool.h"

namespace flashmoe {
namespace {

constexpr int64_t kBlock = kKeyBlock;  // keys whose transposed copy stays in the near caches
constexpr int64_t kSpan = 512;         // keys of one independent softmax; spans are merged in order
constexpr int64_t kMaxSpanFloats = int64_t{8} << 20;  // of partial results held at once

// Where results of a tile's rows accumulate: per row `dim` values, then a SoftmaxState.
struct Partial {
    float* data;
    int64_t dim;

    static int64_t stride(int64_t dim) { return Workspace::aligned(dim + 2); }
    float* values(int64_t row) const { return data + row * stride(dim); }
    SoftmaxState& state(int64_t row) const {
        return *reinterpret_cast<SoftmaxState*>(values(row) + dim);
    }
    void clear(int64_t rows) const {
        for (int64_t row = 0; row < rows; ++row) {
            std::fill_n(values(row), dim, 0.0f);
            state(row) = {-std::numeric_limits<float>::infinity(), 0.0f};
        }
    }
};

// The queries of a group of heads at consecutive tokens; row = token within the tile * group +
// head.
struct Tile {
    int64_t group, first, tokens;
};

// Query rows that share a loaded block: as many as fit L2 beside it, with what they accumulate.
int64_t row_limit(int64_t dim) { return dim <= 256 ? 128 : 64; }

// Heads that share a tile: all that share a kv head, or an equal part of them if those are many.
int64_t tile_heads(int64_t sharing, int64_t dim) {
    int64_t parts = (sharing + row_limit(dim) - 1) / row_limit(dim);
    while (sharing % parts) ++parts;
    return sharing / parts;
}

// Keys [from, to) of a block.
struct Range {
    int64_t from, to;
    bool operator==(const Range&) const = default;
};

class Attend {
  public:
    explicit Attend(const Attention& call)
        : call_(call),
          kernels_(kernels().attention),
          dim_(call.cache.dim),
          value_dim_(call.cache.value_dim),
          group_(tile_heads(call.heads / call.cache.kv_heads, dim_)),
          tile_tokens_(std::max<int64_t>(1, row_limit(dim_) / group_)),
          tiles_((call.tokens + tile_tokens_ - 1) / tile_tokens_),
          first_span_(first_seen(call.start) / kSpan),
          spans_((call.start + call.tokens + kSpan - 1) / kSpan - first_span_) {}

    void run(Pool& pool) {
        static thread_local Workspace scratch, partials;
        scratch_ = scratch.floats(pool.threads() * scratch_floats());
        // Too few tiles leave threads idle: then the spans of a tile are shared out as well.
        const int64_t needed = items() * spans_ * tile_rows() * Partial::stride(value_dim_);
        if (items() < 2 * pool.threads() && needed <= kMaxSpanFloats)
            by_span(pool, partials.floats(needed));
        else
            by_tile(pool);
    }

  private:
    void by_tile(Pool& pool) {
        pool.parallel_for(items(), 1, [&](int64_t begin, int64_t end, int worker) {
            // Backwards: the last tiles see the most keys, so they go first.
            for (int64_t item = begin; item < end; ++item)
                whole_tile(tile(items() - 1 - item), worker);
        });
    }

    void by_span(Pool& pool, float* partials) {
        const auto partial = [&](int64_t item, int64_t span) {
            const int64_t row = (item * spans_ + span) * tile_rows();
            return Partial{partials + row * Partial::stride(value_dim_), value_dim_};
        };
        pool.parallel_for(items() * spans_, 1, [&](int64_t begin, int64_t end, int worker) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t item = i / spans_, span = i % spans_;
                load_queries(tile(item), worker);
                attend_span(tile(item), first_span_ + span, partial(item, span), worker);
            }
        });
        pool.parallel_for(items(), 1, [&](int64_t begin, int64_t end, int) {
            for (int64_t item = begin; item < end; ++item) {
                for (int64_t span = 1; span < spans_; ++span)
                    merge(tile(item), partial(item, 0), partial(item, span));
                finish(tile(item), partial(item, 0));
            }
        });
    }

    void whole_tile(Tile tile, int worker) {
        const Partial total = worker_partial(worker, 0), part = worker_partial(worker, 1);
        load_queries(tile, worker);
        const int64_t first = first_seen(position(tile, 0)) / kSpan;
        attend_span(tile, first, total, worker);
        const int64_t last = position(tile, tile.tokens - 1) / kSpan;
        for (int64_t span = first + 1; span <= last; ++span) {
            attend_span(tile, span, part, worker);
            merge(tile, total, part);
        }
        finish(tile, total);
    }

    // Rows whose window lies outside of the span have no part in it.
    void merge(Tile tile, Partial total, Partial part) {
        for (int64_t row = 0; row < tile.tokens * group_; ++row)
            if (part.state(row).sum != 0.0f)
                kernels_.merge(total.state(row), total.values(row), part.state(row),
                               part.values(row), value_dim_);
    }

    void attend_span(Tile tile, int64_t span, Partial partial, int worker) {
        partial.clear(tile.tokens * group_);
        const int64_t seen = first_seen(position(tile, 0)) / kBlock * kBlock;
        const int64_t end = std::min((span + 1) * kSpan, position(tile, tile.tokens));
        for (int64_t key = std::max(span * kSpan, seen); key < end; key += kBlock)
            attend_block(tile, key, std::min(kBlock, end - key), partial, worker);
    }

    // Keys [key, key + count) against every row of the tile that may see them.
    void attend_block(Tile tile, int64_t key, int64_t count, Partial partial, int worker) {
        load_keys(kv_head(tile), key, count, keys_of(worker));
        const Operand values = load_values(kv_head(tile), key, count, values_of(worker));
        const Panel scores{scores_of(worker), kBlock};
        const int64_t columns = (count + 7) / 8 * 8;
        kernels_.tile.matmul({tile.tokens * group_, columns, dim_}, {queries_of(worker), dim_},
                             {keys_of(worker), kBlock}, scores, false);
        for (int64_t token = 0, next; token < tile.tokens; token = next) {
            // Tokens that see the same keys share one product.
            const Range seen = visible(tile, token, key, count);
            next = token + 1;
            while (next < tile.tokens && visible(tile, next, key, count) == seen) ++next;
            if (seen.from < seen.to)
                absorb_rows(token * group_, next * group_, seen, scores, values, partial);
        }
    }

    void absorb_rows(int64_t begin, int64_t end, Range keys, Panel scores, Operand values,
                     Partial partial) {
        for (int64_t row = begin; row < end; ++row) {
            float* from = scores.data + row * kBlock;
            // Kept in place, with no weight: the kernel may overwrite up to whole vectors.
            std::fill_n(from, keys.from, -std::numeric_limits<float>::infinity());
            kernels_.absorb(from, keys.to, partial.state(row), partial.values(row), value_dim_);
        }
        kernels_.tile.matmul({end - begin, value_dim_, keys.to - keys.from},
                             {scores.data + begin * kBlock + keys.from, kBlock},
                             {values.data + keys.from * values.row, values.row},
                             {partial.values(begin), Partial::stride(value_dim_)}, true);
    }

    int64_t position(Tile tile, int64_t token) const { return call_.start + tile.first + token; }

    // The first key that a query at this position sees.
    int64_t first_seen(int64_t position) const {
        return call_.window ? std::max<int64_t>(0, position - call_.window + 1) : 0;
    }

    Range visible(Tile tile, int64_t token, int64_t key, int64_t count) const {
        const int64_t at = position(tile, token);
        return {std::clamp<int64_t>(first_seen(at) - key, 0, count),
                std::clamp<int64_t>(at + 1 - key, 0, count)};
    }

    void load_queries(Tile tile, int worker) {
        float* dst = queries_of(worker);
        for (int64_t t = 0; t < tile.tokens; ++t) {
            const float* src = call_.q + row_of(tile, t) * dim_;
            for (int64_t i = 0; i < group_ * dim_; ++i) *dst++ = src[i] * call_.scale;
        }
    }

    // Rows of a cache from a key on.
    template <typename T>
    const T* cached(const void* rows, int64_t row, int64_t head, int64_t key) const {
        const int64_t slot = head * call_.cache.context + key % call_.cache.context;
        return static_cast<const T*>(rows) + slot * row;
    }

    void load_keys(int64_t head, int64_t key, int64_t count, float* dst) {
        const void* keys = call_.cache.keys;
        const int64_t row = call_.cache.key_row;
        if (call_.cache.half)
            kernels_.tile.transpose_half(cached<uint16_t>(keys, row, head, key), row, count, dim_,
                                         dst, kBlock);
        else
            kernels_.tile.transpose(cached<float>(keys, row, head, key), row, count, dim_, dst,
                                    kBlock);
    }

    Operand load_values(int64_t head, int64_t key, int64_t count, float* dst) {
        const void* values = call_.cache.values;
        const int64_t row = call_.cache.value_row;
        if (!call_.cache.half) return {cached<float>(values, row, head, key), row};
        const uint16_t* from = cached<uint16_t>(values, row, head, key);
        for (int64_t i = 0; i < count; ++i)
            kernels_.tile.from_half(from + i * row, value_dim_, dst + i * value_dim_);
        return {dst, value_dim_};
    }

    void finish(Tile tile, Partial total) {
        for (int64_t row = 0; row < tile.tokens * group_; ++row) {
            float* out = call_.out + (row_of(tile, row / group_) + row % group_) * value_dim_;
            const float* values = total.values(row);
            const float sum = total.state(row).sum + sink_weight(tile, row, total.state(row).max);
            for (int64_t d = 0; d < value_dim_; ++d) out[d] = values[d] / sum;
        }
    }

    // Infinite where the sink outweighs all keys by more than a float holds: the result is then 0.
    float sink_weight(Tile tile, int64_t row, float max) const {
        if (!call_.sinks) return 0.0f;
        return std::exp(call_.sinks[tile.group * group_ + row % group_] - max);
    }

    // Items are (tile, group of heads), groups fastest.
    int64_t groups() const { return call_.heads / group_; }
    int64_t items() const { return tiles_ * groups(); }
    Tile tile(int64_t item) const {
        const int64_t first = item / groups() * tile_tokens_;
        return {item % groups(), first, std::min(tile_tokens_, call_.tokens - first)};
    }
    int64_t kv_head(Tile tile) const { return tile.group * call_.cache.kv_heads / groups(); }
    // The row of q and out that holds the first head of the tile at a token.
    int64_t row_of(Tile tile, int64_t token) const {
        return (tile.first + token) * call_.heads + tile.group * group_;
    }

    int64_t tile_rows() const { return std::min(tile_tokens_, call_.tokens) * group_; }

    // A worker's scratch: queries, scores, two partials, transposed keys, values.
    int64_t scratch_floats() const {
        return Workspace::aligned(tile_rows() * dim_) + tile_rows() * kBlock +
               2 * tile_rows() * Partial::stride(value_dim_) + kBlock * (dim_ + value_dim_);
    }
    float* queries_of(int worker) const { return scratch_ + worker * scratch_floats(); }
    float* scores_of(int worker) const {
        return queries_of(worker) + Workspace::aligned(tile_rows() * dim_);
    }
    Partial worker_partial(int worker, int64_t which) const {
        float* first = scores_of(worker) + tile_rows() * kBlock;
        return {first + which * tile_rows() * Partial::stride(value_dim_), value_dim_};
    }
    float* keys_of(int worker) const { return worker_partial(worker, 2).data; }
    float* values_of(int worker) const { return keys_of(worker) + kBlock * dim_; }

    const Attention& call_;
    const AttentionKernels& kernels_;
    const int64_t dim_, value_dim_, group_, tile_tokens_, tiles_, first_span_, spans_;
    float* scratch_ = nullptr;
};

void store(const TileKernels& tile, const float* src, int64_t n, bool half, void* dst,
           int64_t offset) {
    if (half)
        tile.to_half(src, n, static_cast<uint16_t*>(dst) + offset);
    else
        std::copy_n(src, n, static_cast<float*>(dst) + offset);
}

}  // namespace

void attention(Pool& pool, const Attention& call) { Attend(call).run(pool); }

void kv_store(Pool& pool, const KvStore& call) {
    const TileKernels& tile = kernels().attention.tile;
    const int64_t items = call.tokens * call.kv_heads;
    pool.parallel_for(items, cheap_grain(2 * call.dim), [&](int64_t begin, int64_t end, int) {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t token = item / call.kv_heads, head = item % call.kv_heads;
            const int64_t slot = (call.start + token) % call.context;
            const int64_t to = head * call.context + slot;
            store(tile, call.k + item * call.dim, call.dim, call.half, call.keys,
                  to * call.key_row);
            store(tile, call.v + item * call.value_dim, call.value_dim, call.half, call.values,
                  to * call.value_row);
        }
    });
}

}  // namespace flashmoe
