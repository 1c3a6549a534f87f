#include <arm_neon.h>

#include "cpu/probe/probe.h"

namespace flashmoe {
namespace {

uint64_t read_sum(const uint64_t* words, int64_t n) {
    uint64x2_t sum[8] = {};
    for (int64_t i = 0; i < n; i += 16)
        for (int j = 0; j < 8; ++j) sum[j] = vaddq_u64(sum[j], vld1q_u64(words + i + 2 * j));
    for (int j = 1; j < 8; ++j) sum[0] = vaddq_u64(sum[0], sum[j]);
    return vaddvq_u64(sum[0]);
}

int64_t int8_work(int64_t rounds) {
    constexpr int kChains = 16;
    int8x16_t x = vdupq_n_s8(3);
    int32x4_t sum[kChains] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        for (auto& chain : sum) {
            __asm__ volatile("" : "+w"(x));  // x may have changed: nothing can be hoisted
            chain = vdotq_s32(chain, x, x);
        }
    }
    for (auto& chain : sum) __asm__ volatile("" : "+w"(chain));
    return rounds * kChains * 32;
}

int64_t float_work(int64_t rounds) {
    constexpr int kChains = 16;
    float32x4_t x = vdupq_n_f32(1.0f), sum[kChains] = {};
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
        for (auto& chain : sum) {
            __asm__ volatile("" : "+w"(x));
            chain = vfmaq_f32(chain, x, x);
        }
    }
#pragma GCC unroll 16
    for (auto& chain : sum) __asm__ volatile("" : "+w"(chain));
    return rounds * kChains * 8;
}

}  // namespace

void register_probe_neon(ProbeKernels& table) {
    table.read_sum = read_sum;
    table.int8_work = int8_work;
    table.float_work = float_work;
}

}  // namespace flashmoe
