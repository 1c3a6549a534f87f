// A pool of worker threads of a fixed size; the calling thread is worker 0.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace flashmoe {

class Pool {
  public:
    // fn(begin, end, worker): handle items [begin, end); worker is in [0, threads()).
    using Body = std::function<void(int64_t, int64_t, int)>;

    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }

    // Runs body over [0, items) in pieces of at most `grain` items and returns when all are done.
    // Which worker gets which piece varies: a body must not let its result depend on that.
    // Bodies must not throw and must not call parallel_for on the same pool.
    void parallel_for(int64_t items, int64_t grain, const Body& body);

  private:
    void worker_loop(int worker);
    void stop();
    void drain(int worker);

    int threads_;
    std::mutex callers_;  // two Python threads may share one pool; they take turns
    std::vector<std::thread> workers_;
    std::atomic<uint32_t> generation_{0};
    std::atomic<int> busy_{0};
    std::atomic<int64_t> next_{0};
    std::atomic<bool> stop_{false};
    int64_t items_ = 0;
    int64_t grain_ = 1;
    const Body* body_ = nullptr;
};

}  // namespace flashmoe
