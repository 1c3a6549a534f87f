// A file open for reading, past the page cache where that is possible.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace flashmoe {

// What pread_fully got: bytes, and an errno (0: none). Fewer bytes than asked for without an errno
// mean the end of the file.
struct Got {
    size_t bytes;
    int error;
};

class ReadOnlyFile {
  public:
    // Throws std::system_error. want_direct: ask for O_DIRECT; see direct().
    static std::shared_ptr<const ReadOnlyFile> open(const std::string& path, bool want_direct);
    ReadOnlyFile(int fd, bool direct);
    ~ReadOnlyFile();
    ReadOnlyFile(const ReadOnlyFile&) = delete;
    ReadOnlyFile& operator=(const ReadOnlyFile&) = delete;

    bool direct() const { return direct_; }
    Got pread_fully(uint8_t* address, size_t bytes, uint64_t offset) const;

    // Whether nobody has written into it or cut it since it was opened, as size and time say.
    bool unchanged() const;

    // Drops the range from the page cache; does nothing for direct reads.
    void forget(uint64_t offset, size_t bytes) const;

  private:
    const int fd_;
    const bool direct_;
    struct stat status_{};
};

}  // namespace flashmoe
