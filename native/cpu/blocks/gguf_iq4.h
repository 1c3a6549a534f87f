// GGUF's IQ4 formats: codes choose one of 16 uneven steps.
#pragma once

#include "cpu/blocks/decoder.h"

namespace flashmoe {
namespace {

constexpr int8_t kSteps[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};

// codes: 16 bytes, whose low nibbles are columns 0 to 15 and whose high ones are the others.
inline void stepped(const uint8_t* __restrict codes, float scale, float* __restrict out) {
    int8_t steps[32];
    look_up(kSteps, codes, steps);
    for (int i = 0; i < 32; ++i) out[i] = scale * static_cast<float>(steps[i]);
}

template <>
struct Decoder<Format::iq4_nl> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        stepped(bytes + 2, load_f16(bytes), out);
    }
};

template <>
struct Decoder<Format::iq4_xs> {
    static void run(const uint8_t* __restrict bytes, float* __restrict out) {
        const float d = load_f16(bytes);
        uint16_t high;
        std::memcpy(&high, bytes + 2, 2);
        for (int part = 0; part < 8; ++part, out += 32) {
            const int low = bytes[4 + part / 2] >> (part % 2 * 4) & 15;
            const int scale = (low | (high >> (2 * part) & 3) << 4) - 32;
            stepped(bytes + 8 + 16 * part, d * static_cast<float>(scale), out);
        }
    }
};

}  // namespace
}  // namespace flashmoe
