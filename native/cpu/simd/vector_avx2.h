// Small helpers of the AVX2 kernels: tails, conversions and sums in a fixed order.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace flashmoe::avx2 {

constexpr int64_t kLanes = 8;

// All ones in the lanes below count.
inline __m256i first_lanes(int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}

inline __m256 load(const float* p) { return _mm256_loadu_ps(p); }
inline __m256 load(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// The first count (< 8) elements; zero in the other lanes. Touches nothing beyond them.
inline __m256 load_first(const float* p, int64_t count) {
    return _mm256_maskload_ps(p, first_lanes(count));
}
inline __m256 load_first(const uint16_t* p, int64_t count) {
    uint16_t padded[kLanes] = {};
    std::memcpy(padded, p, count * sizeof(uint16_t));
    return load(padded);
}

inline void store_first(float* p, int64_t count, __m256 value) {
    _mm256_maskstore_ps(p, first_lanes(count), value);
}

// Calls full(i) for each whole vector of n elements, then tail(i, count) for the rest, if any.
template <typename Full, typename Tail>
inline void for_vectors(int64_t n, Full full, Tail tail) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) full(i);
    if (i < n) tail(i, n - i);
}

inline float sum_lanes(__m256 v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// NaN lanes may be lost.
inline float max_lanes(__m256 v) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace flashmoe::avx2
