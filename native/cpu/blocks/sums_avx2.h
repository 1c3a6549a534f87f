// Sums across the lanes of eight vectors.
#pragma once

#include <immintrin.h>

namespace flashmoe {
namespace {

// Lane r of the result: the sum of the lanes of v[r].
inline __m256 lane_sums(const __m256 (&v)[8]) {
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

}  // namespace
}  // namespace flashmoe
