// Small helpers of the AVX-512 kernels: masked tails and sums in a fixed order.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace flashmoe::avx512 {

constexpr int64_t kLanes = 16;
constexpr __mmask16 kAll = 0xFFFF;

inline __mmask16 first_lanes(int64_t count) {
    return static_cast<__mmask16>((1u << static_cast<unsigned>(count)) - 1);
}

// Lanes outside of the mask are zero and their memory is not touched.
inline __m512 load(const float* p, __mmask16 mask = kAll) { return _mm512_maskz_loadu_ps(mask, p); }

inline void store(float* p, __m512 value, __mmask16 mask = kAll) {
    _mm512_mask_storeu_ps(p, mask, value);
}

// Calls body(i, mask) for every vector of n elements; the last mask may be partial.
template <typename Body>
inline void for_vectors(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) body(i, kAll);
    if (i < n) body(i, first_lanes(n - i));
}

inline float sum_lanes(__m512 v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace flashmoe::avx512
