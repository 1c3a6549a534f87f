// exp and its relatives on sixteen floats.
#pragma once

#include <immintrin.h>

namespace flashmoe::avx512 {

// e^x within about 1 ulp. Exact 0 and inf at the ends of the range, subnormals included; NaN stays.
inline __m512 exp(__m512 x) {
    // min and max return their second operand if one is NaN.
    x = _mm512_max_ps(_mm512_set1_ps(-105.0f), _mm512_min_ps(_mm512_set1_ps(89.0f), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // ln 2 in two parts: the first has few enough bits that n times it is exact.
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62ep-1f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.0bfbe8p-15f), r);
    // Minimax of (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2: relative error of e^r 3e-9.
    __m512 p = _mm512_set1_ps(0.00138144672f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.00836878084f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0416683927f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.166665196f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.49999994f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r);
    p = _mm512_add_ps(p, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

inline __m512 silu(__m512 x) { return _mm512_mul_ps(x, sigmoid(x)); }

}  // namespace flashmoe::avx512
