#include <immintrin.h>

#include "cpu/probe/probe.h"

namespace flashmoe {
namespace {

// The dot product instruction of VNNI: four products and their sum in each of 16 lanes.
int64_t int8_work(int64_t rounds) {
    constexpr int kChains = 12;
    __m512i x = _mm512_set1_epi8(3), sum[kChains] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        for (auto& chain : sum) {
            __asm__ volatile("" : "+v"(x));  // x may have changed: nothing can be hoisted
            chain = _mm512_dpbusd_epi32(chain, x, x);
        }
    }
    for (auto& chain : sum) __asm__ volatile("" : "+v"(chain));
    return rounds * kChains * 128;
}

int64_t float_work(int64_t rounds) {
    constexpr int kChains = 12;
    __m512 x = _mm512_set1_ps(1.0f), sum[kChains] = {};
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
        for (auto& chain : sum) {
            __asm__ volatile("" : "+v"(x));
            chain = _mm512_fmadd_ps(x, x, chain);
        }
    }
#pragma GCC unroll 12
    for (auto& chain : sum) __asm__ volatile("" : "+v"(chain));
    return rounds * kChains * 32;
}

}  // namespace

// Reading stays that of AVX2: the rate is the machine's, and limits of all sets the same.
void register_probe_avx512(ProbeKernels& table) {
    table.int8_work = int8_work;
    table.float_work = float_work;
}

}  // namespace flashmoe
