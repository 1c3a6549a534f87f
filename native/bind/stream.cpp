#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <system_error>
#include <tuple>

#include "bind/bind.h"
#include "stream/arena.h"
#include "stream/crc32c.h"
#include "stream/landing.h"
#include "stream/reader.h"

namespace flashmoe {
namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;
using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

void expect_inside(const char* where, const Arena& arena, size_t offset, size_t nbytes) {
    const size_t limit = arena.bytes();
    expect(offset <= limit && nbytes <= limit - offset, where,
           "offset + nbytes: expected at most " + std::to_string(limit) + ", got " +
               std::to_string(offset) + " + " + std::to_string(nbytes));
}

Bytes view(nb::pointer_and_handle<Arena> arena, size_t offset, size_t nbytes) {
    expect_inside("Arena.view", *arena.p, offset, nbytes);
    return Bytes(arena.p->data() + offset, {nbytes}, arena.h);
}

void populate(Arena& arena, size_t offset, size_t nbytes, int threads) {
    expect_inside("Arena.populate", arena, offset, nbytes);
    expect(threads >= 1, "Arena.populate", "threads: expected at least 1");
    const nb::gil_scoped_release released;
    arena.populate(offset, nbytes, threads);
}

// Raises OSError for what the system refuses.
template <class Call>
void system_call(Call call) {
    try {
        const nb::gil_scoped_release released;
        return call();
    } catch (const std::system_error& error) {
        errno = error.code().value();
        PyErr_SetFromErrno(PyExc_OSError);
    }
    throw nb::python_error();
}

void release(Arena& arena, size_t offset, size_t nbytes) {
    expect_inside("Arena.release", arena, offset, nbytes);
    system_call([&] { arena.release(offset, nbytes); });
}

void lock(Arena& arena) {
    system_call([&] { arena.lock(); });
}

int open_file(Reader& reader, const std::string& path, bool direct) {
    try {
        const nb::gil_scoped_release released;
        return reader.open(path, direct);
    } catch (const std::system_error& error) {
        errno = error.code().value();
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
    }
    throw nb::python_error();
}

std::vector<std::tuple<int64_t, int, int64_t>> wait(Reader& reader, double timeout_s) {
    std::vector<std::tuple<int64_t, int, int64_t>> results;
    for (const Landed& landed : reader.wait(timeout_s))
        results.emplace_back(landed.tag, landed.status, landed.detail);
    return results;
}

using LandingTuple = std::tuple<int64_t, std::shared_ptr<const Landing>, uintptr_t>;

void submit_landings(Reader& reader, const std::vector<LandingTuple>& requests, bool guess) {
    std::vector<LandingRequest> reads;
    reads.reserve(requests.size());
    for (const auto& [tag, landing, address] : requests) reads.push_back({tag, landing, address});
    const nb::gil_scoped_release released;
    reader.submit(reads, guess);
}

using Request = std::tuple<int64_t, int, uint64_t, size_t, uintptr_t, std::optional<uint32_t>>;

void submit_many(Reader& reader, const std::vector<Request>& requests, bool guess) {
    std::vector<ReadRequest> reads;
    reads.reserve(requests.size());
    for (const auto& [tag, handle, offset, bytes, address, crc] : requests)
        reads.push_back({tag, handle, offset, bytes, address, crc});
    const nb::gil_scoped_release released;
    reader.submit(reads, guess);
}

void submit(Reader& reader, int64_t tag, int handle, uint64_t offset, size_t bytes,
            uintptr_t address, std::optional<uint32_t> crc) {
    reader.submit(std::vector<ReadRequest>{{tag, handle, offset, bytes, address, crc}}, false);
}

void init(Reader* self, int threads, bool verify, size_t demand_piece, size_t guess_piece,
          int guess_depth, int guess_below) {
    new (self) Reader({threads, verify, demand_piece, guess_piece, guess_depth, guess_below});
}

nb::typed<nb::dict, nb::str, double> stats(const Reader& reader) {
    const ReaderStats stats = reader.stats();
    nb::typed<nb::dict, nb::str, double> result;
    result["bytes"] = stats.bytes;
    result["reads"] = stats.reads;
    result["raw_bytes"] = stats.raw_bytes;
    result["busy_s"] = stats.busy_s;
    result["cpu_s"] = stats.cpu_s;
    result["checksum_s"] = stats.checksum_s;
    result["landing_s"] = stats.landing_s;
    result["reading_s"] = stats.reading_s;
    return result;
}

uint32_t checksum(const Array<const uint8_t, 1>& buffer, uint32_t crc, bool portable) {
    const nb::gil_scoped_release released;
    return (portable ? crc32c_portable : crc32c)(buffer.data(), buffer.size(), crc);
}

}  // namespace

