// Scratch memory that only grows, so that hot calls do not allocate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace flashmoe {

class Workspace {
  public:
    static constexpr int64_t kAlignment = 64;  // bytes: a cache line

    // At least n floats, uninitialised; valid until the next call.
    float* floats(int64_t n) {
        if (n > size_) {
            data_.reset();
            size_ = 0;
            data_.reset(static_cast<float*>(
                ::operator new(n * sizeof(float), std::align_val_t{kAlignment})));
            size_ = n;
        }
        return data_.get();
    }

    int64_t nbytes() const { return size_ * static_cast<int64_t>(sizeof(float)); }

    // n rounded up to whole cache lines of floats: parts of one workspace stay aligned.
    static int64_t aligned(int64_t n) { return (n + 15) / 16 * 16; }

  private:
    struct Free {
        void operator()(float* p) const { ::operator delete(p, std::align_val_t{kAlignment}); }
    };
    std::unique_ptr<float, Free> data_;
    int64_t size_ = 0;
};

}  // namespace flashmoe
