#include "stream/reader.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <stdexcept>
#include <utility>

#include "stream/crc32c.h"
#include "stream/file.h"
#include "stream/landing.h"
#include "stream/staging.h"

namespace flashmoe {
namespace {

double wall_seconds() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(now).count();
}

double thread_cpu_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Pieces of even size: a small last one would cost as much as the others.
size_t piece_of(size_t bytes, size_t most) {
    const size_t count = (bytes + most - 1) / most, even = (bytes + count - 1) / count;
    return (even + kReadAlignment - 1) / kReadAlignment * kReadAlignment;
}

void check(const ReadRequest& request) {
    const auto& [tag, handle, offset, bytes, address, crc] = request;
    if ((offset | bytes | address) % kReadAlignment != 0 || bytes == 0 || address == 0)
        throw std::invalid_argument(
            "[Reader.submit] offset, nbytes, address: expected multiples of 4096, got " +
            std::to_string(offset) + ", " + std::to_string(bytes) + ", " + std::to_string(address));
}

void check(const LandingRequest& request) {
    if (!request.landing || request.address == 0 || request.address % kReadAlignment != 0)
        throw std::invalid_argument(
            "[Reader.submit_landings] address: expected a multiple of 4096, got " +
            std::to_string(request.address));
}

void check(const ReaderOptions& options) {
    if (options.threads < 1) throw std::invalid_argument("[Reader] threads: expected at least 1");
    for (const size_t piece : {options.demand_piece, options.guess_piece})
        if (piece == 0 || piece % kReadAlignment != 0)
            throw std::invalid_argument("[Reader] pieces: expected multiples of 4096, got " +
                                        std::to_string(piece));
    if (options.guess_depth < 1 || options.guess_below < 1)
        throw std::invalid_argument("[Reader] guess_depth, guess_below: expected at least 1");
}

}  // namespace

namespace {

// What became of a piece or of all; place: the detail of what failed.
struct Outcome {
    size_t bytes;
    int status;
    size_t place;
    double landing_s;
};

}  // namespace

// Either of one range of a file, or (with a landing) of the pieces of an expert of a checkpoint.
struct Reader::Read {
    int64_t tag;
    std::vector<std::shared_ptr<const ReadOnlyFile>> files;  // one, or one per piece
    uint64_t offset;
    size_t bytes;
    uint8_t* address;
    std::optional<uint32_t> crc;
    bool guess;
    std::shared_ptr<const Landing> landing;
    size_t pieces = 0;  // that threads have taken
    size_t taken = 0;   // bytes that threads have taken, from the beginning
    size_t got = 0;     // bytes read
    int active = 0;     // pieces being read
    bool checking = false;
    int status = kOk;
    int64_t detail = 0;

    bool pending() const { return active > 0 || checking || taken < bytes; }

    bool to_be_checked(bool verify) const { return landing || (verify && crc); }
    Outcome check() const;

    // Of several pieces that fail, the first in the file tells where its good part ends.
    void fail(int how, size_t end) {
        const auto place = static_cast<int64_t>(end);
        if (status == kOk || (status != kCancelled && place < detail)) status = how, detail = place;
    }
};

// Of what is read: its checksum, or what a landing still has to do.
Outcome Reader::Read::check() const {
    if (!landing) {
        const uint32_t found = crc32c(address, bytes);
        return {bytes, found == *crc ? kOk : kBadChecksum, found, 0};
    }
    const int blob = landing->program().settle(address);
    const size_t place = landing->program().moves() + static_cast<size_t>(std::max(blob, 0));
    return {bytes, blob < 0 ? kOk : kNotFinite, place, 0};
}

struct Reader::Piece {
    ReadPtr read;
    size_t begin;  // in the record
    size_t bytes;
    size_t index;
};

namespace {

Outcome read_plain(const ReadOnlyFile& file, uint8_t* address, size_t begin, size_t bytes,
                   uint64_t offset) {
    const Got got = file.pread_fully(address + begin, bytes, offset + begin);
    // The slots are the cache: a second copy of the record would be memory over the budget.
    file.forget(offset + begin, bytes);
    const int status = got.bytes == bytes ? kOk : got.error ? got.error : kShortRead;
    return {got.bytes, status, begin + got.bytes, 0};
}

Outcome read_landing(const ReadOnlyFile& file, const Landing& landing, size_t index,
                     Staging& staging, uint8_t* record) {
    const LandingPiece& piece = landing.pieces()[index];
    uint8_t* const data = staging.at_least(piece.bytes);
    if (!data) return {0, ENOMEM, index, 0};
    const Got got = file.pread_fully(data, piece.bytes, piece.offset);
    file.forget(piece.offset, piece.bytes);
    if (!file.unchanged()) return {got.bytes, kFileChanged, index, 0};
    if (got.bytes < piece.needed) return {got.bytes, got.error ? got.error : kShortRead, index, 0};
    const double cpu = thread_cpu_seconds();
    for (const Slice& slice : piece.slices)
        if (!landing.program().run(slice, data, record))
            return {got.bytes, kNotFinite, slice.move, thread_cpu_seconds() - cpu};
    return {got.bytes, kOk, 0, thread_cpu_seconds() - cpu};
}

}  // namespace

