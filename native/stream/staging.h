// Memory of one reader thread for what it reads before it is turned into a record.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "stream/reader.h"

namespace flashmoe {

class Staging {
  public:
    // Aligned for O_DIRECT, good until the next call; null where the system has no more. bytes: a
    // multiple of the alignment.
    uint8_t* at_least(size_t bytes) {
        if (bytes > bytes_) {
            data_.reset(static_cast<uint8_t*>(std::aligned_alloc(kReadAlignment, bytes)));
            bytes_ = data_ ? bytes : 0;
        }
        return data_.get();
    }

  private:
    struct Free {
        void operator()(uint8_t* data) const { std::free(data); }
    };
    std::unique_ptr<uint8_t, Free> data_;
    size_t bytes_ = 0;
};

}  // namespace flashmoe
