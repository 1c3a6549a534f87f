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
#include <algorithm>
#include <cmath>

#include "cpu/delta/delta.h"
#include "cpu/workspace.h"
#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

constexpr int64_t kStep = 8;  // rows of a triangular product that share its longest extent

class Chunk {
  public:
    Chunk(const GatedDelta& call, int64_t head, int64_t chunk, float* scratch)
        : call_(call), tile_(kernels().delta.tile), head_(head), width_(padded(chunk)) {
        const auto take = [&scratch](int64_t floats) {
            float* part = scratch;
            scratch += Workspace::aligned(floats);
            return part;
        };
        keys_ = take(2 * chunk * call.key_dim);
        transposed_ = take(call.key_dim * width_);
        products_ = take(2 * chunk * width_);
        projected_ = take(2 * chunk * call.value_dim);
        decays_ = take(width_);
    }

    static int64_t floats(const GatedDelta& call, int64_t chunk) {
        const int64_t width = padded(chunk);
        return Workspace::aligned(2 * chunk * call.key_dim) +
               Workspace::aligned(call.key_dim * width) + Workspace::aligned(2 * chunk * width) +
               Workspace::aligned(2 * chunk * call.value_dim) + Workspace::aligned(width);
    }

    void run(int64_t first, int64_t count) {
        first_ = first;
        count_ = count;
        load();
        multiply_keys();
        project_state();
        solve();
        read_out();
        update_state();
    }

  private:
    static int64_t padded(int64_t chunk) { return (chunk + 7) / 8 * 8; }

    // Keys, then queries, as the rows of one matrix; the running sums of the log decays.
    void load() {
        double sum = 0;  // differences of large sums must stay exact
        for (int64_t i = 0; i < count_; ++i) {
            delta_key(call_, first_ + i, head_, key(i));
            delta_query(call_, first_ + i, head_, key(count_ + i));
            sum += delta_log_decay(call_, first_ + i, head_);
            log_decay_[i] = sum;
            decays_[i] = static_cast<float>(sum);
            beta_[i] = delta_beta(call_, first_ + i, head_);
        }
        kernels().delta.exp(decays_, count_);
    }

    // products: row i holds -beta_i P_ij k_i.k_j (j < i), row count + i holds P_ij q_i.k_j (j <=
    // i).
    void multiply_keys() {
        tile_.transpose(keys_, call_.key_dim, count_, call_.key_dim, transposed_, width_);
        for (int64_t half = 0; half < 2; ++half)
            for (int64_t i = 0; i < count_; i += kStep) {
                const int64_t rows = std::min(kStep, count_ - i), at = half * count_ + i;
                tile_.matmul({rows, i + kStep, call_.key_dim}, {key(at), call_.key_dim},
                             {transposed_, width_}, {product(at), width_}, false);
            }
        for (int64_t i = 0; i < count_; ++i) weigh_row(i);
    }

    void weigh_row(int64_t i) {
        float weights[kMaxDeltaChunk];
        for (int64_t j = 0; j <= i; ++j)
            weights[j] = static_cast<float>(log_decay_[i] - log_decay_[j]);
        kernels().delta.exp(weights, i + 1);
        float *lower = product(i), *inclusive = product(count_ + i);
        for (int64_t j = 0; j < i; ++j) lower[j] *= -beta_[i] * weights[j];
        for (int64_t j = 0; j <= i; ++j) inclusive[j] *= weights[j];
        const int64_t end = i / kStep * kStep + kStep;
        std::fill(inclusive + i + 1, inclusive + end, 0.0f);
    }

    // projected: row i the right-hand side of the system, row count + i the state's part of out_i.
    void project_state() {
        const int64_t n = call_.value_dim;
        tile_.matmul({2 * count_, n, call_.key_dim}, {keys_, call_.key_dim}, {state(), n},
                     {projected_, n}, false);
        for (int64_t i = 0; i < count_; ++i) {
            const float* v = call_.v(first_ + i, head_);
            float *right = projected(i), *read = projected(count_ + i);
            for (int64_t d = 0; d < n; ++d) right[d] = beta_[i] * (v[d] - decays_[i] * right[d]);
            for (int64_t d = 0; d < n; ++d) read[d] *= decays_[i];
        }
    }

    // Forward substitution in place: rows of a step first take in all earlier steps at once.
    void solve() {
        const int64_t n = call_.value_dim;
        for (int64_t i = 0; i < count_; i += kStep) {
            const int64_t rows = std::min(kStep, count_ - i);
            tile_.matmul({rows, n, i}, {product(i), width_}, {projected_, n}, {projected(i), n},
                         true);
            for (int64_t row = i + 1; row < i + rows; ++row)
                tile_.matmul({1, n, row - i}, {product(row) + i, width_}, {projected(i), n},
                             {projected(row), n}, true);
        }
    }

    void read_out() {
        const int64_t n = call_.value_dim, stride = call_.value_heads * n;
        for (int64_t i = 0; i < count_; i += kStep) {
            const int64_t rows = std::min(kStep, count_ - i);
            for (int64_t row = i; row < i + rows; ++row)
                std::copy_n(projected(count_ + row), n, call_.head_out(first_ + row, head_));
            tile_.matmul({rows, n, std::min(i + kStep, count_)}, {product(count_ + i), width_},
                         {projected_, n}, {call_.head_out(first_ + i, head_), stride}, true);
        }
    }

    void update_state() {
        const int64_t k = call_.key_dim, n = call_.value_dim;
        for (int64_t i = 0; i < count_; ++i) {
            const float left = static_cast<float>(std::exp(log_decay_[count_ - 1] - log_decay_[i]));
            for (int64_t d = 0; d < k; ++d) key(i)[d] *= left;
        }
        const float decay = decays_[count_ - 1];
        for (int64_t d = 0; d < k * n; ++d) state()[d] *= decay;
        tile_.matmul({k, n, count_}, {keys_, 1, k}, {projected_, n}, {state(), n}, true);
    }

    float* key(int64_t i) const { return keys_ + i * call_.key_dim; }
    float* product(int64_t i) const { return products_ + i * width_; }
    float* projected(int64_t i) const { return projected_ + i * call_.value_dim; }
    float* state() const { return call_.head_state(head_); }

    const GatedDelta& call_;
    const TileKernels& tile_;
    const int64_t head_, width_;
    int64_t first_ = 0, count_ = 0;
    float *keys_, *transposed_, *products_, *projected_, *decays_;
    double log_decay_[kMaxDeltaChunk];
    float beta_[kMaxDeltaChunk];
};

}  // namespace

int64_t delta_chunk_floats(const GatedDelta& call, int64_t chunk) {
    return Chunk::floats(call, chunk);
}

void delta_chunked_head(const GatedDelta& call, int64_t head, int64_t chunk, float* scratch) {
    Chunk work(call, head, chunk, scratch);
    for (int64_t first = 0; first < call.tokens; first += chunk)
        work.run(first, std::min(chunk, call.tokens - first));
}

}  // namespace flashmoe
