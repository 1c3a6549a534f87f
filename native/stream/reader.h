// Reads blocks of files straight into given memory, several at a time, past the page cache.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace flashmoe {

// Offsets, sizes and addresses are multiples of this: what O_DIRECT asks of common disks.
constexpr size_t kReadAlignment = 4096;

constexpr int kOk = 0;            // a positive status is an errno
constexpr int kShortRead = -1;    // detail: bytes got before the end of the file
constexpr int kBadChecksum = -2;  // detail: the CRC-32C found
constexpr int kCancelled = -3;

struct Landed {
    int64_t tag;
    int status;
    int64_t detail;
};

struct ReaderStats {
    uint64_t bytes = 0;  // read and good
    uint64_t reads = 0;
    double busy_s = 0;  // summed over threads
};

class Reader {
  public:
    // verify: check the checksum of every read that is submitted with one.
    Reader(int threads, bool verify);
    ~Reader();  // drops what has not started, waits for what has
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    // Throws std::system_error. Reads go past the page cache unless want_direct is false or the
    // file system refuses: see direct().
    int open(const std::string& path, bool want_direct = true);
    bool direct(int handle) const;
    void close_file(int handle);  // reads under way keep the file until they end

    // Queues a read, first come first served. The memory must stay until the read has landed.
    // Throws std::invalid_argument for a bad handle or an alignment other than kReadAlignment.
    void submit(int64_t tag, int handle, uint64_t offset, size_t bytes, uintptr_t address,
                std::optional<uint32_t> crc);

    // Everything that has landed since the last call; blocks until there is something. Empty
    // after timeout_s seconds, and at once when nothing is queued or being read.
    std::vector<Landed> wait(double timeout_s);

    // Drops what has not started (status kCancelled) and returns when what had started has landed.
    void cancel();

    ReaderStats stats() const;

  private:
    struct File;
    struct Request {
        int64_t tag;
        std::shared_ptr<const File> file;
        uint64_t offset;
        size_t bytes;
        uint8_t* address;
        std::optional<uint32_t> crc;
    };

    void work();
    void stop();
    Landed perform(const Request& request) const;
    std::shared_ptr<const File> file(int handle) const;

    const bool verify_;
    mutable std::mutex mutex_;  // guards all that follows
    std::condition_variable queued_;
    std::condition_variable finished_;
    std::vector<std::shared_ptr<const File>> files_;
    std::deque<Request> queue_;
    std::vector<Landed> landed_;
    int active_ = 0;
    bool stop_ = false;
    ReaderStats stats_;
    std::vector<std::thread> threads_;
};

}  // namespace flashmoe
