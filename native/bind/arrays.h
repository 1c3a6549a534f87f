// Checked views of the arrays that Python hands over. Unconstrained ndarray parameters are used on
// purpose: nanobind would convert a constrained one by copying it, and lose what an op writes.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "bind/bind.h"

namespace flashmoe {

using In = nb::ndarray<nb::ro, nb::device::cpu>;
using Out = nb::ndarray<nb::device::cpu>;

constexpr int64_t kAny = -1;
using Shape = std::initializer_list<int64_t>;

inline std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i)
        text += (i ? ", " : "") + (shape[i] == kAny ? "any" : std::to_string(shape[i]));
    return text + "]";
}

inline std::string dtype_text(nb::dlpack::dtype dtype) {
    switch (static_cast<nb::dlpack::dtype_code>(dtype.code)) {
        case nb::dlpack::dtype_code::Int:
            return "int" + std::to_string(dtype.bits);
        case nb::dlpack::dtype_code::UInt:
            return "uint" + std::to_string(dtype.bits);
        case nb::dlpack::dtype_code::Float:
            return "float" + std::to_string(dtype.bits);
        case nb::dlpack::dtype_code::Bfloat:
            return "bfloat" + std::to_string(dtype.bits);
        default:
            return "dtype code " + std::to_string(dtype.code);
    }
}

[[noreturn]] inline void mismatch(const char* op, const char* name, const std::string& expected,
                                  const std::string& got) {
    throw std::invalid_argument("[" + std::string(op) + "] " + name + ": expected " + expected +
                                ", got " + got);
}

// Throws unless array has this dtype and shape; kAny fits every extent.
template <typename Array>
void expect_array(const char* op, const char* name, const Array& array, nb::dlpack::dtype dtype,
                  Shape shape) {
    bool fits = array.dtype() == dtype && array.ndim() == shape.size();
    std::vector<int64_t> got;
    for (size_t i = 0; i < array.ndim(); ++i) got.push_back(array.shape(i));
    for (size_t i = 0; fits && i < got.size(); ++i)
        fits = shape.begin()[i] == kAny || shape.begin()[i] == got[i];
    if (!fits)
        mismatch(op, name, dtype_text(dtype) + " " + shape_text(shape),
                 dtype_text(array.dtype()) + " " + shape_text(got));
}

// Throws unless the last `dims` dimensions lie in memory without gaps, in order. An array without
// elements has no strides worth checking.
template <typename Array>
void expect_packed(const char* op, const char* name, const Array& array, size_t dims) {
    if (array.size() == 0) return;
    int64_t stride = 1;
    for (size_t i = array.ndim(); i-- > array.ndim() - dims;) {
        if (array.shape(i) != 1 && array.stride(i) != stride)
            mismatch(op, name,
                     "stride " + std::to_string(stride) + " in dimension " + std::to_string(i),
                     std::to_string(array.stride(i)));
        stride *= static_cast<int64_t>(array.shape(i));
    }
}

// The data of a C-contiguous array of type T and this shape.
template <typename T>
const T* input(const char* op, const char* name, const In& array, Shape shape) {
    expect_array(op, name, array, nb::dtype<T>(), shape);
    expect_packed(op, name, array, array.ndim());
    return static_cast<const T*>(array.data());
}

template <typename T>
T* output(const char* op, const char* name, const Out& array, Shape shape) {
    expect_array(op, name, array, nb::dtype<T>(), shape);
    expect_packed(op, name, array, array.ndim());
    return static_cast<T*>(array.data());
}

// Float rows [tokens, heads, dim] that may lie apart: only the last dimension is contiguous.
template <typename Float>
struct StridedView {
    Float* data;
    int64_t token_stride, head_stride;
};
using StridedRows = StridedView<const float>;
using StridedOut = StridedView<float>;

inline StridedRows strided_rows(const char* op, const char* name, const In& array, Shape shape) {
    expect_array(op, name, array, nb::dtype<float>(), shape);
    expect_packed(op, name, array, 1);
    return {static_cast<const float*>(array.data()), array.stride(0), array.stride(1)};
}

inline StridedOut strided_out(const char* op, const char* name, const Out& array, Shape shape) {
    expect_array(op, name, array, nb::dtype<float>(), shape);
    expect_packed(op, name, array, 1);
    return {static_cast<float*>(array.data()), array.stride(0), array.stride(1)};
}

// Extent i of an array whose number of dimensions has yet to be checked: 0 if it has too few.
template <typename Array>
int64_t extent(const Array& array, size_t i) {
    return i < array.ndim() ? static_cast<int64_t>(array.shape(i)) : 0;
}

// Throws unless topk experts fit into the chosen ones of equal groups.
inline void expect_groups(const char* op, int64_t experts, int64_t groups, int64_t chosen_groups,
                          int64_t topk) {
    expect(groups >= 1 && experts % groups == 0, op,
           "groups: expected a divisor of " + std::to_string(experts) + ", got " +
               std::to_string(groups));
    expect(1 <= chosen_groups && chosen_groups <= groups, op,
           "chosen_groups: expected 1 to " + std::to_string(groups) + ", got " +
               std::to_string(chosen_groups));
    const int64_t within = experts / groups * chosen_groups;
    expect(
        1 <= topk && topk <= within, op,
        "ids: expected 1 to " + std::to_string(within) + " columns, got " + std::to_string(topk));
}

}  // namespace flashmoe
