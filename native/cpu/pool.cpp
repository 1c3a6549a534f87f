#include "flashmoe/pool.h"

#include <algorithm>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace flashmoe {
namespace {

// About 20-50 us: longer than the gap between two kernels of a layer, shorter than a disk read.
constexpr int kSpins = 4000;

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");  // "yield" returns at once on most cores
#else
    std::this_thread::yield();
#endif
}

}  // namespace

Pool::Pool(int threads) : threads_(threads) {
    if (threads < 1) throw std::invalid_argument("[Pool] threads: expected at least 1");
    try {
        for (int worker = 1; worker < threads; ++worker)
            workers_.emplace_back([this, worker] { worker_loop(worker); });
    } catch (...) {  // the system gives no more threads: end those that run
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    stop_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Pool::drain(int worker) {
    for (;;) {
        const int64_t begin = next_.fetch_add(grain_);
        if (begin >= items_) return;
        (*body_)(begin, std::min(begin + grain_, items_), worker);
    }
}

void Pool::worker_loop(int worker) {
    uint32_t seen = 0;
    for (;;) {
        for (int spin = 0; spin < kSpins && generation_.load() == seen; ++spin) relax();
        generation_.wait(seen);
        seen = generation_.load();
        if (stop_.load()) return;
        drain(worker);
        if (busy_.fetch_sub(1) == 1) busy_.notify_one();
    }
}

void Pool::parallel_for(int64_t items, int64_t grain, const Body& body) {
    if (items <= 0) return;
    const std::lock_guard<std::mutex> turn(callers_);
    grain = std::max<int64_t>(grain, 1);
    if (threads_ == 1 || items <= grain) {
        body(0, items, 0);
        return;
    }
    items_ = items;
    grain_ = grain;
    body_ = &body;
    next_.store(0);
    busy_.store(threads_ - 1);
    generation_.fetch_add(1);
    generation_.notify_all();
    drain(0);
    for (int left = busy_.load(); left != 0; left = busy_.load()) {
        for (int spin = 0; spin < kSpins && busy_.load() == left; ++spin) relax();
        busy_.wait(left);
    }
}

}  // namespace flashmoe
