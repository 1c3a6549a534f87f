#include "cpu/probe/probe.h"

#include <algorithm>
#include <atomic>
#include <functional>

#include "flashmoe/kernels.h"

namespace flashmoe {
namespace {

constexpr int64_t kLine = 128;
constexpr int64_t kPiece = 1 << 20;

int64_t on_all(Pool& pool, int64_t (*work)(int64_t), int64_t rounds) {
    std::atomic<int64_t> total{0};
    const auto body = [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) total += work(rounds);
    };
    pool.parallel_for(pool.threads(), 1, std::cref(body));
    return total;
}

}  // namespace

uint64_t read_sum(Pool& pool, const uint8_t* data, int64_t nbytes) {
    std::atomic<uint64_t> total{0};
    const int64_t usable = nbytes / kLine * kLine;
    const auto body = [&](int64_t begin, int64_t end, int) {
        const int64_t first = begin * kPiece, last = std::min(end * kPiece, usable);
        const auto* words = reinterpret_cast<const uint64_t*>(data + first);
        total += kernels().probe.read_sum(words, (last - first) / 8);
    };
    pool.parallel_for((usable + kPiece - 1) / kPiece, 1, std::cref(body));
    return total;
}

int64_t int8_work(Pool& pool, int64_t rounds) {
    return on_all(pool, kernels().probe.int8_work, rounds);
}

int64_t float_work(Pool& pool, int64_t rounds) {
    return on_all(pool, kernels().probe.float_work, rounds);
}

}  // namespace flashmoe
