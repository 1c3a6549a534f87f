#include <immintrin.h>

#include "cpu/probe/probe.h"

namespace flashmoe {
namespace {

uint64_t read_sum(const uint64_t* words, int64_t n) {
    __m256i sum[4] = {};
    for (int64_t i = 0; i < n; i += 16)
        for (int j = 0; j < 4; ++j) {
            const auto* at = reinterpret_cast<const __m256i*>(words + i + 4 * j);
            sum[j] = _mm256_add_epi64(sum[j], _mm256_loadu_si256(at));
        }
    const __m256i all =
        _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3]));
    alignas(32) uint64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), all);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

// The multiply, widen, add sequence that a dot product of int8 values needs without VNNI.
int64_t int8_work(int64_t rounds) {
    constexpr int kChains = 8;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i x = _mm256_set1_epi8(3), sum[kChains] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        for (auto& chain : sum) {
            __asm__ volatile("" : "+x"(x));  // x may have changed: nothing can be hoisted
            chain = _mm256_add_epi32(chain, _mm256_madd_epi16(_mm256_maddubs_epi16(x, x), ones));
        }
    }
    for (auto& chain : sum) __asm__ volatile("" : "+x"(chain));
    return rounds * kChains * 64;
}

int64_t float_work(int64_t rounds) {
    constexpr int kChains = 10;
    __m256 x = _mm256_set1_ps(1.0f), sum[kChains] = {};
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 10
        for (auto& chain : sum) {
            __asm__ volatile("" : "+x"(x));
            chain = _mm256_fmadd_ps(x, x, chain);
        }
    }
#pragma GCC unroll 10
    for (auto& chain : sum) __asm__ volatile("" : "+x"(chain));
    return rounds * kChains * 16;
}

}  // namespace

void register_probe_avx2(ProbeKernels& table) {
    table.read_sum = read_sum;
    table.int8_work = int8_work;
    table.float_work = float_work;
}

}  // namespace flashmoe