void bind_stream(nb::module_& m) {
    nb::class_<Arena>(
        m, "Arena",
        "Memory for weights, 2 MiB aligned. threads: that make it resident; 0: nobody yet.")
        .def(nb::init<size_t, bool, int>(), nb::arg("nbytes"), nb::arg("huge_pages") = true,
             nb::arg("threads") = 1, Released())
        .def_prop_ro("address",
                     [](const Arena& arena) { return reinterpret_cast<uintptr_t>(arena.data()); })
        .def_prop_ro("nbytes", &Arena::bytes)
        .def_prop_ro("huge", &Arena::huge, "Whether the kernel took the advice to use huge pages.")
        .def("huge_bytes", &Arena::huge_bytes, "Bytes that are in huge pages now.")
        .def("populate", &populate, nb::arg("offset"), nb::arg("nbytes"), nb::arg("threads") = 1,
             "Make a part resident; raises MemoryError.")
        .def("release", &release, nb::arg("offset"), nb::arg("nbytes"),
             "Give the whole pages of a part back to the system; they are zeros when next read.")
        .def("lock", &lock, "Keep in memory what is or becomes resident; raises OSError.")
        .def("view", &view, nb::arg("offset"), nb::arg("nbytes"),
             "uint8 [nbytes] of the arena, without a copy; keeps the arena alive.");

    nb::class_<Reader>(m, "Reader", "Threads that read blocks of files into given memory.")
        .def("__init__", &init, nb::arg("threads"), nb::arg("verify") = true,
             nb::arg("demand_piece") = kDemandPiece, nb::arg("guess_piece") = kGuessPiece,
             nb::arg("guess_depth") = kGuessDepth, nb::arg("guess_below") = kGuessBelow,
             "Reads are cut into pieces of so many bytes. Guesses: at most guess_depth pieces at a "
             "time, while fewer than guess_below pieces of demands are being read.")
        .def(
            "open", &open_file, nb::arg("path"), nb::arg("direct") = true,
            "Returns a handle; raises OSError. direct: past the page cache where that is possible.")
        .def("direct", &Reader::direct, nb::arg("handle"), "Whether reads go past the page cache.")
        .def("close_file", &Reader::close_file, nb::arg("handle"))
        .def("submit", &submit, nb::arg("tag"), nb::arg("handle"), nb::arg("offset"),
             nb::arg("nbytes"), nb::arg("address"), nb::arg("crc").none() = nb::none(),
             "Queue a read; the memory must stay until it has landed.")
        .def("submit_many", &submit_many, nb::arg("reads"), nb::arg("guess") = false,
             "Queue reads, tuples of the arguments of submit; all or, where one is refused, none. "
             "Guesses are read only while the disk is idle.")
        .def(
            "submit_landings", &submit_landings, nb::arg("reads"), nb::arg("guess") = false,
            "Queue experts of a checkpoint, (tag, landing, address of the record), as submit_many.")
        .def("keep_guesses", &Reader::keep_guesses, nb::arg("tags"), Released(),
             "Guesses with these tags become demands; all others are dropped, without waiting.")
        .def("wait", &wait, nb::arg("timeout_s"), Released(),
             "[(tag, status, detail)] of what has landed; blocks until a demand has, or none is "
             "left. Status: 0 good, > 0 errno, -1 short (detail: bytes got), -2 bad checksum "
             "(detail: the one found), -3 cancelled (detail: bytes read in vain). Of landings the "
             "detail is the index of the piece, where -4 means that the file has changed; after -5 "
             "(a weight is not finite) that of the move, or of all moves and then the blob.")
        .def("cancel", &Reader::cancel, Released(), "Drop what has not started, wait for the rest.")
        .def("stats", &stats,
             "bytes, reads, raw_bytes (cancelled reads too); busy_s, cpu_s, checksum_s (summed "
             "over threads), landing_s (turning bytes into records); reading_s (in which something "
             "was being read).");

    m.def("crc32c", &checksum, nb::arg("buffer"), nb::arg("crc") = 0, nb::arg("portable") = false,
          "CRC-32C of bytes or a uint8 array, continuing crc; portable: without SSE4.2.");
}

}  // namespace flashmoe
