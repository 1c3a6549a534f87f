// Memory for expert slots: one anonymous mapping, touched once, never grown or moved.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmoe {

class Arena {
  public:
    // Maps and pre-faults `bytes` (rounded up to pages of 4096), starting on a 2 MiB boundary.
    // Throws std::invalid_argument for 0 bytes, std::bad_alloc when the system has not so much.
    Arena(size_t bytes, bool huge_pages, int threads);
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    uint8_t* data() const { return data_; }
    size_t bytes() const { return bytes_; }

    // Whether the kernel took the advice to use huge pages; it may still have had none to give.
    bool huge() const { return huge_; }

    // Bytes of the mapping that are in huge pages now, as /proc/self/smaps says (0 if unreadable).
    size_t huge_bytes() const;

  private:
    void prefault(int threads);

    uint8_t* data_ = nullptr;
    size_t bytes_ = 0;
    bool huge_ = false;
};

}  // namespace flashmoe
