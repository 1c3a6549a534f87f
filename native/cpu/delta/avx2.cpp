#include "cpu/delta/delta.h"
#include "cpu/simd/exp_avx2.h"
#include "cpu/simd/vector_avx2.h"

namespace flashmoe {
namespace {

using avx2::kLanes;
using avx2::load;

// V vectors of columns; the columns of the state do not interact. Read and Write move one vector.
template <int V, typename Read, typename Write>
inline void step_columns(const DeltaToken& token, int64_t key_dim, int64_t value_dim, int64_t first,
                         float* state, float* out, Read read, Write write) {
    const __m256 decay = _mm256_set1_ps(token.decay), beta = _mm256_set1_ps(token.beta);
    float* s = state + first;
    __m256 seen[V], sum[V];
    for (int v = 0; v < V; ++v) seen[v] = sum[v] = _mm256_setzero_ps();
    for (int64_t i = 0; i < key_dim; ++i) {
        const __m256 k = _mm256_set1_ps(token.k[i]);
        for (int v = 0; v < V; ++v)
            seen[v] = _mm256_fmadd_ps(k, read(s + i * value_dim + v * kLanes), seen[v]);
    }
    for (int v = 0; v < V; ++v)  // the correction takes the place of what was seen
        seen[v] = _mm256_mul_ps(
            beta, _mm256_fnmadd_ps(decay, seen[v], read(token.v + first + v * kLanes)));
    for (int64_t i = 0; i < key_dim; ++i) {
        const __m256 k = _mm256_set1_ps(token.k[i]), q = _mm256_set1_ps(token.q[i]);
        for (int v = 0; v < V; ++v) {
            float* at = s + i * value_dim + v * kLanes;
            const __m256 updated = _mm256_fmadd_ps(k, seen[v], _mm256_mul_ps(decay, read(at)));
            write(at, updated);
            sum[v] = _mm256_fmadd_ps(q, updated, sum[v]);
        }
    }
    for (int v = 0; v < V; ++v) write(out + first + v * kLanes, sum[v]);
}

void step(const DeltaToken& token, int64_t key_dim, int64_t value_dim, float* state, float* out) {
    constexpr int kVectors = 4;  // sums of both passes fit the registers, and hide FMA latency
    const auto read = [](const float* p) { return load(p); };
    const auto write = [](float* p, __m256 x) { _mm256_storeu_ps(p, x); };
    int64_t first = 0;
    for (; first + kVectors * kLanes <= value_dim; first += kVectors * kLanes)
        step_columns<kVectors>(token, key_dim, value_dim, first, state, out, read, write);
    for (; first + kLanes <= value_dim; first += kLanes)
        step_columns<1>(token, key_dim, value_dim, first, state, out, read, write);
    if (const int64_t rest = value_dim - first; rest > 0)
        step_columns<1>(
            token, key_dim, value_dim, first, state, out,
            [rest](const float* p) { return avx2::load_first(p, rest); },
            [rest](float* p, __m256 x) { avx2::store_first(p, rest, x); });
}

void exponentials(float* x, int64_t n) {
    avx2::for_vectors(
        n, [&](int64_t i) { _mm256_storeu_ps(x + i, avx2::exp(load(x + i))); },
        [&](int64_t i, int64_t count) {
            avx2::store_first(x + i, count, avx2::exp(avx2::load_first(x + i, count)));
        });
}

}  // namespace

void register_delta_avx2(DeltaKernels& table) {
    register_tile_avx2(table.tile);
    table.step = step;
    table.exp = exponentials;
}

}  // namespace flashmoe
