#include "stream/reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "stream/crc32c.h"

namespace flashmoe {
namespace {

using Clock = std::chrono::steady_clock;

int open_retrying(const char* path, int flags) {
    int fd;
    do fd = ::open(path, O_RDONLY | O_CLOEXEC | flags);
    while (fd < 0 && errno == EINTR);
    return fd;
}

ssize_t pread_retrying(int fd, void* data, size_t bytes, uint64_t offset) {
    ssize_t got;
    do got = pread(fd, data, bytes, static_cast<off_t>(offset));
    while (got < 0 && errno == EINTR);
    return got;
}

// Some file systems accept the flag and refuse the first read: ask for one block to know.
bool reads_direct(int fd) {
    alignas(kReadAlignment) uint8_t block[kReadAlignment];
    return pread_retrying(fd, block, sizeof block, 0) >= 0 || errno != EINVAL;
}

}  // namespace

struct Reader::File {
    int fd;
    bool direct;

    File(int descriptor, bool is_direct) : fd(descriptor), direct(is_direct) {}
    ~File() { ::close(fd); }
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    // Null where O_DIRECT is refused.
    static std::shared_ptr<const File> open_direct(const std::string& path) {
        const int fd = open_retrying(path.c_str(), O_DIRECT);
        if (fd < 0 && errno == EINVAL) return nullptr;
        auto opened = adopt(fd, true, path);
        return reads_direct(fd) ? opened : nullptr;
    }

    static std::shared_ptr<const File> open_buffered(const std::string& path) {
        return adopt(open_retrying(path.c_str(), 0), false, path);
    }

    static std::shared_ptr<const File> adopt(int fd, bool direct, const std::string& path) {
        if (fd < 0) throw std::system_error(errno, std::generic_category(), path);
        return std::make_shared<const File>(fd, direct);
    }
};

Reader::Reader(int threads, bool verify) : verify_(verify) {
    if (threads < 1) throw std::invalid_argument("[Reader] threads: expected at least 1");
    try {
        for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {  // the system gives no more threads: end those that run
        stop();
        throw;
    }
}

Reader::~Reader() { stop(); }

void Reader::stop() {
    {
        const std::lock_guard lock(mutex_);
        queue_.clear();
        stop_ = true;
    }
    queued_.notify_all();
    for (auto& thread : threads_) thread.join();
}

int Reader::open(const std::string& path, bool want_direct) {
    auto opened = want_direct ? File::open_direct(path) : nullptr;
    if (!opened) opened = File::open_buffered(path);
    const std::lock_guard lock(mutex_);
    files_.push_back(std::move(opened));
    return static_cast<int>(files_.size()) - 1;
}

std::shared_ptr<const Reader::File> Reader::file(int handle) const {
    if (handle < 0 || handle >= static_cast<int>(files_.size()) || !files_[handle])
        throw std::invalid_argument("[Reader] handle: expected an open file, got " +
                                    std::to_string(handle));
    return files_[handle];
}

bool Reader::direct(int handle) const {
    const std::lock_guard lock(mutex_);
    return file(handle)->direct;
}

void Reader::close_file(int handle) {
    const std::lock_guard lock(mutex_);
    file(handle);
    files_[handle].reset();
}

void Reader::submit(int64_t tag, int handle, uint64_t offset, size_t bytes, uintptr_t address,
                    std::optional<uint32_t> crc) {
    if ((offset | bytes | address) % kReadAlignment != 0 || bytes == 0 || address == 0)
        throw std::invalid_argument(
            "[Reader.submit] offset, nbytes, address: expected multiples of 4096, got " +
            std::to_string(offset) + ", " + std::to_string(bytes) + ", " + std::to_string(address));
    {
        const std::lock_guard lock(mutex_);
        queue_.push_back(
            {tag, file(handle), offset, bytes, reinterpret_cast<uint8_t*>(address), crc});
    }
    queued_.notify_one();
}

std::vector<Landed> Reader::wait(double timeout_s) {
    std::unique_lock lock(mutex_);
    finished_.wait_for(lock, std::chrono::duration<double>(timeout_s),
                       [this] { return !landed_.empty() || (queue_.empty() && active_ == 0); });
    return std::exchange(landed_, {});
}

void Reader::cancel() {
    std::unique_lock lock(mutex_);
    for (const Request& request : queue_) landed_.push_back({request.tag, kCancelled, 0});
    queue_.clear();
    finished_.notify_all();
    finished_.wait(lock, [this] { return active_ == 0; });
}

ReaderStats Reader::stats() const {
    const std::lock_guard lock(mutex_);
    return stats_;
}

void Reader::work() {
    std::unique_lock lock(mutex_);
    for (;;) {
        queued_.wait(lock, [this] { return stop_ || !queue_.empty(); });
        if (queue_.empty()) return;
        Request request = std::move(queue_.front());
        queue_.pop_front();
        ++active_;
        lock.unlock();
        const auto begin = Clock::now();
        const Landed landed = perform(request);
        const std::chrono::duration<double> busy = Clock::now() - begin;
        request.file.reset();  // may close the file: not under the lock
        lock.lock();
        --active_;
        landed_.push_back(landed);
        ++stats_.reads;
        stats_.busy_s += busy.count();
        if (landed.status == kOk) stats_.bytes += request.bytes;
        finished_.notify_all();
    }
}

Landed Reader::perform(const Request& request) const {
    const auto& [tag, file, offset, bytes, address, crc] = request;
    for (size_t done = 0; done < bytes;) {
        const ssize_t got = pread_retrying(file->fd, address + done, bytes - done, offset + done);
        if (got < 0) return {tag, errno, static_cast<int64_t>(done)};
        done += static_cast<size_t>(got);
        // A direct read stops inside a block only at the end of the file.
        const bool at_end = got == 0 || (file->direct && done % kReadAlignment != 0);
        if (at_end && done < bytes) return {tag, kShortRead, static_cast<int64_t>(done)};
    }
    // The slots are the cache: a second copy of the record would be memory over the budget.
    if (!file->direct)
        posix_fadvise(file->fd, static_cast<off_t>(offset), static_cast<off_t>(bytes),
                      POSIX_FADV_DONTNEED);
    if (!verify_ || !crc) return {tag, kOk, 0};
    const uint32_t found = crc32c(address, bytes);
    if (found != *crc) return {tag, kBadChecksum, static_cast<int64_t>(found)};
    return {tag, kOk, 0};
}

}  // namespace flashmoe
