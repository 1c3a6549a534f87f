#include <immintrin.h>

#include "cpu/probe/probe.h"

namespace flashmoe {
namespace {

uint64_t read_sum(const uint64_t* words, int64_t n) {
    __m512i sum[2] = {};
    for (int64_t i = 0; i < n; i += 16)
        for (int j = 0; j < 2; ++j)
            sum[j] = _mm512_add_epi64(sum[j], _mm512_loadu_si512(words + i + 8 * j));
    alignas(64) uint64_t lanes[8];
    _mm512_store_si512(lanes, _mm512_add_epi64(sum[0], sum[1]));
    uint64_t total = 0;
    for (const uint64_t lane : lanes) total += lane;
    return total;
}

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

}  // namespace

void register_probe_avx512(ProbeKernels& table) {
    table.read_sum = read_sum;
    table.int8_work = int8_work;
}

}  // namespace flashmoe
