// The delta rule over a chunk of C tokens as dense products. With G_i the summed log decays up to
// and including token i, P_ij = exp(G_i - G_j) and S the state before the chunk, the corrections
// d_i obey a unit lower triangular system,
//
//     d_i = beta_i (v_i - exp(G_i) S^T k_i) - sum_{j<i} beta_i P_ij (k_i . k_j) d_j,
//
// and then
//
//     out_i = exp(G_i) S^T q_i + sum_{j<=i} P_ij (q_i . k_j) d_j
//     S     = exp(G_last) S + sum_j exp(G_last - G_j) k_j d_j^T.
//
// Value heads that share a key head share the inner products of its queries and keys.
#include <algorithm>
#include <cmath>

#include "cpu/delta/delta.h"
#include "cpu/workspace.h"
#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

constexpr int64_t kStep = 8;  // rows of a triangular product that share its longest extent

int64_t padded(int64_t chunk) { return (chunk + 7) / 8 * 8; }

// Buffers of one worker, and the chunk that it works on.
class Chunk {
  public:
    Chunk(const GatedDelta& call, int64_t key_head, int64_t chunk, float* scratch)
        : call_(call), tile_(kernels().delta.tile), key_head_(key_head), width_(padded(chunk)) {
        const auto take = [&scratch](int64_t floats) {
            float* part = scratch;
            scratch += Workspace::aligned(floats);
            return part;
        };
        keys_ = take(2 * chunk * call.key_dim);
        transposed_ = take(call.key_dim * width_);
        products_ = take(2 * chunk * width_);
        weighted_ = take(2 * chunk * width_);
        projected_ = take(2 * chunk * call.value_dim);
        decays_ = take(width_);
    }

    static int64_t floats(const GatedDelta& call, int64_t chunk) {
        const int64_t width = padded(chunk);
        return Workspace::aligned(2 * chunk * call.key_dim) +
               Workspace::aligned(call.key_dim * width) +
               2 * Workspace::aligned(2 * chunk * width) +
               Workspace::aligned(2 * chunk * call.value_dim) + Workspace::aligned(width);
    }

    void run(int64_t first, int64_t count) {
        first_ = first;
        count_ = count;
        load_keys();
        multiply_keys();
        const int64_t group = call_.value_heads / call_.key_heads;
        for (head_ = key_head_ * group; head_ < (key_head_ + 1) * group; ++head_) {
            load_gates();
            for (int64_t i = 0; i < count_; ++i) weigh_row(i);
            project_state();
            solve();
            read_out();
            update_state();
        }
    }

  private:
    // Keys, then queries, as the rows of one matrix.
    void load_keys() {
        for (int64_t i = 0; i < count_; ++i) {
            delta_key(call_, first_ + i, key_head_, key(i));
            delta_query(call_, first_ + i, key_head_, key(count_ + i));
        }
    }

    // products: k_i . k_j in row i and q_i . k_j in row count + i, for j <= i at least.
    void multiply_keys() {
        tile_.transpose(keys_, call_.key_dim, count_, call_.key_dim, transposed_, width_);
        for (int64_t half = 0; half < 2; ++half)
            for (int64_t i = 0; i < count_; i += kStep) {
                const int64_t rows = std::min(kStep, count_ - i), at = half * count_ + i;
                tile_.matmul({rows, i + kStep, call_.key_dim}, {key(at), call_.key_dim},
                             {transposed_, width_}, {products_ + at * width_, width_}, false);
            }
    }

    // beta, the running sums G of the log decays, and their exponentials.
    void load_gates() {
        double sum = 0;  // differences of large sums must stay exact
        for (int64_t i = 0; i < count_; ++i) {
            sum += delta_log_decay(call_, first_ + i, head_);
            log_decay_[i] = sum;
            decays_[i] = static_cast<float>(sum);
            beta_[i] = delta_beta(call_, first_ + i, head_);
        }
        kernels().delta.exp(decays_, count_);
    }

