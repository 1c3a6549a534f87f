// What the machine can do at best, to judge the other kernels by: reading memory, int8 arithmetic.
#pragma once

#include <cstdint>

#include "flashmoe/pool.h"

namespace flashmoe {

struct ProbeKernels {
    // Sum of n 8-byte words; n is a multiple of 16.
    uint64_t (*read_sum)(const uint64_t* words, int64_t n);
    // Runs `rounds` rounds of int8 multiply-adds in registers; returns the operations done (a
    // multiply and an add count as two).
    int64_t (*int8_work)(int64_t rounds);
    // The same with float32 multiply-adds.
    int64_t (*float_work)(int64_t rounds);
};

void register_probe_scalar(ProbeKernels& table);
void register_probe_avx2(ProbeKernels& table);
void register_probe_avx512(ProbeKernels& table);
void register_probe_amx(ProbeKernels& table);
void register_probe_neon(ProbeKernels& table);

// Sum of nbytes (whole 128-byte lines of it) at data, read once by all threads of the pool.
uint64_t read_sum(Pool& pool, const uint8_t* data, int64_t nbytes);

// int8_work on every thread of the pool; returns the operations of all.
int64_t int8_work(Pool& pool, int64_t rounds);

// float_work on every thread of the pool; returns the operations of all.
int64_t float_work(Pool& pool, int64_t rounds);

}  // namespace flashmoe
