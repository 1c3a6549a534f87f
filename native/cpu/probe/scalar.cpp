#include "cpu/probe/probe.h"

namespace flashmoe {
namespace {

uint64_t read_sum(const uint64_t* words, int64_t n) {
    uint64_t sum[4] = {};
    for (int64_t i = 0; i < n; i += 4)
        for (int64_t j = 0; j < 4; ++j) sum[j] += words[i + j];
    return sum[0] + sum[1] + sum[2] + sum[3];
}

int64_t int8_work(int64_t rounds) {
    volatile int8_t factor = 3;
    volatile int32_t sink = 0;
    const int8_t x = factor;
    int32_t sum = 0;
    for (int64_t i = 0; i < rounds; ++i) sum += x * static_cast<int8_t>(i);
    sink = sum;
    return 2 * rounds + 0 * sink;
}

int64_t float_work(int64_t rounds) {
    volatile float factor = 1.0f, sink = 0.0f;
    const float x = factor;
    float sum = 0.0f;
    for (int64_t i = 0; i < rounds; ++i) sum += x * x;
    sink = sum;
    return 2 * rounds + 0 * static_cast<int64_t>(sink);
}

}  // namespace

void register_probe_scalar(ProbeKernels& table) {
    table.read_sum = read_sum;
    table.int8_work = int8_work;
    table.float_work = float_work;
}

}  // namespace flashmoe
