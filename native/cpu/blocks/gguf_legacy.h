// GGUF's formats with one scale per 32 columns.
#pragma once

#include "cpu/blocks/decoder.h"

namespace flashmoe {
namespace {

template <>
struct Decoder<Format::q8_0> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        const float d = load_f16(bytes);
        for (int i = 0; i < 32; ++i)
            out[i] = static_cast<float>(static_cast<int8_t>(bytes[2 + i])) * d;
    }
};

}  // namespace
}  // namespace flashmoe
