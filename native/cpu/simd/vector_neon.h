// Small helpers of the NEON kernels: tails, conversions and sums in a fixed order.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace flashmoe::neon {

constexpr int64_t kLanes = 4;

inline float32x4_t load(const float* p) { return vld1q_f32(p); }
inline float32x4_t load(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

// Whole vectors.
struct Whole {
    template <typename T>
    float32x4_t load(const T* p) const {
        return neon::load(p);
    }
    void store(float* p, float32x4_t value) const { vst1q_f32(p, value); }
};

// The first count (1 to 3) elements; zero in the other lanes. Touches nothing beyond them.
struct First {
    int64_t count;

    template <typename T>
    float32x4_t load(const T* p) const {
        T padded[kLanes] = {};
        std::memcpy(padded, p, count * sizeof(T));
        return neon::load(padded);
    }
    void store(float* p, float32x4_t value) const {
        float all[kLanes];
        vst1q_f32(all, value);
        std::memcpy(p, all, count * sizeof(float));
    }
};

// Calls body(i, Whole) for each whole vector of n elements, then body(i, First) for the rest, if
// any: a kernel is written once for both.
template <typename Body>
inline void for_vectors(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) body(i, Whole{});
    if (i < n) body(i, First{n - i});
}

}  // namespace flashmoe::neon
