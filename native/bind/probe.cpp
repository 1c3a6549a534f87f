#include "cpu/probe/probe.h"

#include "bind/bind.h"
#include "flashmoe/pool.h"

namespace flashmoe {

void bind_probe(nb::module_& m) {
    m.def(
        "read_sum",
        [](Pool& pool, Array<const uint8_t, 1> data) {
            expect(reinterpret_cast<uintptr_t>(data.data()) % 8 == 0, "read_sum",
                   "data: expected an address that is a multiple of 8");
            const nb::gil_scoped_release unlocked;
            return read_sum(pool, data.data(), static_cast<int64_t>(data.size()));
        },
        nb::arg("pool"), nb::arg("data").noconvert(),
        "Sum of the 8-byte words of data (whole 128-byte lines of it), modulo 2^64: read "
        "bandwidth.");
    m.def(
        "int8_work",
        [](Pool& pool, int64_t rounds) {
            const nb::gil_scoped_release unlocked;
            return int8_work(pool, rounds);
        },
        nb::arg("pool"), nb::arg("rounds"),
        "Run int8 multiply-adds in registers on every thread; returns the operations done.");
    m.def(
        "float_work",
        [](Pool& pool, int64_t rounds) {
            const nb::gil_scoped_release unlocked;
            return float_work(pool, rounds);
        },
        nb::arg("pool"), nb::arg("rounds"),
        "Run float32 multiply-adds in registers on every thread; returns the operations done.");
}

}  // namespace flashmoe
