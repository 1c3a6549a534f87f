#include "stream/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older headers lack the name
#endif

namespace flashmoe {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPiece = size_t{64} << 20;  // what a thread makes resident at a time

// Pages of the system: 16 or 64 KiB on some ARM machines.
size_t whole_pages(size_t bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
}

uint8_t* map_aligned(size_t bytes) {
    if (bytes > std::numeric_limits<size_t>::max() - 2 * kHugePage) throw std::bad_alloc();
    const size_t kept = whole_pages(bytes), mapped = kept + kHugePage;
    void* const start =
        mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(start);
    const size_t head = (kHugePage - address % kHugePage) % kHugePage;
    auto* const data = static_cast<uint8_t*>(start) + head;
    if (head > 0) munmap(start, head);
    munmap(data + kept, kHugePage - head);
    return data;
}

// Writes what is there: a reader may be filling the page at this moment, so the add must be atomic.
void touch(uint8_t* data, size_t bytes) {
    for (size_t i = 0; i < bytes; i += kPage) std::atomic_ref<uint8_t>(data[i]).fetch_add(0);
}

// False when the memory cannot be had.
bool make_resident(uint8_t* data, size_t bytes) {
    while (madvise(data, bytes, MADV_POPULATE_WRITE) != 0) {
        if (errno == EINTR || errno == EAGAIN) continue;
        if (errno != EINVAL) return false;
        touch(data, bytes);  // a kernel older than MADV_POPULATE_WRITE
        return true;
    }
    return true;
}

}  // namespace

Arena::Arena(size_t bytes, bool huge_pages, int threads) {
    if (bytes == 0) throw std::invalid_argument("[Arena] nbytes: expected at least 1");
    if (threads < 0) throw std::invalid_argument("[Arena] threads: expected at least 0");
    if (bytes > std::numeric_limits<size_t>::max() - kPage) throw std::bad_alloc();
    bytes_ = (bytes + kPage - 1) / kPage * kPage;
    data_ = map_aligned(bytes_);
    huge_ = huge_pages && madvise(data_, bytes_, MADV_HUGEPAGE) == 0;
    // Where the system default is "always", plain pages must be asked for.
    if (!huge_pages) madvise(data_, bytes_, MADV_NOHUGEPAGE);
    if (threads == 0) return;
    try {
        populate(0, bytes_, threads);
    } catch (...) {
        munmap(data_, bytes_);
        throw;
    }
}

Arena::~Arena() { munmap(data_, bytes_); }

void Arena::populate(size_t offset, size_t bytes, int threads) {
    bytes += offset % kPage;
    offset -= offset % kPage;
    const size_t pieces = (bytes + kPiece - 1) / kPiece;
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
    const auto work = [&] {
        for (size_t i = next++; i < pieces && !failed; i = next++) {
            const size_t start = i * kPiece;
            if (!make_resident(data_ + offset + start, std::min(kPiece, bytes - start)))
                failed = true;
        }
    };
    std::vector<std::jthread> helpers;
    for (int i = 1; i < std::min<int64_t>(threads, pieces); ++i) helpers.emplace_back(work);
    work();
    helpers.clear();
    if (failed) throw std::bad_alloc();
}

void Arena::release(size_t offset, size_t bytes) {
    const size_t begin = (offset + kPage - 1) / kPage * kPage;
    const size_t end = (offset + bytes) / kPage * kPage;
    if (begin < end && madvise(data_ + begin, end - begin, MADV_DONTNEED) != 0)
        throw std::system_error(errno, std::generic_category(), "madvise");
}

void Arena::lock() {
    if (mlock2(data_, bytes_, MLOCK_ONFAULT) != 0)
        throw std::system_error(errno, std::generic_category(), "mlock");
}

size_t Arena::huge_bytes() const {
    std::ifstream smaps("/proc/self/smaps");
    const auto start = reinterpret_cast<uintptr_t>(data_);
    size_t kilobytes = 0;
    bool ours = false;
    for (std::string line; std::getline(smaps, line);) {
        unsigned long from = 0, to = 0, amount = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx ", &from, &to) == 2)
            ours = from < start + bytes_ && start < to;
        else if (ours && std::sscanf(line.c_str(), "AnonHugePages: %lu kB", &amount) == 1)
            kilobytes += amount;
    }
    // The kernel may have merged the mapping with a neighbour of the same kind.
    return std::min(kilobytes * 1024, bytes_);
}

}  // namespace flashmoe