    // weighted: -beta_i P_ij k_i.k_j (j < i) in row i, P_ij q_i.k_j (j <= i) in row count + i.
    void weigh_row(int64_t i) {
        float weights[kMaxDeltaChunk];
        for (int64_t j = 0; j <= i; ++j)
            weights[j] = static_cast<float>(log_decay_[i] - log_decay_[j]);
        kernels().delta.exp(weights, i + 1);
        const float *keys = products_ + i * width_, *queries = keys + count_ * width_;
        float *below = weighted(i), *up_to = weighted(count_ + i);
        for (int64_t j = 0; j < i; ++j) below[j] = -beta_[i] * weights[j] * keys[j];
        for (int64_t j = 0; j <= i; ++j) up_to[j] = weights[j] * queries[j];
        std::fill(up_to + i + 1, up_to + i / kStep * kStep + kStep, 0.0f);
    }

    // projected: the right-hand side of the system; out_i: the state's part of it.
    void project_state() {
        const int64_t n = call_.value_dim;
        tile_.matmul({2 * count_, n, call_.key_dim}, {keys_, call_.key_dim}, {state(), n},
                     {projected_, n}, false);
        for (int64_t i = 0; i < count_; ++i) {
            const float *v = call_.v(first_ + i, head_), *read = projected(count_ + i);
            float *right = projected(i), *out = call_.head_out(first_ + i, head_);
            for (int64_t d = 0; d < n; ++d) right[d] = beta_[i] * (v[d] - decays_[i] * right[d]);
            for (int64_t d = 0; d < n; ++d) out[d] = decays_[i] * read[d];
        }
    }

    // Forward substitution in place: rows of a step first take in all earlier steps at once.
    void solve() {
        const int64_t n = call_.value_dim;
        for (int64_t i = 0; i < count_; i += kStep) {
            const int64_t rows = std::min(kStep, count_ - i);
            tile_.matmul({rows, n, i}, {weighted(i), width_}, {projected_, n}, {projected(i), n},
                         true);
            for (int64_t row = i + 1; row < i + rows; ++row)
                tile_.matmul({1, n, row - i}, {weighted(row) + i, width_}, {projected(i), n},
                             {projected(row), n}, true);
        }
    }

    void read_out() {
        const int64_t n = call_.value_dim, stride = call_.value_heads * n;
        for (int64_t i = 0; i < count_; i += kStep) {
            const int64_t rows = std::min(kStep, count_ - i);
            tile_.matmul({rows, n, i + rows}, {weighted(count_ + i), width_}, {projected_, n},
                         {call_.head_out(first_ + i, head_), stride}, true);
        }
    }

    void update_state() {
        const int64_t k = call_.key_dim, n = call_.value_dim, last = count_ - 1;
        for (int64_t i = 0; i < count_; ++i) {
            const float left = static_cast<float>(std::exp(log_decay_[last] - log_decay_[i]));
            for (int64_t d = 0; d < n; ++d) projected(i)[d] *= left;
        }
        for (int64_t d = 0; d < k * n; ++d) state()[d] *= decays_[last];
        tile_.matmul({k, n, count_}, {keys_, 1, k}, {projected_, n}, {state(), n}, true);
    }

    float* key(int64_t i) const { return keys_ + i * call_.key_dim; }
    float* weighted(int64_t i) const { return weighted_ + i * width_; }
    float* projected(int64_t i) const { return projected_ + i * call_.value_dim; }
    float* state() const { return call_.head_state(head_); }

    const GatedDelta& call_;
    const TileKernels& tile_;
    const int64_t key_head_, width_;
    int64_t head_ = 0, first_ = 0, count_ = 0;
    float *keys_, *transposed_, *products_, *weighted_, *projected_, *decays_;
    double log_decay_[kMaxDeltaChunk];
    float beta_[kMaxDeltaChunk];
};

}  // namespace

int64_t delta_chunk_floats(const GatedDelta& call, int64_t chunk) {
    return Chunk::floats(call, chunk);
}

void delta_chunked(const GatedDelta& call, int64_t key_head, int64_t chunk, float* scratch) {
    Chunk work(call, key_head, chunk, scratch);
    for (int64_t first = 0; first < call.tokens; first += chunk)
        work.run(first, std::min(chunk, call.tokens - first));
}

}  // namespace flashmoe
