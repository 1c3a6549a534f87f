// Memory for weights: one anonymous mapping that never grows or moves. Parts of it can be given
// back to the system and are taken again by writing into them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmoe {

class Arena {
  public:
    // Maps `bytes` (rounded up to pages of 4096), starting on a 2 MiB boundary, and pre-faults them
    // on `threads`; with 0 threads nothing is resident before it is populated or written. Throws
    // std::invalid_argument for 0 bytes, std::bad_alloc when the system has not so much.
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

    // Makes [offset, offset + bytes) resident; bytes already there are kept. Throws std::bad_alloc
    // when the system has not so much memory.
    void populate(size_t offset, size_t bytes, int threads);

    // Gives the pages within [offset, offset + bytes) back: they read as zeros afterwards.
    // Throws std::system_error.
    void release(size_t offset, size_t bytes);

    // Keeps every page of the mapping in memory from when it becomes resident (mlock2). Returns at
    // once; throws std::system_error where the system does not allow so much.
    void lock();

  private:
    uint8_t* data_ = nullptr;
    size_t bytes_ = 0;
    bool huge_ = false;
};

}  // namespace flashmoe
