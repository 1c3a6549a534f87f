#include "cpu/delta/delta.h"
#include "cpu/simd/exp_neon.h"
#include "cpu/simd/vector_neon.h"

namespace flashmoe {
namespace {

using neon::kLanes;

// V vectors of columns; the columns of the state do not interact. Lanes moves one vector.
template <int V, typename Lanes>
inline void step_columns(const DeltaToken& token, int64_t key_dim, int64_t value_dim, int64_t first,
                         float* state, float* out, Lanes lanes) {
    const float32x4_t decay = vdupq_n_f32(token.decay);
    float* s = state + first;
    float32x4_t seen[V], sum[V];
    for (int v = 0; v < V; ++v) seen[v] = sum[v] = vdupq_n_f32(0.0f);
    for (int64_t i = 0; i < key_dim; ++i)
        for (int v = 0; v < V; ++v)
            seen[v] = vfmaq_n_f32(seen[v], lanes.load(s + i * value_dim + v * kLanes), token.k[i]);
    for (int v = 0; v < V; ++v) {  // the correction takes the place of what was seen
        const float32x4_t value = lanes.load(token.v + first + v * kLanes);
        seen[v] = vmulq_n_f32(vfmsq_f32(value, decay, seen[v]), token.beta);
    }
    for (int64_t i = 0; i < key_dim; ++i)
        for (int v = 0; v < V; ++v) {
            float* at = s + i * value_dim + v * kLanes;
            const float32x4_t kept = vmulq_f32(decay, lanes.load(at));
            const float32x4_t updated = vfmaq_n_f32(kept, seen[v], token.k[i]);
            lanes.store(at, updated);
            sum[v] = vfmaq_n_f32(sum[v], updated, token.q[i]);
        }
    for (int v = 0; v < V; ++v) lanes.store(out + first + v * kLanes, sum[v]);
}

void step(const DeltaToken& token, int64_t key_dim, int64_t value_dim, float* state, float* out) {
    constexpr int kVectors = 8;  // sums of both passes fit the registers, and hide FMA latency
    int64_t first = 0;
    for (; first + kVectors * kLanes <= value_dim; first += kVectors * kLanes)
        step_columns<kVectors>(token, key_dim, value_dim, first, state, out, neon::Whole{});
    neon::for_vectors(value_dim - first, [&](int64_t i, auto lanes) {
        step_columns<1>(token, key_dim, value_dim, first + i, state, out, lanes);
    });
}

void exponentials(float* x, int64_t n) {
    neon::for_vectors(
        n, [&](int64_t i, auto lanes) { lanes.store(x + i, neon::exp(lanes.load(x + i))); });
}

}  // namespace

void register_delta_neon(DeltaKernels& table) {
    register_tile_neon(table.tile);
    table.step = step;
    table.exp = exponentials;
}

}  // namespace flashmoe
