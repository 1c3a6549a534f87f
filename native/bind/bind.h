// What the binding files share: array types and the checks of the seam.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace flashmoe {

namespace nb = nanobind;

template <typename T, int N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <typename T, int N>
using Strided = nb::ndarray<T, nb::ndim<N>, nb::device::cpu>;

// Throws "[op] name: expected X, got Y" (a ValueError in Python) unless the two are equal.
inline void expect_equal(const char* op, const char* name, int64_t expected, int64_t got) {
    if (expected == got) return;
    throw std::invalid_argument("[" + std::string(op) + "] " + name + ": expected " +
                                std::to_string(expected) + ", got " + std::to_string(got));
}

// Throws "[op] rule" unless ok.
inline void expect(bool ok, const char* op, const std::string& rule) {
    if (!ok) throw std::invalid_argument("[" + std::string(op) + "] " + rule);
}

void bind_core(nb::module_& m);
void bind_codec(nb::module_& m);
void bind_linear(nb::module_& m);
void bind_landing(nb::module_& m);
void bind_layers(nb::module_& m);
void bind_parts(nb::module_& m);
void bind_probe(nb::module_& m);
void bind_residents(nb::module_& m);
void bind_stream(nb::module_& m);

}  // namespace flashmoe
