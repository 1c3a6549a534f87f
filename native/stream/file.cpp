#include "stream/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "stream/reader.h"

namespace flashmoe {
namespace {

using FilePtr = std::shared_ptr<const ReadOnlyFile>;

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

FilePtr adopt(int fd, bool direct, const std::string& path) {
    if (fd < 0) throw std::system_error(errno, std::generic_category(), path);
    return std::make_shared<const ReadOnlyFile>(fd, direct);
}

// Null where O_DIRECT is refused.
FilePtr open_direct(const std::string& path) {
    const int fd = open_retrying(path.c_str(), O_DIRECT);
    if (fd < 0 && errno == EINVAL) return nullptr;
    auto opened = adopt(fd, true, path);
    return reads_direct(fd) ? opened : nullptr;
}

}  // namespace

FilePtr ReadOnlyFile::open(const std::string& path, bool want_direct) {
    auto opened = want_direct ? open_direct(path) : nullptr;
    return opened ? opened : adopt(open_retrying(path.c_str(), 0), false, path);
}

ReadOnlyFile::ReadOnlyFile(int fd, bool direct) : fd_(fd), direct_(direct) { fstat(fd_, &status_); }

bool ReadOnlyFile::unchanged() const {
    struct stat now{};
    return fstat(fd_, &now) == 0 && now.st_size == status_.st_size &&
           now.st_mtim.tv_sec == status_.st_mtim.tv_sec &&
           now.st_mtim.tv_nsec == status_.st_mtim.tv_nsec;
}

ReadOnlyFile::~ReadOnlyFile() { ::close(fd_); }

Got ReadOnlyFile::pread_fully(uint8_t* address, size_t bytes, uint64_t offset) const {
    for (size_t done = 0; done < bytes;) {
        const ssize_t got = pread_retrying(fd_, address + done, bytes - done, offset + done);
        if (got < 0) return {done, errno};
        done += static_cast<size_t>(got);
        // A direct read stops inside a block only at the end of the file.
        if (got == 0 || (direct_ && done % kReadAlignment != 0)) return {done, 0};
    }
    return {bytes, 0};
}

void ReadOnlyFile::forget(uint64_t offset, size_t bytes) const {
    if (!direct_)
        posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes),
                      POSIX_FADV_DONTNEED);
}

}  // namespace flashmoe
