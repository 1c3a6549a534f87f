#include <cmath>

#include "cpu/delta/delta.h"

namespace flashmoe {
namespace {

// The columns of the state do not interact: a few at a time keep their sums in registers.
constexpr int64_t kColumns = 8;

void step_columns(const DeltaToken& token, int64_t key_dim, int64_t value_dim, int64_t first,
                  int64_t n, float* state, float* out) {
    float seen[kColumns] = {}, read[kColumns] = {}, correction[kColumns];
    for (int64_t i = 0; i < key_dim; ++i)
        for (int64_t j = 0; j < n; ++j) seen[j] += token.k[i] * state[i * value_dim + first + j];
    for (int64_t j = 0; j < n; ++j)
        correction[j] = token.beta * (token.v[first + j] - token.decay * seen[j]);
    for (int64_t i = 0; i < key_dim; ++i)
        for (int64_t j = 0; j < n; ++j) {
            float& s = state[i * value_dim + first + j];
            s = token.decay * s + token.k[i] * correction[j];
            read[j] += token.q[i] * s;
        }
    for (int64_t j = 0; j < n; ++j) out[first + j] = read[j];
}

void step(const DeltaToken& token, int64_t key_dim, int64_t value_dim, float* state, float* out) {
    int64_t first = 0;
    for (; first + kColumns <= value_dim; first += kColumns)
        step_columns(token, key_dim, value_dim, first, kColumns, state, out);
    if (first < value_dim)
        step_columns(token, key_dim, value_dim, first, value_dim - first, state, out);
}

void exponentials(float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = std::exp(x[i]);
}

}  // namespace

void register_delta_scalar(DeltaKernels& table) {
    register_tile_scalar(table.tile);
    table.step = step;
    table.exp = exponentials;
}

}  // namespace flashmoe