Reader::Reader(const ReaderOptions& options) : options_(options) {
    check(options);
    try {
        for (int i = 0; i < options.threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {  // the system gives no more threads: end those that run
        stop();
        throw;
    }
}

Reader::~Reader() { stop(); }

void Reader::stop() {
    {
        const std::lock_guard lock(mutex_);
        demands_.clear();
        guesses_.clear();
        stop_ = true;
    }
    queued_.notify_all();
    for (auto& thread : threads_) thread.join();
}

int Reader::open(const std::string& path, bool want_direct) {
    auto opened = ReadOnlyFile::open(path, want_direct);
    const std::lock_guard lock(mutex_);
    files_.push_back(std::move(opened));
    return static_cast<int>(files_.size()) - 1;
}

std::shared_ptr<const ReadOnlyFile> Reader::file(int handle) const {
    if (handle < 0 || handle >= static_cast<int>(files_.size()) || !files_[handle])
        throw std::invalid_argument("[Reader] handle: expected an open file, got " +
                                    std::to_string(handle));
    return files_[handle];
}

bool Reader::direct(int handle) const {
    const std::lock_guard lock(mutex_);
    return file(handle)->direct();
}

void Reader::close_file(int handle) {
    const std::lock_guard lock(mutex_);
    file(handle);
    files_[handle].reset();
}

Reader::ReadPtr Reader::checked(const ReadRequest& request, bool guess) const {
    check(request);
    auto* address = reinterpret_cast<uint8_t*>(request.address);
    return std::make_shared<Read>(Read{request.tag,
                                       {file(request.handle)},
                                       request.offset,
                                       request.bytes,
                                       address,
                                       request.crc,
                                       guess,
                                       nullptr});
}

Reader::ReadPtr Reader::checked(const LandingRequest& request, bool guess) const {
    check(request);
    std::vector<std::shared_ptr<const ReadOnlyFile>> files;
    for (const LandingPiece& piece : request.landing->pieces()) files.push_back(file(piece.handle));
    auto* address = reinterpret_cast<uint8_t*>(request.address);
    return std::make_shared<Read>(Read{request.tag, std::move(files), 0, request.landing->bytes(),
                                       address, std::nullopt, guess, request.landing});
}

void Reader::submit(const std::vector<ReadRequest>& requests, bool guess) {
    std::vector<ReadPtr> reads;
    {
        const std::lock_guard lock(mutex_);
        for (const ReadRequest& request : requests) reads.push_back(checked(request, guess));
        enqueue(reads, guess);
    }
    queued_.notify_all();
}

void Reader::submit(const std::vector<LandingRequest>& requests, bool guess) {
    std::vector<ReadPtr> reads;
    {
        const std::lock_guard lock(mutex_);
        for (const LandingRequest& request : requests) reads.push_back(checked(request, guess));
        enqueue(reads, guess);
    }
    queued_.notify_all();
}

void Reader::enqueue(const std::vector<ReadPtr>& reads, bool guess) {
    open_.insert(open_.end(), reads.begin(), reads.end());
    Queue& queue = guess ? guesses_ : demands_;
    queue.insert(queue.end(), reads.begin(), reads.end());
    if (!guess) demands_left_ += static_cast<int>(reads.size());
}

void Reader::keep_guesses(const std::vector<int64_t>& tags) {
    {
        const std::lock_guard lock(mutex_);
        for (const ReadPtr& read : open_) {
            if (!read->guess || std::find(tags.begin(), tags.end(), read->tag) == tags.end())
                continue;
            count(*read, -read->active);
            read->guess = false;
            count(*read, read->active);
            ++demands_left_;
        }
        const auto kept = std::stable_partition(guesses_.begin(), guesses_.end(),
                                                [](const ReadPtr& read) { return read->guess; });
        demands_.insert(demands_.begin(), kept, guesses_.end());
        guesses_.erase(kept, guesses_.end());
        drop(guesses_);
    }
    queued_.notify_all();
}

std::vector<Landed> Reader::wait(double timeout_s) {
    std::unique_lock lock(mutex_);
    finished_.wait_for(lock, std::chrono::duration<double>(timeout_s),
                       [this] { return demands_landed_ > 0 || demands_left_ == 0; });
    demands_landed_ = 0;
    return std::exchange(landed_, {});
}

void Reader::cancel() {
    std::unique_lock lock(mutex_);
    drop(demands_);
    drop(guesses_);
    finished_.wait(lock, [this] { return open_.empty(); });
}

ReaderStats Reader::stats() const {
    const std::lock_guard lock(mutex_);
    ReaderStats now = stats_;
    if (active_demands_ + active_guesses_ > 0) now.reading_s += wall_seconds() - reading_since_;
    return now;
}

void Reader::work() {
    Staging staging;
    std::unique_lock lock(mutex_);
    for (;;) {
        Queue* queue = nullptr;
        queued_.wait(lock, [&] { return stop_ || (queue = ready()); });
        if (!queue) return;
        const Piece piece = take(*queue);
        if (ready()) queued_.notify_one();
        perform(piece, staging, lock);
        if (ready()) queued_.notify_one();  // what has ended may have held guesses back
    }
}

Reader::Queue* Reader::ready() {
    if (!demands_.empty()) return &demands_;
    const bool idle = active_demands_ < options_.guess_below;
    const bool more = idle && active_guesses_ < options_.guess_depth;
    return more && !guesses_.empty() ? &guesses_ : nullptr;
}

Reader::Piece Reader::take(Queue& queue) {
    const ReadPtr read = queue.front();
    const size_t most = read->landing ? read->landing->pieces()[read->pieces].bytes
                                      : piece_of(read->bytes, read->guess ? options_.guess_piece
                                                                          : options_.demand_piece);
    const Piece piece{read, read->taken, std::min(most, read->bytes - read->taken), read->pieces++};
    read->taken += piece.bytes;
    if (read->taken == read->bytes) queue.pop_front();
    count(*read, 1);
    ++read->active;
    return piece;
}

// Counts pieces being read, and the time in which there are some.
void Reader::count(const Read& read, int pieces) {
    const bool before = active_demands_ + active_guesses_ > 0;
    (read.guess ? active_guesses_ : active_demands_) += pieces;
    const bool after = active_demands_ + active_guesses_ > 0;
    if (before == after) return;
    const double now = wall_seconds();
    if (after) reading_since_ = now;
    if (before) stats_.reading_s += now - reading_since_;
}

void Reader::perform(const Piece& piece, Staging& staging, std::unique_lock<std::mutex>& lock) {
    Read& read = *piece.read;
    lock.unlock();
    const double begin = wall_seconds(), cpu = thread_cpu_seconds();
    const Outcome outcome = read.landing ? read_landing(*read.files[piece.index], *read.landing,
                                                        piece.index, staging, read.address)
                                         : read_plain(*read.files[0], read.address, piece.begin,
                                                      piece.bytes, read.offset);
    const double busy = wall_seconds() - begin, used = thread_cpu_seconds() - cpu;
    lock.lock();
    stats_.busy_s += busy;
    stats_.cpu_s += used - outcome.landing_s;
    stats_.landing_s += outcome.landing_s;
    stats_.raw_bytes += outcome.bytes;
    count(read, -1);
    --read.active;
    read.got += outcome.bytes;
    if (outcome.status != kOk) read.fail(outcome.status, outcome.place);
    finish(piece.read, lock);
}

// Lands the read if this was its last piece and what is to be checked of it is right.
void Reader::finish(const ReadPtr& read, std::unique_lock<std::mutex>& lock) {
    if (read->status != kOk) {  // nothing good can follow
        std::erase(read->guess ? guesses_ : demands_, read);
        read->taken = read->bytes;
    }
    if (read->pending()) return;
    if (read->status == kOk && read->to_be_checked(options_.verify)) {
        read->checking = true;  // it may be dropped or become a demand meanwhile
        lock.unlock();
        const double cpu = thread_cpu_seconds();
        const Outcome outcome = read->check();
        const double used = thread_cpu_seconds() - cpu;
        lock.lock();
        read->checking = false;
        (read->landing ? stats_.landing_s : stats_.checksum_s) += used;
        if (outcome.status != kOk)
            read->status = outcome.status, read->detail = static_cast<int64_t>(outcome.place);
    }
    land(read);
}

void Reader::land(const ReadPtr& read) {
    if (read->status == kCancelled) read->detail = static_cast<int64_t>(read->got);
    if (read->status == kOk) stats_.bytes += read->bytes;
    ++stats_.reads;
    landed_.push_back({read->tag, read->status, read->detail});
    std::erase(open_, read);
    if (!read->guess) --demands_left_, ++demands_landed_;
    if (!read->guess || open_.empty()) finished_.notify_all();
}

// Reads with pieces under way land when these end.
void Reader::drop(Queue& queue) {
    for (const ReadPtr& read : std::exchange(queue, {})) {
        read->taken = read->bytes;
        read->status = kCancelled;
        if (!read->pending()) land(read);
    }
}

}  // namespace flashmoe
