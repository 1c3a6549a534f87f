// exp and its relatives on eight floats.
#pragma once

#include <immintrin.h>

namespace flashmoe::avx2 {

// 2^n for integers n in [-126, 127].
inline __m256 power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

// e^x within about 1 ulp. Exact 0 and inf at the ends of the range, subnormals included; NaN stays.
inline __m256 exp(__m256 x) {
    // min and max return their second operand if one is NaN.
    x = _mm256_max_ps(_mm256_set1_ps(-105.0f), _mm256_min_ps(_mm256_set1_ps(89.0f), x));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // ln 2 in two parts: the first has few enough bits that n times it is exact.
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62ep-1f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.0bfbe8p-15f), r);
    // Minimax of (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2: relative error of e^r 3e-9.
    __m256 p = _mm256_set1_ps(0.00138144672f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.00836878084f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.0416683927f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.166665196f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.49999994f));
    p = _mm256_fmadd_ps(_mm256_mul_ps(p, r), r, r);
    p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
    // Two factors, since 2^n itself leaves the normal range at both ends.
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    p = _mm256_mul_ps(p, power_of_two(half));
    return _mm256_mul_ps(p, power_of_two(_mm256_sub_epi32(whole, half)));
}

inline __m256 sigmoid(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 negated = _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
    return _mm256_div_ps(one, _mm256_add_ps(one, exp(negated)));
}

inline __m256 silu(__m256 x) { return _mm256_mul_ps(x, sigmoid(x)); }

}  // namespace flashmoe::avx2
