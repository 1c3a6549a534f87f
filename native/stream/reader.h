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
constexpr int kCancelled = -3;    // detail: bytes read in vain
// Of landings only, where kShortRead and an errno, too, have as detail the index of the piece.
constexpr int kFileChanged = -4;  // detail: index of the piece
constexpr int kNotFinite = -5;    // detail: index of the move, or of the blob after all moves

class Landing;
class ReadOnlyFile;
class Staging;

struct ReadRequest {
    int64_t tag;
    int handle;
    uint64_t offset;
    size_t bytes;
    uintptr_t address;
    std::optional<uint32_t> crc;
};

// An expert that is read from a checkpoint; address: of its record.
struct LandingRequest {
    int64_t tag;
    std::shared_ptr<const Landing> landing;
    uintptr_t address;
};

struct Landed {
    int64_t tag;
    int status;
    int64_t detail;
};

struct ReaderStats {
    uint64_t bytes = 0;  // of reads that were good
    uint64_t reads = 0;
    uint64_t raw_bytes = 0;  // from the disk, those of cancelled reads too
    double busy_s = 0;       // summed over threads
    double cpu_s = 0;        // processor time of the reads, summed over threads
    double checksum_s = 0;   // processor time of checksums
    double landing_s = 0;    // processor time of turning bytes into records
    double reading_s = 0;    // in which at least one piece was being read
};

// See docs/experiments/prefetch.md for how these were found.
constexpr size_t kDemandPiece = 8 << 20;
constexpr size_t kGuessPiece = 512 << 10;
constexpr int kGuessDepth = 8;
constexpr int kGuessBelow = 2;

struct ReaderOptions {
    int threads;
    bool verify;  // check the checksum of every read that is submitted with one
    // Threads share a read in pieces of so many bytes, multiples of the alignment.
    size_t demand_piece;
    size_t guess_piece;
    int guess_depth;  // pieces of guesses read at once, at most
    int guess_below;  // guesses are read while fewer pieces of demands are
};

// Two queues: demands, first come first served, and guesses, which use a disk that is idle. Every
// read is cut into pieces, so that a demand waits for no more than the pieces of guesses under way.
class Reader {
  public:
    explicit Reader(const ReaderOptions& options);
    ~Reader();  // drops what has not started, waits for what has
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    // Throws std::system_error. Reads go past the page cache unless want_direct is false or the
    // file system refuses: see direct().
    int open(const std::string& path, bool want_direct = true);
    bool direct(int handle) const;
    void close_file(int handle);  // reads under way keep the file until they end

    // Queues reads behind those of their kind. The memory must stay until a read has landed.
    // Throws std::invalid_argument, with nothing queued, for a bad handle or an alignment other
    // than kReadAlignment.
    void submit(const std::vector<ReadRequest>& requests, bool guess);

    // The same for experts of a checkpoint: pieces go through memory of the threads. A file that
    // changed since it was opened is an error.
    void submit(const std::vector<LandingRequest>& requests, bool guess);

    // The guesses with these tags become demands, ahead of the others; all other guesses are
    // dropped (kCancelled, once the pieces under way have ended). Does not block.
    void keep_guesses(const std::vector<int64_t>& tags);

    // Everything that has landed since the last call; blocks until a demand has. Returns after
    // timeout_s seconds, and at once when no demand is queued or being read.
    std::vector<Landed> wait(double timeout_s);

    // Drops what is not yet being read (kCancelled), returns when all the rest has landed.
    void cancel();

    ReaderStats stats() const;

  private:
    struct Read;
    struct Piece;
    using ReadPtr = std::shared_ptr<Read>;
    using Queue = std::deque<ReadPtr>;

    void work();
    void stop();
    Queue* ready();  // the queue to take from now, or null
    Piece take(Queue& queue);
    void enqueue(const std::vector<ReadPtr>& reads, bool guess);
    void perform(const Piece& piece, Staging& staging, std::unique_lock<std::mutex>& lock);
    void finish(const ReadPtr& read, std::unique_lock<std::mutex>& lock);
    void land(const ReadPtr& read);
    void drop(Queue& queue);
    void count(const Read& read, int pieces);
    ReadPtr checked(const ReadRequest& request, bool guess) const;
    ReadPtr checked(const LandingRequest& request, bool guess) const;
    std::shared_ptr<const ReadOnlyFile> file(int handle) const;

    const ReaderOptions options_;
    mutable std::mutex mutex_;  // guards all that follows
    std::condition_variable queued_;
    std::condition_variable finished_;
    std::vector<std::shared_ptr<const ReadOnlyFile>> files_;
    Queue demands_, guesses_;    // reads with bytes that no thread has taken
    std::vector<ReadPtr> open_;  // every read that has not landed
    std::vector<Landed> landed_;
    int demands_left_ = 0;                         // not landed
    int demands_landed_ = 0;                       // in landed_
    int active_demands_ = 0, active_guesses_ = 0;  // pieces
    double reading_since_ = 0;                     // while pieces are being read
    bool stop_ = false;
    ReaderStats stats_;
    std::vector<std::thread> threads_;
};

}  // namespace flashmoe
